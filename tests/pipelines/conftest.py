import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

Run = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def kedro_run(project_folder: Path) -> Callable[..., Run]:
    """Return a function that runs ``kedro run`` in the project, without a network."""
    environment = os.environ | {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run(
        *arguments: str, pipeline: str = "mt_bench", variables: Mapping[str, str] | None = None
    ) -> Run:
        command = [sys.executable, "-m", "kedro", "run", "--pipelines", pipeline, *arguments]
        return subprocess.run(
            command, cwd=project_folder, env=environment | dict(variables or {}),
            capture_output=True, text=True, timeout=550,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def run_name(project_folder: Path) -> Iterator[Callable[[], str]]:
    """Return a function that gives a new run name; what these runs wrote is removed at the end."""
    if not (project_folder / "data" / "01_raw" / "mt_bench" / "question.jsonl").is_file():
        pytest.fail("data/01_raw/mt_bench is missing; run `make setup`")
    names: list[str] = []

    def new() -> str:
        names.append(f"pytest_{uuid.uuid4().hex[:12]}")
        return names[-1]

    yield new
    for name in names:
        for folder in (project_folder / "data").glob(f"0[2-8]_*/{name}"):
            shutil.rmtree(folder)


@pytest.fixture
def mt_bench_parameters(project_folder: Path) -> dict[str, Any]:
    """The embedded default's parameters of the MT-Bench experiment, as written."""
    path = project_folder / "conf" / "base" / "parameters" / "mt_bench.yml"
    return yaml.safe_load(path.read_text("utf-8"))["mt_bench"]


def _merged(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return content | {
        key: _merged(content.get(key) or {}, value) if isinstance(value, dict) else value
        for key, value in changes.items()
    }


@pytest.fixture(scope="session")
def merged() -> Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]:
    """Return a function that gives nested mappings with some of their values changed."""
    return _merged


@pytest.fixture
def changed_conf(project_folder, tmp_path) -> Callable[..., Path]:
    """Return a function that copies conf/ and changes a file of its test environment."""
    copy = tmp_path / "conf"

    def change(file: str, changes: dict[str, Any]) -> Path:
        conf = copy if copy.exists() else Path(shutil.copytree(project_folder / "conf", copy))
        path = conf / "test" / file
        content = yaml.safe_load(path.read_text("utf-8")) if path.is_file() else {}
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(_merged(content, changes)), "utf-8")
        return conf

    return change
