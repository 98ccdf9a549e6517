"""The estimate of a training step's memory against real steps and known sizes."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from sami_pipeline.core import LoraParameters, SamiTrainingConfig
from sami_pipeline.core.memory import example_grid, sami_step_memory

PROJECT = Path(__file__).parents[2]
SHAPE = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip
GRID = example_grid(20, 10, 15, 2, 256)


def load_benchmark():
    path = PROJECT / "benchmarks" / "training_memory.py"
    spec = importlib.util.spec_from_file_location("training_memory", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = load_benchmark()
SHORT = ("bf16 autocast", "bfloat16_remainder, rmsprop, checkpointing", "LoRA")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case in SHORT else pytest.mark.stress)
        for case in benchmark.CASES
    ],
)
def test_estimate_is_within_15_percent_of_the_measured_peak(case):
    if not Path("/proc/self/status").is_file():
        pytest.skip("the peak of a process is read from /proc")
    found = benchmark.measure(case)
    assert found["estimated"] == pytest.approx(found["measured"], rel=0.15)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", benchmark.CASES)
def test_estimate_is_within_15_percent_of_the_measured_peak_on_a_gpu(case):
    found = benchmark.measure(case, "cuda")
    assert found["estimated"] == pytest.approx(found["measured"], rel=0.15)


def estimate(shape=SHAPE, **options):
    processes = options.pop("processes", 1)
    config = SamiTrainingConfig(batch_size=2, **options)
    architecture = AutoConfig.for_model("llama", **shape)
    return sami_step_memory(architecture, [GRID], config, device="cpu", processes=processes)


def test_each_mode_takes_the_bytes_a_weight_that_the_docs_say():
    remainder = {"weights": "bfloat16_remainder", "optimiser_state": "bfloat16"}
    weights = estimate().gradients // 4
    for options, expected in (
        ({}, 16),
        ({"optimiser": "rmsprop"}, 12),
        ({**remainder}, 10),
        ({**remainder, "optimiser": "rmsprop"}, 8),
    ):
        found = estimate(**options)
        held = found.weights + found.gradients + found.optimiser
        # Buffers and step counts are there too.
        assert held / weights == pytest.approx(expected, rel=0.01), options


def test_a_reference_is_a_second_copy_with_linear_layers_in_bf16_but_not_with_adapters():
    plain, kept = estimate(), estimate(kl_beta=0.1)
    assert 1.5 * plain.weights < kept.weights < 1.6 * plain.weights
    exact = {"compute_dtype": "float32"}
    plain_fp32, kept_fp32 = estimate(**exact), estimate(kl_beta=0.1, **exact)
    assert kept_fp32.weights == pytest.approx(2 * plain_fp32.weights, rel=0.01)
    adapted = estimate(kl_beta=0.1, lora=LoraParameters(rank=2))
    assert adapted.weights < 1.2 * plain.weights
    assert adapted.gradients < 0.2 * plain.gradients


def test_checkpointing_and_two_passes_hold_fewer_activations():
    plain = estimate().activations
    assert estimate(gradient_checkpointing=True).activations < plain
    assert estimate(memory="two_pass").activations < plain


@pytest.mark.parametrize("other", [{"head": "liger"}, {"head": "torch"}, {"compile_layers": True}])
def test_kernels_of_a_gpu_are_left_out_of_the_estimate(other):
    assert estimate(**other) == estimate()


def test_processes_share_weights_gradients_and_moments_but_not_activations():
    alone, eight = estimate(), estimate(processes=8)
    for part in ("weights", "gradients", "optimiser"):
        assert getattr(eight, part) == pytest.approx(getattr(alone, part) / 8, rel=0.01)
    assert eight.activations == alone.activations
    assert eight.gathered > 0
