"""Nodes of training_summary: the tables of all trained models together."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from sami_pipeline import figures


def draw_learning_curve(history: pd.DataFrame) -> go.Figure:
    """Return loss, accuracies and MI bound by optimiser step."""
    return figures.learning_curve(history)
