"""The script for the day when there is a GPU runs on a CPU, and a check that fails is seen."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import gpu
import sami_step

from sami_pipeline.core import optimisers, tree_attention


@pytest.mark.parametrize("name", ["levels", "heads", "optimisers", "families", "states"])
def test_a_check_holds_on_a_cpu(name):
    found = gpu.CHECKS[name]("cpu")
    assert found["ok"], found


def test_a_key_that_a_level_leaves_out_is_seen(monkeypatch):
    real = tree_attention._Levels.mask

    def without_the_first(self, *inputs):
        mask = real(self, *inputs).clone()
        mask[:, :, -1, 0] = -torch.inf
        return mask

    monkeypatch.setattr(tree_attention._Levels, "mask", without_the_first)
    assert not gpu.check_levels("cpu")["ok"]


def test_kernels_of_a_layer_do_not_grow_with_the_grid_level_by_level():
    two, four = (sami_step.kernels_a_layer(sami_step.LEVELS, n) for n in (2, 4))
    assert two == four < sami_step.kernels_a_layer(sami_step.SEGMENTS, 2)
    assert four < 0.6 * sami_step.kernels_a_layer(sami_step.SEGMENTS, 4)


def test_an_optimiser_that_computes_something_else_is_seen(monkeypatch):
    real = optimisers.join_float32
    monkeypatch.setattr(optimisers, "join_float32", lambda w, r: real(w, r) * (1 + 1e-5))
    assert not gpu.check_optimisers("cpu")["ok"]


def test_the_whole_script_writes_its_figures_and_names_what_it_left_out(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(sami_step, "write_page", lambda *given: written.append(given))
    monkeypatch.setattr(gpu, "VARIANTS", (sami_step.SAMI,))
    target = tmp_path / "gpu.json"
    given = ["--device", "cpu", "--shape", "tiny", "--steps", "1", "--json", str(target)]
    code = gpu.main([*given, "--only", "two_workers", "timings"])
    result = json.loads(target.read_text())
    assert code == 0
    assert result["checks"]["two_workers"]["ok"]
    assert max(result["checks"]["two_workers"]["apart"]) < 1e-4
    assert "skipped" in gpu.check_attention("cpu")
    assert result["timings"][sami_step.SAMI]["tokens_per_second"] > 0
    assert not written, "a CPU writes nothing into the page of the GPU"
    assert "| two_workers | holds |" in gpu.page(result)
    assert gpu.main([*given, "--only", "memory", "--minutes", "0.01"]) == 0
    assert json.loads(target.read_text())["left_out"] == ["memory"]
