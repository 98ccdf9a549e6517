"""The experiment's graph and catalog."""

from pathlib import Path

import pytest
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

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

    def following(self, names: set[str]) -> set[str]:
        """Return nodes and all that are made from what they make, by their short names."""
        full = [node.name for node in self.pipeline.nodes if node.name.rpartition(".")[2] in names]
        chosen = self.pipeline.from_nodes(*full).nodes if full else []
        return {node.name.rpartition(".")[2] for node in chosen}

    def origins(self) -> dict[str, Origin]:
        """Return what each node's outputs are to be made from, by the node's name."""
        found = provenance.origins(self.pipeline, self.catalog, lambda _: None)
        return {
            node.name.rpartition(".")[2]: found[node.outputs[0]] for node in self.pipeline.nodes
        }


@pytest.fixture(scope="package")
def graph(project_folder: Path) -> Graph:
    return Graph(project_folder)
