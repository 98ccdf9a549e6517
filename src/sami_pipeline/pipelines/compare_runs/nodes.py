"""Nodes of compare_runs: several runs in one table and one figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from sami_pipeline import figures
from sami_pipeline.parameters import CompareRunsParameters
from sami_pipeline.reporting import comparison


def compare_by(
    headlines: Mapping[str, comparison.Headline],
) -> Callable[[dict[str, Callable[[], pd.DataFrame]], CompareRunsParameters], pd.DataFrame]:
    """Return the node function that compares runs by these figures; see ``compare_runs``."""

    def compare(
        results: dict[str, Callable[[], pd.DataFrame]], parameters: CompareRunsParameters
    ) -> pd.DataFrame:
        """Return the headline figures of the chosen runs."""
        return comparison.compare_runs(results, headlines, parameters.runs)

    return compare


def tabulate_differences(
    records: dict[str, Callable[[], Mapping[str, Any]]], parameters: CompareRunsParameters
) -> pd.DataFrame:
    """Return the parameters in which the chosen runs differ."""
    return comparison.parameter_differences(records, parameters.runs)


def draw_comparison(table: pd.DataFrame) -> go.Figure:
    """Return the chosen runs side by side."""
    return figures.comparison(table)
