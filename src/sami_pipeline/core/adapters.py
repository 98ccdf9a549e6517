"""Low-rank adapters through PEFT, put into a model in place and merged into it at the end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.nn import Parameter
from transformers.pytorch_utils import Conv1D

from sami_pipeline.core.config import LoraParameters

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_NAME = "default"


def lora_config(model: PreTrainedModel, parameters: LoraParameters) -> LoraConfig:
    """Return PEFT's description of the adapters that a model gets.

    Raises:
        ValueError: the model has none of the target modules, or no experts where they are asked
            for, or one of the modules is its output head, whose weights are read without its layer.
    """
    from peft import LoraConfig

    targets = parameters.target_modules
    experts = expert_weights(model)
    if parameters.experts and not experts:
        raise ValueError(f"lora.experts: {model.config.model_type} has none; leave it out")
    config = LoraConfig(
        r=parameters.rank,
        lora_alpha=parameters.alpha,
        lora_dropout=parameters.dropout,
        target_modules=_linear_layers(model) if targets is None else list(targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        target_parameters=experts if parameters.experts else None,
    )
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if module is head and name.rsplit(".", 1)[-1] in config.target_modules:
            raise ValueError(f"lora.target_modules: {name} is the output head; leave it out")
    return config


def add_adapters(model: PreTrainedModel, parameters: LoraParameters, seed: int) -> list[Parameter]:
    """Freeze a model's weights and add trainable fp32 adapters; it computes the same at first.

    Returns:
        The weights that were trainable before, for ``merge_adapters``.

    Raises:
        ValueError: see ``lora_config``.
    """
    from peft import inject_adapter_in_model

    config = lora_config(model, parameters)
    weights = dict(model.named_parameters())
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.requires_grad_(False)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            inject_adapter_in_model(config, model, _NAME)
    except ValueError:
        _make_trainable(trainable)
        raise
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    say_what_is_adapted(model, weights)
    return trainable


def say_what_is_adapted(model: PreTrainedModel, weights: dict[str, Parameter]) -> None:
    """Log the share of a model's weights that have adapters.

    Args:
        model: with its adapters.
        weights: by the names that they had before.
    """
    adapted = {
        id(getattr(layer.get_base_layer(), getattr(layer, "parameter_name", "weight")))
        for layer in _adapted_layers(model)
    }
    every = sum(weight.numel() for weight in weights.values())
    with_adapters = sum(w.numel() for w in weights.values() if id(w) in adapted)
    logger.info(
        "Adapters change layers that hold %.1f %% of the weights", 100 * with_adapters / every
    )
    left_out = sum(
        weight.numel()
        for name, weight in weights.items()
        if _is_experts(name, weight) and id(weight) not in adapted
    )
    if left_out:
        logger.warning(
            "%.1f %% of the weights are experts without adapters; lora.experts: true adapts them",
            100 * left_out / every,
        )


def expert_weights(model: PreTrainedModel) -> list[str]:
    """Return the names of weights of the shape (experts, rows, columns)."""
    return [name for name, weight in model.named_parameters() if _is_experts(name, weight)]


def _is_experts(name: str, weight: Parameter) -> bool:
    return weight.ndim == 3 and "expert" in name


def _linear_layers(model: PreTrainedModel) -> list[str]:
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
        }
    )


@contextmanager
def without_adapters(model: PreTrainedModel) -> Iterator[None]:
    """Let a model compute as it did before its adapters were added, and without dropout."""
    layers = _adapted_layers(model)
    was_training = model.training
    model.eval()
    # Switching adapters off and on also switches their gradients.
    trainable = [p for p in model.parameters() if p.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        _make_trainable(trainable)
        model.train(was_training)


def merge_adapters(model: PreTrainedModel, trainable: list[Parameter]) -> None:
    """Add the adapters' products to the weights and take the adapters out, in place.

    Args:
        model: as ``add_adapters`` left it.
        trainable: what ``add_adapters`` returned; made trainable again.
    """
    adapted = set(_adapted_layers(model))
    for module in adapted:
        module.merge()
    inside = {part for module in adapted for part in module.modules() if part is not module}
    for name, module in list(model.named_modules()):
        # The weights of a mixture's experts have one adapter around the other.
        if module in adapted - inside:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    _make_trainable(trainable)


@contextmanager
def embedding_hooks_restored(model: PreTrainedModel) -> Iterator[None]:
    """Remove, at the end, hooks that were put on a model's input embeddings in between.

    PEFT and transformers each put one there for recomputed layers and leave it.
    """
    hooks = model.get_input_embeddings()._forward_hooks
    before = set(hooks)
    try:
        yield
    finally:
        for hook in hooks.keys() - before:
            del hooks[hook]


def _make_trainable(parameters: list[Parameter]) -> None:
    for parameter in parameters:
        parameter.requires_grad_(True)


def _adapted_layers(model: PreTrainedModel) -> list[BaseTunerLayer]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
