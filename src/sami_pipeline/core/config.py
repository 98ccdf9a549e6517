"""Parameters of a SAMI training run. Standard library only, so that reading them loads no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True, kw_only=True)
class LoraParameters:
    """Low-rank adapters (arXiv 2106.09685) in the place of full finetuning, through PEFT.

    Attributes:
        rank: r of the two factors.
        alpha: the adapters' output is scaled by alpha / rank.
        dropout: on the adapters' input.
        target_modules: names of the linear layers that get adapters; None takes all but the head.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank: must be at least 1, got {self.rank}")
        if self.alpha <= 0:
            raise ValueError(f"alpha: must be above 0, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: must be at least 0 and below 1, got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class SamiTrainingConfig:
    """How one model is trained with SAMI; the defaults are those of the embedded small model.

    Attributes:
        epochs: passes over the grids.
        max_steps: stop after this many optimiser steps; None goes through all epochs.
        batch_size: grids per optimiser step.
        grids_per_micro_batch: grids per forward pass; the rest is gradient accumulation.
        optimiser: "adamw" or "rmsprop".
        learning_rate: peak learning rate.
        weight_decay: decoupled for AdamW, added to the gradient for RMSprop, as torch has it.
        warmup_steps: optimiser steps of linear warm-up.
        schedule: what follows the warm-up: "constant", or "linear" or "cosine" down to 0.
        max_gradient_norm: clip the gradient to this 2-norm; None does not clip.
        length_normalise: take the loss on mean log-probabilities per response token.
        train_on_eos: learn the end-of-sequence token of responses that ended by themselves.
        kl_beta: weight of the KL divergence to the initial model, over response tokens.
        weights: "float32" keeps fp32 weights and computes under autocast to ``compute_dtype``;
            "bfloat16_remainder" keeps bf16 weights and the 16 bits that they lack beside them, so
            that the optimiser updates exact fp32 weights in 2 bytes less a weight; "bfloat16" is
            the published mode, whose small updates round away. In both, gradients of micro-batches
            add up in bf16.
        optimiser_state: dtype of the optimiser's moments in the mode "bfloat16_remainder";
            in "bfloat16" they are rounded stochastically.
        memory: "single_pass", or "two_pass" to hold the activations of one constitution at a time.
        compute_dtype: autocast dtype of forward and backward when ``weights`` is "float32".
        head: how log-probabilities are taken from hidden states, see ``core.heads``.
        attention: "sdpa", or "flex_attention" on a GPU with long or many packed prompts.
        gradient_checkpointing: recompute each layer in the backward pass.
        compile_layers: compile the decoder layers; pays after minutes, needs a C++ compiler and
            excludes gradient checkpointing.
        pad_to_multiple: round row lengths up to a multiple, so that kernels see few shapes.
        lora: train low-rank adapters, merged into the weights at the end; None trains all weights.
        trackers: where each step is logged besides the history, by the names accelerate knows:
            tensorboard, wandb, mlflow, ...; their packages must be installed.
        save_state_every: optimiser steps between saved states; 0 saves none.
        seed: decides the order of the grids, the adapters' first weights and every dropout.
    """

    epochs: int = 1
    max_steps: int | None = None
    batch_size: int = 8
    grids_per_micro_batch: int = 1
    optimiser: Literal["adamw", "rmsprop"] = "adamw"
    learning_rate: float = 1e-5
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    max_gradient_norm: float | None = 1.0
    length_normalise: bool = True
    train_on_eos: bool = True
    kl_beta: float = 0.0
    weights: Literal["float32", "bfloat16_remainder", "bfloat16"] = "float32"
    optimiser_state: Literal["float32", "bfloat16"] = "float32"
    memory: Literal["single_pass", "two_pass"] = "single_pass"
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    head: Literal["auto", "chunked", "torch", "liger"] = "auto"
    attention: Literal["sdpa", "flex_attention"] = "sdpa"
    gradient_checkpointing: bool = False
    compile_layers: bool = False
    pad_to_multiple: int = 1
    lora: LoraParameters | None = None
    trackers: tuple[str, ...] = ()
    save_state_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                choices = ", ".join(get_args(hint))
                raise ValueError(f"{name}: must be one of {choices}, got {getattr(self, name)!r}")
        at_least = {
            "epochs": 1,
            "batch_size": 1,
            "grids_per_micro_batch": 1,
            "pad_to_multiple": 1,
            "warmup_steps": 0,
            "save_state_every": 0,
            "weight_decay": 0,
            "kl_beta": 0,
            "seed": 0,
        }
        for name, minimum in at_least.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"{name}: must be at least {minimum}, got {getattr(self, name)}")
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name}: must be a finite number, got {value}")
        if self.seed >= 2**32:
            raise ValueError(f"seed: must be below 2**32, got {self.seed}")
        for name in ("learning_rate", "max_gradient_norm", "max_steps"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}: must be above 0, got {value}")
        if self.weights != "float32" and self.compute_dtype != "bfloat16":
            raise ValueError(
                f"compute_dtype: must be bfloat16 when weights is {self.weights}, "
                f"got {self.compute_dtype!r}"
            )
        if self.optimiser_state != "float32" and self.weights != "bfloat16_remainder":
            raise ValueError(
                "optimiser_state: is chosen only with weights: bfloat16_remainder; "
                "elsewhere the moments have the dtype of the weights"
            )
        if self.compile_layers and self.gradient_checkpointing:
            raise ValueError(
                "compile_layers: can't be combined with gradient_checkpointing, which torch never "
                "compiles"
            )
        if self.lora is not None and self.weights != "float32":
            raise ValueError(
                "weights: must be float32 with lora; the adapters are small, and the weights "
                "they are added to keep the dtype they were loaded in"
            )

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> SamiTrainingConfig:
        """Return the configuration whose ``dataclasses.asdict`` came through JSON."""
        values = dict(fields)
        if values["lora"] is not None:
            modules = values["lora"]["target_modules"]
            adapters = {**values["lora"], "target_modules": modules and tuple(modules)}
            values["lora"] = LoraParameters(**adapters)
        return cls(**{**values, "trackers": tuple(values["trackers"])})

    def check_many_workers(self) -> None:
        """Refuse what has not been verified with a model in shards.

        Raises:
            ValueError: names the parameter and the remedy.
        """
        refused = {"lora": (self.lora, None), "compile_layers": (self.compile_layers, False)}
        for name, (value, only) in refused.items():
            if value != only:
                choice = "null" if only is None else str(only).lower()
                raise ValueError(
                    f"{name}: is not there for several workers; set {name}: {choice}, or train "
                    "in one process"
                )
