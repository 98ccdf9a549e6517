"""Nodes of sami_training: the student is trained, and measured before and after."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from sami_pipeline import figures
from sami_pipeline.checkpoints import Checkpoint, LoadedModel
from sami_pipeline.parameters import TrainingParameters
from sami_pipeline.training_data import held_out_table, select_grids

logger = logging.getLogger(__name__)


def train_model(
    student: Checkpoint, responses: pd.DataFrame, state_folder: Path, parameters: TrainingParameters
) -> tuple[LoadedModel, pd.DataFrame, pd.DataFrame]:
    """Return the trained model, its history, and the held-out objective before and after.

    The history has one row per optimiser step, see ``core.train_sami``; the held-out table one
    row per (stage, metric).
    """
    import torch

    from sami_pipeline.core import evaluate_grids, train_sami

    tokenizer = student.load_tokenizer()
    model = student.load_model(torch.float32)
    train = select_grids(responses, "train", tokenizer)
    held_out = select_grids(responses, "held_out", tokenizer)
    logger.info("%d grids to train on, %d held out", len(train), len(held_out))

    measured = {}
    config = parameters.sami
    if held_out:
        measured["before"] = evaluate_grids(
            model, tokenizer, held_out, config, description="Held-out grids before"
        )
    result = train_sami(model, tokenizer, train, config, state_folder=state_folder)
    if held_out:
        measured["after"] = evaluate_grids(
            model, tokenizer, held_out, config, description="Held-out grids after"
        )
    provenance = {
        "source": "sami_training",
        "student": student.provenance,
        "grids": len(train),
        "optimiser_steps": len(result.history),
    }
    return (
        LoadedModel(result.model, tokenizer, provenance),
        result.history,
        held_out_table(measured, resamples=parameters.resamples, seed=parameters.seed),
    )


def draw_learning_curve(history: pd.DataFrame) -> go.Figure:
    """Return loss, accuracies and MI bound by optimiser step."""
    return figures.learning_curve(history)
