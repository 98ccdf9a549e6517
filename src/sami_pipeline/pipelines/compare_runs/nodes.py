"""Nodes of compare_runs: several runs in one table and one figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from sami_pipeline import figures
from sami_pipeline.parameters import CompareRunsParameters
from sami_pipeline.reporting import comparison
from sami_pipeline.reporting.run_pages import write_comparison


def compare(
    results: dict[str, Callable[[], pd.DataFrame]],
    outputs: dict[str, Callable[[], pd.DataFrame]],
    records: dict[str, Callable[[], Mapping[str, Any]]],
    parameters: CompareRunsParameters,
    *,
    headlines: Mapping[str, comparison.Headline],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return headline figures of the chosen runs, and paired differences from the first."""
    runs = parameters.runs
    if parameters.pooled:
        tables, made = comparison.pooled_results(outputs, records, parameters.pooled)
        results, outputs = results | tables, outputs | made
        if runs is not None:
            runs = (*runs, comparison.POOLED)
    table = comparison.compare_runs(results, headlines, runs)
    compared = table["run"].drop_duplicates().tolist()
    return table, comparison.run_differences(outputs, compared)


def tabulate_differences(
    records: dict[str, Callable[[], Mapping[str, Any]]], parameters: CompareRunsParameters
) -> pd.DataFrame:
    """Return the parameters in which the chosen runs differ."""
    return comparison.parameter_differences(records, parameters.runs)


def draw_comparison(table: pd.DataFrame) -> go.Figure:
    """Return the chosen runs side by side."""
    return figures.comparison(table)


def write_page(
    table: pd.DataFrame,
    differences: pd.DataFrame,
    parameters: pd.DataFrame,
    figure: go.Figure,
) -> str:
    """Return the chosen runs side by side as one HTML page."""
    return write_comparison(table, differences, parameters, figure)
