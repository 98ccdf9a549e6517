"""Tables of results become figures."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from sami_pipeline import figures


def draw_win_rates(win_rates: pd.DataFrame) -> tuple[go.Figure, str]:
    """Return the figure of experiment 1, and the same as a standalone HTML page."""
    figure = figures.win_rates(win_rates)
    return figure, figures.standalone_html(figure)


def draw_compliance(compliance: pd.DataFrame) -> go.Figure:
    """Return compliance by principle for every model."""
    return figures.compliance(compliance)


def draw_questions(verdicts: pd.DataFrame) -> go.Figure:
    """Return how many statements two models follow on the same questions."""
    return figures.paired_questions(verdicts)


def draw_lengths(degeneration: pd.DataFrame) -> go.Figure:
    """Return the length of answers by model and constitution."""
    return figures.lengths(degeneration)
