"""Parameters of a run that make no sense are refused by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sami_pipeline.core import LoraParameters, SamiTrainingConfig

REFUSED = [
    ({"optimiser": "adam"}, "optimiser: must be one of adamw, rmsprop, got 'adam'"),
    ({"schedule": "cos"}, "schedule: must be one of constant, linear, cosine, got 'cos'"),
    ({"weights": "float16"}, "weights: must be one of float32, bfloat16_remainder, bfloat16, got"),
    ({"optimiser_state": "int8"}, "optimiser_state: must be one of float32, bfloat16, got 'int8'"),
    ({"memory": "two-pass"}, "memory: must be one of single_pass, two_pass, got 'two-pass'"),
    ({"compute_dtype": "float16"}, "compute_dtype: must be one of float32, bfloat16, got"),
    ({"head": "plain"}, "head: must be one of auto, chunked, torch, liger, got 'plain'"),
    ({"attention": "eager"}, "attention: must be one of sdpa, flex_attention, got 'eager'"),
    ({"epochs": 0}, "epochs: must be at least 1, got 0"),
    ({"batch_size": 0}, "batch_size: must be at least 1, got 0"),
    ({"grids_per_micro_batch": 0}, "grids_per_micro_batch: must be at least 1, got 0"),
    ({"pad_to_multiple": 0}, "pad_to_multiple: must be at least 1, got 0"),
    ({"warmup_steps": -1}, "warmup_steps: must be at least 0, got -1"),
    ({"save_state_every": -1}, "save_state_every: must be at least 0, got -1"),
    ({"weight_decay": -0.1}, "weight_decay: must be at least 0, got -0.1"),
    ({"kl_beta": -0.1}, "kl_beta: must be at least 0, got -0.1"),
    ({"learning_rate": 0.0}, "learning_rate: must be above 0, got 0.0"),
    ({"max_gradient_norm": 0.0}, "max_gradient_norm: must be above 0, got 0.0"),
    ({"max_gradient_norm": -1.0}, "max_gradient_norm: must be above 0, got -1.0"),
    ({"max_steps": 0}, "max_steps: must be above 0, got 0"),
    (
        {"weights": "bfloat16", "compute_dtype": "float32"},
        "compute_dtype: must be bfloat16 when weights is bfloat16, got 'float32'",
    ),
    (
        {"weights": "bfloat16_remainder", "compute_dtype": "float32"},
        "compute_dtype: must be bfloat16 when weights is bfloat16_remainder, got 'float32'",
    ),
    ({"optimiser_state": "bfloat16"}, "optimiser_state: is chosen only with weights"),
    (
        {"optimiser_state": "bfloat16", "weights": "bfloat16"},
        "optimiser_state: is chosen only with weights",
    ),
    (
        {"lora": LoraParameters(), "weights": "bfloat16"},
        "weights: must be float32 with lora",
    ),
    (
        {"lora": LoraParameters(), "weights": "bfloat16_remainder"},
        "weights: must be float32 with lora",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_parameters_that_make_no_sense_are_refused_by_name(changes, message):
    with pytest.raises(ValueError) as refusal:
        SamiTrainingConfig(**changes)
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank: must be at least 1, got 0"),
        ({"alpha": 0.0}, "alpha: must be above 0, got 0.0"),
        ({"dropout": -0.1}, "dropout: must be at least 0 and below 1, got -0.1"),
        ({"dropout": 1.0}, "dropout: must be at least 0 and below 1, got 1.0"),
    ],
)
def test_adapters_that_make_no_sense_are_refused_by_name(changes, message):
    with pytest.raises(ValueError) as refusal:
        LoraParameters(**changes)
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_steps": None, "max_gradient_norm": None, "lora": None},
        {"max_steps": 1, "warmup_steps": 0, "kl_beta": 0.0, "weight_decay": 0.0},
        {"weights": "bfloat16"},
        {"weights": "bfloat16_remainder", "optimiser_state": "bfloat16"},
        {"lora": LoraParameters(rank=1, dropout=0.0), "compute_dtype": "float32"},
        {"compute_dtype": "float32"},
    ],
)
def test_the_edges_of_what_makes_sense_are_accepted(changes):
    chosen = SamiTrainingConfig(**changes)
    assert all(getattr(chosen, name) == value for name, value in changes.items())


def test_reading_parameters_loads_no_torch():
    program = (
        "import sys; from sami_pipeline.core import SamiTrainingConfig, LoraParameters;"
        "SamiTrainingConfig(lora=LoraParameters());"
        "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_compiling_recomputed_layers_is_refused_since_torch_never_does_it():
    with pytest.raises(ValueError, match=r"compile_layers: .*gradient_checkpointing"):
        SamiTrainingConfig(compile_layers=True, gradient_checkpointing=True)
