"""The whole experiment on a two-layer model, run as a user runs it."""

import base64
import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import plotly.io
import pytest
import torch
from more_bad_inputs import write_gguf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sami_pipeline.engines import (
    EngineParameters,
    GenerationRequest,
    SamplingParameters,
    generate,
    open_engine,
)
from sami_pipeline.models.prompts import Prompt

TABLES = {
    "questions",
    "judge_prompts",
    "queries",
    "principles",
    "constitutions",
    "generations",
    "responses",
    "response_counts",
    "teacher_compliance",
    "history",
    "held_out",
    "question_constitutions",
    "answers",
    "checked",
    "verdicts",
    "win_rates",
    "held_out_lengths",
    "length_controlled",
    "judge_quality",
    "compliance",
    "compliance_difference",
    "degeneration",
}
# They depend on the machine and on what else it does.
MEASURED = ["tokens_per_second", "peak_memory_bytes"]
CELL = ["category", "n", "rows"]


def decoded(values: Any) -> list:
    """Return the values of an axis, which plotly may write as base64."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).tolist()
    return list(values)


class Results:
    """What a run left on disk and on the screen."""

    def __init__(self, project: Path, name: str, finished) -> None:
        self.project = project
        self.name = name
        self.finished = finished
        self.layers = {path.parent.name: path for path in (project / "data").glob(f"*/{name}")}

    def table_paths(self) -> dict[str, Path]:
        return {
            str(path.relative_to(folder / "mt_bench").with_suffix("")): path
            for folder in self.layers.values()
            for path in folder.rglob("*.parquet")
        }

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.table_paths()[name])

    def path(self, layer: str, *parts: str) -> Path:
        return self.layers[layer].joinpath("mt_bench", *parts)


@pytest.fixture(scope="module")
def runs(kedro_run, run_name, project_folder) -> SimpleNamespace:
    """Two runs of the same experiment under different names, which hash texts differently."""
    results = []
    for variables in (None, {"PYTHONHASHSEED": "1"}):
        name = run_name()
        finished = kedro_run("--env", "test", "--params", f"run_name={name}", variables=variables)
        assert finished.returncode == 0, finished.stderr[-3000:]
        results.append(Results(project_folder, name, finished))
    return SimpleNamespace(first=results[0], second=results[1])


@pytest.fixture(scope="module")
def run(runs) -> Results:
    return runs.first


def test_every_table_is_there_and_has_rows(run):
    names = set(run.table_paths())
    assert names >= TABLES
    for name in names:
        assert len(run.table(name)) > 0, name


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("win_rates", ["judge", "constitution", "turn", "model", "opponent", *CELL]),
        ("length_controlled", ["judge", "constitution", "turn", "model", "opponent", "method"]),
        (
            "judge_quality",
            ["judge", "reference", "constitution", "category", "metric", "n", "rows"],
        ),
        ("compliance", ["model", "constitution", "stance", "turn", "principle", *CELL]),
        ("compliance_difference", ["model", "baseline", "constitution", "stance", "turn", *CELL]),
        ("degeneration", ["model", "constitution", "turn", *CELL]),
    ],
)
def test_table_of_results_has_the_columns_of_its_contract_first(run, name, columns):
    assert run.table(name).columns.tolist()[: len(columns)] == columns


@pytest.mark.parametrize("name", ["win_rates", "compliance", "compliance_difference"])
def test_tables_of_differences_say_over_what_and_whether_it_could_be_chance(run, name):
    table = run.table(name)
    assert {"constitution", "n", "rows", "p_value", "p_holm"} <= set(table)
    assert (table["n"] <= table["rows"]).all()
    assert set(table["constitution"]) == {"desired", "contrasting"}
    both = table["turn"] == "both"
    assert (table.loc[both & (table["category"] == "overall"), "n"] == 8).any(), "questions"


def test_results_are_summed_up_for_every_category_and_both_overalls(run):
    categories = set(run.table("questions")["category"]) | {"overall", "overall_paper"}
    assert len(categories) == 10
    for name in ("win_rates", "compliance", "compliance_difference", "degeneration"):
        assert set(run.table(name)["category"]) == categories, name
    matches = set(run.table("win_rates")[["model", "opponent"]].itertuples(index=False, name=None))
    assert matches == {("sami", "base"), ("dpo", "base"), ("sami", "dpo")}


def test_win_rates_of_the_turns_add_up_for_every_pair_and_category(run):
    table = run.table("win_rates")
    counts = ["rows", "wins", "ties", "losses", "invalid"]
    key = ["constitution", "model", "opponent", "category"]
    cells = table.pivot(index=key, columns="turn", values=counts).fillna(0)
    assert len(cells) == 2 * 3 * 10
    for count in counts:
        assert (cells[count]["both"] == cells[count]["1"] + cells[count]["2"]).all()


def test_every_model_responds_to_the_held_out_queries_under_both_constitutions(run):
    responses = run.table("responses")
    held_out = responses[responses["split"] == "held_out"]
    assert len(held_out) == 2 * 8
    lengths = run.table("held_out_lengths").set_index(["model", "constitution"])
    assert set(lengths.index) == {
        (model, side) for model in ("base", "sami", "dpo") for side in ("desired", "contrasting")
    }
    key = ["query_id", "constitution_index"]
    for model in ("base", "sami", "dpo"):
        own = run.table(f"{model}/held_out_responses")
        asked = own.set_index(key)["prompt"].sort_index()
        pd.testing.assert_series_equal(
            asked, held_out.set_index(key)["training_prompt"].sort_index(), check_names=False
        )
        for side, rows in own.groupby("constitution"):
            assert lengths.loc[(model, side), "n"] == len(rows) == 8
            mean = rows["completion_tokens"].mean()
            assert lengths.loc[(model, side), "mean_tokens"] == pytest.approx(mean)


def test_length_is_controlled_for_every_pair_over_all_its_verdicts(run):
    verdicts, table = run.table("verdicts"), run.table("length_controlled")
    key = ["constitution", "model", "opponent"]
    pairs = verdicts.groupby(key).size()
    both = table[table["turn"] == "both"]
    assert len(both) == 2 * len(pairs) == 12
    for row in both.itertuples():
        assert row.rows == pairs[row.constitution, row.model, row.opponent]
        assert row.n_longer <= row.rows


def test_the_checklist_alone_is_judged_by_what_needs_no_other_judge(run):
    table = run.table("judge_quality")
    assert set(table["metric"]) == {"invalid_rate", "longer_preferred"}
    assert (table["judge"] == "checklist").all()
    rates = table[(table["metric"] == "invalid_rate") & (table["category"] == "overall")]
    assert rates["rows"].sum() == len(run.table("verdicts"))
    assert (rates["value"] == 0).all()


def test_there_is_one_answer_for_each_model_question_turn_and_constitution(run):
    answers = run.table("answers")
    asked = run.table("question_constitutions")["query_id"].unique()
    assert len(asked) == 8, "the test environment asks one question of each category"
    expected = {
        (model, question, turn, constitution)
        for model in ("base", "sami", "dpo")
        for question in asked
        for turn, constitution in [
            (1, "desired"), (1, "contrasting"), (1, "none"), (2, "desired"), (2, "none"),
        ]
    }  # fmt: skip
    key = ["model", "question_id", "turn", "constitution"]
    assert set(answers[key].itertuples(index=False, name=None)) == expected
    assert len(answers) == len(expected)


def test_both_models_are_asked_the_same_at_turn_one_and_build_on_their_own_answers(run):
    answers = run.table("answers")
    key = ["question_id", "constitution"]
    first = answers[answers["turn"] == 1].set_index(["model", *key])
    assert first.loc["base", "prompt"].sort_index().equals(first.loc["sami", "prompt"].sort_index())
    for row in answers[answers["turn"] == 2].itertuples():
        own = first.loc[(row.model, row.question_id, row.constitution), "answer"]
        assert own in Prompt.from_json(row.prompt).text, "a plain prompt holds the first answer"


def test_nothing_is_lost_between_queries_and_grids(run):
    responses, counts = run.table("responses"), run.table("response_counts")
    assert len(responses) == len(run.table("generations"))
    assert counts["queries"].sum() == responses["query_id"].nunique() == 16
    trained = responses[(responses["status"] == "usable") & (responses["split"] == "train")]
    provenance = json.loads(run.path("06_models", "sami", "provenance.json").read_text())
    assert provenance["grids"] == trained["query_id"].nunique()
    steps = run.table("history").groupby("model").size()
    assert provenance["optimiser_steps"] == steps["sami"] == steps["dpo"], "the same budget"


def test_page_of_results_says_what_the_tables_say(run, monkeypatch):
    monkeypatch.syspath_prepend(run.project / "benchmarks")
    page = importlib.import_module("results").page(run.name)
    table = run.table("compliance")
    asked = (table["constitution"] == "desired") & (table["stance"] == "principle")
    whole = (table["principle"] == "all") & (table["category"] == "overall")
    for _, row in table[asked & whole & (table["turn"] == "1")].iterrows():
        share, low, high = (
            f"{100 * row[name]:.0f}" for name in ("compliance", "ci_low", "ci_high")
        )
        assert f"| {row['model']} | {share} [{low}, {high}] |" in page
    assert "sami against base" in page
    assert page.count("constant text | desired") == table["model"].nunique()


def test_screen_ends_with_the_outcome_and_its_cautions_in_ten_lines(run):
    shown = run.finished.stdout.strip().splitlines()
    assert shown[0] == "mt_bench: what came out"
    assert len(shown) <= 11 and shown[-1].startswith("Finished in ")
    assert shown[-2] == f"All runs: {run.path('08_reporting').parents[1].as_uri()}/index.html"
    row = run.table("compliance_difference").query(
        "model == 'sami' and category == 'overall' and turn == '1' "
        "and constitution == 'desired' and stance == 'principle'"
    )
    value = f"{100 * row['difference'].iloc[0]:+.1f}".replace("-", "−")
    assert f"Principles followed: sami against base {value} points" in shown[1]
    assert any(line.startswith("  Caution: ") for line in shown)
    assert shown[-3] == f"Report: {run.path('08_reporting', 'report.html').as_uri()}"


def test_screen_says_what_runs_where_it_is_and_what_models_write_without_noise(run):
    shown = run.finished.stderr
    stages = re.findall(r"INFO (\d+) of (\d+): (.+)", shown)
    assert [int(number) for number, _, _ in stages] == list(range(1, int(stages[0][1]) + 1))
    assert shown.index("nodes in") < shown.index("1 of ")
    titles = [title.partition(",")[0] for _, _, title in stages]
    assert {"sami is trained", "base answers the questions", "the report"} <= set(titles)
    assert "asked for the principle" in shown and "asked for the opposite of" in shown
    _, trained = shown.split("sami is trained", 1)
    during, *_ = re.split(r"INFO \d+ of \d+: ", trained)
    assert re.search(
        r"sami after 1 step, n = \d+ held-out quer\w+: row accuracy 0\.\d\d to", during
    )
    for noise in ("Running node", "Completed", "--async", "type hints", "FutureWarning",
                  "Loading weights", "logging configuration"):  # fmt: skip
        assert noise not in shown, noise


def test_progress_and_log_do_not_mix_with_the_results(run):
    assert "it/s]" not in run.finished.stdout
    assert "Traceback" not in run.finished.stderr


def test_html_figure_needs_no_network(run):
    page = run.path("08_reporting", "win_rates.html").read_text("utf-8")
    assert "<html>" in page
    assert "Plotly.newPlot" in page
    assert not re.search(r"<script[^>]*\ssrc\s*=", page)
    assert not re.search(r"<link[^>]*\shref\s*=\s*['\"]https?:", page)
    assert len(page) > 1_000_000, "plotly itself is inside"


@pytest.mark.parametrize(
    "name", ["win_rates", "compliance", "questions", "lengths", "learning_curve"]
)
def test_json_figure_loads_as_a_plotly_figure_with_title_and_data(run, name):
    figure = plotly.io.read_json(run.path("08_reporting", f"{name}.json"))
    assert figure.layout.title.text
    assert len(figure.data) > 0
    for trace in figure.data:
        assert len(decoded(trace.x)) == len(decoded(trace.y)) > 0


def test_figure_shows_the_adjusted_win_rates_of_the_table(run):
    figure = plotly.io.read_json(run.path("08_reporting", "win_rates.json"))
    table = run.table("win_rates")
    panels = [("desired", "1"), ("desired", "both"), ("contrasting", "1")]
    drawn = {(trace.name, trace.xaxis): trace for trace in figure.data}
    assert len(drawn) == 3 * len(panels)
    for panel, (constitution, turn) in enumerate(panels, start=1):
        asked = table[(table["constitution"] == constitution) & (table["turn"] == turn)]
        for (model, opponent), rows in asked.groupby(["model", "opponent"]):
            axis = "x" if panel == 1 else f"x{panel}"
            dots = drawn[f"{model} against {opponent}", axis]
            expected = 100 * rows["adjusted_win_rate"]
            assert decoded(dots.x) == pytest.approx(expected.tolist(), nan_ok=True)


def test_same_experiment_under_another_name_gives_identical_tables(runs):
    one, other = runs.first.table_paths(), runs.second.table_paths()
    assert set(one) == set(other)
    for name in one:
        tables = [results.table(name) for results in (runs.first, runs.second)]
        if name.endswith("history"):
            tables = [table.drop(columns=MEASURED) for table in tables]
        pd.testing.assert_frame_equal(*tables, check_exact=True, obj=name)


def test_same_experiment_under_another_name_gives_the_same_weights(runs):
    for model in ("sami", "dpo"):
        one, other = (
            load_file(results.path("06_models", model, "model.safetensors"))
            for results in (runs.first, runs.second)
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_training_moved_the_weights(run):
    base, *trained = (
        load_file(run.path("06_models", model, "model.safetensors"))
        for model in ("base", "sami", "dpo")
    )
    for model in trained:
        assert any(not torch.equal(base[name], model[name]) for name in base)
    assert (run.table("history")["weights_moved"] > 0).all()


def test_trained_checkpoint_reloads_with_plain_transformers_and_generates(run):
    folder = run.path("06_models", "sami")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    output = model.generate(**prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert output.shape[1] == prompt["input_ids"].shape[1] + 5
    assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth")]


def test_two_runs_share_no_file(runs):
    assert runs.first.layers.keys() == runs.second.layers.keys()
    assert not set(runs.first.layers.values()) & set(runs.second.layers.values())


def test_report_names_every_node_with_its_time_and_what_it_ran_on(run):
    record = json.loads(run.path("08_reporting", "run_record.json").read_text("utf-8"))
    assert record["run"] == run.name
    assert record["nodes_without_record"] == []
    nodes = {node["node"]: node["attempts"] for node in record["nodes"]}
    assert len(nodes) > 20
    for attempts in nodes.values():
        assert [attempt["outcome"] for attempt in attempts] == ["finished"]
        assert attempts[0]["command"]["env"] == "test"
        assert attempts[0]["environment"]["packages"]["torch"]
    assert all(attempt["seconds"] > 0 for attempts in nodes.values() for attempt in attempts)
    page = run.path("08_reporting", "report.html").read_text("utf-8")
    for node in nodes:
        assert node in page
    shown = run.finished.stdout
    assert str(run.path("08_reporting", "report.html").relative_to(run.project)) in shown


def test_tokens_of_the_report_are_those_of_the_tables(run):
    record = json.loads(run.path("08_reporting", "run_record.json").read_text("utf-8"))
    counted = {(row["purpose"], row["model"]): row for row in record["tokens"]}
    answers = run.table("answers").groupby("model")["completion_tokens"].sum()
    for model, tokens in answers.items():
        assert counted["Answers to MT-Bench", model]["completion_tokens"] == tokens
    written = run.table("generations")["completion_tokens"].sum()
    assert counted["Training responses", "base"]["completion_tokens"] == written


def test_a_report_that_is_made_again_keeps_the_times_of_the_nodes_that_are_not(runs, kedro_run):
    path = runs.second.path("08_reporting", "run_record.json")
    before = json.loads(path.read_text("utf-8"))
    path.unlink()
    finished = kedro_run(
        "--env", "test", "--params", f"run_name={runs.second.name}", "--only-missing-outputs"
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert json.loads(path.read_text("utf-8"))["nodes"] == before["nodes"]


@pytest.mark.parametrize(("pipeline", "prefix"), [("mt_bench", ""), ("__default__", "mt_bench.")])
def test_a_node_that_fails_leaves_a_record_of_it(
    kedro_run, run_name, project_folder, pipeline, prefix, tmp_path
):
    name, node = run_name(), "data_ingest.import_base"
    # Found out when it is loaded: its header speaks of two layers.
    model = write_gguf(tmp_path / "model.gguf", blocks=2)
    finished = kedro_run(
        "--env", "test", "--nodes", f"{prefix}{node}",
        "--params", f"run_name={name},mt_bench.models.sources.base=gguf:{model}",
        pipeline=pipeline,
    )  # fmt: skip
    assert "weights are missing" in finished.stderr.splitlines()[-1]
    records = project_folder / "data" / "08_reporting" / name / "mt_bench" / "node_records"
    (attempt,) = json.loads((records / f"{node}.json").read_text("utf-8"))["attempts"]
    assert attempt["outcome"] == "failed"
    assert attempt["seconds"] >= 0


def test_iterations_train_the_initial_student_on_the_last_models_responses(
    kedro_run, run_name, project_folder
):
    name = run_name()
    finished = kedro_run(
        "--env", "test", "--to-outputs", "mt_bench.sami_checkpoint",
        "--params", f"run_name={name},mt_bench.iterations.count=2,"
        # Gentle enough that a random model still tells two constitutions apart afterwards.
        "mt_bench.training.sami.learning_rate=1e-4,"
        "mt_bench.queries.per_category=5,mt_bench.generation.queries_per_category=5,"
        "mt_bench.generation.temperature=0.0",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    layers = {path.parent.name: path for path in (project_folder / "data").glob(f"*/{name}")}
    first, last = (
        pd.read_parquet(layers["05_model_input"] / folder / "responses.parquet")
        for folder in ("mt_bench.iteration_1", "mt_bench")
    )

    def queries(table: pd.DataFrame, split: str) -> set[str]:
        return set(table.loc[table["split"] == split, "query_id"])

    assert len(queries(first, "train")) == len(queries(last, "train")) == 2 * 8
    assert not queries(first, "train") & queries(last, "train"), "halves share a query"
    assert queries(first, "held_out") == queries(last, "held_out")

    models = layers["06_models"] / "mt_bench"
    provenance = json.loads((models / "sami" / "provenance.json").read_text())
    assert provenance["iteration"] == 2
    assert provenance["student"]["source"] == "random", "the student is the initial model"
    # The second iteration's responses are those of the first iteration's model.
    engine = open_engine(EngineParameters(), models / "iteration_1.sami")
    row = last.iloc[0]
    request = GenerationRequest(Prompt.from_json(row["prompt"]), SamplingParameters(12))
    again = generate(engine, [request], seed=0, description="once more")
    assert again[0].text == row["response"]


def test_more_seeds_go_on_with_what_one_seed_has_made(runs, kedro_run):
    """The first seed's models and answers stay; the others are trained, asked and pooled."""
    run = runs.second
    kept = ["sami_history", "dpo_history", "sami/answers", "dpo/answers", "base/answers"]
    written = {name: run.table_paths()[name].stat().st_mtime_ns for name in kept}
    one_seed = run.table("sami/answers")
    finished = kedro_run(
        "--env", "test", "--only-missing-outputs", "--params", f"run_name={run.name},seeds=2"
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    for name in kept:
        assert run.table_paths()[name].stat().st_mtime_ns == written[name], name
    answers = run.table("answers")
    own = answers[(answers["model"] == "sami") & (answers["seed"] == 0)]
    pd.testing.assert_frame_equal(own.drop(columns="seed").reset_index(drop=True), one_seed)
    asked = answers.groupby(["model", "seed"]).size()
    assert asked.nunique() == 1
    assert set(asked.index) == {
        ("base", -1), ("sami", 0), ("sami", 1), ("dpo", 0), ("dpo", 1),
    }  # fmt: skip
    weights = [
        load_file(run.path("06_models", name, "model.safetensors"))
        for name in ("sami", "sami_seed_1")
    ]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    table = run.table("win_rates")
    overall = table[(table["category"] == "overall") & (table["turn"] == "1")]
    assert (overall["seeds"] == 2).all()
    assert (overall["n"] == 8).all()
    rows = overall.groupby(["model", "opponent"])["rows"].first()
    assert rows.to_dict() == {("sami", "base"): 16, ("dpo", "base"): 16, ("sami", "dpo"): 32}
    assert set(run.table("by_seed")["seed"]) == {0, 1}
    page = run.path("08_reporting", "report.html").read_text("utf-8")
    assert "over questions and 2 training seeds" in page
    assert "training seeds 0, 1" in page
    assert "what came out" in finished.stdout
