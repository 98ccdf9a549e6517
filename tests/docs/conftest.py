"""Worked examples of the docs, done as a reader does them in a copy of the project.

What a page asks for stands in fenced blocks, each after a comment that no reader sees:

    <!-- example: write PATH -->    the block is the file
    <!-- example: change PATH -->   the block is a diff without line numbers
    <!-- example: run -->           commands for bash
    <!-- example: python -->        a script
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

STEP = re.compile(
    r"^<!-- example: (?P<action>\w+)(?: (?P<path>\S+))? -->\n```\w+\n(?P<block>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# Large, and only read: linked instead of copied.
LINKED = ("models", "mt_bench")


@dataclass(frozen=True)
class Step:
    """One step of a worked example: write or change a file, or run commands."""

    action: str
    path: str | None
    block: str


@dataclass(frozen=True)
class ProjectCopy:
    """A copy of the project that a reader may change."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """Variables under which Python and kedro take this copy's code and no network."""
        return os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder / "src"),
            "KEDRO_LOGGING_CONFIG": str(self.folder / "conf" / "logging.yml"),
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }

    def do(self, step: Step) -> None:
        """Do one step; what a command prints is shown if it fails."""
        match step.action:
            case "write":
                path = self.folder / step.path
                assert not path.exists(), f"{step.path} is there already; the page says write"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(step.block, "utf-8")
            case "change":
                path = self.folder / step.path
                path.write_text(patched(path.read_text("utf-8"), step.block), "utf-8")
            case "run" | "python":
                shell = ["bash", "-euo", "pipefail"] if step.action == "run" else [sys.executable]
                finished = subprocess.run(
                    [*shell, "-c", step.block], cwd=self.folder, env=self.environment,
                    capture_output=True, text=True, timeout=300,
                )  # fmt: skip
                assert finished.returncode == 0, f"{step.block}\n{finished.stderr[-3000:]}"
            case _:
                pytest.fail(f"unknown action {step.action!r}")


def steps_of(page: str) -> list[Step]:
    """Return the steps of a page in their order.

    Every comment must be followed by a block, so that none is forgotten silently.
    """
    steps = [Step(*found.group("action", "path", "block")) for found in STEP.finditer(page)]
    assert len(steps) == page.count("<!-- example:"), "a step's comment has no block after it"
    return steps


def patched(text: str, diff: str) -> str:
    """Return a text with a diff applied, whose old lines it must hold exactly once."""
    lines = diff.splitlines()
    assert all(line[:1] in ("", " ", "+", "-") for line in lines), diff
    old = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "+")
    new = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "-")
    assert old != new
    assert f"\n{text}".count(f"\n{old}") == 1, f"these lines must be there once:\n{old}"
    return f"\n{text}".replace(f"\n{old}", f"\n{new}")[1:]


@pytest.fixture(scope="session")
def project_copy(project_folder, tmp_path_factory) -> Callable[[], ProjectCopy]:
    """Return a function that copies the project without what runs have made."""
    if not (project_folder / "data" / "01_raw" / "mt_bench" / "question.jsonl").is_file():
        pytest.fail("data/01_raw/mt_bench is missing; run `make setup`")

    def copy() -> ProjectCopy:
        folder = tmp_path_factory.mktemp("project")
        made = shutil.ignore_patterns("__pycache__", "*.egg-info", ".ipynb_checkpoints")
        raw = project_folder / "data/01_raw"

        def left_out(parent: str, names: list[str]) -> set[str]:
            return made(parent, names) | (set(LINKED) if Path(parent) == raw else set())

        for name in ("conf", "src", "notebooks", "data/01_raw"):
            shutil.copytree(project_folder / name, folder / name, ignore=left_out)
        for name in LINKED:
            (folder / "data/01_raw" / name).symlink_to(project_folder / "data/01_raw" / name)
        for name in ("pyproject.toml", ".telemetry"):
            shutil.copy(project_folder / name, folder)
        return ProjectCopy(folder)

    return copy


@pytest.fixture(scope="session")
def worked_example(project_folder, project_copy) -> Callable[[str], ProjectCopy]:
    """Return a function that does what a page says and gives the project after it."""

    @cache
    def done(page: str) -> ProjectCopy:
        project = project_copy()
        steps = steps_of((project_folder / "docs" / f"{page}.md").read_text("utf-8"))
        assert steps, f"{page} has no worked example"
        for step in steps:
            project.do(step)
        return project

    return done
