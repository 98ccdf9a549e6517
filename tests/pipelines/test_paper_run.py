"""Both experiments of arXiv 2410.01704 as conf/paper designs them, on a two-layer model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from sami_pipeline.evaluation.statistics import MT_BENCH_CATEGORIES

POSTS = ["I lost my dog.", "My cat sings.", "We moved north.", "It rains again."]
# Tables of the columns that the published sets have.
TABLES: dict[str, list[dict[str, Any]]] = {
    "math": [{"problem": f"Solve: {text}"} for text in POSTS],
    "roleplay": [{"input_text": f"User: You are a king. {text} Bot:"} for text in POSTS],
    "coding": [{"instruction": f"Write a sort. {text}"} for text in POSTS],
    "gsm_hard": [{"input": f"Ann has 3. {text}"} for text in POSTS],
    "extraction": [{"info": {"post": text}} for text in POSTS],
    "stem": [{"input": f"What is a volt? {text}"} for text in POSTS],
    "reasoning": [{"turns": [f"Who lies? {text} Think step by step, now."]} for text in POSTS],
    "writing": [{"conversation": [{"role": "user", "content": f"Ode: {text}"}]} for text in POSTS],
}
# In the form of the published file of principles.
PRINCIPLES = {
    f"all.{number}": {
        "strong": f"Surely, always do {number}.",
        "weak": f"Do {number}.",
        "antithesis": f"Never do {number}.",
        "relevant_for": list(MT_BENCH_CATEGORIES),
    }
    for number in ("one", "two")
}
SMALL: dict[str, Any] = {
    "models": {"sources": {"base": "random:0", "teacher": "random:1"}},
    "generation": {
        "engine": {"kind": "transformers"},
        "max_new_tokens": 12,
        "keep_truncated": True,
        "held_out_per_category": 1,
    },
    "training": {"sami": {"weights": "float32", "compute_dtype": "float32"}},
}
SIZES = {
    "mt_bench": {
        "evaluation": {
            "engine": {"kind": "transformers"},
            "max_new_tokens": 12,
            "questions_per_category": 1,
            "resamples": 100,
            "trained_wording": True,
        },
        "judge": {"model": "base", "answer_format": "choice", "engine": {"kind": "transformers"}},
    },
    "math": {
        "models": {"sources": {"base": "random:0"}},
        "problems": {"train": 8, "test": 2},
        "generation": {
            "filters": {
                "minimum_characters": 5,
                "minimum_length_ratio": 1.05,
                "minimum_edit_distance": 0.2,
            }
        },
        "accuracy": {"engine": {"kind": "transformers"}, "max_new_tokens": 8},
    },
    "align": {
        "models": {"sources": {"base": "random:0"}},
        "split": {"most": 24, "test": 0.2, "held_out": 0.1},
        "training": {"sami": {"batch_size": 1, "optimiser_state": "float32"}},
        "evaluation": {
            "engine": {"kind": "transformers"},
            "max_new_tokens": 12,
            "resamples": 100,
        },
        "judge": {"model": "base", "answer_format": "choice", "engine": {"kind": "transformers"}},
    },
}
# In the form of the published constitutions.
SUMMARIES = {
    "positive": "1. Be concise. \n2. Be comprehensive.",
    "negative": "1. Be long-winded. \n2. Be comprehensive.",
    "identifiers": {
        "positive": ["pos concise", "pos comprehensive"],
        "negative": ["neg concise", "pos comprehensive"],
    },
}


@pytest.fixture(scope="module")
def paper_run(kedro_run, run_name, project_folder, merged, tmp_path_factory):
    """Return a function that runs conf/paper's design in small: its own files, sizes changed."""

    def run(experiment: str, changes: dict[str, Any], entries: dict[str, str]) -> Path:
        conf = Path(shutil.copytree(project_folder / "conf", tmp_path_factory.mktemp("c") / "conf"))
        sizes = merged(merged(SMALL, SIZES[experiment]), changes)
        written = yaml.safe_load((conf / f"paper/parameters/{experiment}.yml").read_text("utf-8"))
        (conf / f"test/parameters/{experiment}.yml").write_text(
            yaml.safe_dump({experiment: merged(written[experiment], sizes)}), "utf-8"
        )
        catalog: dict[str, Any] = {}
        for file in (conf / "paper/catalog").glob("*.yml"):
            catalog |= yaml.safe_load(file.read_text("utf-8"))
        for name, path in entries.items():
            catalog[name]["path" if "path" in catalog[name] else "filepath"] = path
            if path.endswith("prompts"):
                catalog[name]["filename_suffix"] = ".json"
        (conf / "test/catalog").mkdir()
        (conf / "test/catalog/paper.yml").write_text(yaml.safe_dump(catalog), "utf-8")
        name = run_name()
        finished = kedro_run(
            "--env", "test", "--conf-source", str(conf), "--params", f"run_name={name}",
            pipeline=experiment,
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr[-3000:]
        return project_folder / "data", name

    return run


class Results:
    """The tables of a run."""

    def __init__(self, data: Path, run: str, experiment: str) -> None:
        self.found = {path.stem: path for path in data.glob(f"0*/{run}/{experiment}/*.parquet")}
        self.models = data / "06_models" / run / experiment
        self.report = data / "08_reporting" / run / experiment / "report.html"

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.found[name])


@pytest.fixture(scope="module")
def mt_bench(paper_run, tmp_path_factory) -> Results:
    folder = tmp_path_factory.mktemp("mt_bench")
    entries = {"mt_bench.principle_files": str(folder / "prompts")}
    (folder / "prompts").mkdir()
    (folder / "prompts/mt_bench_constitution.json").write_text(json.dumps(PRINCIPLES))
    for name, rows in TABLES.items():
        pd.DataFrame(rows).to_parquet(folder / f"{name}.parquet")
        entries[f"mt_bench.query_table_{name}"] = str(folder / f"{name}.parquet")
    return Results(*paper_run("mt_bench", {}, entries), "mt_bench")


@pytest.fixture(scope="module")
def math(paper_run, tmp_path_factory) -> Results:
    folder = tmp_path_factory.mktemp("math")
    solved = [{"problem": f"Add 1 and {n}.", "solution": rf"\boxed{{{n + 1}}}"} for n in range(8)]
    pd.DataFrame(solved).to_parquet(folder / "math.parquet")
    for split in ("train", "test"):
        asked = [{"question": f"{split} {n}?", "answer": f"So\n#### {n}"} for n in range(3)]
        pd.DataFrame(asked).to_parquet(folder / f"{split}.parquet")
    problems = {
        "training_source": f"math:{folder}/math.parquet",
        "source": f"gsm8k:{folder}/{{split}}.parquet",
    }
    return Results(*paper_run("math", {"problems": problems}, {}), "math")


@pytest.fixture(scope="module")
def summaries(paper_run, tmp_path_factory) -> Results:
    folder = tmp_path_factory.mktemp("summaries")
    # Each post stands there with two pairs of summaries.
    posts = [{"info": {"post": f"{text} {n}"}} for text in POSTS for n in range(6)] * 2
    pd.DataFrame(posts).to_parquet(folder / "posts.parquet")
    (folder / "constitutions").mkdir()
    other = {
        "positive": SUMMARIES["positive"],
        "negative": "1. Be concise. \n2. Leave much out.",
        "identifiers": {
            "positive": ["pos concise", "pos comprehensive"],
            "negative": ["pos concise", "neg comprehensive"],
        },
    }
    for number, content in enumerate((SUMMARIES, other)):
        (folder / "constitutions" / f"{number}.json").write_text(json.dumps(content))
    places = {"queries": f"{folder}/posts.parquet", "principles": f"{folder}/constitutions"}
    return Results(*paper_run("align", places, {}), "align")


def test_the_first_papers_summaries_are_taught_in_three_iterations_and_judged(summaries):
    assert set(summaries.table("principles")["principle"]) == {"concise", "comprehensive"}
    queries = summaries.table("queries")
    assert queries["query"].is_unique
    assert queries["query"].str.startswith("Summarise this post.\n\n").all()
    made = json.loads((summaries.models / "sami" / "provenance.json").read_text("utf-8"))
    assert made["iteration"] == 3
    assert made["student"] == json.loads(
        (summaries.models / "base" / "provenance.json").read_text("utf-8")
    )
    rates = summaries.table("win_rates")
    assert set(rates["judge"]) == {"constitution"}
    assert set(zip(rates["model"], rates["opponent"], strict=True)) == {("sami", "base")}
    assert "SAMI on your own queries and principles" in summaries.report.read_text("utf-8")


def test_dpo_and_sami_go_on_from_sft_and_are_compared_with_it(mt_bench):
    models = ["base", "dpo", "sami", "sft", "sft_dpo", "sft_sami"]
    assert set(mt_bench.table("answers")["model"]) == set(models)
    compared = mt_bench.table("win_rates")[["model", "opponent"]].drop_duplicates()
    against = compared[compared["opponent"] == "sft"]["model"]
    assert set(against) == set(models) - {"sft"}
    assert {"dpo", "sami", "sft", "sft_dpo", "sft_sami"} == set(mt_bench.table("history")["model"])
    for model in ("sft_dpo", "sft_sami"):
        made = json.loads((mt_bench.models / model / "provenance.json").read_text("utf-8"))
        assert made["student"]["method"] == "sft"
    assert "SAMI on MT-Bench" in mt_bench.report.read_text("utf-8")


def test_published_sets_give_the_queries(mt_bench):
    queries = mt_bench.table("queries")
    assert set(queries["source"]) == {f"query_table_{name}" for name in TABLES}
    assert not queries["query"].str.contains("Think step by step|Bot:").any()
    coding = queries[queries["category"] == "coding"]["query"]
    assert coding.str.endswith("Write a Python function that solves this problem.").sum() == 4


def test_strong_wordings_train_and_weak_ones_evaluate(mt_bench):
    asked = mt_bench.table("question_constitutions")
    desired = asked[asked["constitution"] == "desired"]["text"]
    assert desired.str.contains(r"Do (?:one|two)\.").all()
    assert not desired.str.contains("Surely").any()
    again = asked[asked["constitution"] == "desired_trained_wording"]["text"]
    assert len(again) == len(desired)
    assert again.str.contains("Surely, always").all()
    trained = mt_bench.table("responses")
    for prompts in (trained["prompt"], trained["training_prompt"]):
        assert prompts.str.contains("Surely, always").any()
        assert not prompts.str.contains(r"[ \"n]Do (?:one|two)\.").any()


def test_pairs_of_different_constitutions_are_asked_and_trained_in_plain_text(mt_bench):
    trained = mt_bench.table("responses")
    assert set(trained.groupby(["query_id", "grid"])["constitution_index"].count()) == {2}
    assert trained.groupby("query_id")["grid"].nunique().eq(2).all()
    assert trained["prompt"].str.contains("### Main Task").all()
    begins = '{"text": "Assistant System Instructions: '
    assert trained["training_prompt"].str.startswith(begins).all()
    assert {"usable"} <= set(trained["status"])


def test_the_student_teaches_itself_in_two_ways_to_begin(math):
    trained = math.table("responses")
    assert set(trained["query_id"].str.split("-").str[0]) == {"math"}
    for row in trained.itertuples():
        steps = dict(json.loads(row.stances))["steps"] == "principle"
        begin = "A: Let's think step by step." if steps else "A: Happy to help! The answer"
        for prompt in (row.prompt, row.training_prompt):
            assert json.loads(prompt)["text"].endswith(begin)
    steps = trained["stances"].map(lambda text: dict(json.loads(text))["steps"])
    assert set(steps.groupby([trained["query_id"], trained["grid"]]).nunique()) == {2}


def test_test_problems_are_asked_under_no_constitution_up_to_32_times(math):
    attempts = math.table("attempts")
    assert set(attempts["model"]) == {"base", "sami", "sft", "sft_sami"}
    assert set(attempts.groupby(["model", "problem_id"]).size()) == {33}
    assert attempts["problem_id"].str.startswith("gsm8k-test-").all()
    text = attempts["prompt"].map(lambda prompt: json.loads(prompt)["text"])
    assert text.str.fullmatch(r"Q: test \d\?\nA: Let's think step by step\. First,").all()
    accuracy = math.table("accuracy")
    assert set(accuracy.loc[accuracy["metric"] == "pass_at_k", "k"]) == {1, 10, 32}
