"""Optimisers, and updates that 16-bit weights do not lose.

A bf16 number has 8 bits of mantissa: an update below about 2^-9 of the weight rounds away, and
at the published learning rate of 5e-7 most do. fp32 weights keep them at 4 bytes a weight next to
the bf16 copy that a GPU computes with; ``RemainderOptimiser`` keeps them at 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sami_pipeline.core.config import SamiTrainingConfig
from sami_pipeline.core.distributed import as_shard_of, first_element, own_part, replace_values

# Elements updated at once: what they need in fp32 is small compared with an 8B model's embedding.
_SLICE = 2**24


def build_optimiser(model: nn.Module, config: SamiTrainingConfig) -> torch.optim.Optimizer:
    """Return the optimiser named in the configuration, over all trainable parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    def named(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        common = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        if config.optimiser == "rmsprop":
            # One weight after the other: all at once takes a copy of all.
            return torch.optim.RMSprop(parameters, foreach=False, **common)
        return torch.optim.AdamW(
            parameters, betas=config.adamw_betas, eps=config.adamw_epsilon, fused=True, **common
        )

    if config.weights == "bfloat16_remainder":
        return RemainderOptimiser(parameters, named, getattr(torch, config.optimiser_state))
    return named(parameters)


class RemainderOptimiser(torch.optim.Optimizer):
    """Update fp32 weights that are stored as bf16 weights and the 16 bits that these lack.

    The model computes with the bf16 weights, which are the fp32 ones rounded to nearest. Each
    step joins the two halves, lets an elementwise optimiser of torch update the fp32 weights in
    fp32, and takes them apart again: no update is lost, and none of it is an approximation.

    Args:
        parameters: bf16 or fp32; fp32 ones are turned into bf16 with their remainder.
        optimiser: makes the inner optimiser from parameters; must work element by element.
        state_dtype: dtype in which its moments are stored. In bf16 they are rounded
            stochastically, since a mean over 1000 steps would never decay under rounding to
            nearest.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        optimiser: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        state_dtype: torch.dtype = torch.float32,
    ) -> None:
        parameters = list(parameters)
        self._inner = optimiser
        self._state_dtype = state_dtype
        remainders = []
        for parameter in parameters:
            weight, remainder = split_float32(own_part(parameter.detach()).float())
            replace_values(parameter, weight)
            remainders.append(remainder)
        super().__init__(
            parameters, {"lr": optimiser([nn.Parameter(torch.zeros(1))]).defaults["lr"]}
        )
        for parameter, remainder in zip(parameters, remainders, strict=True):
            self.state[parameter]["remainder"] = as_shard_of(parameter, remainder)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group["lr"])

    def _update(self, parameter: nn.Parameter, learning_rate: float) -> None:
        state = self.state[parameter]
        # Elementwise: of a parameter in shards, each worker updates its own.
        own = own_part(parameter.data)
        weight = own.view(-1)
        if not len(weight):  # more workers than the parameter has rows
            return
        gradient = own_part(parameter.grad).view(-1)
        remainder = own_part(state["remainder"]).view(-1)
        moments = {
            name: own_part(value).view(-1)
            for name, value in state.items()
            if name not in ("remainder", "step")
        }
        for first in range(0, len(weight), _SLICE):
            part = slice(first, first + _SLICE)
            whole = nn.Parameter(join_float32(weight[part], remainder[part]))
            with torch.enable_grad():
                inner = self._inner([whole])
            inner.param_groups[0]["lr"] = learning_rate
            whole.grad = gradient[part].float()
            if "step" in state:
                inner.state[whole] = {
                    name: value[part].float() for name, value in moments.items()
                } | {"step": state["step"].clone()}
            inner.step()
            updated = dict(inner.state[whole])
            step = updated.pop("step")
            for name, value in updated.items():
                if name not in moments:
                    stored = torch.empty_like(own, dtype=self._state_dtype)
                    state[name], moments[name] = as_shard_of(parameter, stored), stored.view(-1)
                moments[name][part] = self._stored(value)
            weight[part], remainder[part] = split_float32(whole.detach())
        state["step"] = step

    def _stored(self, moment: Tensor) -> Tensor:
        if self._state_dtype == torch.bfloat16:
            return round_stochastically(moment)
        return moment.to(self._state_dtype)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state as it is; torch would cast every entry to the dtype of its parameter."""
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                whole = isinstance(value, Tensor) and value.ndim > 0
                self.state[parameter][name] = value.to(parameter.device) if whole else value

    def whole(self, parameter: nn.Parameter, part: slice) -> Tensor:
        """Return a part of a parameter's flattened fp32 weights, or of this worker's shard."""
        remainder = own_part(self.state[parameter]["remainder"]).view(-1)
        return join_float32(own_part(parameter.detach()).view(-1)[part], remainder[part])


def split_float32(value: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest bf16 of fp32 numbers, and the 16 bits from it back to them (int16)."""
    bits = value.contiguous().view(torch.int32)
    upper = (bits + 0x8000) >> 16
    remainder = bits - (upper << 16)
    return upper.to(torch.int16).view(torch.bfloat16), remainder.to(torch.int16)


def join_float32(weight: Tensor, remainder: Tensor) -> Tensor:
    """Return the fp32 numbers that ``split_float32`` took apart, bit by bit the same."""
    bits = (weight.contiguous().view(torch.int16).to(torch.int32) << 16) + remainder
    return bits.view(torch.float32)


def round_stochastically(value: Tensor) -> Tensor:
    """Return fp32 numbers in bf16, each rounded up with the probability that keeps its mean."""
    bits = value.contiguous().view(torch.int32)
    noise = torch.randint_like(bits, 1 << 16)
    return (((bits + noise) >> 16).to(torch.int16)).view(torch.bfloat16)


def sample_weights(optimiser: torch.optim.Optimizer, samples_per_tensor: int) -> Tensor:
    """Return a fixed, evenly spread sample of the weights that the optimiser updates.

    The workers of a model in shards have the sample between them.
    """
    samples: list[Any] = []
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            every = max(1, parameter.numel() // samples_per_tensor)
            part = slice(-first_element(parameter) % every, None, every)
            if isinstance(optimiser, RemainderOptimiser):
                samples.append(optimiser.whole(parameter, part))
            else:
                samples.append(own_part(parameter.detach()).flatten()[part].float())
    return torch.cat(samples)
