"""A server judges the whole experiment, and misbehaves meanwhile: no verdict is lost or doubled."""

import hashlib
import itertools
import json
import random
import shutil
from collections import Counter

import pandas as pd
import pytest
import yaml
from openai_server import FAULTS, MODEL, OpenAIServer, Sent

from sami_pipeline.engines import Completion

KEY = "sk-test-51b7fe20c6d3"
SHARE_OF_FAULTS = 0.3
NO_VERDICT = "Both are fine, I can't say."


def judge(sent: Sent) -> Completion:
    """Give a judgement that depends on what is asked alone; every tenth has no verdict."""
    drawn = int(hashlib.sha256(sent.text.encode()).hexdigest(), 16)
    said = NO_VERDICT if drawn % 10 == 0 else f"I quote [[C]]. My verdict: [[{'AB'[drawn % 2]}]]"
    return Completion(said, "stop", 100, 20)


@pytest.fixture(scope="module")
def judged(kedro_run, run_name, project_folder, tmp_path_factory):
    # One pair of models, which is judged in both orders.
    conf = shutil.copytree(project_folder / "conf", tmp_path_factory.mktemp("judged") / "conf")
    changed = conf / "test" / "parameters" / "mt_bench.yml"
    content = yaml.safe_load(changed.read_text("utf-8"))
    content["mt_bench"]["models"]["under_test"] = ["base", "sami"]
    changed.write_text(yaml.safe_dump(content), "utf-8")
    chance, kinds = random.Random(0), itertools.cycle(sorted(FAULTS))
    faults: Counter[str] = Counter()
    refused: dict[str, int] = {}

    def fault(sent: Sent) -> str | None:
        # One request is never answered well, whatever is tried.
        refused.setdefault(json.dumps(sent.body["messages"]), len(refused))
        if refused[json.dumps(sent.body["messages"])] == 5:
            return "server error"
        if chance.random() > SHARE_OF_FAULTS:
            return None
        faults[name := next(kinds)] += 1
        return name

    name = run_name()
    with OpenAIServer(judge, key=KEY, fault=fault) as server:
        settings = {
            "run_name": name,
            "mt_bench.judge.kind": "pairwise",
            "mt_bench.judge.engine.kind": "openai",
            "mt_bench.judge.engine.openai.base_url": server.url,
            "mt_bench.judge.engine.openai.model": MODEL,
            "mt_bench.judge.engine.openai.timeout": "1",
            "mt_bench.judge.engine.openai.max_retries": "4",
            "mt_bench.judge.engine.openai.max_missing": "0.1",
            "mt_bench.judge.engine.openai.concurrency": "32",
        }
        given = ",".join(f"{key}={value}" for key, value in settings.items())
        finished = kedro_run(
            "--env", "test", "--conf-source", str(conf), "--params", given,
            variables={"OPENAI_API_KEY": KEY},
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr[-3000:]
    assert len(faults) == len(FAULTS), "every kind of fault has happened"
    data = project_folder / "data"
    return finished, {path.parent.name: path for path in data.glob(f"*/{name}")}


def table(judged, name: str) -> pd.DataFrame:
    return pd.read_parquet(judged[1]["07_model_output"] / "mt_bench" / f"{name}.parquet")


def test_every_comparison_has_one_verdict_or_is_counted_as_invalid(judged):
    judgements, verdicts, answers = (
        table(judged, name) for name in ("judgements", "verdicts", "answers")
    )
    comparison = ["model", "opponent", "question_id", "turn", "constitution"]
    assert not judgements.duplicated([*comparison, "order"]).any()
    assert len(judgements) == len(answers), "two models make one pair, in two orders"
    verdicts = verdicts[verdicts["judge"] == "pairwise"]
    assert not verdicts.duplicated(comparison).any()
    assert 2 * len(verdicts) == len(answers)
    invalid = judgements["verdict"] == "invalid"
    # Those without a verdict, and the request that the server never answers.
    assert set(judgements.loc[invalid, "text"]) == {NO_VERDICT, ""}
    assert (judgements.loc[judgements["text"] == "", "finish_reason"] == "failed").all()
    assert (judgements["text"] == "").sum() >= 1
    assert set(judgements.loc[~invalid, "verdict"]) == {"A", "B"}, "the last verdict counts"
    of_pair = judgements.assign(invalid=invalid).groupby(comparison)["invalid"].any()
    told = verdicts.set_index(comparison)["winner"] == "invalid"
    pd.testing.assert_series_equal(told.sort_index(), of_pair.sort_index(), check_names=False)
    rates = pd.read_parquet(judged[1]["08_reporting"] / "mt_bench" / "win_rates.parquet")
    rates = rates.query("judge == 'pairwise' and category == 'overall' and turn == 'both'")
    assert rates["invalid"].sum() == told.sum()


def test_judgements_are_the_servers(judged):
    judgements = table(judged, "judgements")
    answered = judgements[judgements["text"] != ""]
    for row in answered.itertuples():
        said = json.loads(row.prompt)["messages"][-1]["content"]
        drawn = int(hashlib.sha256(said.encode()).hexdigest(), 16)
        assert row.text.endswith(f"[[{'AB'[drawn % 2]}]]") or drawn % 10 == 0
    assert set(judgements["judge_model"]) == {MODEL}


def test_key_is_in_no_log_and_no_file(judged):
    finished, folders = judged
    assert KEY not in finished.stdout + finished.stderr
    files = [path for folder in folders.values() for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 30
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path
