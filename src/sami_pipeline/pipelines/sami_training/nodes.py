"""Nodes of sami_training: the student is trained, and measured before and after."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sami_pipeline.models.checkpoints import Checkpoint
from sami_pipeline.parameters import IterationsParameters, TrainingParameters
from sami_pipeline.training.data import with_seed
from sami_pipeline.training.launch import Trained, train_student


def train_model(
    student: Checkpoint,
    responses: pd.DataFrame,
    state_folder: Path,
    tracker_folder: Path,
    parameters: TrainingParameters,
    iterations: IterationsParameters,
    *,
    iteration: int,
    name: str,
    further: int,
) -> Trained:
    """Return the trained model, its history, and the held-out objective before and after.

    The history has one row per optimiser step, see ``core.train_sami``; the held-out table one row
    per (stage, metric).

    Args:
        student: what is trained.
        responses: what it is trained on.
        state_folder: for saved states of the training.
        tracker_folder: for what trackers write.
        parameters: of trainings.
        iterations: what changes from one to the next.
        iteration: from 1.
        name: of the model, or of one of its replicates.
        further: what its seed is above that of the parameters.
    """
    provenance = {
        "source": "sami_training",
        "student": student.provenance,
        "iteration": iteration,
    }
    return train_student(
        name,
        student,
        responses,
        state_folder,
        tracker_folder,
        parameters,
        with_seed(iterations.training_config(parameters.sami, iteration), further),
        provenance,
    )
