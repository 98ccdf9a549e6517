"""What the members of a team do at once; see ``team.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tiny import build_tiny_model
from torch import Tensor

from sami_pipeline.core import Grid, SamiTrainingConfig, evaluate_grids, train_sami, training
from sami_pipeline.core.distributed import current_workers, gathered_weights, shard
from sami_pipeline.core.memory import empty_model
from sami_pipeline.core.probe import choose_layout
from sami_pipeline.core.state import save_state


class Interrupted(Exception):
    pass


def train(
    grids: list[Grid],
    config: SamiTrainingConfig,
    states: Path | None = None,
    stop_after: int | None = None,
    **model_options: Any,
) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """Train a tiny model and return its history and weights, those of ``stop_after`` steps."""
    only_first = model_options.pop("only_first", False)
    model = build_tiny_model(model_options.pop("family", "llama"), **model_options)
    if only_first and not current_workers().is_first:
        model = empty_model(model.config)

    def save_and_stop(folder: Path, done: int, *rest: Any, **options: Any) -> None:
        save_state(folder, done, *rest, **options)
        if done == stop_after:
            raise Interrupted

    training.save_state = save_and_stop
    try:
        history = train_sami(
            model,
            None,
            grids,
            config,
            state_folder=states,
            progress=False,
            device=torch.device("cpu"),
        ).history
    except Interrupted:
        history = pd.DataFrame()
    finally:
        training.save_state = save_state
    return history, gathered_weights(model)


def evaluate(grids: list[Grid], config: SamiTrainingConfig) -> pd.DataFrame:
    """Measure grids with a tiny model in shards."""
    model = build_tiny_model("llama")
    if current_workers().count > 1:
        choose_layout(model)
        shard(model, torch.device("cpu"))
    return evaluate_grids(model, None, grids, config, progress=False)


def refusal(grids: list[Grid], config: SamiTrainingConfig) -> str:
    """Return why a training is refused."""
    try:
        train_sami(build_tiny_model("llama"), None, grids, config, progress=False)
    except ValueError as error:
        return str(error)
    raise AssertionError("nothing was refused")
