import re
from types import SimpleNamespace

import pandas as pd

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
    stages = progress.stages_of(nodes(NODES))
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
    titles = [stage.title for stage in progress.stages_of(nodes(NODES[-4:]))]
    assert titles == ["tables and figures", "answers are judged", "the report"]


def test_a_run_and_a_stage_are_told_with_their_time_and_the_time_of_day():
    stages = progress.stages_of(nodes(NODES))
    said = progress.announcement("mt_bench, run new", stages, 330.0, "as earlier here")
    end = progress.clock(330)
    assert said == (
        f"mt_bench, run new: 11 nodes in 8 stages, about 6 min, until about {end} (as earlier here)"
    )
    assert re.fullmatch(r"\d\d:\d\d", progress.clock(0))
    assert re.fullmatch(r"\w{3} \d\d \w{3}, \d\d:\d\d", progress.clock(2 * 86400))
    assert "is known when" in progress.announcement("x", stages, None, "")
    line = progress.line(stages[1], 2, 8, 100.0, 300.0)
    ends = f"the run ends about {progress.clock(300)}"
    assert line == f"2 of 8: base answers the questions, about 100 s; {ends}"
    assert progress.line(stages[0], 1, 8, 1.0, 300.0) == "1 of 8: inputs and models are read"
    assert progress.line(stages[0], 1, 8, None, None) == "1 of 8: inputs and models are read"


def test_memory_and_disk_of_an_earlier_run_and_of_this_one_are_told(tmp_path):
    assert progress.needs(9_100_000_000, 2_100_000_000, "old") == (
        "The run old took 9.1 GB of memory at the most and left 2.1 GB on disk"
    )
    assert progress.needs(None, 33_000_000, "old") == "The run old left 33 MB on disk"
    assert progress.needs(None, None, "old") == ""
    assert "dry_run=true" in progress.needs(None, None, "")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_bytes(bytes(1000))
    (tmp_path / "a" / "again").hardlink_to(tmp_path / "a" / "one")
    (tmp_path / "a" / "linked").symlink_to(tmp_path / "a" / "one")
    assert progress.disk_used([tmp_path / "a", tmp_path / "not there"]) == 1000
    assert progress.took(61, 9.1e9, 2_100_000_000) == (
        "Finished in 1 min 1 s, 9.1 GB of memory at the most; it leaves 2.1 GB on disk"
    )


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
