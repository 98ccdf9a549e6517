"""Supervised finetuning: the desired constitution's response is imitated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import Field, PositiveFloat

from sami_pipeline import code_versions
from sami_pipeline.core.config import SamiTrainingConfig
from sami_pipeline.engines.parameters import Settings
from sami_pipeline.training.baselines.record import Baseline
from sami_pipeline.training.baselines.trl_training import (
    determining_settings,
    train,
    trainer_arguments,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sami_pipeline.core.grid import Grid


class SftParameters(Settings):
    """What is supervised finetuning's own; all else is taken from SAMI's training."""

    learning_rate: PositiveFloat | None = Field(None, description="None takes SAMI's.")
    only_correct: bool = Field(
        False, description="In the math experiment, imitate only solutions whose answer is right."
    )


def demonstrations(grids: Sequence[Grid]) -> list[dict[str, Any]]:
    """Return ``input_ids, completion_mask`` of each query's desired response."""
    return [
        {
            "input_ids": [*grid.prompt_ids[0], *grid.response_ids[0]],
            "completion_mask": [0] * len(grid.prompt_ids[0]) + [1] * len(grid.response_ids[0]),
        }
        for grid in grids
    ]


def train_sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    grids: Sequence[Grid],
    config: SamiTrainingConfig,
    parameters: SftParameters,
    state_folder: Path,
) -> pd.DataFrame:
    """Train a model with TRL's SFTTrainer, in place, and return its history.

    Args:
        model: fp32 weights.
        tokenizer: the model's.
        grids: one per query.
        config: SAMI's; epochs, batch size in queries, optimiser, schedule and so on are taken
            from it.
        parameters: what is SFT's own.
        state_folder: where the trainer keeps its progress, and from where a killed run goes on.

    Returns:
        One row per optimiser step: ``step, loss, gradient_norm, learning_rate, weights_moved,
        tokens_per_second, peak_memory_bytes``.
    """
    from trl import SFTConfig, SFTTrainer

    examples = demonstrations(grids)
    arguments = SFTConfig(
        **trainer_arguments(model, config, parameters.learning_rate, len(grids), 1, state_folder),
        max_length=None,
        completion_only_loss=True,
    )
    determining = {"sami": determining_settings(config), "sft": parameters.model_dump()}
    return train(
        SFTTrainer, arguments, model, tokenizer, config, examples, determining, state_folder,
        code_versions.of(train_sft),
    )  # fmt: skip


SFT = Baseline(
    name="sft",
    method="sami_pipeline.training.baselines.sft:train_sft",
    settings=SftParameters,
    choose="sami_pipeline.training.baseline_responses:to_imitate",
    follows_lora=True,
    words="supervised finetuning: imitates the responses to the desired constitution",
)
