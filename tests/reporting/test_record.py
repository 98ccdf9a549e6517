import subprocess
from pathlib import Path

import pytest

from sami_pipeline.reporting.record import RunRecord, Work, environment, git_revision

NODE = "mt_bench.sami_training.train_sami"


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    return RunRecord(tmp_path / "not" / "there" / "yet")


def test_a_node_that_is_made_again_has_one_attempt_again(record):
    for seconds in (5.0, 7.0):
        record.start(NODE, f"run {seconds}", {"env": "test"})
        record.end(NODE, seconds, "finished")
    (attempt,) = record.read(NODE).attempts
    assert (attempt.run, attempt.seconds, attempt.command) == ("run 7.0", 7.0, {"env": "test"})


def test_what_a_resumed_node_took_before_it_failed_is_counted(record):
    record.start(NODE, "first", {})
    record.end(NODE, 100.0, "failed")
    record.start(NODE, "second", {})
    record.end(NODE, 20.0, "finished")
    known = record.read(NODE)
    assert [attempt.outcome for attempt in known.attempts] == ["failed", "finished"]
    assert known.seconds == 120.0


def test_an_attempt_that_was_killed_stays_unfinished_and_without_a_time(record):
    record.start(NODE, "killed", {})
    record.start(NODE, "second", {})
    record.end(NODE, 20.0, "finished")
    killed, finished = record.read(NODE).attempts
    assert (killed.outcome, killed.seconds) == ("unfinished", None)
    assert finished.outcome == "finished"


def test_nodes_of_an_earlier_run_keep_their_record_beside_those_of_a_later_one(record):
    for run, node in (("first", "a.b.one"), ("second", "a.b.two")):
        record.start(node, run, {})
        record.end(node, 1.0, "finished")
    known = record.read_all(["a.b.two", "a.b.never", "a.b.one"])
    assert [(one.node, one.attempts[0].run) for one in known] == [
        ("a.b.two", "second"), ("a.b.one", "first"),
    ]  # fmt: skip


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    command = ["git", *identity, "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_git_revision_is_the_commit_and_says_whether_files_differ_from_it(tmp_path):
    assert git_revision(tmp_path) is None, "outside a checkout"
    git(tmp_path, "init")
    project = tmp_path / "pyproject.toml"
    project.write_text("one")
    assert git_revision(tmp_path) is None, "in a checkout that does not track it"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_revision(tmp_path) == commit
    project.write_text("two")
    assert git_revision(tmp_path) == f"{commit}-dirty"


def test_git_revision_is_none_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision(Path(__file__).parents[2]) is None


def test_environment_names_versions_and_hardware():
    known = environment()
    assert known.packages["torch"] and known.packages["kedro"]
    assert "vllm" not in known.packages or known.packages["vllm"]
    assert known.cores >= 1
    assert known.processor


def test_a_node_that_found_some_of_its_work_done_is_no_measure_of_its_pace(record):
    kept, work = record, Work(kind="writing", by="m", tokens=10)
    kept.start("write", "run", {}, work)
    assert kept.is_begun("write") and not kept.is_begun("other")
    kept.end("write", 1.0, "finished", in_part=True)
    assert not kept.is_begun("write")
    assert kept.read("write").attempts[-1].work is None
    kept.start("write", "run", {}, work)
    kept.end("write", 1.0, "finished")
    last = kept.read("write").attempts[-1]
    assert last.work == work
    assert last.peak_memory_bytes > 10_000_000, "this process"
