"""One training on many processes: who takes part, who computes what, and a model cut into shards.

Each process of a ``torch.distributed`` group is a worker. All go through the same loop
(``core.training``) and the same batches; a worker computes its share of a batch, holds its shard of
every weight, gradient and moment (FSDP2, ``torch.distributed.fsdp.fully_shard``; ZeRO-3, arXiv
1910.02054), and takes part in every collective, whether it has something to compute or not. Where
no group is there, this process is the only worker and nothing here costs anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from sami_pipeline.core.grid import Grid
from sami_pipeline.core.packing import packed_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Result = TypeVar("Result")
_INSIDE_FORWARD = "inside_forward"


@dataclass(frozen=True)
class Workers:
    """The processes that train one model together, seen from one of them.

    Attributes:
        rank: this worker's number, from 0.
        count: how many there are.
        group: through which they wait for each other; None is the one that they train in.
    """

    rank: int = 0
    count: int = 1
    group: torch.distributed.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the worker that logs and writes what is written once."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all are here."""
        if self.count > 1:
            torch.distributed.barrier(group=self.group)

    def in_own_group(self) -> Workers:
        """Return the same workers, who wait for each other in a group of their own, on CPUs.

        What a thread does there can't come between the collectives of the training. All must call
        this at once.
        """
        if self.count == 1:
            return self
        return replace(self, group=torch.distributed.new_group(backend="gloo"))

    def leave_group(self) -> None:
        """Give back what ``in_own_group`` has made."""
        if self.group is not None:
            torch.distributed.destroy_process_group(self.group)

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return the sums of each value over all workers, taken in fp64."""
        return self._reduced(values, torch.distributed.ReduceOp.SUM)

    def largest(self, value: float) -> float:
        """Return the largest of a value over all workers."""
        return self._reduced([value], torch.distributed.ReduceOp.MAX)[0]

    def told(self, text: str) -> str:
        """Return the first worker's text; what the others give is not read."""
        if self.count == 1:
            return text
        letters = text.encode() if self.is_first else b""
        length = torch.tensor([len(letters)])
        torch.distributed.broadcast(length, 0)
        letters = letters or bytes(int(length))
        message = torch.tensor(list(letters), dtype=torch.uint8)
        if len(message):
            torch.distributed.broadcast(message, 0)
        return bytes(message.tolist()).decode()

    def gathered(self, row: dict[str, float]) -> list[dict[str, float]]:
        """Return the rows of all workers, which have the same names, in the order of the ranks."""
        mine = [0.0] * len(row) * self.count
        mine[self.rank * len(row) : (self.rank + 1) * len(row)] = row.values()
        numbers = self.sums(mine)
        return [
            dict(zip(row, numbers[start : start + len(row)], strict=True))
            for start in range(0, len(numbers), len(row))
        ]

    def micro_batches(self, batch: Sequence[Grid], size: int) -> list[list[tuple[Grid, float]]]:
        """Return this worker's part of a batch: as many micro-batches on every worker.

        Args:
            batch: the grids of all workers.
            size: the most grids in a micro-batch.

        Returns:
            Grids with their weight in the sum over the batch. A worker without a grid where
            others have one computes the shortest of the batch with weight 0, so that all go
            through as many forward and backward passes.
        """
        # Grids of similar length share a micro-batch, and are computed at once by all workers. The
        # longest come first, before there are gradients to hold besides their activations.
        ordered = sorted(batch, key=packed_length, reverse=True)
        own = ordered[self.rank :: self.count]
        rounds = math.ceil(math.ceil(len(ordered) / self.count) / size)
        parts = [own[size * number : size * (number + 1)] for number in range(rounds)]
        return [[(grid, 1.0) for grid in part] or [(ordered[-1], 0.0)] for part in parts]

    def _reduced(self, values: Sequence[float], operation: Any) -> list[float]:
        numbers = torch.tensor(list(values), dtype=torch.float64)
        if self.count > 1:
            torch.distributed.all_reduce(numbers, operation)
        return numbers.tolist()


def current_workers() -> Workers:
    """Return the workers of this process's group; itself alone where there is none.

    Raises:
        ValueError: the group can't share what lies on the CPU.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return Workers()
    if "cpu" not in torch.distributed.get_backend_config():
        raise ValueError(
            "torch.distributed: the group has a backend for GPUs alone, and numbers on the CPU are "
            'shared too; begin it with init_process_group("cpu:gloo,cuda:nccl")'
        )
    return Workers(torch.distributed.get_rank(), torch.distributed.get_world_size())


def shard(model: PreTrainedModel, device: torch.device) -> None:
    """Cut a model's weights into one shard a worker, in place, and move them to a device.

    The weights of a layer are brought together while it computes. Those outside the layers
    (embedding, last norm, head) belong to the model itself and stay together from the forward
    pass to the end of the backward pass; ``computed_inside_forward`` is where they can be read.
    Gradients of the workers are averaged after every backward pass. The model must have been tried
    before (``probe.agree_on_layout``), which takes whole weights.

    The first worker has the whole weights. The others may have theirs too, or a model on the meta
    device, whose shards the first then sends.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    workers = current_workers()
    is_empty = any(p.is_meta for p in model.parameters())
    weights = {}
    some_are_empty = workers.largest(float(is_empty)) > 0
    if some_are_empty and workers.is_first:
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    if is_empty:
        # Takes no memory: what is never written to has no pages.
        model.to_empty(device="cpu")
        model.tie_weights()
    mesh = init_device_mesh(device.type, (workers.count,))
    for module in list(model.modules()):
        if isinstance(module, GradientCheckpointingLayer):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    setattr(model, _INSIDE_FORWARD, MethodType(_call, model))
    register_fsdp_forward_method(model, _INSIDE_FORWARD)
    if some_are_empty:
        _send_shards(model, weights)


@torch.no_grad()
def _send_shards(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Give all workers their shards of the first one's weights, and its buffers.

    Args:
        model: in shards, whose values may be anything.
        weights: the whole ones, by name, on the first worker.
    """
    for name, parameter in model.named_parameters():
        whole_one = (
            weights[name].to(parameter.device)
            if weights
            else torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        )
        part = distribute_tensor(whole_one, parameter.device_mesh, parameter.placements)
        own_part(parameter.detach()).copy_(own_part(part))
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, 0)


def _call(_: nn.Module, compute: Callable[[], Result]) -> Result:
    return compute()


def computed_inside_forward(model: nn.Module, compute: Callable[[], Result]) -> Result:
    """Return what a function of a model's weights computes, with the weights brought together.

    Args:
        model: in shards or not.
        compute: its tensors that need a gradient must be returned as tensors, tuples, lists or
            dictionaries, where FSDP finds them.
    """
    forward = getattr(model, _INSIDE_FORWARD, None)
    return compute() if forward is None else forward(compute)


def is_sharded(model: nn.Module) -> bool:
    """Return whether ``shard`` has cut a model."""
    return hasattr(model, _INSIDE_FORWARD)


def reduce_gradients(model: nn.Module, now: bool) -> None:
    """Say whether the next backward passes add up the workers' gradients, or keep their own.

    Each worker keeps its whole gradient until then.
    """
    if is_sharded(model):
        model.set_requires_gradient_sync(now)


def free_whole_weights(model: nn.Module) -> None:
    """Give the memory of weights back that a forward pass without a backward pass has gathered.

    Until then the next forward pass would compute with them, whatever became of the shards.
    """
    if is_sharded(model):
        model.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with the shards of all workers, who must all ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """Return this worker's shard of a tensor, in the same memory; a whole tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def as_shard_of(parameter: Tensor, part: Tensor) -> Tensor:
    """Return a tensor of the shape of a parameter's shard as this worker's shard of a whole."""
    if not isinstance(parameter, DTensor) or isinstance(part, DTensor):
        return part
    if part.shape != parameter.to_local().shape:
        return part
    return DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def replace_values(parameter: nn.Parameter, part: Tensor) -> None:
    """Give a parameter other values, of another dtype too: this worker's shard of them."""
    if not isinstance(parameter, DTensor):
        parameter.data = part
        return
    # Setting .data would leave the shard as it is.
    values = nn.Parameter(as_shard_of(parameter, part), requires_grad=parameter.requires_grad)
    torch.utils.swap_tensors(parameter, values)


def first_element(parameter: Tensor) -> int:
    """Return where this worker's shard begins in the flattened parameter."""
    if not isinstance(parameter, DTensor):
        return 0
    rows = parameter.shape[0]
    each = math.ceil(rows / parameter.device_mesh.size())
    return min(parameter.device_mesh.get_local_rank() * each, rows) * (parameter.numel() // rows)


def gathered_weights(model: nn.Module) -> dict[str, Tensor] | None:
    """Return all weights on the CPU, by name, on the first worker; None on the others."""
    first = current_workers().is_first
    weights = {}
    for name, parameter in model.named_parameters():
        tensor = whole(parameter.detach())
        if first:
            weights[name] = tensor.cpu()
    saved = model.state_dict().keys() - dict(model.named_parameters(remove_duplicate=False)).keys()
    for name, buffer in model.named_buffers():
        if first and name in saved:
            weights[name] = buffer.cpu()
    return weights if first else None
