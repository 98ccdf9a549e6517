"""Training state on disk: written whole or not at all, and never unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sami_pipeline.core.config import SamiTrainingConfig
from sami_pipeline.core.grid import Grid

STATES_KEPT = 2
_NAME = "step-{:08d}"


class StateMismatchError(ValueError):
    """A saved state belongs to other data, other parameters or another initial model."""


def fingerprint(
    model: nn.Module, grids: Sequence[Grid], config: SamiTrainingConfig
) -> dict[str, str]:
    """Return what determines a run, hashed by part, so that a mismatch can name the part."""
    weights = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        # A sample tells models apart; hashing every byte of an 8B model would take minutes.
        sample = values[:: max(1, values.numel() // 1024)].float().cpu().contiguous()
        weights.update(f"{name}{tuple(parameter.shape)}".encode())
        weights.update(sample.numpy().tobytes())
    data = hashlib.sha256()
    for grid in grids:
        # As plain lists: a tuple or an array of the same ids is the same data.
        parts = [[list(map(int, s)) for s in ss] for ss in (grid.prompt_ids, grid.response_ids)]
        data.update(json.dumps(parts).encode())
    # How often the state is saved does not change what is computed.
    parameters = json.dumps(asdict(config) | {"save_state_every": None}, sort_keys=True)
    return {
        "initial model": weights.hexdigest(),
        "training data": data.hexdigest(),
        "parameters": hashlib.sha256(parameters.encode()).hexdigest(),
    }


def save_state(
    folder: Path,
    step: int,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    history: list[dict[str, Any]],
    run_fingerprint: dict[str, str],
    *,
    finished: bool = False,
) -> None:
    """Write weights, optimiser state, RNG state and history after ``step`` optimiser steps.

    Everything goes to a temporary folder that is renamed at the end; the last two are kept.
    ``finished`` says that this is the end of the run.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{_NAME.format(step)}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    parameters = {name: p.detach().contiguous() for name, p in model.named_parameters()}
    save_file(parameters, temporary / "model.safetensors")

    tensors, scalars = {"rng": torch.get_rng_state()}, {}
    for index, entries in optimiser.state_dict()["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}/{key}"] = value.contiguous()
            else:
                scalars[f"{index}/{key}"] = value
    save_file(tensors, temporary / "optimiser.safetensors")
    record = {
        "step": step,
        "finished": finished,
        "fingerprint": run_fingerprint,
        "optimiser_scalars": scalars,
        "history": history,
    }
    (temporary / "state.json").write_text(json.dumps(record))
    for path in [*temporary.iterdir(), temporary]:
        _synchronise(path)
    final = folder / _NAME.format(step)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _synchronise(folder)
    for old in list_states(folder)[:-STATES_KEPT]:
        shutil.rmtree(old)


def load_latest_state(
    folder: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    run_fingerprint: dict[str, str],
) -> tuple[int, list[dict[str, Any]]]:
    """Restore the latest whole state in place and return (steps done, history).

    Returns (0, []) when there is none, or only that of another run which came to its end: its
    model is made, so nothing is lost with it.

    Raises:
        StateMismatchError: the state belongs to another, unfinished run; the message names the
            part that changed.
    """
    from safetensors.torch import load_file

    for abandoned in folder.glob(".step-*"):
        shutil.rmtree(abandoned)
    states = list_states(folder)
    if not states:
        return 0, []
    latest = states[-1]
    record = json.loads((latest / "state.json").read_text())
    changed = [
        part for part, value in run_fingerprint.items() if record["fingerprint"].get(part) != value
    ]
    if changed and record.get("finished"):
        for state in states:
            shutil.rmtree(state)
        return 0, []
    if changed:
        raise StateMismatchError(
            f"{latest}: this training state belongs to another run ({', '.join(changed)} changed); "
            f"delete {folder} to start anew, or restore what changed"
        )
    weights = load_file(latest / "model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    entries: dict[int, dict[str, Any]] = {}
    stored: dict[str, Any] = dict(load_file(latest / "optimiser.safetensors"))
    torch.set_rng_state(stored.pop("rng"))
    for key, value in (stored | record["optimiser_scalars"]).items():
        index, name = key.split("/", 1)
        entries.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict(optimiser.state_dict() | {"state": entries})
    return record["step"], record["history"]


def list_states(folder: Path) -> list[Path]:
    """Return the whole states in a folder, oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
