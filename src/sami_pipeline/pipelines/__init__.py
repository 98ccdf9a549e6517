"""Thin nodes and their wiring: one package a shared pipeline, one module an experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import add

import pandas as pd
from kedro.pipeline import Node, Pipeline

from sami_pipeline.evaluation.seeds import SEED
from sami_pipeline.tables import StoredTable


def folded(stage: Pipeline, name: str) -> Pipeline:
    """Return a pipeline that folds into one box of the graph; its datasets keep their names."""
    return Pipeline(stage, namespace=name, prefix_datasets_with_namespace=False)


def with_datasets_under(name: str, pipeline: Pipeline) -> Pipeline:
    """Return a pipeline whose datasets and parameters, but not its nodes, are under a namespace."""

    def under(datasets: set[str]) -> dict[str, str]:
        return {dataset: f"{name}.{dataset}" for dataset in datasets}

    parameters = {dataset for dataset in pipeline.inputs() if dataset.startswith("params:")}
    return Pipeline(
        pipeline,
        inputs=under(pipeline.inputs() - parameters),
        outputs=under(pipeline.all_outputs()),
        parameters=under({parameter.removeprefix("params:") for parameter in parameters}),
    )


def for_each_model(
    models: Sequence[str],
    make: Callable[[str], Callable[..., pd.DataFrame]],
    *,
    inputs: Sequence[str],
    output: str,
) -> list[Node]:
    """Return a node for each model that makes its table from its checkpoint and other inputs.

    Args:
        models: by name.
        make: gives the node function of a model; the node is named after it.
        inputs: what follows ``{model}_checkpoint``.
        output: the table is ``{model}_{output}``.
    """
    functions = {model: make(model) for model in models}
    return [
        Node(
            function,
            inputs=[f"{model}_checkpoint", *inputs],
            outputs=f"{model}_{output}",
            name=function.__name__,
        )
        for model, function in functions.items()
    ]


def combined(
    replicates: Mapping[str, tuple[str, int]], table: str, output: str | None = None
) -> Node:
    """Return the node that brings the tables of all models together.

    Args:
        replicates: model and training seed of every checkpoint, by its name.
        table: each has one, ``{name}_{table}``.
        output: name of the whole; None takes ``table``.
    """
    several = any(name != model for name, (model, _) in replicates.items())
    return Node(
        combine_replicates(dict(replicates)) if several else combine_tables,
        inputs=[f"{name}_{table}" for name in replicates],
        outputs=output or table,
        name=f"combine_{table}",
    )


def combine_replicates(
    replicates: Mapping[str, tuple[str, int]],
) -> Callable[..., pd.DataFrame | StoredTable]:
    """Return the node function that combines tables of replicates, with their training seeds.

    Args:
        replicates: model and seed of every table, in the order of the tables.
    """

    def combine(*tables: pd.DataFrame | StoredTable) -> pd.DataFrame | StoredTable:
        """Return the rows of all models in one table with ``seed``; of stored ones none is read."""
        marked = []
        for table, (model, seed) in zip(tables, replicates.values(), strict=True):
            constants = {"model": model, SEED: seed}
            marked.append(
                table.with_constants(constants)
                if isinstance(table, StoredTable)
                else table.assign(**constants)
            )
        if all(isinstance(table, StoredTable) for table in marked):
            return reduce(add, marked)
        return pd.concat(marked, ignore_index=True)

    return combine


def combine_tables(*tables: pd.DataFrame | StoredTable) -> pd.DataFrame | StoredTable:
    """Return the rows of all models in one table; of stored tables nothing is read."""
    if all(isinstance(table, StoredTable) for table in tables):
        return StoredTable(*(path for table in tables for path in table.paths))
    return pd.concat(tables, ignore_index=True)
