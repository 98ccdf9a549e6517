"""The experiment's graph and catalog, and copies of the sources that tests change."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from sami_pipeline import code_versions
from sami_pipeline.code_versions import PACKAGE_FOLDER, Sources
from sami_pipeline.session import provenance
from sami_pipeline.session.provenance import Origin


class Graph:
    """The MT-Bench experiment of the test environment."""

    def __init__(self, project: Path) -> None:
        from kedro.framework.project import pipelines

        bootstrap_project(project)
        with KedroSession.create(project, env="test") as session:
            self.catalog: DataCatalog = session.load_context().catalog
            self.pipeline: Pipeline = pipelines["mt_bench"]

    def origins(self) -> dict[str, Origin]:
        """Return what each node's outputs are to be made from, by the node's name."""
        found = provenance.origins(self.pipeline, self.catalog, lambda _: None)
        return {
            node.name.rpartition(".")[2]: found[node.outputs[0]] for node in self.pipeline.nodes
        }


@pytest.fixture(scope="package")
def graph(project_folder: Path) -> Graph:
    return Graph(project_folder)


@pytest.fixture
def sources(tmp_path, monkeypatch) -> Iterator[Callable[..., Path]]:
    """Return a function that changes a file of a copy of the sources, which then count."""
    folder = tmp_path / PACKAGE_FOLDER.name
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
