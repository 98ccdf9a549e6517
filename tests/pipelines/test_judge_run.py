"""A model judges the whole experiment, run as a user runs it."""

import re

import pandas as pd
import pytest

from sami_pipeline.experiments.registry import experiments

JUDGING = "mt_bench_eval.ask_judge"
LOCAL_JUDGE = "mt_bench.judge.model=base,mt_bench.judge.answer_format=choice"


class Judged:
    """A run with a judge, which can be judged again."""

    def __init__(self, project, name, kedro_run) -> None:
        self.project, self.name, self.kedro_run = project, name, kedro_run

    def run(self, kind: str, *arguments: str, settings: str = ""):
        given = f"run_name={self.name},mt_bench.judge.kind={kind},{LOCAL_JUDGE}"
        finished = self.kedro_run(
            "--env", "test", "--params", ",".join(filter(None, (given, settings))), *arguments
        )
        assert finished.returncode == 0, finished.stderr[-3000:]
        return finished

    def table(self, layer: str, name: str) -> pd.DataFrame:
        folder = self.project / "data" / layer / self.name / "mt_bench"
        return pd.read_parquet(folder / f"{name}.parquet")


@pytest.fixture(scope="module")
def judged(kedro_run, run_name, project_folder) -> Judged:
    experiment = Judged(project_folder, run_name(), kedro_run)
    experiment.run("pairwise")
    return experiment


def test_local_judge_judges_every_pair_beside_the_checklist(judged):
    verdicts = judged.table("07_model_output", "verdicts")
    judgements = judged.table("07_model_output", "judgements")
    answers = judged.table("07_model_output", "answers")
    each = len(answers) // 3
    pairs = {("sami", "base"), ("dpo", "base"), ("sami", "dpo")}
    assert set(verdicts["judge"]) == {"checklist", "pairwise"}
    pairwise = verdicts[verdicts["judge"] == "pairwise"]
    assert pairwise.groupby(["model", "opponent"]).size().to_dict() == dict.fromkeys(pairs, each)
    assert len(judgements) == 2 * 3 * each
    assert set(judgements["verdict"]) <= {"A", "B", "C"}
    assert set(judgements["turn"]) == {1, 2}
    rates = judged.table("08_reporting", "win_rates")
    assert set(rates["judge"]) == {"checklist", "pairwise"}
    quality = judged.table("08_reporting", "judge_quality")
    measured = quality.loc[quality["judge"] == "pairwise", "metric"]
    assert {"agreement", "flip_rate", "invalid_call_rate"} <= set(measured)


def test_repeated_judging_asks_nothing_again(judged):
    before = judged.table("07_model_output", "judgements")
    finished = judged.run("pairwise", "--nodes", JUDGING)
    everything = len(before)
    log = " ".join((finished.stdout + finished.stderr).split())
    assert f"{everything} of {everything} are stored already" in log
    assert "Judge: pairwise: 0 asked" in log
    pd.testing.assert_frame_equal(judged.table("07_model_output", "judgements"), before)


def test_same_answers_can_be_rated_later(judged):
    finished = judged.run("single", "--from-nodes", JUDGING)
    ratings = judged.table("08_reporting", "ratings")
    assert set(ratings["model"]) == {"base", "sami", "dpo"}
    assert set(ratings["turn"]) == {"both", "1", "2"}
    verdicts = judged.table("07_model_output", "verdicts")
    assert set(verdicts["judge"]) == {"checklist", "single"}
    assert verdicts["model_score"].notna().all()
    assert "mt_bench: what came out" in finished.stdout


def test_second_judge_judges_the_same_answers_and_agreement_is_told(judged):
    second = "mt_bench.judge.second.kind=single,mt_bench.judge.second.model=base,"
    second += "mt_bench.judge.second.answer_format=choice,mt_bench.judge.orders=random"
    asked = f"{JUDGING},mt_bench_eval.ask_second_judge"
    judged.run("pairwise", "--from-nodes", asked, settings=second)
    judgements = judged.table("07_model_output", "judgements")
    assert set(judgements["judge"]) == {"pairwise", "second_single"}
    match = ["model", "opponent", "question_id", "turn", "constitution"]
    first = judgements[judgements["judge"] == "pairwise"]
    assert not first.duplicated(match).any(), "each comparison was asked in one order"
    assert first["order"].nunique() == 2
    verdicts = judged.table("07_model_output", "verdicts")
    counts = verdicts["judge"].value_counts()
    assert counts["pairwise"] == counts["second_single"] == len(first)
    quality = judged.table("08_reporting", "judge_quality")
    quality = quality[(quality["judge"] == "second_single") & (quality["category"] == "overall")]
    compared = quality[quality["metric"] == "kappa"]
    assert set(compared["reference"]) == {"checklist", "pairwise"}
    assert set(judged.table("08_reporting", "ratings")["judge"]) == {"second_single"}


@pytest.mark.parametrize(
    ("judge", "fault"),
    [
        ({"kind": "pairwise"}, "judge.model: name the model that judges; known: base"),
        ({"kind": "single", "model": "sami"}, "judge.model: 'sami' has no source; known: base"),
        ({"kind": "oracle"}, "checklist"),
        ({"answer_format": "json"}, "choice"),
        ({"second": {"kind": "single", "model": "base"}}, "second: needs a first judge"),
        (
            {"kind": "single", "model": "base", "second": {"kind": "pairwise"}},
            "judge.second.model: name the model that judges; known: base",
        ),
        (
            {"kind": "single", "model": "base", "second": {"model": "base"}},
            "kind: the checklist judges anyway; name another",
        ),
    ],
)
def test_judge_that_cannot_be_is_refused_before_anything_runs(mt_bench_parameters, judge, fault):
    with pytest.raises(ValueError, match=re.escape(fault)):
        experiments()["mt_bench"].parameters.model_validate(mt_bench_parameters | {"judge": judge})
