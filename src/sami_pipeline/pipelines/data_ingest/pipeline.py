"""data_ingest: raw files become tables and model folders."""

from __future__ import annotations

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from sami_pipeline.parameters import ExperimentParameters
from sami_pipeline.pipelines import bind
from sami_pipeline.pipelines.data_ingest.nodes import build_principles, import_named_model
from sami_pipeline.vocabulary import RAW


def create_pipeline(experiment: ExperimentParameters, categories: Sequence[str] | None) -> Pipeline:
    """Return the pipeline that imports models and principles; experiments add what is asked.

    Args:
        experiment: names the models.
        categories: what principles may be written for; None leaves principles to the experiment.
    """
    models = [
        Node(
            bind(import_named_model, name=name),
            inputs="params:models",
            outputs=f"{name}_checkpoint",
            name=f"import_{name}",
        )
        for name in experiment.models.sources
        if name not in experiment.models.answer_files
    ]
    if categories is None:
        return Pipeline(models)
    return Pipeline([*models, principles_node(categories)])


def principles_node(categories: Sequence[str]) -> Node:
    """Return the node that reads the principles of the catalog's files."""
    return Node(
        bind(build_principles, categories=categories),
        inputs="principle_files",
        outputs="principles",
        name="build_principles",
        tags=RAW,
    )
