"""The math experiment on a two-layer model, run as a user runs it."""

import json
import shutil

import pandas as pd
import plotly.io
import pytest

MODELS = ["base", "sami", "sft", "sft_sami"]


@pytest.fixture(scope="module")
def run(kedro_run, run_name, project_folder):
    name = run_name()
    finished = kedro_run("--env", "test", "--params", f"run_name={name}", pipeline="math")
    assert finished.returncode == 0, finished.stderr[-3000:]
    folders = {p.parent.name: p / "math" for p in (project_folder / "data").glob(f"*/{name}")}
    return finished, folders


def read(run, layer: str, name: str) -> pd.DataFrame:
    return pd.read_parquet(run[1][layer] / f"{name}.parquet")


def test_every_model_makes_every_attempt_at_every_test_problem(run):
    attempts, problems = (
        read(run, "07_model_output", "attempts"),
        read(run, "03_primary", "problems"),
    )
    test = set(problems.loc[problems["split"] == "test", "problem_id"])
    assert len(test) == 4
    key = ["model", "problem_id", "attempt"]
    expected = {(m, p, a) for m in MODELS for p in test for a in range(4)}
    assert set(attempts[key].itertuples(index=False, name=None)) == expected
    assert len(attempts) == len(expected)
    by_attempt = attempts[attempts["attempt"] == 0].groupby("problem_id")["prompt"].nunique()
    assert (by_attempt == 1).all(), "all models are asked alike"


def test_tables_have_the_columns_that_other_work_relies_on(run):
    interval = ["ci_low", "ci_high"]
    problems = read(run, "03_primary", "problems")
    assert problems.columns[:5].tolist() == [
        "split", "problem_id", "question", "answer", "solution",
    ]  # fmt: skip
    accuracy = read(run, "08_reporting", "accuracy")
    assert accuracy.columns.tolist() == ["model", "metric", "k", "n", "value", *interval]
    assert set(accuracy["metric"]) >= {"greedy", "pass_at_k", "maj_at_k", "invalid_rate"}
    assert accuracy["model"].unique().tolist() == MODELS
    difference = read(run, "08_reporting", "accuracy_difference")
    assert difference.columns.tolist() == [
        "model", "baseline", "metric", "k", "n", "difference", *interval, "detectable", "p_value",
        "p_holm",
    ]  # fmt: skip
    assert set(difference["model"]) == set(MODELS) - {"base"}


def test_all_methods_have_the_same_budget_and_one_history(run):
    history = read(run, "06_models", "history")
    steps = history.groupby("model").size()
    assert steps.to_dict() == {"sami": 3, "sft": 3, "sft_sami": 3}


def test_training_responses_are_the_worked_solutions_in_two_manners(run):
    responses = read(run, "05_model_input", "responses")
    problems = read(run, "03_primary", "problems").set_index("problem_id")
    for row in responses.itertuples():
        problem = problems.loc[row.query_id]
        if row.constitution == "desired":
            assert row.response.endswith(f"#### {problem['answer']}")
        else:
            assert row.response == f"The answer is {problem['answer']}."


@pytest.mark.parametrize("name", ["accuracy", "attempts", "learning_curve"])
def test_figures_load_with_title_and_marks(run, name):
    figure = plotly.io.read_json(run[1]["08_reporting"] / f"{name}.json")
    assert figure.layout.title.text
    assert len(figure.data) >= 2


def test_report_counts_no_tokens_for_solutions_that_were_copied(run):
    record = json.loads((run[1]["08_reporting"] / "run_record.json").read_text("utf-8"))
    counted = {(row["purpose"], row["model"]): row for row in record["tokens"]}
    copied = counted["Training responses", "worked_solutions"]
    assert (copied["prompt_tokens"], copied["completion_tokens"]) == (0, 0)
    attempts = read(run, "07_model_output", "attempts")
    for model, rows in attempts.groupby("model"):
        assert counted["Attempts at problems", model]["texts"] == len(rows)
    assert "SAMI on math problems" in (run[1]["08_reporting"] / "report.html").read_text("utf-8")


def test_screen_ends_with_what_each_number_of_attempts_solves(run):
    shown = run[0].stdout
    assert "math: what came out" in shown
    for card in ("One greedy attempt: sft_sami against base", "Any of "):
        assert card in shown


def test_student_teacher_and_attempts_are_swapped_on_the_command_line(
    kedro_run, run_name, project_folder, random_checkpoint, tmp_path
):
    other = shutil.copytree(random_checkpoint.folder, tmp_path / "other")
    (other / "provenance.json").write_text('{"source": "elsewhere"}')
    name = run_name()
    swaps = {
        "run_name": name,
        "math.models.sources.other": f"folder:{other}",
        "math.models.student": "other",
        "math.models.teacher": "other",
        "math.accuracy.attempts": "2",
        "math.generation.max_new_tokens": "8",
    }
    given = ",".join(f"{key}={value}" for key, value in swaps.items())
    finished = kedro_run("--env", "test", "--params", given, pipeline="math")
    assert finished.returncode == 0, finished.stderr[-3000:]
    data = project_folder / "data"
    attempts = pd.read_parquet(data / "07_model_output" / name / "math" / "attempts.parquet")
    assert sorted(attempts["attempt"].unique()) == [0, 1, 2]
    responses = pd.read_parquet(data / "05_model_input" / name / "math" / "responses.parquet")
    assert not responses["response"].str.contains("####").any(), "no worked solution is copied"
    provenance = json.loads(
        (data / "06_models" / name / "math" / "sami" / "provenance.json").read_text()
    )
    assert provenance["student"]["source"] == "elsewhere"
