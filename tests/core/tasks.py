"""What the members of a team do at once; see ``team.py``."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tiny import build_tiny_model
from torch import Tensor

from sami_pipeline import code_versions
from sami_pipeline.core import Grid, SamiTrainingConfig, evaluate_grids, state, train_sami, training
from sami_pipeline.core.distributed import current_workers, gathered_weights, shard
from sami_pipeline.core.memory import empty_model
from sami_pipeline.core.probe import choose_layout
from sami_pipeline.core.state import save_state
from sami_pipeline.core.training import SamiObjective


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
    objective = model_options.pop("objective", None) or SamiObjective.of(config)
    model = build_tiny_model(model_options.pop("family", "llama"), **model_options)
    if only_first and not current_workers().is_first:
        model = empty_model(model.config)

    def save_and_stop(folder: Path, done: int, *rest: Any, **options: Any) -> None:
        save_state(folder, done, *rest, **options)
        if done == stop_after:
            raise Interrupted

    training.save_state = save_and_stop
    try:
        history = training.train(
            model,
            None,
            grids,
            config,
            objective,
            code_versions.of(train_sami),
            state_folder=states,
            progress=False,
            device=torch.device("cpu"),
        ).history
    except Interrupted:
        history = pd.DataFrame()
    finally:
        training.save_state = save_state
    return history, gathered_weights(model)


def train_while_a_state_is_written(
    grids: list[Grid], config: SamiTrainingConfig, states: Path
) -> list[list[int]]:
    """Write the state of step 2 once step 3 is taken, and stop; return the states around it."""
    wrote, go_on = threading.Event(), threading.Event()
    real, take_step, seen = state._write_tensors, training._take_step, []

    def slow(*inputs: Any) -> None:
        wrote.set()
        assert go_on.wait(60)
        real(*inputs)

    def step(*inputs: Any) -> dict[str, float]:
        row = take_step(*inputs)
        if row["step"] == 3:
            assert wrote.wait(60)
            seen.append([path.name for path in state.list_states(states)])
            go_on.set()
            raise Interrupted
        return row

    state._write_tensors, training._take_step = slow, step
    try:
        train(grids, config, states)
    finally:
        state._write_tensors, training._take_step = real, take_step
    seen.append([path.name for path in state.list_states(states)])
    return seen


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
