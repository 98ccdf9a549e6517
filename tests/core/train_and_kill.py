"""Train in child processes and kill each with SIGKILL at a random moment after a new state.

Run by test_training.py as ``python train_and_kill.py FOLDER KILLS``; FOLDER holds ``model/``,
``grids.json`` and ``config.json``, and gets ``states/``. torch is imported once, in the parent,
which computes nothing, so that forking is safe and each kill is cheap. Prints a line for each kill,
with the step of the last whole state.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401 (imported once)

from sami_pipeline.core import Grid, SamiTrainingConfig, train_sami
from sami_pipeline.core.state import list_states


def train(folder: Path) -> None:
    torch.set_num_threads(1)
    grids = [Grid(**grid) for grid in json.loads((folder / "grids.json").read_text())]
    config = SamiTrainingConfig(**json.loads((folder / "config.json").read_text()))
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    torch.manual_seed(1)
    train_sami(model, None, grids, config, state_folder=folder / "states", progress=False)


def last_step(states: Path) -> int:
    return max((int(state.name.removeprefix("step-")) for state in list_states(states)), default=0)


def main(folder: Path, kills: int) -> None:
    states = folder / "states"
    for _ in range(kills):
        before = last_step(states)
        child = os.fork()
        if child == 0:
            train(folder)
            os._exit(0)
        status, deadline = None, time.monotonic() + 60
        while last_step(states) == before and status is None and time.monotonic() < deadline:
            time.sleep(0.001)
            finished, code = os.waitpid(child, os.WNOHANG)
            status = code if finished else None
        if status is None:
            time.sleep(random.uniform(0, 0.03))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            sys.exit(os.WEXITSTATUS(status))  # it had ended: there is nothing left to kill
        print("killed after step", last_step(states), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
