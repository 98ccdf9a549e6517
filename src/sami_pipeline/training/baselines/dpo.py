"""DPO (arXiv 2305.18290): the desired constitution's response is preferred to the others'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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


class DpoParameters(Settings):
    """What is DPO's own (arXiv 2305.18290); all else is taken from SAMI's training."""

    beta: PositiveFloat = Field(0.1, description="How closely the model keeps to the initial one.")
    learning_rate: PositiveFloat | None = Field(None, description="None takes SAMI's.")
    pairs: Literal["desired", "all"] = Field(
        "desired",
        description="Prefer the desired constitution's response to the others', or every "
        "constitution's own (what a grid holds; twice the work at n = 2).",
    )


def preference_grids(grids: Sequence[Grid], parameters: DpoParameters) -> list[Grid]:
    """Return the grids whose every prompt prefers its own response to the others.

    With ``pairs: desired`` a grid keeps its first prompt, that of the desired constitution; with
    ``all`` it is as SAMI has it.
    """
    from sami_pipeline.core.grid import Grid

    if parameters.pairs == "all":
        return list(grids)
    return [Grid(grid.prompt_ids[:1], grid.response_ids) for grid in grids]


def train_dpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    grids: Sequence[Grid],
    config: SamiTrainingConfig,
    parameters: DpoParameters,
    state_folder: Path,
) -> pd.DataFrame:
    """Train a model with DPO in SAMI's own loop, in place, and return its history.

    Args:
        model: fp32 weights.
        tokenizer: the model's.
        grids: one per query.
        config: SAMI's; all but its objective, ``memory`` and trackers is taken from it.
        parameters: what is DPO's own.
        state_folder: where the training keeps its states, and from where a killed run goes on.

    Returns:
        One row per optimiser step: ``step, loss, preference_accuracy, reward_margin,
        gradient_norm, learning_rate, weights_moved, tokens_per_second, peak_memory_bytes``. The
        accuracy is the share of pairs whose chosen response has the higher implicit reward, the
        margin the mean difference of the two rewards; both, and the loss, before the step.

    Raises:
        StateMismatchError: see ``core.train_sami``.
        FloatingPointError: see ``core.train_sami``.
    """
    from sami_pipeline.core.dpo import DpoObjective

    return train_alike(
        model, tokenizer, preference_grids(grids, parameters), config, parameters.learning_rate,
        DpoObjective(parameters.beta), code_versions.of(train_dpo), state_folder,
    )  # fmt: skip


def step_memory(
    architecture: PretrainedConfig,
    config: SamiTrainingConfig,
    grids: Sequence[Grid],
    *,
    device: Literal["cpu", "cuda"] = "cuda",
) -> StepMemory:
    """Return the memory of a step on a micro-batch of ``preference_grids``; see ``core.memory``."""
    from sami_pipeline.core.dpo import DpoObjective, ReferenceGrid
    from sami_pipeline.core.memory import grids_step_memory

    # What the reference gives changes no shape.
    known = [
        ReferenceGrid(grid.prompt_ids, grid.response_ids, [[0.0] * grid.shape[1]] * grid.shape[0])
        for grid in grids
    ]
    return grids_step_memory(
        architecture, known, without_samis_own(config), DpoObjective(1.0), device=device
    )


DPO = Baseline(
    name="dpo",
    method="sami_pipeline.training.baselines.dpo:train_dpo",
    settings=DpoParameters,
    choose="sami_pipeline.training.baseline_responses:to_prefer",
    grids="sami_pipeline.training.baselines.dpo:preference_grids",
    passes=4,  # the reference once more
    step_memory="sami_pipeline.training.baselines.dpo:step_memory",
    follows_lora=True,
    words="direct preference optimisation: prefers the responses to the desired constitution to "
    "the others",
)
DPO_AFTER_SFT = replace(DPO, name="sft_dpo", group="dpo", starts_from="sft")
