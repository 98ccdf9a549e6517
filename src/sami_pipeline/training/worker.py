"""A worker of a training on several processes: ``python -m sami_pipeline.training.worker JOB``.

torch's elastic launcher starts it (``training_launch``), as often as it takes. JOB is a folder::

    job.json         what to train on and how, by ``training_launch``
    before.json      the student's measures on held-out grids, which a restart need not take again
    model/           the trained model, a Hugging Face folder
    result.json      history and measures; the last to be written
    refused-0.json   what parameters or data did not allow, by worker; no restart would help

The first worker writes the others and loads the student. All train it together
(``core.train_sami``) and share out the held-out grids. Nothing is unpickled.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sami_pipeline import files
from sami_pipeline.process_settings import threads_are_the_users
from sami_pipeline.processes import end_with_parent

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from sami_pipeline.models.checkpoints import Checkpoint


def train(folder: Path, device: torch.device) -> None:
    """Train the student of a job as one of the workers of this process's group.

    Raises:
        ValueError: as ``core.train_sami``.
        FloatingPointError: as ``core.train_sami``.
    """
    from sami_pipeline.core import Grid, SamiTrainingConfig, evaluate_grids, train_sami
    from sami_pipeline.core.distributed import current_workers, shard
    from sami_pipeline.core.probe import agree_on_layout
    from sami_pipeline.models.checkpoints import Checkpoint

    job = json.loads((folder / "job.json").read_text("utf-8"))
    student = Checkpoint(Path(job["student"]), job["trust_remote_code"])
    config = SamiTrainingConfig(**job["config"])
    grids, held_out = ([Grid(**grid) for grid in job[split]] for split in ("train", "held_out"))
    first = current_workers().is_first

    def measure(model: PreTrainedModel, stage: str) -> list[dict[str, float]]:
        measured = evaluate_grids(
            model, None, held_out, config, description=f"Held-out grids {stage}"
        )
        return measured.to_dict("records")

    if first:  # a worker alone may have left a note that a restart has overtaken
        for note in refusals(folder):
            note.unlink()
    record = folder / "before.json"
    known = json.loads(record.read_text("utf-8")) if record.is_file() else None
    current_workers().wait()  # all have looked before one writes
    before = known or []
    if known is None and held_out:
        # A separate copy: the student that is trained is cut into shards in its training dtype.
        model = _opened(student)
        agree_on_layout(model)  # tried while its weights are whole
        shard(model, device)
        before = measure(model, "before")
        del model
        if first:
            write_json(record, before)

    result = train_sami(
        _opened(student),
        None,
        grids,
        config,
        state_folder=Path(job["state_folder"]),
        tracker_folder=Path(job["tracker_folder"]),
        device=device,
    )
    after = measure(result.model, "after") if held_out else []
    _export(result.model, student, folder / "model")
    if first:
        history = result.history.to_dict("records")
        write_json(folder / "result.json", {"history": history, "before": before, "after": after})
    current_workers().wait()


def _opened(student: Checkpoint) -> PreTrainedModel:
    """Return the student with its weights on the first worker, and without any on the others.

    Raises:
        InputError: the first worker can't load it.
    """
    import torch

    from sami_pipeline.core.distributed import current_workers
    from sami_pipeline.core.memory import empty_model
    from sami_pipeline.errors import InputError

    workers, fault = current_workers(), ""
    if workers.is_first:
        try:
            model = student.load_model(torch.float32, "cpu")
        except ValueError as error:
            fault = str(error)
    # All come to the same error, so that none waits for another.
    if fault := workers.told(fault):
        raise InputError(fault)
    if workers.is_first:
        return model
    return empty_model(student.load_config(), trust_remote_code=student.trust_remote_code)


def _export(model: PreTrainedModel, student: Checkpoint, folder: Path) -> None:
    """Write a model in shards as a Hugging Face folder that exists only when it is whole."""
    from sami_pipeline.core.distributed import gathered_weights

    weights = gathered_weights(model)
    if weights is None:
        return
    with files.whole_folder(folder) as partial:
        model.save_pretrained(partial, state_dict=weights, safe_serialization=True)
        student.load_tokenizer().save_pretrained(partial)


def write_json(path: Path, content: Any) -> None:
    """Write a file that exists only when it is whole."""
    files.write_text(path, json.dumps(content))


def main(folder: Path) -> None:
    """Join the group that the launcher has prepared, and train."""
    end_with_parent()
    # Lines of a log, not a bar on a screen.
    os.environ.setdefault("TQDM_MININTERVAL", "10")
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING, format="%(levelname)s %(message)s"
    )
    import torch

    if torch.cuda.is_available():
        device, backend = torch.device("cuda", local), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    else:
        device, backend = torch.device("cpu"), "gloo"
        if not threads_are_the_users(os.environ):
            torch.set_num_threads(
                max(1, torch.get_num_threads() // int(os.environ["LOCAL_WORLD_SIZE"]))
            )
    torch.distributed.init_process_group(backend)
    # One that is refused and leaves at once would fail others that are still coming.
    torch.distributed.barrier()
    _until_refused(folder, lambda: train(folder, device))
    torch.distributed.destroy_process_group()


def _until_refused(folder: Path, work: Callable[[], None]) -> None:
    """Leave a note of an error that would come again, instead of failing and being restarted.

    All workers compute with the same parameters and come to the same errors.
    """
    from sami_pipeline.core.distributed import current_workers

    try:
        work()
    except (ValueError, FloatingPointError) as error:
        traceback.print_exc()
        message = {"message": " ".join(str(error).split())}
        # Each its own: two that write one file at once are in each other's way.
        write_json(_refusal(folder, current_workers().rank), message)
        _wait_for_the_others(folder)


def refusals(folder: Path) -> list[Path]:
    """Return the notes of workers whose job was refused."""
    return sorted(folder.glob("refused-*.json"))


def _refusal(folder: Path, rank: int) -> Path:
    return folder / f"refused-{rank}.json"


def _wait_for_the_others(folder: Path) -> None:
    """Wait until all workers are refused, or for ten seconds.

    One that leaves at once fails those that are still in the last collective. Not by a barrier: a
    worker that was not refused would not come there.
    """
    from sami_pipeline.core.distributed import current_workers

    workers = current_workers()
    notes = [_refusal(folder, rank) for rank in range(workers.count)]
    end = time.monotonic() + 10
    while not all(note.exists() for note in notes) and time.monotonic() < end:
        time.sleep(0.05)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
