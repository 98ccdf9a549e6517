"""Nodes of baseline_training: TRL trains the student on SAMI's responses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from sami_pipeline.inputs.problems import rightly_solved
from sami_pipeline.models.checkpoints import Checkpoint, LoadedModel
from sami_pipeline.parameters import IterationsParameters, TrainingParameters
from sami_pipeline.training.data import history_table, measured_training, state_kept_in
from sami_pipeline.training.responses import with_desired_first


def train_baseline(
    name: str,
) -> Callable[..., tuple[LoadedModel, pd.DataFrame, pd.DataFrame]]:
    """Return the node function that trains the baseline of that name: dpo or sft."""

    def train(
        student: Checkpoint,
        responses: pd.DataFrame,
        state_folder: Path,
        parameters: TrainingParameters,
        iterations: IterationsParameters,
        problems: pd.DataFrame | None = None,
    ) -> tuple[LoadedModel, pd.DataFrame, pd.DataFrame]:
        """Return the trained model, its history, and SAMI's objective on held-out queries."""
        from sami_pipeline.training import baselines

        config = iterations.training_config(parameters.sami, iterations.count)
        if name == "sft" and parameters.sft.only_correct and problems is not None:
            responses = rightly_solved(responses, problems)
        if name == "sft" or parameters.dpo.pairs == "desired":
            responses = with_desired_first(responses, once=name == "sft")
        with (
            measured_training(name, student, responses, parameters) as training,
            state_kept_in(state_folder),
        ):
            method = {"dpo": baselines.train_dpo, "sft": baselines.train_sft}[name]
            history = method(
                training.model,
                training.tokenizer,
                training.grids,
                config,
                getattr(parameters, name),
                state_folder,
            )
        provenance = {
            "source": "baseline_training",
            "method": name,
            "student": student.provenance,
            "grids": len(training.grids),
            "optimiser_steps": len(history),
        }
        return (
            LoadedModel(training.model, training.tokenizer, provenance, student.chat),
            history_table(name, history),
            training.held_out,
        )

    train.__name__ = f"train_{name}"
    return train
