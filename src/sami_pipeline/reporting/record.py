"""What each node of an experiment ran on, when, and for how long.

One small file a node, so that a resumed run, which skips the nodes that have finished, keeps what
an earlier one has recorded of them. Versions are read from package metadata; no package is loaded.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sami_pipeline import PROJECT_FOLDER, files
from sami_pipeline.errors import writing
from sami_pipeline.process_settings import peak_memory_bytes

# Those that decide numbers or texts; of those installed, the versions are recorded.
_PACKAGES = (
    "sami-pipeline", "kedro", "torch", "transformers", "accelerate", "peft", "vllm",
    "liger-kernel", "tokenizers", "reasoning-gym", "numpy", "pandas", "plotly",
)  # fmt: skip
_COMMAND_SECONDS = 10


class Environment(BaseModel):
    """What a node ran on.

    Attributes:
        git_revision: commit of the project, with ``-dirty`` where files differ from it; None
            outside a git checkout.
        python: version of Python.
        packages: versions of installed packages by name.
        system: operating system and architecture.
        processor: name of the CPU.
        cores: CPU cores that the process may use.
        memory_bytes: the machine's main memory; None where the system does not say.
        gpus: name and memory of each NVIDIA GPU.
    """

    model_config = ConfigDict(frozen=True)

    git_revision: str | None
    python: str
    packages: dict[str, str]
    system: str
    processor: str
    cores: int
    memory_bytes: int | None
    gpus: tuple[str, ...]


class Work(BaseModel):
    """How much a node has to compute, as it was counted before it ran.

    Attributes:
        kind: what is done.
        by: what does it: a model's source and, for texts, the engine.
        tokens: what it costs, in tokens that a model reads or writes in a full batch.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["writing", "training"]
    by: str
    tokens: float = Field(gt=0)


class Attempt(BaseModel):
    """One time that a node was started.

    Attributes:
        run: Kedro's name of the run that started it.
        started: when, in UTC.
        seconds: how long the node's function took, without loading and saving; None if the
            process ended before the node did, or is still at it.
        outcome: "unfinished" until it is one of the others.
        environment: what it ran on.
        command: what the run was asked for, such as its environment and parameters.
        work: how much a node with a model in it has to compute, where that could be counted.
        peak_memory_bytes: the most resident memory that the process, or one that it started, has
            had until the node ended; None if the system does not say.
    """

    run: str
    started: datetime
    seconds: float | None = None
    outcome: Literal["unfinished", "finished", "failed"] = "unfinished"
    environment: Environment
    command: dict[str, Any] = {}
    work: Work | None = None
    peak_memory_bytes: int | None = None


class NodeRecord(BaseModel):
    """What is known of one node: the attempts since it was last made again, the latest one last."""

    node: str
    attempts: list[Attempt] = Field(min_length=1)

    @property
    def seconds(self) -> float:
        """How long all attempts took together, as far as that is known."""
        return sum(attempt.seconds or 0 for attempt in self.attempts)


class RunRecord:
    """The records of an experiment's nodes, in a folder.

    Attributes:
        folder: holds one JSON file a node; need not exist before something is recorded.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, node: str, run: str, command: dict[str, Any], work: Work | None = None) -> None:
        """Record that a node starts.

        Attempts that did not finish are kept, since this one may go on where they stopped; a
        finished one is replaced, as are the node's outputs.
        """
        record = self.read(node)
        kept = record.attempts if record and record.attempts[-1].outcome != "finished" else []
        attempt = Attempt(
            run=run, started=datetime.now(UTC), environment=environment(), command=command,
            work=work,
        )  # fmt: skip
        self._write(NodeRecord(node=node, attempts=[*kept, attempt]))

    def end(
        self,
        node: str,
        seconds: float,
        outcome: Literal["finished", "failed"],
        *,
        in_part: bool = False,
    ) -> None:
        """Record how the started attempt at a node ended.

        Args:
            node: its name.
            seconds: how long it took.
            outcome: how it ended.
            in_part: it did not do all that was counted, since some was there already.
        """
        record = self.read(node)
        if record is None:
            raise ValueError(f"{node}: has ended without a record of its start")
        record.attempts[-1].seconds = seconds
        record.attempts[-1].outcome = outcome
        record.attempts[-1].peak_memory_bytes = peak_memory_bytes()
        if in_part:
            record.attempts[-1].work = None
        self._write(record)

    def take_over(self, node: str, other: RunRecord) -> None:
        """Record what another run knows of a node whose outputs are taken over from it."""
        record = other.read(node)
        if record is None:
            self._path(node).unlink(missing_ok=True)
        else:
            self._write(record)

    def read(self, node: str) -> NodeRecord | None:
        """Return what is known of a node, or None."""
        path = self._path(node)
        return NodeRecord.model_validate_json(path.read_bytes()) if path.is_file() else None

    def is_begun(self, node: str) -> bool:
        """Return whether the last attempt at a node did not come to its end."""
        record = self.read(node)
        return record is not None and record.attempts[-1].outcome != "finished"

    def read_all(self, nodes: Sequence[str]) -> list[NodeRecord]:
        """Return what is known of these nodes, in their order, those without a record left out."""
        return [record for node in nodes if (record := self.read(node))]

    def _path(self, node: str) -> Path:
        return self.folder / f"{node}.json"

    def _write(self, record: NodeRecord) -> None:
        """Replace a record at once, so that a kill leaves the old one or the new one."""
        path = self._path(record.node)
        with writing(path):
            files.write_text(path, record.model_dump_json(indent=2) + "\n")


@cache
def environment() -> Environment:
    """Return what this process runs on."""
    return Environment(
        git_revision=git_revision(PROJECT_FOLDER),
        python=platform.python_version(),
        packages={name: version for name in _PACKAGES if (version := _version(name))},
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        memory_bytes=_memory_bytes(),
        gpus=_gpus(),
    )


def git_revision(folder: Path) -> str | None:
    """Return the commit of a folder that is under git, with ``-dirty`` where files differ from it.

    None without git, outside a checkout, and where a checkout around the folder does not track it.
    """
    tracked = _output(["git", "-C", str(folder), "ls-files", "pyproject.toml"])
    if not tracked:
        return None
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return _output(["git", "-C", str(folder), *describe]) or None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _gpus() -> tuple[str, ...]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    return tuple(_output(query).splitlines())


def _output(command: list[str]) -> str:
    """Return what a command prints, or nothing if it is not there or fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        finished = subprocess.run(
            command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return finished.stdout.strip() if finished.returncode == 0 else ""
