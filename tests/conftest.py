import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from browser import chromium, open_page

from sami_pipeline import code_versions
from sami_pipeline.code_versions import PACKAGE_FOLDER, Sources
from sami_pipeline.datasets import CheckpointDataset
from sami_pipeline.models.checkpoints import Checkpoint, ModelSource, import_model
from sami_pipeline.models.prompts import PromptTemplate
from sami_pipeline.principles.constitutions import tabulate_principles
from sami_pipeline.session import experiments

PROJECT = Path(__file__).parents[1]
__all__ = ["chromium", "open_page"]
VLLM_PYTHON = PROJECT / ".venv-vllm" / "bin" / "python"


@pytest.hookimpl(trylast=True)  # after those that were not asked for are deselected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest files first; refuse to pass the tests of vLLM by where it is missing."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))
    if any(item.get_closest_marker("vllm") for item in items) and not VLLM_PYTHON.is_file():
        raise pytest.UsageError(f"{VLLM_PYTHON} does not exist; run `make vllm`")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name bytes by their number: gzip writes the time, and all processes need the same names."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


# The files that take longest, in this order. They start first, so that none of them is left to one
# process while the other has nothing to do.
LONGEST = (
    "docs/test_worked_examples.py", "pipelines/test_suspended_server.py",
    "reporting/test_report_in_browser.py", "docs/test_notebooks.py",
    "pipelines/test_judge_server.py",
    "pipelines/test_kedro_viz.py", "pipelines/test_changed_code_run.py",
    "training/test_baselines.py", "pipelines/test_mt_bench_run.py",
    "pipelines/test_from_outside.py", "pipelines/test_killed_runs.py",
    "result_tables/test_result_tables.py", "core/test_memory.py", "pipelines/test_paper_run.py",
    "pipelines/test_judge_run.py", "pipelines/test_kedro_habits.py", "test_growth.py",
    "training/test_training_launch.py", "engines/test_openai_engine.py",
    "pipelines/test_bad_inputs.py", "pipelines/test_dry_run.py",
    "pipelines/test_families_through_pipelines.py", "core/test_training.py",
    "session/test_what_a_change_reaches.py", "test_engine_benchmark.py",
    "core/test_distributed.py", "evaluation/test_coverage.py", "core/test_logprobs.py",
    "pipelines/test_hosted_teacher.py", "reporting/test_contents.py", "test_gpu_benchmark.py",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def parameters_end_with_the_file() -> Iterator[None]:
    """Let no file see the parameters of a session that another has opened in this process."""
    yield
    experiments._active_parameters = None


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Return a function whose lines stand at the end of the whole test run, as what it counted."""
    return lambda line: record_property("counted", line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have counted, wherever they ran."""
    lines = [
        value
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        for name, value in report.user_properties
        if name == "counted"
    ]
    if lines:
        terminalreporter.section("counted")
        for line in lines:
            terminalreporter.line(line)


def read_yaml_folder(name: str) -> dict[str, Any]:
    """Return the parsed files of a folder of data/01_raw by file name."""
    folder = PROJECT / "data" / "01_raw" / name
    return {path.name: yaml.safe_load(path.read_text("utf-8")) for path in folder.glob("*.yml")}


@pytest.fixture(scope="session")
def project_folder() -> Path:
    return PROJECT


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A randomly initialised two-layer Llama, saved as the catalog saves models."""
    dataset = CheckpointDataset(filepath=str(tmp_path_factory.mktemp("models") / "random"))
    dataset.save(import_model(ModelSource.model_validate("random:0"), PROJECT))
    return dataset.load()


@pytest.fixture(scope="session")
def principle_files() -> dict[str, Any]:
    """The shipped principles as written, by file name."""
    return read_yaml_folder("principles")


@pytest.fixture
def principles(principle_files: dict[str, Any]) -> pd.DataFrame:
    """The shipped principles, one row each."""
    return tabulate_principles(principle_files)


@pytest.fixture(scope="session")
def templates() -> dict[str, PromptTemplate]:
    """The shipped prompt templates by name: "chat" and "plain"."""
    return {
        name.removesuffix(".yml"): PromptTemplate.model_validate(content)
        for name, content in read_yaml_folder("prompt_templates").items()
    }


@pytest.fixture
def sources(tmp_path_factory, monkeypatch) -> Iterator[Callable[..., Path]]:
    """Return a function that changes a file of a copy of the sources, which then count."""
    folder = tmp_path_factory.mktemp("sources") / PACKAGE_FOLDER.name
    shutil.copytree(PACKAGE_FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))

    def change(file: str, old: str, new: str) -> None:
        path = folder / file
        text = path.read_text("utf-8")
        assert old in text, f"{file} no longer holds {old!r}"
        path.write_text(text.replace(old, new), "utf-8")
        read = Sources(folder)
        monkeypatch.setattr(code_versions, "project", lambda: read)
        code_versions._version.cache_clear()

    yield change
    code_versions._version.cache_clear()
