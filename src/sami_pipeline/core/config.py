"""Parameters of a SAMI training run. Standard library only, so that reading them loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints


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
        memory: "single_pass", or "two_pass" to hold the activations of one constitution at a time.
        compute_dtype: autocast dtype of forward and backward; the weights themselves stay fp32.
        gradient_checkpointing: recompute each layer in the backward pass.
        pad_to_multiple: round row lengths up to a multiple, so that kernels see few shapes.
        save_state_every: optimiser steps between saved states; 0 saves none.
        seed: decides the order of the grids.
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
    memory: Literal["single_pass", "two_pass"] = "single_pass"
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    gradient_checkpointing: bool = False
    pad_to_multiple: int = 1
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
        }
        for name, minimum in at_least.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"{name}: must be at least {minimum}, got {getattr(self, name)}")
        for name in ("learning_rate", "max_gradient_norm", "max_steps"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}: must be above 0, got {value}")
