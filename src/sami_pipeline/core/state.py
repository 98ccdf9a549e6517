"""Training state on disk: written whole or not at all, and never unpickled.

One format for one worker and for many: safetensors whose tensors have the names of the parameters
(``model.layers.0.mlp.up_proj.weight``) and of what the optimiser keeps of them
(``…up_proj.weight/exp_avg``), whole or in pieces, and ``state.json``. Pieces are written and read
by torch's distributed checkpointing, each worker its own; they go together again for any number of
workers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sami_pipeline import files
from sami_pipeline.code_versions import CodeVersion, listed
from sami_pipeline.core.config import SamiTrainingConfig
from sami_pipeline.core.distributed import Workers, as_shard_of, current_workers, own_part
from sami_pipeline.core.grid import Grid
from sami_pipeline.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

NO_CODE = CodeVersion()
STATES_KEPT = 2
_NAME = "step-{:08d}"
# Of a model's configuration: where it lay, what wrote it, and what training does not read.
_NOT_ARCHITECTURE = {
    "_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype",
    "use_cache", "pad_token_id", "bos_token_id", "eos_token_id",
}  # fmt: skip


class StateMismatchError(InputError):
    """A saved state belongs to other data, parameters or code, or another initial model."""


def fingerprint(
    model: PreTrainedModel,
    grids: Sequence[Grid],
    config: SamiTrainingConfig,
    code: CodeVersion = NO_CODE,
    further: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Return what determines a run of ``core.training.train``; see ``fingerprint_parts``.

    Args:
        model: before training.
        grids: to train on.
        config: of the training.
        code: what trains.
        further: JSON-able settings, besides the configuration.
    """
    # As plain lists: a tuple or an array of the same ids is the same data.
    data = [
        [[list(map(int, s)) for s in ss] for ss in (grid.prompt_ids, grid.response_ids)]
        for grid in grids
    ]
    # How often the state is saved and where steps are logged do not change what is computed.
    unread = dict.fromkeys(("save_state_every", "save_state_minutes", "trackers"))
    parameters = config.model_dump() | unread | dict(further or {})
    return fingerprint_parts(model, data, parameters, code)


def fingerprint_parts(
    model: PreTrainedModel,
    data: Sequence[Any],
    parameters: dict[str, Any],
    code: CodeVersion = NO_CODE,
) -> dict[str, str]:
    """Return what determines a run, hashed by part, so that a mismatch can name the part.

    Args:
        model: before training.
        data: one JSON-able item an example, in order.
        parameters: JSON-able.
        code: what trains.
    """
    weights = hashlib.sha256()
    # Sorted: adapters of experts leave them in another order.
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().flatten()
        # A sample tells models apart; hashing every byte of an 8B model would take minutes.
        sample = values[:: max(1, values.numel() // 1024)].float().cpu().contiguous()
        weights.update(f"{name}{tuple(parameter.shape)}".encode())
        weights.update(sample.numpy().tobytes())
    examples = hashlib.sha256()
    for item in data:
        examples.update(json.dumps(item).encode())
    weights.update(architecture(model).encode())
    return {
        "initial model": weights.hexdigest(),
        "training data": examples.hexdigest(),
        "parameters": hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest(),
        **code.parts(),
    }


def architecture(model: PreTrainedModel) -> str:
    """Return what a model's configuration says of what it computes, as JSON."""
    said = {
        name: value
        for name, value in model.config.to_diff_dict().items()
        if name not in _NOT_ARCHITECTURE
    }
    return json.dumps(said, sort_keys=True, default=str)


class StateWriter:
    """Writes states in a thread while the training goes on, one at a time.

    At the end of the ``with`` block all are on disk. What failed there is raised by the next state,
    or at the end. Of several workers each has a writer, and a thread that writes its shards.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="state")
        self._last: Future[None] | None = None
        self._workers: Workers | None = None

    @property
    def workers(self) -> Workers:
        """The workers as the threads see them; all must ask for the first time at once."""
        if self._workers is None:
            self._workers = current_workers().in_own_group()
        return self._workers

    def start(self, write: Callable[[], None]) -> None:
        """Write a state as soon as the one before is there."""
        self._wait()
        self._last = self._thread.submit(write)

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> StateWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self._wait()
        except Exception as fault:
            if error is None:
                raise
            logger.warning("The last state was not written: %s", fault)
        finally:
            self._thread.shutdown()
            if self._workers is not None:
                self._workers.leave_group()


def save_state(
    folder: Path,
    step: int,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    history: list[dict[str, Any]],
    run_fingerprint: dict[str, str],
    *,
    finished: bool = False,
    writer: StateWriter | None = None,
) -> None:
    """Write weights, optimiser state, RNG state and history after ``step`` optimiser steps.

    Everything goes to a temporary folder that is renamed at the end; the last two are kept. All
    workers call this, and each writes its shards. At the end of a run, where no step follows, the
    optimiser's state is left out.

    Args:
        folder: of this run's states.
        step: the number of steps that are done.
        model: being trained.
        optimiser: of the model.
        history: a row for each step.
        run_fingerprint: see ``fingerprint_parts``.
        finished: this is the end of the run.
        writer: a copy on the CPU is taken, and the training goes on while this writes it; None
            writes it at once.
    """
    workers = current_workers() if writer is None else writer.workers
    final = folder / _NAME.format(step)
    # Not ``files.whole_folder``, which is one process's: all workers write into this one.
    temporary = files.partial_place(final, "workers")
    weights = _trained_weights(model)
    kept, scalars = ({}, {}) if finished else _kept_by_optimiser(weights, optimiser)
    kept[f"rng/{workers.rank}"] = torch.get_rng_state()
    if torch.cuda.is_available():
        kept[f"cuda_rng/{workers.rank}"] = torch.cuda.get_rng_state()
    record = json.dumps(
        {
            "step": step,
            "finished": finished,
            "workers": workers.count,
            "fingerprint": run_fingerprint,
            "optimiser_scalars": scalars,
            "history": history,
        }
    )
    plain = {name: parameter.detach() for name, parameter in weights.items()}
    if writer is not None:
        plain, kept = ({n: t.to("cpu", copy=True) for n, t in ts.items()} for ts in (plain, kept))

    def write() -> None:
        if workers.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
        workers.wait()
        _write_tensors(temporary, plain, kept, workers)
        if workers.is_first:
            (temporary / "state.json").write_text(record, "utf-8")
            files.replace_folder(temporary, final)
            # At the end of a run there is nothing left to fall back to.
            for old in list_states(folder)[: -1 if finished else -STATES_KEPT]:
                shutil.rmtree(old)
        workers.wait()

    if writer is None:
        write()
    else:
        writer.start(write)


def _trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a state; frozen weights are those of the initial model."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _kept_by_optimiser(
    weights: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return what an optimiser keeps of each parameter: tensors, and other JSON-able values."""
    tensors, scalars = {}, {}
    for name, parameter in weights.items():
        for key, value in optimiser.state[parameter].items():
            if isinstance(value, torch.Tensor):
                tensors[f"{name}/{key}"] = as_shard_of(parameter, value)
            else:
                scalars[f"{name}/{key}"] = value
    return tensors, scalars


def _write_tensors(
    folder: Path,
    weights: dict[str, torch.Tensor],
    kept: dict[str, torch.Tensor],
    workers: Workers,
) -> None:
    if workers.count == 1:
        from safetensors.torch import save_file

        for name, tensors in (("model", weights), ("optimiser", kept)):
            whole = {key: value.contiguous() for key, value in tensors.items()}
            save_file(whole, folder / f"{name}.safetensors")
        return
    import torch.distributed.checkpoint as checkpointing

    # Not the default writer, which pickles what it says about the tensors.
    writer = checkpointing.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    checkpointing.save(weights | kept, storage_writer=writer, process_group=workers.group)


def _read_tensors(
    folder: Path, weights: dict[str, nn.Parameter], rank: int
) -> dict[str, torch.Tensor]:
    """Read weights in place, and return what else a worker needs of a state."""
    import torch.distributed.checkpoint as checkpointing

    reader = checkpointing.HuggingFaceStorageReader(str(folder))
    kept: dict[str, torch.Tensor] = {}
    for key, stored in reader.read_metadata().state_dict_metadata.items():
        name, _, rest = key.partition("/")
        if name in ("rng", "cuda_rng") and rest == str(rank):
            kept[key] = torch.empty(stored.size, dtype=stored.properties.dtype)
        elif name in weights and rest:
            parameter, dtype = weights[name], stored.properties.dtype
            like = own_part(parameter.detach()) if stored.size == parameter.shape else None
            kept[key] = (
                torch.empty(stored.size, dtype=dtype)
                if like is None
                else as_shard_of(parameter, torch.empty_like(like, dtype=dtype))
            )
    wanted = {name: parameter.detach() for name, parameter in weights.items()} | kept
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        checkpointing.load(wanted, storage_reader=reader)
    return kept


def load_latest_state(
    folder: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    run_fingerprint: dict[str, str],
) -> tuple[int, list[dict[str, Any]]]:
    """Restore the latest whole state in place and return (steps done, history).

    Returns (0, []) when there is none of this run; see ``matching_state``. The state may have been
    saved by another number of workers; their random numbers, which only dropout and stochastic
    rounding draw, do not come back then.

    Raises:
        StateMismatchError: see ``matching_state``.
    """
    workers = current_workers()
    found = matching_state(folder, run_fingerprint)
    if found is None:
        return 0, []
    latest, record = found
    weights = _trained_weights(model)
    kept: dict[str, Any] = _read_tensors(latest, weights, workers.rank)
    rng = kept.pop(f"rng/{workers.rank}", None)
    cuda_rng = kept.pop(f"cuda_rng/{workers.rank}", None)
    if rng is None or record["workers"] != workers.count:
        seed = random.Random(f"{torch.initial_seed()}/{record['step']}").getrandbits(63)
        torch.manual_seed(seed)
    else:
        torch.set_rng_state(rng)
        if cuda_rng is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(cuda_rng)
    # Not through load_state_dict, which casts every entry to the dtype of its parameter.
    for key, value in (kept | record["optimiser_scalars"]).items():
        name, _, entry = key.partition("/")
        parameter = weights[name]
        # A fused optimiser counts its steps where it computes; others do on the CPU.
        fused = optimiser.defaults.get("fused", False)
        if isinstance(value, torch.Tensor) and (value.ndim > 0 or fused):
            value = value.to(parameter.device)
        optimiser.state[parameter][entry] = value
    return record["step"], record["history"]


def matching_state(
    folder: Path, run_fingerprint: dict[str, str]
) -> tuple[Path, dict[str, Any]] | None:
    """Return the latest whole state of this run and its record, or None when there is none.

    That of another run which came to its end is discarded: its model is made, so nothing is lost
    with it.

    Raises:
        StateMismatchError: the state belongs to another, unfinished run; the message names the
            part that changed.
    """
    workers = current_workers()
    states = list_states(folder)
    record = json.loads((states[-1] / "state.json").read_text("utf-8")) if states else {}
    changed = changed_parts(record["fingerprint"], run_fingerprint) if states else []
    makes_room = bool(changed) and record.get("finished", False)
    workers.wait()
    if makes_room:
        logger.info("%s", discarded(states[-1], changed))
    if workers.is_first:
        for old in [*folder.glob(".step-*"), *(states if makes_room else [])]:
            shutil.rmtree(old)
    workers.wait()
    if not states or makes_room:
        return None
    latest = states[-1]
    refuse_mismatch(latest, record["fingerprint"], run_fingerprint)
    return latest, record


def refuse_mismatch(state: Path, saved: dict[str, str], wanted: dict[str, str]) -> None:
    """Raise a StateMismatchError that names the parts in which two fingerprints differ."""
    if changed := changed_parts(saved, wanted):
        raise StateMismatchError(
            f"{state}: this training state belongs to another run ({listed(changed)} changed); "
            f"delete {state.parent} to start over, or restore what changed"
        )


def discarded(state: Path, changed: Sequence[str]) -> str:
    """Return the line that says why a finished state is not gone on with."""
    return f"{state} is discarded, its training starts over: {listed(changed)} changed"


def changed_parts(saved: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """Return the parts in which fingerprints differ, a part that only one has included."""
    return [part for part in {**wanted, **saved} if saved.get(part) != wanted.get(part)]


def list_states(folder: Path) -> list[Path]:
    """Return the whole states in a folder, oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []
