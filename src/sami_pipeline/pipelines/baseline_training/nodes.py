"""Nodes of baseline_training: the student is trained on SAMI's responses in other ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from sami_pipeline.models.checkpoints import Checkpoint, LoadedModel
from sami_pipeline.parameters import IterationsParameters, TrainingParameters
from sami_pipeline.training.baselines.record import Baseline
from sami_pipeline.training.data import (
    history_table,
    measured_training,
    state_kept_in,
    with_seed,
)


def train_baseline(
    student: Checkpoint,
    responses: pd.DataFrame,
    state_folder: Path,
    parameters: TrainingParameters,
    iterations: IterationsParameters,
    *,
    baseline: Baseline,
    method: Callable[..., pd.DataFrame],
    choose: Callable[..., pd.DataFrame] | None,
    name: str,
    further: int,
    **known: pd.DataFrame,
) -> tuple[LoadedModel, pd.DataFrame, pd.DataFrame]:
    """Return the trained model, its history, and SAMI's objective on held-out queries.

    Args:
        student: what is trained.
        responses: what it is trained on.
        state_folder: for saved states of the training.
        parameters: of trainings.
        iterations: whose last one it is compared with.
        baseline: how it is trained.
        method: the baseline's own function that trains.
        choose: the baseline's own function that chooses responses, if it has one.
        name: of the baseline, or of one of its replicates.
        further: what its seed is above that of the parameters.
        known: what the experiment knows of its queries, by dataset.
    """
    config = with_seed(iterations.training_config(parameters.sami, iterations.count), further)
    settings = baseline.settings_in(parameters)
    if choose is not None:
        responses = choose(responses, settings, known)
    with (
        measured_training(name, student, responses, parameters) as training,
        state_kept_in(state_folder),
    ):
        history = method(
            training.model,
            training.tokenizer,
            training.grids,
            config,
            settings,
            state_folder,
        )
    provenance = {
        "source": "baseline_training",
        "method": baseline.name,
        "student": student.provenance,
        "grids": len(training.grids),
        "optimiser_steps": len(history),
    }
    return (
        LoadedModel(training.model, training.tokenizer, provenance, student.chat),
        history_table(name, history),
        training.held_out,
    )
