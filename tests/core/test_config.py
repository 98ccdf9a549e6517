"""Parameters of a run that make no sense are refused by name."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from sami_pipeline import core
from sami_pipeline.core import LoraParameters, SamiTrainingConfig

REFUSED = [
    ({"optimiser": "adam"}, "optimiser: Input should be 'adamw' or 'rmsprop'"),
    ({"schedule": "cos"}, "schedule: Input should be 'constant', 'linear' or 'cosine'"),
    ({"weights": "float16"}, "weights: Input should be 'float32', 'bfloat16_remainder' or"),
    ({"optimiser_state": "int8"}, "optimiser_state: Input should be 'float32' or 'bfloat16'"),
    ({"memory": "two-pass"}, "memory: Input should be 'single_pass' or 'two_pass'"),
    ({"compute_dtype": "float64"}, "compute_dtype: Input should be 'float32' or 'bfloat16'"),
    ({"compute_dtype": "float16"}, "compute_dtype: float16 turns small gradients into 0"),
    ({"head": "chunk"}, "head: Input should be 'auto', 'chunked', 'torch' or 'liger'"),
    ({"attention": "eager"}, "attention: Input should be 'sdpa' or 'flex_attention'"),
    ({"epochs": 0}, "epochs: Input should be greater than 0"),
    ({"epochs": 1.5}, "epochs: must be a whole number, got 1.5"),
    ({"epochs": True}, "epochs: must be a whole number, got true"),
    ({"epochs": None}, "epochs: must be a whole number, got nothing"),
    ({"batch_size": 0}, "batch_size: Input should be greater than 0"),
    ({"batch_size": "8"}, "batch_size: must be a whole number, got the text '8'; leave out"),
    ({"grids_per_micro_batch": 0}, "grids_per_micro_batch: Input should be greater than 0"),
    ({"pad_to_multiple": 0}, "pad_to_multiple: Input should be greater than 0"),
    ({"warmup_steps": -1}, "warmup_steps: Input should be greater than or equal to 0"),
    ({"save_state_every": -1}, "save_state_every: Input should be greater than or equal to 0"),
    ({"weight_decay": -0.1}, "weight_decay: Input should be greater than or equal to 0"),
    ({"kl_beta": -0.1}, "kl_beta: Input should be greater than or equal to 0"),
    ({"learning_rate": 0.0}, "learning_rate: Input should be greater than 0"),
    ({"learning_rate": "1e-5"}, "learning_rate: must be a number, got the text '1e-5'; leave out"),
    ({"learning_rate": math.nan}, "learning_rate: Input should be a finite number"),
    ({"weight_decay": math.inf}, "weight_decay: Input should be a finite number"),
    ({"adamw_betas": (0.9, 1.0)}, "adamw_betas.1: Input should be less than 1"),
    ({"adamw_betas": (0.9,)}, "adamw_betas.1: is missing"),
    ({"adamw_epsilon": 0.0}, "adamw_epsilon: Input should be greater than 0"),
    ({"max_gradient_norm": 0.0}, "max_gradient_norm: Input should be greater than 0"),
    ({"max_gradient_norm": -1.0}, "max_gradient_norm: Input should be greater than 0"),
    ({"max_steps": 0}, "max_steps: Input should be greater than 0"),
    ({"train_on_eos": "no"}, "train_on_eos: must be true or false, got the text 'no'"),
    ({"seed": 2**32}, "seed: Input should be less than 4294967296"),
    ({"trackers": "wandb"}, "trackers: Input should be a valid tuple"),
    ({"momentum": 0.9}, "momentum: is no field that is known here"),
    ({"lora": {"rang": 4}}, "lora.rang: is no field that is known here"),
    ({"lora": {"rank": "4"}}, "lora.rank: must be a whole number, got the text '4'"),
    ({"lora": {"target_modules": "q_proj"}}, "lora.target_modules: Input should be a valid tuple"),
    ({"lora": True}, "lora: expected fields with values"),
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
    ({"lora": {"experts": True, "dropout": 0.1}}, "lora.dropout: must be 0 with experts"),
    ({"lora": {"experts": True}, "compile_layers": True}, "compile_layers: can't be combined"),
    (
        {"lora": {"frozen_weights": "bfloat16"}, "compute_dtype": "float32"},
        "compute_dtype: must be bfloat16 with lora.frozen_weights: bfloat16",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_parameters_that_make_no_sense_are_refused_by_name(changes, message):
    with pytest.raises(ValueError) as refusal:
        SamiTrainingConfig(**changes)
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_the_same_is_refused_when_parameters_are_replaced(changes, message):
    with pytest.raises(ValueError) as refusal:
        SamiTrainingConfig().replaced(**changes)
    assert str(refusal.value).startswith(message)


def test_what_came_through_json_is_the_same():
    chosen = SamiTrainingConfig(
        lora=LoraParameters(target_modules=("q_proj",)), trackers=("wandb",), adamw_betas=(0.8, 0.9)
    )
    assert SamiTrainingConfig(**json.loads(json.dumps(chosen.model_dump()))) == chosen


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank: Input should be greater than 0"),
        ({"alpha": 0.0}, "alpha: Input should be greater than 0"),
        ({"dropout": -0.1}, "dropout: Input should be greater than or equal to 0"),
        ({"dropout": 1.0}, "dropout: Input should be less than 1"),
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
        {"learning_rate": 1, "adamw_betas": (0, 0.95), "seed": 2**32 - 1},
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


def test_the_package_shows_its_public_names():
    assert set(core.__all__) <= set(dir(core))
    assert {name for name in dir(core) if getattr(core, name) is None} == set()
    assert all(getattr(core, name).__doc__ for name in core.__all__)
