"""Training state on disk: written whole or not at all, and never unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sami_pipeline.core.config import SamiTrainingConfig
from sami_pipeline.core.grid import Grid
from sami_pipeline.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STATES_KEPT = 2
_NAME = "step-{:08d}"
# Of a model's configuration: where it lay, what wrote it, and what training does not read.
_NOT_ARCHITECTURE = {
    "_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype",
    "use_cache", "pad_token_id", "bos_token_id", "eos_token_id",
}  # fmt: skip


class StateMismatchError(InputError):
    """A saved state belongs to other data, other parameters or another initial model."""


def fingerprint(
    model: PreTrainedModel, grids: Sequence[Grid], config: SamiTrainingConfig
) -> dict[str, str]:
    """Return what determines a run of SAMI; see ``fingerprint_parts``."""
    # As plain lists: a tuple or an array of the same ids is the same data.
    data = [
        [[list(map(int, s)) for s in ss] for ss in (grid.prompt_ids, grid.response_ids)]
        for grid in grids
    ]
    # How often the state is saved and where steps are logged do not change what is computed.
    parameters = asdict(config) | {"save_state_every": None, "trackers": None}
    return fingerprint_parts(model, data, parameters)


def fingerprint_parts(
    model: PreTrainedModel, data: Sequence[Any], parameters: dict[str, Any]
) -> dict[str, str]:
    """Return what determines a run, hashed by part, so that a mismatch can name the part.

    Args:
        model: before training.
        data: one JSON-able item an example, in order.
        parameters: JSON-able.
    """
    weights = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        # A sample tells models apart; hashing every byte of an 8B model would take minutes.
        sample = values[:: max(1, values.numel() // 1024)].float().cpu().contiguous()
        weights.update(f"{name}{tuple(parameter.shape)}".encode())
        weights.update(sample.numpy().tobytes())
    examples = hashlib.sha256()
    for item in data:
        examples.update(json.dumps(item).encode())
    architecture = {
        name: value
        for name, value in model.config.to_diff_dict().items()
        if name not in _NOT_ARCHITECTURE
    }
    weights.update(json.dumps(architecture, sort_keys=True, default=str).encode())
    return {
        "initial model": weights.hexdigest(),
        "training data": examples.hexdigest(),
        "parameters": hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest(),
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
    # Frozen weights are those of the initial model.
    trained = {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    save_file(trained, temporary / "model.safetensors")

    tensors, scalars = {"rng": torch.get_rng_state()}, {}
    if torch.cuda.is_available():
        tensors["cuda_rng"] = torch.cuda.get_rng_state()
    for index, parameter in enumerate(_parameters(optimiser)):
        for key, value in optimiser.state[parameter].items():
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
    # At the end of a run there is nothing left to fall back to.
    for old in list_states(folder)[: -1 if finished else -STATES_KEPT]:
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
    if record.get("finished") and record["fingerprint"] != run_fingerprint:
        for state in states:
            shutil.rmtree(state)
        return 0, []
    refuse_mismatch(latest, record["fingerprint"], run_fingerprint)
    weights = load_file(latest / "model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])
    stored: dict[str, Any] = dict(load_file(latest / "optimiser.safetensors"))
    torch.set_rng_state(stored.pop("rng"))
    cuda_rng = stored.pop("cuda_rng", None)
    if cuda_rng is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda_rng)
    # Not through load_state_dict, which casts every entry to the dtype of its parameter.
    parameters = _parameters(optimiser)
    for key, value in (stored | record["optimiser_scalars"]).items():
        index, name = key.split("/", 1)
        parameter = parameters[int(index)]
        if isinstance(value, torch.Tensor) and value.ndim > 0:
            value = value.to(parameter.device)
        optimiser.state[parameter][name] = value
    return record["step"], record["history"]


def refuse_mismatch(state: Path, saved: dict[str, str], wanted: dict[str, str]) -> None:
    """Raise a StateMismatchError that names the parts in which two fingerprints differ."""
    changed = [part for part, value in wanted.items() if saved.get(part) != value]
    if changed:
        raise StateMismatchError(
            f"{state}: this training state belongs to another run ({', '.join(changed)} changed); "
            f"delete {state.parent} to start anew, or restore what changed"
        )


def _parameters(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def list_states(folder: Path) -> list[Path]:
    """Return the whole states in a folder, oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
