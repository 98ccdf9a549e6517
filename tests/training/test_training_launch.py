"""Training on workers that the launcher starts: killed, failing, refused, and on two machines."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import load_file

from sami_pipeline.core import Grid, SamiTrainingConfig, evaluate_grids, train_sami
from sami_pipeline.core.state import list_states
from sami_pipeline.errors import InputError, WorkerError
from sami_pipeline.parameters import LaunchParameters, TrainingParameters
from sami_pipeline.training.launch import launch_workers, write_job

MEASURED = ["tokens_per_second", "peak_memory_bytes"]
CONFIG = SamiTrainingConfig(
    compute_dtype="float32", learning_rate=1e-3, batch_size=4, epochs=2, save_state_every=1
)
TWO = LaunchParameters(num_processes=2)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))


@pytest.fixture
def grids() -> list[Grid]:
    return [
        Grid(
            [[3 + (seed + i) % 90, 7, 11 + i, 5 * seed % 97] for i in range(2)],
            [[20 + seed, 9 + 5 * j, 33][: 3 - (seed + j) % 2] for j in range(2)],
        )
        for seed in range(9)
    ]


@pytest.fixture
def prepared(random_checkpoint, grids, tmp_path):
    """Return a function that writes a job and returns its folder."""

    def prepare(config=CONFIG, launch=TWO, train=grids) -> Path:
        splits = {"train": [asdict(g) for g in train], "held_out": [asdict(g) for g in grids[:3]]}
        states = tmp_path / "states"
        folder = states / "job"
        write_job(folder, random_checkpoint, splits, states, tmp_path / "logs", config, launch)
        return folder

    return prepare


def in_one_process(checkpoint, grids, config=CONFIG):
    """Return (history, weights, held-out rows before and after) of a training in this process."""
    model = checkpoint.load_model(torch.float32, "cpu")
    before = evaluate_grids(model, None, grids[:3], config, progress=False)
    history = train_sami(model, None, grids, config, progress=False).history
    after = evaluate_grids(model, None, grids[:3], config, progress=False)
    return history, model.state_dict(), (before, after)


def assert_same_result(folder: Path, expected) -> None:
    """What a job has left is what one process computes, but for rounding."""
    history, weights, held_out = expected
    result = json.loads((folder / "result.json").read_text())
    pd.testing.assert_frame_equal(
        pd.DataFrame(result["history"]).drop(columns=MEASURED),
        history.drop(columns=MEASURED),
        rtol=1e-5,
        atol=1e-5,
    )
    for stage, measured in zip(("before", "after"), held_out, strict=True):
        pd.testing.assert_frame_equal(pd.DataFrame(result[stage]), measured, rtol=1e-5, atol=1e-5)
    saved = load_file(folder / "model" / "model.safetensors")
    assert saved.keys() <= weights.keys()
    for name, weight in saved.items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-5, atol=1e-5, msg=name)


def replace_launch(**changes) -> LaunchParameters:
    return TWO.model_copy(update=changes)


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # as is one that has just ended
            if "sami_pipeline.training.worker" in " ".join(child.cmdline()):
                found.append(child)
    return found


def kill_a_worker_after(steps: int, states: Path, killed: list[int]) -> threading.Thread:
    """Kill one of this process's workers once a state after so many steps is on the disk."""

    def watch() -> None:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            # Looking for them takes longer than steps do.
            workers = workers_of(psutil.Process())
            while workers and all(worker.is_running() for worker in workers):
                saved = [int(state.name.removeprefix("step-")) for state in list_states(states)]
                if saved and max(saved) >= steps:
                    workers[-1].kill()
                    killed.append(max(saved))
                    return
                time.sleep(0.001)
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.stress
def test_workers_killed_again_and_again_end_bit_by_bit_where_unharmed_ones_do(prepared):
    config = CONFIG.replaced(epochs=12)
    folder = prepared(config)
    launch_workers(folder)
    unharmed = json.loads((folder / "result.json").read_text())
    weights = load_file(folder / "model" / "model.safetensors")
    for state in list_states(folder.parent):
        shutil.rmtree(state)
    folder = prepared(config, replace_launch(max_restarts=10))
    killed: list[int] = []
    threads = [kill_a_worker_after(steps, folder.parent, killed) for steps in (2, 8, 15, 23, 30)]
    launch_workers(folder)
    for thread in threads:
        thread.join()
    assert len(killed) == 5
    result = json.loads((folder / "result.json").read_text())
    histories = [pd.DataFrame(r["history"]).drop(columns=MEASURED) for r in (result, unharmed)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    assert result["after"] == unharmed["after"]
    again = load_file(folder / "model" / "model.safetensors")
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())


def test_a_killed_worker_is_replaced_and_the_training_ends_in_the_same_place(
    prepared, random_checkpoint, grids
):
    config = CONFIG.replaced(epochs=12, learning_rate=1e-4)
    folder, killed = prepared(config.replaced(trackers=("tensorboard",))), []
    thread = kill_a_worker_after(3, folder.parent, killed)
    launch_workers(folder)
    thread.join()
    assert 3 <= killed[0] < 36
    assert len(list(folder.glob("logs/*/attempt_1/*/stderr.log"))) == 2
    log = next(folder.glob("logs/*/attempt_1/0/stderr.log")).read_text()
    assert "Going on after step" in log
    assert list((folder.parents[1] / "logs").rglob("events.out.tfevents*"))
    assert_same_result(folder, in_one_process(random_checkpoint, grids, config))
    files = {path.name for path in (folder / "model").iterdir()}
    assert files == {path.name for path in random_checkpoint.folder.iterdir()} - {"provenance.json"}
    expected = json.loads((random_checkpoint.folder / "config.json").read_text())
    assert json.loads((folder / "model" / "config.json").read_text()) == expected


def test_a_worker_that_fails_for_good_is_one_line_that_names_its_log(prepared):
    folder = prepared(launch=replace_launch(max_restarts=0))
    job = json.loads((folder / "job.json").read_text())
    del job["tracker_folder"]
    (folder / "job.json").write_text(json.dumps(job))
    with pytest.raises(WorkerError, match=r"training worker \d: .*Error: .*; its log: ") as caught:
        launch_workers(folder)
    assert "\n" not in str(caught.value)
    log = Path(str(caught.value).rpartition("its log: ")[2])
    assert "Traceback" in log.read_text()
    assert not workers_of(psutil.Process())


def test_what_the_data_do_not_allow_is_one_line_and_nothing_is_restarted(prepared):
    folder = prepared(train=[Grid([[5], [6]], [[7], [8], [9]])])
    with pytest.raises(InputError, match=r"^grids\[0\]: 2 prompts and 3 responses; .*constit"):
        launch_workers(folder)
    assert not list(folder.glob("logs/*/attempt_1"))


def test_workers_end_with_the_process_that_started_them(prepared):
    folder = prepared(CONFIG.replaced(epochs=2000, save_state_every=0))
    program = (
        "import sys, pathlib; from sami_pipeline.training.launch import launch_workers; "
        "launch_workers(pathlib.Path(sys.argv[1]))"
    )
    parent = psutil.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while len(workers := workers_of(parent)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(workers) == 2
        while not (folder / "before.json").is_file() and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        parent.kill()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


@pytest.mark.stress
def test_two_machines_meet_and_train_as_one_process(prepared, random_checkpoint, grids):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = LaunchParameters(
        num_processes=2, num_machines=2, rendezvous_endpoint=f"127.0.0.1:{port}"
    )
    folder = prepared(launch=launch)
    other = subprocess.Popen(
        [sys.executable, "-m", "sami_pipeline.training.launch", str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    launch_workers(folder)
    _, errors = other.communicate(timeout=120)
    assert other.returncode == 0, errors
    assert_same_result(folder, in_one_process(random_checkpoint, grids))


def test_machines_that_do_not_come_are_one_line(prepared):
    launch = LaunchParameters(
        num_processes=2,
        num_machines=2,
        rendezvous_endpoint="127.0.0.1:29581",
        rendezvous_timeout=2,
    )
    with pytest.raises(WorkerError, match=r"rendezvous_endpoint: the machines did not meet"):
        launch_workers(prepared(launch=launch))


@pytest.mark.parametrize(
    ("launch", "sami", "message"),
    [
        ({"num_processes": 0}, {}, r"launch\.num_processes"),
        ({"num_processes": 3, "num_machines": 2}, {}, "3 can't be shared evenly by 2 machines"),
        ({"num_processes": 2, "num_machines": 2}, {}, "rendezvous_endpoint: give HOST:PORT"),
        ({"rendezvous_endpoint": "here"}, {}, r"launch\.rendezvous_endpoint"),
        ({"num_processes": 2}, {"lora": {"rank": 2}}, "sami.lora: is not there for several"),
        ({"num_processes": 2}, {"compile_layers": True}, "sami.compile_layers: is not there"),
    ],
)
def test_what_cannot_be_launched_is_refused_before_anything_runs(launch, sami, message):
    with pytest.raises(ValueError, match=message):
        TrainingParameters.model_validate({"launch": launch, "sami": sami})
