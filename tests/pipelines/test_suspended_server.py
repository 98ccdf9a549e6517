"""A server that is suspended while it teaches and judges: the run ends, and goes on later."""

import hashlib
import json
import random
from collections import Counter

import pandas as pd
import pytest
from openai_server import MODEL, OpenAIServer, Sent, error
from test_killed_runs import KilledRun, assert_same

from sami_pipeline.engines import Completion

CONCURRENCY = 4
SUSPENDED = error(403, "this account is suspended")


def answer(sent: Sent) -> Completion:
    """Answer as teacher or judge, as the prompt alone decides."""
    drawn = hashlib.sha256(json.dumps(sent.body["messages"]).encode()).hexdigest()
    if "assistant" in sent.text.lower():
        return Completion(f"My verdict: [[{'ABC'[int(drawn, 16) % 3]}]]", "stop", 100, 20)
    words = [drawn[i : i + 4] for i in range(0, 40, 4)]
    return Completion(f"{' '.join(words)}.", "stop", 40, 12)


def parameters(name: str, server: OpenAIServer, **more: str) -> str:
    settings = {"run_name": name, "mt_bench.models.teacher": "hosted"}
    settings["mt_bench.judge.kind"] = "pairwise"
    for group in ("mt_bench.generation", "mt_bench.judge"):
        settings |= {
            f"{group}.engine.kind": "openai",
            f"{group}.engine.openai.base_url": server.url,
            f"{group}.engine.openai.model": MODEL,
            f"{group}.engine.openai.concurrency": str(CONCURRENCY),
            f"{group}.engine.openai.max_retries": "1",
        }
    return ",".join(f"{key}={value}" for key, value in (settings | more).items())


# The others are moments that `make stress` adds.
SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.stress) for seed in (2, 3, 4))]


@pytest.mark.parametrize("seed", SEEDS)
def test_run_ends_in_one_line_and_goes_on_to_the_same_tables(
    kedro_run, run_name, project_folder, seed, tell, changed_conf
):
    # One pair of models: the judge is asked a third as often, and DPO is not trained.
    fewer = {"mt_bench": {"models": {"under_test": ["base", "sami"]}}}
    conf = str(changed_conf("parameters/mt_bench.yml", fewer))
    with OpenAIServer(answer, delay=0.01) as server:

        def run(name: str):
            return kedro_run(
                "--env", "test", "--only-missing-outputs", "--conf-source", conf,
                "--params", parameters(name, server),
            )  # fmt: skip

        whole = run_name()
        finished = run(whole)
        assert finished.returncode == 0, finished.stderr[-3000:]
        wanted = Counter(json.dumps(sent.body) for sent in server.sent)
        assert set(wanted.values()) == {1}
        teaching = sum("assistant" not in sent.text.lower() for sent in server.sent)
        chance = random.Random(seed)
        moments = [
            chance.randrange(1, teaching),
            chance.randrange(teaching + 1, len(server.sent)),
        ]

        name, answered, refused = run_name(), Counter(), []
        for moment in moments:

            def suspend(sent: Sent, moment: int = moment):
                if answered.total() < moment:
                    answered[json.dumps(sent.body)] += 1
                    return None
                refused.append(sent)
                return SUSPENDED

            server.fault, before = suspend, len(refused)
            ended = run(name)
            assert ended.returncode == 1
            assert "Traceback" not in ended.stderr
            assert ended.stderr.splitlines()[-1].startswith("Error: engine.openai: ")
            # In other words where the account is suspended at the very last of the requests.
            for words in ("HTTP 403", "this account is suspended"):
                assert words in ended.stderr.splitlines()[-1]
            # What was under way, what went out before the first refusals came, and the question
            # whether the server is there at all.
            assert len(refused) - before <= 2 * CONCURRENCY + 1
        server.fault = lambda sent: answered.update([json.dumps(sent.body)])
        finished = run(name)
        assert finished.returncode == 0, finished.stderr[-3000:]
    assert answered == wanted, "each is answered once, and none of them is asked again"
    tell(f"suspended after {moments} of {wanted.total()} answers, {len(refused)} refused meanwhile")
    one, other = (KilledRun(project_folder, "mt_bench", each).contents() for each in (whole, name))
    assert one.keys() == other.keys()
    for key in one:
        assert_same(one[key], other[key], key)


def test_missing_answers_are_asked_again_and_change_what_follows_when_they_come(
    kedro_run, run_name, project_folder
):
    spoilt: list[str] = []

    def fault(sent: Sent):
        spoilt.extend([] if spoilt else [sent.text])
        return error(400, "not this one") if sent.text == spoilt[0] else None

    with OpenAIServer(answer, fault=fault) as server:
        name = run_name()

        def run():
            limit = {"mt_bench.generation.engine.openai.max_missing": "0.05"}
            before = len(server.sent)
            finished = kedro_run(
                "--env", "test", "--only-missing-outputs", "--params",
                parameters(name, server, **limit), "--to-outputs", "mt_bench.sami_history",
            )  # fmt: skip
            assert finished.returncode == 0, finished.stderr[-3000:]
            asked = [sent.text for sent in server.sent[before:] if sent.text != "Hello"]
            data = project_folder / "data" / "05_model_input" / name / "mt_bench"
            table = pd.read_parquet(data / "responses.parquet")
            return finished.stderr, asked, (table["status"] == "failed").sum()

        log, asked, failed = run()
        assert len(asked) == 32 and failed == 2, "both responses of the query"
        log, asked, failed = run()
        assert asked == spoilt and failed == 2
        assert "0 run" in log, "nothing has come, so everything is as it was"
        server.fault = lambda sent: None
        log, asked, failed = run()
        assert asked == spoilt and failed == 0
        for stage in ("training responses are written", "sami is trained"):
            assert stage in log
        assert "inputs and models are read" not in log, (
            "what does not depend on the answers is kept"
        )
        log, asked, _ = run()
        assert not asked and "0 run" in log


def test_teacher_that_says_nothing_ends_the_run_before_anything_is_trained(kedro_run, run_name):
    with OpenAIServer(lambda sent: Completion("", "stop", 40, 0)) as server:
        finished = kedro_run("--env", "test", "--params", parameters(run_name(), server))
        assert len(server.sent) == 32, "an answer without text is one and is paid for once"
    last = finished.stderr.splitlines()[-1]
    assert last.startswith("Error: responses: no training query is left of 8 (empty: 8); ")
    assert "prompt template" in last and "Traceback" not in finished.stderr
