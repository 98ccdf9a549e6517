"""Nodes of sami_training: the student is trained, and measured before and after."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from sami_pipeline.checkpoints import Checkpoint, LoadedModel
from sami_pipeline.parameters import IterationsParameters, TrainingParameters
from sami_pipeline.training_data import history_table, measured_training, state_kept_in

logger = logging.getLogger(__name__)


def train_in(
    iteration: int, name: str
) -> Callable[..., tuple[LoadedModel, pd.DataFrame, pd.DataFrame]]:
    """Return the node function that trains the student with SAMI in an iteration."""

    def train_model(
        student: Checkpoint,
        responses: pd.DataFrame,
        state_folder: Path,
        tracker_folder: Path,
        parameters: TrainingParameters,
        iterations: IterationsParameters,
    ) -> tuple[LoadedModel, pd.DataFrame, pd.DataFrame]:
        """Return the trained model, its history, and the held-out objective before and after.

        The history has one row per optimiser step, see ``core.train_sami``; the held-out table
        one row per (stage, metric).
        """
        from sami_pipeline.core import train_sami

        config = iterations.training_config(parameters.sami, iteration)
        with (
            measured_training(name, student, responses, parameters) as training,
            state_kept_in(state_folder),
        ):
            history = train_sami(
                training.model,
                training.tokenizer,
                training.grids,
                config,
                state_folder=state_folder,
                tracker_folder=tracker_folder,
            ).history
        provenance = {
            "source": "sami_training",
            "student": student.provenance,
            "iteration": iteration,
            "grids": len(training.grids),
            "optimiser_steps": len(history),
        }
        return (
            LoadedModel(training.model, training.tokenizer, provenance),
            history_table(name, history),
            training.held_out,
        )

    return train_model
