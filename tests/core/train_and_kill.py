"""Train in child processes that die by SIGKILL: at random moments, or at each change of a file.

Run by test_training.py as ``python train_and_kill.py FOLDER HOW KILLS``; FOLDER holds ``model/``,
``grids.json`` and ``config.json``, and gets ``states/``. Every child goes on from the last state
and is killed after it has saved another: HOW is "randomly", up to 80 ms later, or "at-file-change",
the first child at the first change to the file system after that, the second at the second, and so
on. Prints a line for each kill, with the step of the last whole state.

torch is imported once, in the parent, which computes nothing, so that forking is safe and cheap.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401 (imported once)

from sami_pipeline.core import Grid, SamiTrainingConfig, train_sami
from sami_pipeline.core.state import list_states

FILE_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def train(folder: Path) -> None:
    torch.set_num_threads(1)
    grids = [Grid(**grid) for grid in json.loads((folder / "grids.json").read_text())]
    config = SamiTrainingConfig(**json.loads((folder / "config.json").read_text()))
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    torch.manual_seed(1)
    train_sami(model, None, grids, config, state_folder=folder / "states", progress=False)


def last_step(states: Path) -> int:
    return max((int(state.name.removeprefix("step-")) for state in list_states(states)), default=0)


def die_at_file_change(number: int, states: Path) -> None:
    """Kill this process at its ``number``-th file change after its first new state."""
    before, seen, looking = last_step(states), 0, False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen, looking
        writes = event == "open" and isinstance(arguments[1], str) and arguments[1] != "r"
        if looking or not (event in FILE_CHANGES or writes):
            return
        looking = True
        seen += last_step(states) > before
        looking = False
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def run_and_kill(folder: Path, die_at: int | None) -> bool:
    """Return whether the child was killed, rather than having come to its end."""
    states = folder / "states"
    before = last_step(states)
    child = os.fork()
    if child == 0:
        if die_at is not None:
            die_at_file_change(die_at, states)
        train(folder)
        os._exit(0)
    status, deadline = None, time.monotonic() + 60
    while status is None and time.monotonic() < deadline:
        if die_at is None and last_step(states) > before:
            break
        time.sleep(0.001)
        finished, code = os.waitpid(child, os.WNOHANG)
        status = code if finished else None
    if status is None:
        time.sleep(random.uniform(0, 0.08))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        sys.exit(os.WEXITSTATUS(status))
    return os.WIFSIGNALED(status)


if __name__ == "__main__":
    place, how, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    for number in range(1, kills + 1):
        if not run_and_kill(place, number if how == "at-file-change" else None):
            break
        print("killed after step", last_step(place / "states"), flush=True)
