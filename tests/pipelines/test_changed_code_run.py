"""The loss's sign is flipped in a copy of the project: no old weights come back as new ones."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

LOSS = "core/objective.py", "0.5 * (F.cross_entropy(logprobs, target) +"
BETA = "training/baselines/dpo.py", "DpoObjective(parameters.beta)"
MODELS = ("sami", "dpo")


@pytest.fixture
def project(tmp_path, project_folder) -> Path:
    """A copy of the project in which code can be changed."""
    for name in ("src", "conf"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(project_folder / name, tmp_path / name, ignore=ignored)
    shutil.copy(project_folder / "pyproject.toml", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "01_raw").symlink_to(project_folder / "data" / "01_raw")
    return tmp_path


@pytest.fixture
def run(project) -> Callable[..., str]:
    """A function that trains SAMI and DPO in the copy, and returns what was logged."""

    def train(name: str, *options: str, **parameters: object) -> str:
        given = {"run_name": name, "keep_training_states": "true", **parameters}
        command = [
            sys.executable, "-m", "kedro", "run", "--env", "test", "--pipelines", "mt_bench",
            "--to-outputs", ",".join(f"mt_bench.{model}_checkpoint" for model in MODELS),
            "--params", ",".join(f"{key}={value}" for key, value in given.items()), *options,
        ]  # fmt: skip
        ended = subprocess.run(
            command, cwd=project, capture_output=True, text=True, timeout=400, check=False,
            env=os.environ | {
                "PYTHONPATH": str(project / "src"), "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
            },
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr[-3000:]
        return " ".join(ended.stderr.split())

    return train


def change(project: Path, file: str, old: str, new: str) -> None:
    path = project / "src" / "sami_pipeline" / file
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


def weights(project: Path, run: str) -> dict[str, dict[str, torch.Tensor]]:
    folder = project / "data" / "06_models" / run / "mt_bench"
    return {model: load_file(folder / model / "model.safetensors") for model in MODELS}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "workers", [1, pytest.param(2, marks=pytest.mark.stress)], ids=["one process", "two workers"]
)
def test_other_code_gives_other_weights_with_and_without_only_missing_outputs(
    project, run, workers
):
    processes = {"mt_bench.training.launch.num_processes": workers}
    run("a", **processes)
    first = weights(project, "a")
    change(project, LOSS[0], LOSS[1], f"-{LOSS[1]}")
    logged = run("a", "--only-missing-outputs", **processes)
    flipped = weights(project, "a")
    assert "train_sami: code changed (core.objective)" in logged
    assert not same(first["sami"], flipped["sami"])
    assert same(first["dpo"], flipped["dpo"])
    assert "code of core.objective changed" in logged
    change(project, LOSS[0], f"-{LOSS[1]}", LOSS[1])
    change(project, *BETA, "DpoObjective(9 * parameters.beta)")
    run("a", **processes)
    again = weights(project, "a")
    assert same(first["sami"], again["sami"]), "the first code gives the first weights"
    assert not same(first["dpo"], again["dpo"])
    run("b", **processes)
    assert all(same(again[model], weights(project, "b")[model]) for model in MODELS)
