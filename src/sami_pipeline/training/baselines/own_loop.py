"""What baselines have in common that train in the project's own loop (``core.training.train``)."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from sami_pipeline.code_versions import CodeVersion
from sami_pipeline.core.config import SamiTrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sami_pipeline.core.grid import Grid
    from sami_pipeline.core.training import Objective

logger = logging.getLogger(__name__)


def train_alike(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    grids: Sequence[Grid],
    config: SamiTrainingConfig,
    learning_rate: float | None,
    objective: Objective,
    code: CodeVersion,
    state_folder: Path,
) -> pd.DataFrame:
    """Train a model as SAMI does but for the objective, in place, and return its history.

    Args:
        model: fp32 weights.
        tokenizer: the model's.
        grids: as the objective takes them.
        config: SAMI's.
        learning_rate: None takes SAMI's.
        objective: what is lowered.
        code: of the baseline.
        state_folder: where the training keeps its states, and from where a killed run goes on.

    Returns:
        See ``core.training.train``.
    """
    from sami_pipeline.core.training import train

    refuse_states_of_trl(state_folder)
    settings = without_samis_own(config).replaced(
        learning_rate=learning_rate or config.learning_rate
    )
    result = train(model, tokenizer, grids, settings, objective, code, state_folder=state_folder)
    return result.history


def without_samis_own(config: SamiTrainingConfig) -> SamiTrainingConfig:
    """Return the settings with what is SAMI's alone at its default, whatever it is set to."""
    default = SamiTrainingConfig()
    own = ("kl_beta", "nll_weight", "length_normalise", "memory", "reduce_every", "trackers")
    return config.replaced(**{name: getattr(default, name) for name in own})


def refuse_states_of_trl(state_folder: Path) -> None:
    """Remove what TRL's trainer, which trained baselines before, has left after its end.

    Raises:
        StateMismatchError: that training did not come to its end.
    """
    from sami_pipeline.core.state import StateMismatchError

    record = state_folder / "run.json"
    if not record.is_file():
        return
    if not json.loads(record.read_text("utf-8"))["finished"]:
        raise StateMismatchError(
            f"{record}: this training was begun by an earlier version, with TRL's trainer; delete "
            f"{state_folder} to start over"
        )
    logger.info("%s is discarded: an earlier version trained with TRL's trainer", state_folder)
    shutil.rmtree(state_folder)
