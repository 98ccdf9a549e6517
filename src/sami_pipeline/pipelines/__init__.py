"""Thin nodes and their wiring: one package a shared pipeline, one module an experiment."""

from __future__ import annotations

from kedro.pipeline import Pipeline


def folded(stage: Pipeline, name: str) -> Pipeline:
    """Return a pipeline that folds into one box of the graph; its datasets keep their names."""
    return Pipeline(stage, namespace=name, prefix_datasets_with_namespace=False)
