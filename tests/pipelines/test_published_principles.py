"""The paper's own file of principles, read as it is, through the pipeline."""

import json

import pandas as pd

from sami_pipeline.evaluation.statistics import MT_BENCH_CATEGORIES


def test_strong_wordings_train_and_weak_ones_evaluate(
    kedro_run, run_name, changed_conf, project_folder, tmp_path
):
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    entries = {
        f"all.{number}": {
            "strong": f"Surely, always do {number}.",
            "weak": f"Do {number}.",
            "antithesis": f"Never do {number}.",
            "relevant_for": list(MT_BENCH_CATEGORIES),
        }
        for number in ("one", "two")
    }
    (prompts / "published.json").write_text(json.dumps(entries))
    entry = {
        "type": "partitions.PartitionedDataset",
        "path": str(prompts),
        "filename_suffix": ".json",
        "dataset": {"type": "sami_pipeline.datasets.StrictYamlDataset"},
    }
    conf = changed_conf("catalog/principles.yml", {"mt_bench.principle_files": entry})
    name = run_name()
    finished = kedro_run(
        "--env", "test", "--conf-source", str(conf),
        "--to-outputs", "mt_bench.question_constitutions,mt_bench.responses",
        "--params", f"run_name={name},mt_bench.constitutions.contrast=pairs",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-2000:]
    features = project_folder / "data" / "04_feature" / name / "mt_bench"
    asked = pd.read_parquet(features / "question_constitutions.parquet")
    desired = asked[asked["constitution"] == "desired"]["text"]
    assert desired.str.contains(r"Do (?:one|two)\.").all()
    assert not asked["text"].str.contains("Surely").any()
    responses = next((project_folder / "data").glob(f"0*/{name}/mt_bench/responses.parquet"))
    trained = pd.read_parquet(responses)
    for prompts_written in (trained["prompt"], trained["training_prompt"]):
        assert prompts_written.str.contains("Surely, always").any()
        assert not prompts_written.str.contains(r"[ \"n]Do (?:one|two)\.").any()
    pairs = trained.groupby(["query_id", "grid"])["constitution_index"].count()
    assert set(pairs) == {2}
    assert trained.groupby("query_id")["grid"].nunique().eq(2).all()
