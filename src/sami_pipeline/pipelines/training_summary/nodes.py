"""Nodes of training_summary: the tables of all trained models together."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from sami_pipeline import figures


def draw_learning_curve(history: pd.DataFrame, models: Sequence[str] = ()) -> go.Figure:
    """Return loss, accuracies and MI bound by optimiser step; for models see `model_colours`."""
    return figures.learning_curve(history, models)
