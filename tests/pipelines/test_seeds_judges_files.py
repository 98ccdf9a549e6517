"""Several seeds with two judges, repeats and a file of answers, in one run as a user gives it."""

import hashlib
import json

import pandas as pd
import pytest
from openai_server import MODEL, OpenAIServer, Sent

from sami_pipeline.engines import Completion

MATCH = ["judge", "model", "seed", "opponent", "opponent_seed"]
ASKED = ["question_id", "turn", "constitution"]


def judge(sent: Sent) -> Completion:
    """Give a verdict that the prompt decides, and its repetition."""
    drawn = hashlib.sha256(json.dumps(sent.body, sort_keys=True).encode()).hexdigest()
    return Completion(f"My verdict: [[{'ABC'[int(drawn, 16) % 3]}]]", "stop", 100, 20)


# Six models answer and are judged twice: minutes.
@pytest.mark.stress
def test_seeds_are_judged_twice_and_repeatedly_beside_a_file_of_answers(
    kedro_run, run_name, project_folder, tmp_path
):
    questions = (project_folder / "data/01_raw/mt_bench/question.jsonl").read_text("utf-8")
    file = tmp_path / "gpt.jsonl"
    entries = [
        {
            "question_id": json.loads(line)["question_id"],
            "choices": [{"index": 0, "turns": ["1. First.\n2. Then.", "Dear reader, no."]}],
        }
        for line in questions.splitlines()
    ]
    file.write_text("\n".join(map(json.dumps, entries)), "utf-8")
    with OpenAIServer(judge) as server:
        name = run_name()
        settings = {
            "run_name": name,
            "seeds": 3,
            "mt_bench.evaluation.turns": 1,
            "mt_bench.evaluation.without_constitution": "false",
            "mt_bench.models.sources.gpt": f"answers:{file}",
            "mt_bench.models.under_test": "base+sami+gpt",
            "mt_bench.judge.kind": "pairwise",
            "mt_bench.judge.engine.kind": "openai",
            "mt_bench.judge.engine.openai.base_url": server.url,
            "mt_bench.judge.engine.openai.model": MODEL,
            "mt_bench.judge.orders": "random",
            "mt_bench.judge.repeats": 2,
            "mt_bench.judge.temperature": 1.0,
            "mt_bench.judge.second.kind": "single",
            "mt_bench.judge.second.model": "base",
            "mt_bench.judge.second.answer_format": "choice",
        }
        params = ",".join(f"{key}={value}" for key, value in settings.items())
        finished = kedro_run("--env", "test", "--params", params)
    assert finished.returncode == 0, finished.stderr[-3000:]

    def table(layer: str, table: str) -> pd.DataFrame:
        return pd.read_parquet(project_folder / "data" / layer / name / "mt_bench" / table)

    verdicts = table("07_model_output", "verdicts.parquet")
    assert set(verdicts["judge"]) == {"checklist", "pairwise", "second_single"}
    met = verdicts.groupby(MATCH)[ASKED].nunique().reset_index()
    trained = {(0, -1), (1, -1), (2, -1)}
    for by, matches in met.groupby("judge"):
        seeds = {
            pair: set(rows[["seed", "opponent_seed"]].itertuples(index=False, name=None))
            for pair, rows in matches.groupby(["model", "opponent"])
        }
        assert seeds == {
            ("sami", "base"): trained, ("sami", "gpt"): trained, ("gpt", "base"): {(-1, -1)},
        }, by  # fmt: skip
    assert not verdicts.duplicated([*MATCH, *ASKED]).any()

    judgements = table("07_model_output", "judgements.parquet")
    pairwise = judgements[judgements["judge"] == "pairwise"]
    asked = pairwise.groupby([*MATCH, *ASKED])["sample"].agg(["nunique", "size"])
    assert (asked == 2).all().all(), "each comparison is asked twice, in one order"
    # A rating is of one answer, whomever it meets.
    rated = judgements[judgements["judge"] == "second_single"]
    assert not rated.duplicated(["model", "seed", *ASKED]).any()
    answers = table("07_model_output", "answers.parquet")
    assert len(rated) == len(answers) == 5 * 8 * 2

    rates = table("08_reporting", "win_rates.parquet")
    whole = rates[(rates["category"] == "overall") & (rates["turn"] == "1")]
    counts = whole.set_index(["judge", "constitution", "model", "opponent"])
    for by in ("checklist", "pairwise", "second_single"):
        row = counts.loc[(by, "desired", "sami", "base")]
        assert row["seeds"] == 3 and row["n"] <= 8
        assert row["wins"] + row["ties"] + row["losses"] + row["invalid"] == 3 * 8
        assert counts.loc[(by, "desired", "gpt", "base"), "seeds"] == 0
    quality = table("08_reporting", "judge_quality.parquet")
    measured = set(quality.loc[quality["judge"] == "pairwise", "metric"])
    assert {"self_agreement", "first_preferred"} <= measured and "flip_rate" not in measured
    second = quality[(quality["judge"] == "second_single") & (quality["metric"] == "kappa")]
    assert set(second["reference"]) == {"checklist", "pairwise"}
    by_seed = table("08_reporting", "by_seed.parquet")
    assert set(by_seed["seed"]) == {0, 1, 2} and set(by_seed["model"]) == {"sami"}
    page = (project_folder / "data/08_reporting" / name / "mt_bench/report.html").read_text("utf-8")
    assert "3 trainings with different seeds are taken together" in page
