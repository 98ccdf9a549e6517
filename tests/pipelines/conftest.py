import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

Run = subprocess.CompletedProcess[str]


ENVIRONMENT = os.environ | {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

# What runs import is imported once; each run is a fork of the process that has it, and ends as any
# process does. Fork copies no threads, so this process must have none.
FORKS = """
import gc, importlib, json, os, sys, threading
from pathlib import Path

for name in (
    "sami_pipeline.settings", "sami_pipeline.pipeline_registry", "sami_pipeline.cli",
    "transformers.models.llama.modeling_llama", "transformers.models.llama.tokenization_llama",
    "accelerate", "scipy.stats", "plotly.express",
    "pandera.strategies.pandas_strategies", "kedro_datasets.plotly", "kedro_datasets.text",
    "kedro_datasets.json", "kedro_datasets.partitions", "kedro_viz.launchers.cli.main",
    "kedro_viz.integrations.kedro.hooks", "kedro_airflow.plugin", "kedro_telemetry.plugin",
):
    importlib.import_module(name)
from kedro.framework.cli import main

gc.collect()
gc.freeze()  # else each fork copies every object when it collects
# pyarrow's allocator takes care of its own thread when a process forks.
threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
threads = [name for name in threads if name != "jemalloc_bg_thd"]
assert len(threads) <= 1 == threading.active_count(), f"an import starts threads: {threads}"
for line in sys.stdin:
    command, output, errors = json.loads(line)
    if (child := os.fork()) == 0:
        break
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
os.setsid()
for place, stream in ((os.devnull, 0), (output, 1), (errors, 2)):
    os.dup2(os.open(place, os.O_RDONLY if stream == 0 else os.O_WRONLY | os.O_APPEND), stream)
sys.argv = ["python -m kedro", *command]
main()
"""
SECONDS = 550


class _Forks:
    """The process whose forks are runs; it starts with the first of them."""

    def __init__(self, project_folder: Path, folder: Path) -> None:
        self._folder = folder
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", FORKS], cwd=project_folder, env=ENVIRONMENT, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip

    def run(self, command: list[str]) -> Run:
        """Run a command of ``kedro``; it is killed when it is late or nobody waits any more."""
        paths = [self._folder / f"{uuid.uuid4().hex}.{name}" for name in ("out", "err")]
        for path in paths:
            path.touch()
        with contextlib.suppress(BrokenPipeError):  # what has ended says why below
            self._process.stdin.write(json.dumps([command, *map(str, paths)]) + "\n")
            self._process.stdin.flush()
        child, late = self._number(), threading.Event()
        timer = threading.Timer(SECONDS, lambda: (late.set(), _kill(child)))
        timer.start()
        try:
            code = self._number()
        except BaseException:
            _kill(child)
            self._number()  # the next run reads its own
            raise
        finally:
            timer.cancel()
        output, errors = (path.read_text("utf-8", errors="replace") for path in paths)
        if late.is_set():
            raise AssertionError(f"kedro {command} took over {SECONDS} s:\n{output}\n{errors}")
        return Run(["kedro", *command], code, output, errors)

    def _number(self) -> int:
        line = self._process.stdout.readline()
        if not line:
            log = (self._folder / "log").read_text("utf-8", errors="replace")
            raise RuntimeError(f"the process whose forks are runs has ended:\n{log}")
        return int(line)

    def end(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


def _kill(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


@pytest.fixture(scope="session")
def kedro_fork(project_folder: Path, tmp_path_factory) -> Iterator[Callable[[list[str]], Run]]:
    """Return a function that runs a command of ``kedro`` in the project, without a network.

    It runs in a fork of a process that has imported everything, which saves a quarter of its time.
    All forks hash texts alike: a test that results don't depend on it runs processes instead, as
    does one that kills a run or changes code.
    """
    forks = []

    def run(command: list[str]) -> Run:
        if not forks:
            forks.append(_Forks(project_folder, tmp_path_factory.mktemp("kedro_forks")))
        return forks[0].run(command)

    yield run
    for each in forks:
        each.end()


@pytest.fixture(scope="session")
def kedro_run(project_folder: Path, kedro_fork) -> Callable[..., Run]:
    """Return a function that runs ``kedro run`` in the project, without a network.

    With ``variables`` of its environment it is a process that starts from nothing.
    """

    def run(
        *arguments: str, pipeline: str = "mt_bench", variables: Mapping[str, str] | None = None
    ) -> Run:
        given = ["run", "--pipelines", pipeline, *arguments]
        if not variables:
            return kedro_fork(given)
        return subprocess.run(
            [sys.executable, "-m", "kedro", *given], cwd=project_folder,
            env=ENVIRONMENT | dict(variables), capture_output=True, text=True, timeout=SECONDS,
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
