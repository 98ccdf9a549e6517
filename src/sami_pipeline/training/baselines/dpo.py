"""DPO (arXiv 2305.18290): the desired constitution's response is preferred to the others'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sami_pipeline.core.grid import Grid


class DpoParameters(Settings):
    """What is DPO's own (arXiv 2305.18290); all else is taken from SAMI's training."""

    beta: PositiveFloat = Field(0.1, description="How closely the model keeps to the initial one.")
    learning_rate: PositiveFloat | None = Field(None, description="None takes SAMI's.")
    pairs: Literal["desired", "all"] = Field(
        "desired",
        description="Prefer the desired constitution's response to the others', or every "
        "constitution's own (what a grid holds; twice the work at n = 2).",
    )


def preference_pairs(grids: Sequence[Grid], parameters: DpoParameters) -> list[dict[str, Any]]:
    """Return ``prompt_ids, chosen_ids, rejected_ids`` of every pair, in the order of the grids.

    With ``pairs: desired`` the first constitution, the desired one, prefers its own response to
    each of the others; with ``all`` every constitution does, so the pairs hold what a grid holds.
    """
    pairs = []
    for grid in grids:
        size = len(grid.prompt_ids)
        for i in range(size if parameters.pairs == "all" else 1):
            pairs += [
                {
                    "prompt_ids": list(grid.prompt_ids[i]),
                    "chosen_ids": list(grid.response_ids[i]),
                    "rejected_ids": list(grid.response_ids[j]),
                }
                for j in range(size)
                if j != i
            ]
    return pairs


def train_dpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    grids: Sequence[Grid],
    config: SamiTrainingConfig,
    parameters: DpoParameters,
    state_folder: Path,
) -> pd.DataFrame:
    """Train a model with TRL's DPOTrainer, in place, and return its history.

    Args:
        model: fp32 weights.
        tokenizer: the model's.
        grids: one per query.
        config: SAMI's; epochs, batch size in queries, optimiser, schedule and so on are taken
            from it.
        parameters: what is DPO's own.
        state_folder: where the trainer keeps its progress, and from where a killed run goes on.

    Returns:
        One row per optimiser step: ``step, loss, gradient_norm, learning_rate, weights_moved,
        tokens_per_second, peak_memory_bytes, preference_accuracy, reward_margin``.
    """
    from trl import DPOConfig, DPOTrainer

    class TokenisedDPOTrainer(DPOTrainer):
        """Takes token ids as they are; TRL would join the texts and end every response."""

        def _prepare_dataset(self, dataset: Dataset, *arguments: Any, **options: Any) -> Dataset:
            return dataset

    pairs = preference_pairs(grids, parameters)
    per_query = len(pairs) // len(grids)
    arguments = DPOConfig(
        **trainer_arguments(
            model, config, parameters.learning_rate, len(grids), per_query, state_folder
        ),
        beta=parameters.beta,
        max_length=None,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=config.grids_per_micro_batch * per_query,
    )
    determining = {"sami": determining_settings(config), "dpo": parameters.model_dump()}
    return train(
        TokenisedDPOTrainer, arguments, model, tokenizer, config, pairs, determining, state_folder,
        code_versions.of(train_dpo),
    )  # fmt: skip


def rows(settings: DpoParameters, n_constitutions: int) -> int:
    """Return the sequences of a query: two for each pair."""
    others = n_constitutions - 1
    return 2 * others * (n_constitutions if settings.pairs == "all" else 1)


DPO = Baseline(
    name="dpo",
    method="sami_pipeline.training.baselines.dpo:train_dpo",
    settings=DpoParameters,
    choose="sami_pipeline.training.baseline_responses:to_prefer",
    rows=rows,
    passes=4,  # the reference once more
    follows_lora=True,
)
DPO_AFTER_SFT = replace(DPO, name="sft_dpo", group="dpo", starts_from="sft")
