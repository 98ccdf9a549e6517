"""Supervised finetuning: the desired constitution's response is imitated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd
from pydantic import Field, PositiveFloat

from sami_pipeline import code_versions
from sami_pipeline.core.config import SamiTrainingConfig
from sami_pipeline.engines.parameters import Settings
from sami_pipeline.training.baselines.own_loop import train_alike, without_samis_own
from sami_pipeline.training.baselines.record import Baseline

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from sami_pipeline.core.grid import Grid
    from sami_pipeline.core.memory import StepMemory


class SftParameters(Settings):
    """What is supervised finetuning's own; all else is taken from SAMI's training."""

    learning_rate: PositiveFloat | None = Field(None, description="None takes SAMI's.")
    only_correct: bool = Field(
        False, description="In the math experiment, imitate only solutions whose answer is right."
    )


def demonstrations(grids: Sequence[Grid], parameters: Settings) -> list[Grid]:
    """Return each query's desired prompt and response: the first of its grid."""
    from sami_pipeline.core.grid import Grid

    return [Grid(grid.prompt_ids[:1], grid.response_ids[:1]) for grid in grids]


def train_sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    grids: Sequence[Grid],
    config: SamiTrainingConfig,
    parameters: SftParameters,
    state_folder: Path,
) -> pd.DataFrame:
    """Finetune a model on desired responses in SAMI's own loop, in place, and return its history.

    Args:
        model: fp32 weights.
        tokenizer: the model's.
        grids: one per query.
        config: SAMI's; all but its objective, ``memory`` and trackers is taken from it.
        parameters: what is SFT's own.
        state_folder: where the training keeps its states, and from where a killed run goes on.

    Returns:
        One row per optimiser step: ``step, loss, gradient_norm, learning_rate, weights_moved,
        tokens_per_second, peak_memory_bytes``. The loss is the mean over the response tokens of
        the step's queries, in nats, before the step.

    Raises:
        StateMismatchError: see ``core.train_sami``.
        FloatingPointError: see ``core.train_sami``.
    """
    from sami_pipeline.core.sft import SftObjective

    return train_alike(
        model, tokenizer, demonstrations(grids, parameters), config, parameters.learning_rate,
        SftObjective(), code_versions.of(train_sft), state_folder,
    )  # fmt: skip


def step_memory(
    architecture: PretrainedConfig,
    config: SamiTrainingConfig,
    grids: Sequence[Grid],
    *,
    device: Literal["cpu", "cuda"] = "cuda",
) -> StepMemory:
    """Return the memory of a step on a micro-batch of ``demonstrations``; see ``core.memory``."""
    from sami_pipeline.core.memory import grids_step_memory
    from sami_pipeline.core.sft import SftObjective

    return grids_step_memory(
        architecture, grids, without_samis_own(config), SftObjective(), device=device
    )


SFT = Baseline(
    name="sft",
    method="sami_pipeline.training.baselines.sft:train_sft",
    settings=SftParameters,
    choose="sami_pipeline.training.baseline_responses:to_imitate",
    follows_lora=True,
    words="supervised finetuning: imitates the responses to the desired constitution",
)
