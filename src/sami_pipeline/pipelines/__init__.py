"""Thin nodes and their wiring: one package a shared pipeline, one module an experiment."""

from __future__ import annotations

import pandas as pd
from kedro.pipeline import Pipeline


def folded(stage: Pipeline, name: str) -> Pipeline:
    """Return a pipeline that folds into one box of the graph; its datasets keep their names."""
    return Pipeline(stage, namespace=name, prefix_datasets_with_namespace=False)


def combine_tables(*tables: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of all models in one table."""
    return pd.concat(tables, ignore_index=True)
