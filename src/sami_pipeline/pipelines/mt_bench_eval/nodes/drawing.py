"""Tables of results become figures; ``models`` gives the colours, see ``figures.model_colours``."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from sami_pipeline import figures


def draw_win_rates(win_rates: pd.DataFrame, models: Sequence[str] = ()) -> tuple[go.Figure, str]:
    """Return the figure of experiment 1, and the same as a standalone HTML page."""
    figure = figures.win_rates(win_rates, models=models)
    return figure, figures.standalone_html(figure)


def draw_compliance(compliance: pd.DataFrame, models: Sequence[str] = ()) -> go.Figure:
    """Return compliance by principle for every model."""
    return figures.compliance(compliance, models=models)


def draw_questions(verdicts: pd.DataFrame, models: Sequence[str] = ()) -> go.Figure:
    """Return how many statements two models follow on the same questions."""
    return figures.paired_questions(verdicts, models=models)


def draw_lengths(degeneration: pd.DataFrame, models: Sequence[str] = ()) -> go.Figure:
    """Return the length of answers by model and constitution."""
    return figures.lengths(degeneration, models=models)
