"""SAMI's training of the student: in this process, or on workers that torch's launcher starts.

On workers, what they need lies in a job folder (see ``training_worker``), which all machines must
see. This process loads no model and joins no group: it starts the workers of its machine, restarts
all when one dies, and hands on what they have made. On every further machine::

    python -m sami_pipeline.training.launch JOB
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sami_pipeline import engines
from sami_pipeline.errors import InputError, WorkerError
from sami_pipeline.models.checkpoints import PROVENANCE_FILE, Checkpoint, LoadedModel
from sami_pipeline.processes import need_process_groups, root_cause
from sami_pipeline.training.data import (
    held_out_table,
    history_table,
    measured_training,
    require_grids,
    select_grids,
    state_kept_in,
)

if TYPE_CHECKING:
    from sami_pipeline.core.config import SamiTrainingConfig
    from sami_pipeline.parameters import LaunchParameters, TrainingParameters

logger = logging.getLogger(__name__)

JOB_FOLDER = "job"
_SECONDS_BETWEEN_LOOKS = 1.0
_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
    if hasattr(signal, name)  # Windows has two of them
)

Trained = tuple[LoadedModel | Checkpoint, pd.DataFrame, pd.DataFrame]


def train_student(
    name: str,
    student: Checkpoint,
    responses: pd.DataFrame,
    state_folder: Path,
    tracker_folder: Path,
    parameters: TrainingParameters,
    config: SamiTrainingConfig,
    provenance: Mapping[str, Any],
) -> Trained:
    """Train the student with SAMI on as many processes as the parameters say.

    Args:
        name: the trained model's.
        student: the model to train.
        responses: see ``schemas.Responses``.
        state_folder: where the training keeps its states, and several processes their job.
        tracker_folder: see ``core.train_sami``.
        parameters: of the training.
        config: SAMI's settings in this iteration.
        provenance: where the trained model comes from; the numbers of grids and steps are added.

    Returns:
        The model, its table of history, and its table of held-out measures.
    """
    train = _train_on_workers if parameters.launch.num_processes > 1 else _train_here
    with state_kept_in(state_folder):
        return train(
            name, student, responses, state_folder, tracker_folder, parameters, config, provenance
        )


def _train_here(
    name: str,
    student: Checkpoint,
    responses: pd.DataFrame,
    state_folder: Path,
    tracker_folder: Path,
    parameters: TrainingParameters,
    config: SamiTrainingConfig,
    provenance: Mapping[str, Any],
) -> Trained:
    from sami_pipeline.core import train_sami

    with measured_training(name, student, responses, parameters) as training:
        history = train_sami(
            training.model,
            training.tokenizer,
            training.grids,
            config,
            state_folder=state_folder,
            tracker_folder=tracker_folder,
            after_step=training.after_step,
        ).history
    facts = {**provenance, "grids": len(training.grids), "optimiser_steps": len(history)}
    model = LoadedModel(training.model, training.tokenizer, facts, student.chat)
    return model, history_table(name, history), training.held_out


def _train_on_workers(
    name: str,
    student: Checkpoint,
    responses: pd.DataFrame,
    state_folder: Path,
    tracker_folder: Path,
    parameters: TrainingParameters,
    config: SamiTrainingConfig,
    provenance: Mapping[str, Any],
) -> Trained:
    engines.release()
    _give_back_gpu_memory()
    if parameters.held_out_after_steps is not None:
        logger.info("training.held_out_after_steps is read in one process alone: not measured")
    job = state_folder / JOB_FOLDER
    encoder = student.load_encoder()
    splits = {
        split: [
            asdict(grid)
            for grid in select_grids(responses, split, encoder, train_on_eos=config.train_on_eos)
        ]
        for split in ("train", "held_out")
    }
    require_grids(name, splits["train"])
    logger.info("%d grids to train on, %d held out", *map(len, splits.values()))
    write_job(job, student, splits, state_folder, tracker_folder, config, parameters.launch)
    launch_workers(job)
    result = json.loads((job / "result.json").read_text("utf-8"))
    facts = {**provenance, "grids": len(splits["train"]), "optimiser_steps": len(result["history"])}
    (job / "model" / PROVENANCE_FILE).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    held_out = held_out_table(
        name,
        {stage: pd.DataFrame(result[stage]) for stage in ("before", "after") if result[stage]},
    )
    model = Checkpoint(job / "model", chat=student.chat)
    return model, history_table(name, pd.DataFrame(result["history"])), held_out


def write_job(
    folder: Path,
    student: Checkpoint,
    splits: Mapping[str, list[dict[str, Any]]],
    state_folder: Path,
    tracker_folder: Path,
    config: SamiTrainingConfig,
    launch: LaunchParameters,
) -> None:
    """Write what workers need into a folder, instead of an earlier job's.

    Args:
        folder: is emptied.
        student: the model to train.
        splits: grids of token ids as dictionaries, "train" and "held_out".
        state_folder: see ``train_student``.
        tracker_folder: see ``train_student``.
        config: SAMI's settings.
        launch: how many workers there are, and where they meet.
    """
    from sami_pipeline.training.worker import write_json

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    content = {
        "id": uuid.uuid4().hex[:12],
        "launch": launch.model_dump(),
        "student": str(student.folder.resolve()),
        "trust_remote_code": student.trust_remote_code,
        "state_folder": str(state_folder.resolve()),
        "tracker_folder": str(tracker_folder.resolve()),
        "config": config.model_dump(),
        **splits,
    }
    write_json(folder / "job.json", content)


def launch_workers(folder: Path, *, is_host: bool = True) -> None:
    """Run this machine's workers of a job to their end.

    Args:
        folder: the job's.
        is_host: whether the machines meet at this one.

    Raises:
        InputError: the job's parameters or data do not allow it, or there are too few GPUs.
        WorkerError: a worker has failed once more than it may.
    """
    need_process_groups("training.launch.num_processes")
    import torch
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from sami_pipeline.parameters import LaunchParameters

    job = json.loads((folder / "job.json").read_text("utf-8"))
    launch = LaunchParameters.model_validate(job["launch"])
    machines, here = launch.num_machines, launch.num_processes // launch.num_machines
    if torch.cuda.is_available() and torch.cuda.device_count() < here:
        raise InputError(
            f"training.launch.num_processes: {here} processes a machine need as many GPUs; this "
            f"one has {torch.cuda.device_count()}"
        )
    logs = folder / "logs"
    config = LaunchConfig(
        min_nodes=machines,
        max_nodes=machines,
        nproc_per_node=here,
        run_id=job["id"],
        rdzv_backend="c10d",
        rdzv_endpoint=launch.rendezvous_endpoint or "localhost:0",
        rdzv_configs={"join_timeout": launch.rendezvous_timeout, "is_host": is_host},
        local_addr="localhost" if machines == 1 else None,
        max_restarts=launch.max_restarts,
        logs_specs=DefaultLogsSpecs(
            str(logs), redirects=Std.ALL, tee={0: Std.ERR} if is_host else Std.NONE
        ),
        log_line_prefix_template="worker ${rank}: ",
    )
    worker = ("-u", "-m", "sami_pipeline.training.worker", str(folder.resolve()))
    logger.info("%d workers on %d machines; their logs: %s", launch.num_processes, machines, logs)
    try:
        with _own_signal_handlers(), _store_of_each_start():
            elastic_launch(config, sys.executable)(*worker)
    except ChildFailedError as error:
        _raise_refusal(folder)
        rank, failure = error.get_first_failure()
        raise _failure(rank, failure.local_rank, failure.exitcode, logs) from None
    except RendezvousError as error:
        raise WorkerError(
            f"training.launch.rendezvous_endpoint: the machines did not meet at "
            f"{launch.rendezvous_endpoint} within {launch.rendezvous_timeout} s: {error}"
        ) from None
    except SignalException as error:
        os.kill(os.getpid(), error.sigval)
        raise
    _raise_refusal(folder)


def join(folder: Path) -> None:
    """Wait for a job in a folder that all machines see, and run this machine's workers of it."""
    from sami_pipeline.training.worker import refusals

    while (
        not (folder / "job.json").is_file()
        or (folder / "result.json").is_file()
        or refusals(folder)
    ):
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    launch_workers(folder, is_host=False)


def _raise_refusal(folder: Path) -> None:
    from sami_pipeline.training.worker import refusals

    if notes := refusals(folder):
        raise InputError(json.loads(notes[0].read_text("utf-8"))["message"])


def _failure(rank: int, local_rank: int, code: int, logs: Path) -> WorkerError:
    written = logs.glob(f"*/attempt_*/{local_rank}/stderr.log")
    log = max(written, key=lambda path: path.stat().st_mtime)
    if code < 0:
        what = f"was ended by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            what += ", as a machine does that runs out of memory"
    else:
        what = root_cause(log) or f"ended with code {code}"
    return WorkerError(f"training worker {rank}: {' '.join(what.split())[:500]}; its log: {log}")


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Put this process's signal handlers back, which the launcher replaces for good."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        try:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        except ValueError:  # not the main thread, where the launcher has replaced none
            logger.debug("Signal handlers are those of the main thread")


@contextmanager
def _store_of_each_start() -> Iterator[None]:
    """Let workers meet again after a restart.

    By default they meet in the launcher's own store, where gloo finds the addresses of the workers
    that died (torch 2.13).
    """
    name = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _give_back_gpu_memory() -> None:
    """Let the workers have what this process's allocator keeps of an earlier model."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        join(Path(sys.argv[1]))
    except InputError as fault:
        sys.exit(f"Error: {fault}")
