"""Cost grows no faster than the number of rows."""

import functools
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import growth

from sami_pipeline.principles import statements
from sami_pipeline.training.responses import teacher_compliance

MEGABYTE = 10**6
# Those that a mistake would make slow soonest; `make stress` has all.
SHORT = [
    "ingest_query_templates", "ingest_principles", "ingest_constitutions", "grids_requests",
    "grids_store", "grids_responses", "grids_teacher", "evaluation_checks", "evaluation_checklist",
    "evaluation_attempts", "win_rates", "compliance", "length_controlled", "accuracy",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def inputs_are_made_once():
    """Let stages share the tables that several of them begin with."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("answers", "checked", "verdicts"):
            patch.setattr(growth, name, functools.cache(getattr(growth, name)))
        yield


@pytest.mark.parametrize("stage", SHORT)
def test_ten_times_the_rows_take_about_ten_times_as_long(stage):
    growth.STAGES[stage](1).run()  # what is imported and compiled at first use
    one, ten = (growth.measure(stage, scale) for scale in (1, 10))
    assert ten["rows"] == 10 * one["rows"]
    # Quadratic work would take 100 times as long.
    assert ten["seconds"] < 30 * max(one["seconds"], 0.02)


@pytest.mark.parametrize("copies", [1, 3])
def test_every_check_is_parsed_once_however_many_answers_there_are(copies, monkeypatch):
    parsed = []
    monkeypatch.setattr(
        statements,
        "parse_check",
        lambda specification, parse=statements.parse_check: (
            parsed.append(specification) or parse(specification)
        ),
    )
    principles = growth.principles()
    expected = (principles[["check", "antithesis_check"]] != "").to_numpy().sum()
    checked = statements.check_answers(growth.answers(copies), principles)
    # Ten questions a category; three models answer each of them three times.
    assert len(checked) == 90 * len(principles) * copies
    assert len(parsed) == expected
    teacher_compliance(growth.responses(copies), principles)
    assert len(parsed) == 2 * expected


def test_hundred_thousand_answers_are_judged_in_proportion_to_two_gigabytes():
    found = growth.million(100_000, resamples=20)
    assert found["answers"] >= 100_000
    # As many principles as its category has.
    assert found["statements"] == found["answers"] * len(growth.principles()) / 8
    assert found["comparisons"] == found["answers"]
    # What is imported has about 0.3 GB.
    assert found["bytes"] < 550 * MEGABYTE


def test_measurements_become_a_table_and_their_section_of_the_page(tmp_path, monkeypatch):
    runs = {
        scale: {"rows": 8 * scale, "seconds": 0.5 * scale, "bytes": MEGABYTE * scale}
        for scale in (1, 10)
    }
    text = growth.table({"win_rates": runs})
    assert "| Tabulate win rates | 8 | 0.50 | 5.00 | 1 | 10 | 1.00 |" in text
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- stages: begin -->\nold\n<!-- stages: end -->\nafter\n")
    monkeypatch.setattr(growth, "PAGE", page)
    growth.write_page("stages", text)
    written = page.read_text()
    assert text in written
    assert "old" not in written
    assert written.startswith("before") and written.endswith("after\n")


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_every_stage_is_linear_up_to_a_hundred_times_the_embedded_rows(tell):
    found = {
        stage: {scale: growth.in_own_process("--measure", stage, scale) for scale in (1, 10, 100)}
        for stage in growth.STAGES
    }
    tell(growth.table(found))
    for stage, runs in found.items():
        # Sorting, and caches that are too small, cost more than in proportion; squares are at 2.
        if runs[100]["seconds"] > 0.1:
            assert growth.exponent(runs[10], runs[100], "seconds") < 1.3, stage
        # A small peak may lie within what making the input has used and given back.
        if min(runs[10]["bytes"], runs[100]["bytes"]) > 50 * MEGABYTE:
            assert growth.exponent(runs[10], runs[100], "bytes") < 1.3, stage


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_a_million_answers_are_judged_and_tabulated_in_two_gigabytes(tell):
    found = growth.million(1_000_000, resamples=100)
    tell(growth.million_in_words(found))
    assert found["answers"] >= 1_000_000
    assert found["bytes"] < 2000 * MEGABYTE


@pytest.fixture
def million_answers(project_folder):
    """The name of a run in which three models have answered, a million times in all."""
    run = f"pytest_{uuid.uuid4().hex[:12]}"
    growth.in_own_process("--write-run", run, 1_000_000)
    yield run
    for folder in (project_folder / "data").glob(f"0[2-8]_*/{run}"):
        shutil.rmtree(folder)


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_kedro_combines_checks_judges_and_tabulates_a_million_answers_in_two_gigabytes(
    million_answers, project_folder, tell
):
    nodes = ["data_ingest.build_principles"]
    nodes += [f"mt_bench_eval.{name}" for name in ("combine_answers", "check_answers")]
    nodes += ["mt_bench_eval.judge_answers"]
    tables = [
        "win_rates",
        "compliance",
        "compliance_difference",
        "length_controlled",
        "judge_quality",
    ]
    nodes += [f"mt_bench_eval.tabulate_{name}" for name in (*tables, "degeneration")]
    command = [
        sys.executable, "-m", "kedro", "run", "--pipelines", "mt_bench", "--nodes",
        ",".join(nodes), "--params",
        f"run_name={million_answers},mt_bench.evaluation.resamples=100",
    ]  # fmt: skip
    running = subprocess.Popen(command, cwd=project_folder)
    _, status, usage = os.wait4(running.pid, 0)
    running.returncode = os.waitstatus_to_exitcode(status)
    assert running.returncode == 0
    tell(f"kedro run: {usage.ru_maxrss * 1024 / 1e9:.2f} GB, {usage.ru_utime:.0f} s")
    assert usage.ru_maxrss * 1024 < 2000 * MEGABYTE
    folder = project_folder / "data" / "08_reporting" / million_answers / "mt_bench"
    rates = pd.read_parquet(folder / "win_rates.parquet")
    overall = rates[(rates["category"] == "overall") & (rates["turn"] == "both")]
    assert overall["rows"].sum() >= 1_000_000
    assert overall["ci_low"].notna().all()
