"""Every malformed input of ``bad_inputs`` gives one line, and changes nothing that was there."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import more_bad_inputs  # noqa: F401 (their cases join those of bad_inputs)
import odd_inputs  # noqa: F401
import pytest
from bad_inputs import CASES, PROJECT, Case, Workshop

DATA = PROJECT / "data"
SHARE = 20
# Each in some minutes.
PARTS = 10
ENVIRONMENT = os.environ | {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def _digest(run: str) -> dict[str, tuple[str, int]]:
    """Return content and time of every file of a run."""
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for folder in DATA.glob(f"0[2-8]_*/{run}")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _runs() -> set[str]:
    """Return the folders of all runs but those of tests, which may go on beside this one."""
    folders = DATA.glob("0[2-8]_*/*")
    return {str(path) for path in folders if not path.name.startswith("pytest_")}


def arguments(case: Case, workshop: Workshop, run: str) -> list[str]:
    """Return what stands after ``kedro`` for a case, once it is brought in."""
    case.bring(workshop)
    # The case's own parameters come last and win.
    name = [] if workshop.names_the_run else [f"run_name={run}"]
    params = ["--params", ",".join([*name, *workshop.params])] if name or workshop.params else []
    conf = ["--conf-source", str(workshop.conf)] if workshop.conf else []
    return ["run", "--env", "test", "--pipelines", case.pipeline, *params, *conf]


def faults(case: Case, code: int, errors: str) -> list[str]:
    """Return what is wrong with how an input was refused."""
    found = []
    lines = [line for line in errors.splitlines() if line.startswith("Error: ")]
    if code == 0:
        found.append("exit code 0")
    if "Traceback" in errors:
        found.append("a traceback")
    if len(lines) != 1 or not errors.rstrip().endswith(lines[0]):
        found.append(f"not one line at the end: {errors[-1500:]}")
    else:
        absent = [part for part in case.named if part not in lines[0]]
        found += [f"does not name {absent}: {lines[0]}"] if absent else []
        found += ["absurdly long"] if len(lines[0]) > 1500 else []
        found += ["steers the terminal"] if not lines[0].isprintable() else []
    return found


@pytest.fixture(scope="module")
def earlier(run_name, kedro_run) -> str:
    """The name of a run that has made its tables and imported its model."""
    run = run_name()
    finished = kedro_run(
        "--env", "test", "--params", f"run_name={run}", "--namespaces", "data_ingest"
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert len(_digest(run)) > 10
    return run


Refuse = Callable[[list[str]], tuple[int, str]]


def _in_a_process_of_its_own(command: list[str]) -> tuple[int, str]:
    finished = subprocess.run(
        [sys.executable, "-m", "kedro", *command], cwd=PROJECT, env=ENVIRONMENT,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return finished.returncode, finished.stderr


def _refuse_all(
    cases: list[Case],
    earlier: str,
    checkpoint: Path,
    tmp_path: Path,
    refuse: Refuse,
    tell: Callable[[str], None],
) -> None:
    before, runs = _digest(earlier), _runs()
    wrong = {}
    for number, case in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        code, errors = refuse(arguments(case, Workshop(folder, checkpoint), earlier))
        found = faults(case, code, errors)
        found += ["an earlier run was changed"] if _digest(earlier) != before else []
        found += [f"wrote {sorted(made)}"] if (made := _runs() - runs) else []
        if found:
            wrong[case.name] = found
    refused = len(cases) - len(wrong)
    tell(f"inputs refused: {refused} of {len(cases)}, of {len(CASES)} in all")
    report = "\n".join(f"{name}: {'; '.join(found)}" for name, found in wrong.items())
    assert not wrong, (
        f"{len(wrong)} of {len(cases)} inputs are not refused as they should:\n{report}"
    )


def test_cases_are_many_and_distinct():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 300


@pytest.fixture
def in_a_fork(kedro_fork) -> Refuse:
    """A function that runs a command in a fork of a process that has imported everything."""

    def run(command: list[str]) -> tuple[int, str]:
        finished = kedro_fork(command)
        return finished.returncode, finished.stderr

    return run


def test_a_share_of_the_malformed_inputs_is_refused(
    earlier, random_checkpoint, tmp_path, in_a_fork, tell
):
    # Seeded; `make stress` has them all.
    drawn = random.Random(0).sample(CASES, len(CASES) // SHARE)
    _refuse_all(drawn, earlier, random_checkpoint.folder, tmp_path, in_a_fork, tell)


@pytest.mark.stress
@pytest.mark.parametrize("part", range(PARTS))
def test_every_malformed_input_is_refused(
    part, earlier, random_checkpoint, tmp_path, in_a_fork, tell
):
    # What has imported nothing yet refuses a part of them too.
    refuse = _in_a_process_of_its_own if part == 0 else in_a_fork
    cases = CASES[part::PARTS]
    _refuse_all(cases, earlier, random_checkpoint.folder, tmp_path, refuse, tell)
