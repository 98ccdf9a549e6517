"""Train in child processes and kill each with SIGKILL at a random moment after a new state.

Run by test_training.py as ``python train_and_kill.py FOLDER KILLS``; FOLDER holds ``model/``,
``grids.json`` and ``config.json``, and gets ``states/``. torch is imported once, in the parent,
which computes nothing, so that forking is safe and each kill is cheap. Prints the number of steps
that the last state holds after each kill.
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
from transformers import AutoModelForCausalLM

from sami_pipeline.core import Grid, SamiTrainingConfig, train_sami
from sami_pipeline.core.state import list_states


def train(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    grids = [Grid(**grid) for grid in json.loads((folder / "grids.json").read_text())]
    config = SamiTrainingConfig(**json.loads((folder / "config.json").read_text()))
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
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
        deadline = time.monotonic() + 60
        while last_step(states) == before:
            if time.monotonic() > deadline or os.waitpid(child, os.WNOHANG)[0]:
                sys.exit("the training process ended, or saved no state in a minute")
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print(last_step(states), "killed" if os.WIFSIGNALED(status) else "had ended")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
