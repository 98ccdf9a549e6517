"""The script for the day when there is a GPU runs on a CPU, and a check that fails is seen."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import engines
import families
import gpu
import psutil
import sami_step
import writing

from sami_pipeline.core import optimisers, training, tree_attention
from sami_pipeline.models.prompts import Prompt


@pytest.mark.parametrize(
    "name", ["levels", "heads", "optimisers", "families", "states", "training"]
)
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
    assert gpu.main(["--page", str(target)]) == 0
    assert written.pop() == ("gpu", gpu.page(result))
    assert gpu.main([*given, "--only", "memory", "--minutes", "0.01"]) == 0
    assert json.loads(target.read_text())["left_out"] == ["memory"]


def test_a_training_that_learns_nothing_is_seen(monkeypatch):
    monkeypatch.setattr(training, "learning_rate_at", lambda *inputs: 0.0)
    assert not gpu.check_training("cpu")["ok"]


def test_all_loops_write_the_same():
    ways = (writing.OWN, writing.GENERATE, writing.CONTINUOUS)
    found = [writing.measure(way, "tiny", "float32", "cpu", 6, 4) for way in ways]
    assert found[0]["rows"] == found[1]["rows"] == found[2]["rows"]
    assert all(run["tokens"] > 6 and run["of_other_length"] == [] for run in found)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"ok": True, "apart": {"a": [1e-7, 3e-5]}}, "largest difference 3.0e-05"),
        ({"ok": True, "cases": {"a": {"share": 0.9}, "b": {"share": 1.1}}}, "0.90 to 1.10"),
        ({"ok": True, "heads": {"x": {"ok": True, "apart": 0.5}, "y": {"skipped": "no"}}},
         "largest difference 5.0e-01, not here: y"),
        ({"ok": False, "failed": "ValueError: x", "said": ["a"]}, "ValueError: x"),
        ({"ok": True, "same": 2, "of": 3, "choices_apart": 0.0}, "2 of 3 texts the same"),
    ],
)  # fmt: skip
def test_the_page_says_what_a_check_has_found(found, said):
    assert said in gpu._in_words(found)


def test_a_loop_that_writes_something_else_is_counted(monkeypatch):
    def other(way, *rest):
        rows = ["a", "b"] if way == writing.GENERATE else ["a", "c"]
        return {"seconds": 2.0, "tokens": 8, "peak_bytes": None, "rows": rows}

    def finished(command, limit):
        start = command.index("--measure") + 1
        return subprocess.CompletedProcess(command, 0, json.dumps(other(*command[start:])), "")

    monkeypatch.setattr(sami_step, "finished", finished)
    found = writing.compare("tiny", "float32", "cpu", 2, 2)
    assert found["ways"][writing.OWN]["rows_as_generate"] == 1
    assert "| 4 | 2.00 |  | 1 of 2 |" in writing.table(found)


def test_what_hangs_is_ended_with_all_that_it_has_started():
    with pytest.raises(subprocess.TimeoutExpired) as end:
        sami_step.finished(["sh", "-c", "sleep 600 & echo $! >&2; wait"], 1.0)
    child, deadline = int(end.value.stderr), time.monotonic() + 10
    while _runs(child):
        assert time.monotonic() < deadline, "it would hold the GPU's memory"
        time.sleep(0.05)


def _runs(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_heads_are_wide_enough_for_flex_attention_on_a_gpu():
    for family in ("llama", "gemma3_text"):
        layer = families.tiny_model(family, head_dim=16).model.layers[0].self_attn
        assert layer.head_dim == 16


def test_engines_are_asked_in_the_form_that_they_take(random_checkpoint):
    asked = gpu.questions(random_checkpoint.folder)
    assert len({each["text"] for each in asked}) == 64
    for each in asked:
        ((role, question),) = Prompt.from_json(each["prompt"]).messages
        assert role == "user"
        assert question in each["text"]
    assert {"vllm", "LLM.generate"} <= engines.WAYS.keys()


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ({"left_out": "vLLM is not installed in .venv-vllm"}, "Engines: vLLM is not installed"),
        ({"failed": "RuntimeError: x"}, "Engines: RuntimeError: x"),
        ({"tokens_per_second": {"a": 10.2, "b": 20.0}}, "Engines: a 10 tokens/s; b 20 tokens/s"),
    ],
)
def test_the_page_says_what_came_of_the_engines(found, line):
    result = {
        "date": "2026-11-26", "machine": "m", "checks": {}, "timings": {}, "engines": found,
        "left_out": [],
    }  # fmt: skip
    assert line in gpu.page(result)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", None),
    ],
)
def test_a_gpu_is_measured_against_its_makers_figure(name, rate, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    assert gpu._peak("cuda") == rate


def test_a_variant_that_ends_without_a_word_fails_alone(monkeypatch):
    def ended(*inputs, **options):
        raise SystemExit("")

    monkeypatch.setattr(sami_step, "in_own_process", ended)
    monkeypatch.setattr(sami_step, "matmul_ceiling", lambda *inputs: 1.0)
    found = gpu.timings("cpu", "tiny", 1, time.perf_counter() + 100)
    assert found[sami_step.SAMI] == {"failed": "ended without a word"}
