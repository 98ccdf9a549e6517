import re
from datetime import UTC, datetime
from types import SimpleNamespace

import pandas as pd

from sami_pipeline import PROJECT_FOLDER
from sami_pipeline.experiments.registry import experiments
from sami_pipeline.reporting.record import Attempt, NodeRecord, RunRecord, environment
from sami_pipeline.session import progress

NODES = [
    "data_ingest.build_queries",
    "data_ingest.import_base",
    "mt_bench_eval.answer_as_base",
    "sami_generation.write_responses",
    "sami_generation.prepare_responses",
    "baseline_training.train_sft_sami",
    "mt_bench_eval.respond_as_sft_sami",
    "mt_bench_eval.check_answers",
    "mt_bench_eval.judge_answers",
    "mt_bench_eval.draw_win_rates",
    "reporting.write_report",
]


def nodes(names: list[str]) -> list[SimpleNamespace]:
    return [SimpleNamespace(name=name) for name in names]


def test_each_node_with_a_model_is_a_stage_and_the_others_belong_to_one():
    stages = progress.stages_of(nodes(NODES), {})
    assert [stage.title for stage in stages] == [
        "inputs and models are read",
        "base answers the questions",
        "training responses are written under each constitution",
        "sft_sami is trained",
        "sft_sami responds to held-out queries",
        "tables and figures",
        "answers are judged",
        "the report",
    ]
    assert [name for stage in stages for name in stage.nodes if "prepare" in name]
    assert sorted(name for stage in stages for name in stage.nodes) == sorted(NODES)


def test_a_run_of_tables_alone_has_no_stage_of_a_model():
    titles = [stage.title for stage in progress.stages_of(nodes(NODES[-4:]), {})]
    assert titles == ["tables and figures", "answers are judged", "the report"]


def test_time_is_that_of_the_last_finished_attempts_of_any_run_and_not_known_without_them(tmp_path):
    own = tmp_path / "new" / "mt_bench" / "node_records"
    for run, day, seconds in (("old", 1, 100.0), ("late", 2, 30.0)):
        record = RunRecord(tmp_path / run / "mt_bench" / "node_records")
        for node in NODES:
            attempt = Attempt(
                run=run, started=datetime(2026, 1, day, tzinfo=UTC), seconds=seconds,
                outcome="finished", environment=environment(),
            )  # fmt: skip
            record._write(NodeRecord(node=node, attempts=[attempt]))
    record.start(NODES[0], "late", {})  # is at it again
    seconds, run = progress.seconds_taken(own, NODES)
    assert run == "late"
    assert set(seconds.values()) == {30.0, 100.0} and seconds[NODES[0]] == 100.0
    stages = progress.stages_of(nodes(NODES), seconds)
    said = progress.announcement("mt_bench, run new", stages, run, "mt_bench")
    assert (
        said
        == ("mt_bench, run new: 11 nodes in 8 stages, about 6 min 0 s, as the run late took here")
        or "about 7 min" in said
    )
    assert progress.line(stages[0], 1, 8) == "1 of 8: inputs and models are read, about 2 min 0 s"
    unknown = progress.stages_of(nodes(NODES), {})
    assert "not known yet" in progress.announcement("x", unknown, "", "align")


def test_the_time_that_is_told_before_a_first_run_is_the_measured_one():
    results = (PROJECT_FOLDER / "docs" / "results.md").read_text("utf-8")
    measured = int(re.search(r"(\d+) minutes in its nodes", results)[1])
    quiet, shared = experiments()["mt_bench"].measured_minutes
    assert 0.8 * quiet <= measured <= 1.2 * shared


def test_two_responses_to_one_query_are_shown_the_principle_first_in_a_line_each():
    table = pd.DataFrame(
        {
            "query_id": ["a", "a", "b", "b"],
            "query": "What is it?",
            "constitution": ["contrasting", "desired"] * 2,
            "stances": [f'[["numbered_steps", "{s}"]]' for s in ("antithesis", "principle")] * 2,
            "response": ["Cut o", "1. One", "Prose.\nMore.", "1. First " + "long " * 60],
            "finish_reason": ["length", "stop", "stop", "stop"],
        }
    )  # fmt: skip
    query, first, second = progress.written({"mt_bench.generations": table})
    assert query == "b: What is it?", "the first one whose responses came to an end"
    assert (
        first.startswith("asked for the principle numbered steps: 1. First") and len(first) == 160
    )
    assert second == "asked for the opposite of numbered steps: Prose. More."
    assert progress.written({"mt_bench.answers": table, "mt_bench.history": table}) == []
