"""Thin nodes and their wiring: one package a shared pipeline, one module an experiment."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import reduce, wraps
from operator import add
from typing import TYPE_CHECKING, Any

import pandas as pd
from kedro.pipeline import Node, Pipeline

from sami_pipeline.evaluation.seeds import SEED
from sami_pipeline.tables import StoredTable

if TYPE_CHECKING:
    from sami_pipeline.parameters import ExperimentParameters
    from sami_pipeline.result_tables.record import ResultTable


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


def bind(function: Callable[..., Any], **values: Any) -> Callable[..., Any]:
    """Return a node's function with values for those of its arguments that the graph decides.

    ``functools.partial`` binds them too, but kedro-viz shows no code for it, and Kedro reads no
    types of parameters from it.
    """

    @wraps(function)
    def bound(*inputs: Any, **named_inputs: Any) -> Any:
        return function(*inputs, **named_inputs, **values)

    signature = inspect.signature(function)
    left = [each for name, each in signature.parameters.items() if name not in values]
    bound.__signature__ = signature.replace(parameters=left)
    return bound


def for_each_model(
    models: Sequence[str],
    function: Callable[..., pd.DataFrame],
    *,
    inputs: Sequence[str],
    output: str,
) -> list[Node]:
    """Return a node for each model that makes its table from its checkpoint and other inputs.

    Args:
        models: by name.
        function: of the nodes, with the argument ``model``; a node is named after both.
        inputs: what follows ``{model}_checkpoint``.
        output: the table is ``{model}_{output}``.
    """
    return [
        Node(
            bind(function, model=model),
            inputs=[f"{model}_checkpoint", *inputs],
            outputs=f"{model}_{output}",
            name=f"{function.__name__}_{model}",
        )
        for model in models
    ]


def result_nodes(tables: Sequence[ResultTable], parameters: ExperimentParameters) -> list[Node]:
    """Return a node for each table of results that an experiment makes.

    Args:
        tables: of its kind of evaluation, in their order.
        parameters: of the experiment.
    """
    return [
        Node(
            table.make,
            inputs={**table.inputs, **table.more_inputs(parameters)},
            outputs=table.name,
            name=f"tabulate_{table.name}",
        )
        for table in tables
        if table.wanted(parameters)
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
    return Node(
        bind(combine_replicates, replicates=dict(replicates))
        if with_seeds(replicates)
        else combine_tables,
        inputs=[f"{name}_{table}" for name in replicates],
        outputs=output or table,
        name=f"combine_{table}",
    )


def with_seeds(replicates: Mapping[str, tuple[str, int]]) -> bool:
    """Return whether some models were trained with several seeds."""
    return any(name != model for name, (model, _) in replicates.items())


def combine_replicates(
    *tables: pd.DataFrame | StoredTable, replicates: Mapping[str, tuple[str, int]]
) -> pd.DataFrame | StoredTable:
    """Return the rows of all models in one table with ``seed``; of stored ones none is read.

    Args:
        tables: of each replicate.
        replicates: model and seed of every table, in the order of the tables.
    """
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


def combine_tables(*tables: pd.DataFrame | StoredTable) -> pd.DataFrame | StoredTable:
    """Return the rows of all models in one table; of stored tables nothing is read."""
    if all(isinstance(table, StoredTable) for table in tables):
        return StoredTable(*(path for table in tables for path in table.paths))
    return pd.concat(tables, ignore_index=True)
