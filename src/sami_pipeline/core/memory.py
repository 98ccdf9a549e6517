"""Memory of a training step, found by taking the very step on tensors that have no data.

The model is built at full size under torch's ``FakeTensorMode`` (every tensor has a shape and a
dtype, and lies on the meta device), the loop's own functions are called, and a dispatch mode adds
up the storages that are alive after every operation. So a change of the loop, of the head or of
attention changes the estimate, and there is no second description of them to go stale. Whether it
is right is measured: ``benchmarks/training_memory.py``.

``torch.distributed._tools.mem_tracker`` does the same with its own hooks; it is private, follows
modules and optimisers that it is told of, and stops at a value that is read (``item()``), which
the metrics and the optimisers here do.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from sami_pipeline.core.adapters import expert_weights
from sami_pipeline.core.config import LoraParameters, SamiTrainingConfig
from sami_pipeline.core.grid import Grid
from sami_pipeline.core.heads import CHUNK_TOKENS
from sami_pipeline.core.logprobs import Reference
from sami_pipeline.core.optimisers import build_optimiser
from sami_pipeline.core.training import (
    Objective,
    SamiObjective,
    accumulate_gradients,
    cast_weights,
    prepared,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class StepMemory:
    """What one process holds at the peak of a training step, in bytes.

    Attributes:
        weights: of the model, and of the reference that a KL term keeps.
        gradients: of the trained weights.
        optimiser: moments, and the remainders of 16-bit weights.
        activations: everything else at the peak: what the backward pass needs, or what the
            optimiser holds for a moment, whichever is more.
        gathered: weights and gradients of other processes' shards that are there for a moment.
    """

    weights: int
    gradients: int
    optimiser: int
    activations: int
    gathered: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimiser + self.activations + self.gathered


class _StorageCounter(TorchDispatchMode):
    """Adds up the storages that are alive; ``peak`` is their largest sum, in bytes.

    Values that are read (``item()``) are 1: no shape may depend on them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return True if args[0].dtype == torch.bool else 1.0
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


class _WithoutData(FakeTensorMode):
    """Stays one where a model is copied, as a KL term does."""

    def __deepcopy__(self, memo: dict) -> _WithoutData:
        return self


def empty_model(
    architecture: PretrainedConfig, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Return the causal language model of a configuration on the meta device: no data, no memory.

    Its weights are fp32, as training loads them.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            architecture, dtype=torch.float32, trust_remote_code=trust_remote_code
        )


def example_grid(
    shared_tokens: int, own_tokens: int, response_tokens: int, n: int, vocabulary: int
) -> Grid:
    """Return a grid of random ids: n prompts that begin alike, and n responses.

    Args:
        shared_tokens: what the prompts have in common at their start.
        own_tokens: what follows in each.
        response_tokens: of each response.
        n: constitutions and responses.
        vocabulary: ids are below it.
    """
    generator = random.Random(0)

    def ids(count: int) -> list[int]:
        return [generator.randrange(vocabulary) for _ in range(count)]

    shared = ids(shared_tokens)
    # The first id of its own is another for each, so that the prompts part there.
    prompts = [[*shared, i % vocabulary, *ids(max(0, own_tokens - 1))] for i in range(n)]
    return Grid(prompts, [ids(response_tokens) for _ in range(n)])


def sami_step_memory(
    architecture: PretrainedConfig,
    grids: Sequence[Grid],
    config: SamiTrainingConfig,
    *,
    device: Device = "cuda",
    processes: int = 1,
) -> StepMemory:
    """Return the memory of a step of ``train_sami``.

    Args:
        architecture: the model's configuration.
        grids: of one micro-batch, the longest that come.
        config: as it is trained.
        device: "cuda" adds what the same step takes for a moment on a GPU only.
        processes: workers that hold the model in shards (FSDP2).
    """
    return grids_step_memory(
        architecture, grids, config, SamiObjective.of(config), device=device, processes=processes
    )


def grids_step_memory(
    architecture: PretrainedConfig,
    grids: Sequence[Grid],
    config: SamiTrainingConfig,
    objective: Objective,
    *,
    device: Device = "cuda",
    processes: int = 1,
) -> StepMemory:
    """Return the memory of a step of ``core.training.train``; see ``sami_step_memory``.

    Args:
        architecture: the model's configuration.
        grids: of one micro-batch, as ``objective`` takes them.
        config: as it is trained.
        objective: what is lowered.
        device: see ``sami_step_memory``.
        processes: see ``sami_step_memory``.
    """
    traced = _without_kernels(config)

    def backward(model: PreTrainedModel, reference: Reference | None) -> None:
        accumulate_gradients(model, grids, traced, reference, objective)

    return traced_step(
        architecture,
        config,
        backward,
        head_tokens=sum(grid.shape[0] * grid.response_tokens for grid in grids),
        device=device,
        processes=processes,
    )


def traced_step(
    architecture: PretrainedConfig,
    config: SamiTrainingConfig,
    backward: Callable[[PreTrainedModel, Reference | None], None],
    *,
    head_tokens: int,
    device: Device = "cuda",
    processes: int = 1,
) -> StepMemory:
    """Return the memory of a step whose forward and backward passes a function takes.

    Args:
        architecture: the model's configuration.
        config: decides weights, optimiser, adapters, reference and checkpointing.
        backward: adds the gradients of one micro-batch to the model.
        head_tokens: positions of a micro-batch that reach the output head.
        device: see ``sami_step_memory``.
        processes: see ``sami_step_memory``.
    """
    from transformers import AutoModelForCausalLM

    config = _without_kernels(config)
    with _WithoutData(), _StorageCounter() as counter:
        model = AutoModelForCausalLM.from_config(architecture, dtype=torch.float32)
        full = config.replaced(lora=None, kl_beta=0.0 if config.lora else config.kl_beta)
        with prepared(model, full) as reference:
            if config.lora is not None:
                _add_adapters(model, config.lora)
                reference = Reference(model) if config.kl_beta else None
            optimiser = build_optimiser(model, config)
            trained = [p for p in model.parameters() if p.requires_grad]
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
            counter.peak = 0
            optimiser.step()
            in_optimiser = counter.peak
            models = {model, *([] if reference is None else [reference.model])}
            held = [
                _bytes(t for m in models for t in (*m.parameters(), *m.buffers())),
                _bytes(p.grad for p in trained),
                _bytes(t for state in optimiser.state.values() for t in state.values()),
            ]
            layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
            layer = max((_bytes(m.parameters()) for m in layers), default=0)
            outside = _bytes(model.parameters()) - sum(_bytes(m.parameters()) for m in layers)
            if config.batch_size <= config.grids_per_micro_batch:  # none are there to add to
                optimiser.zero_grad(set_to_none=True)
            counter.peak = 0
            backward(model, reference)
            in_passes = counter.peak
    for_a_moment = max(in_passes, in_optimiser) - sum(held)
    if device == "cuda":
        in_passes += _head_on_gpu(architecture, head_tokens)
        for_a_moment = max(in_passes, in_optimiser) - sum(held)
        if processes > 1:
            for_a_moment = max(in_passes - sum(held), (in_optimiser - sum(held)) // processes)
    unreduced = 0 if config.reduce_every == "micro_batch" else held[1]
    return StepMemory(
        *(-(-part // processes) for part in held),
        activations=max(0, for_a_moment),
        # core/distributed.py: a layer and the next one, and all that is outside the layers; as
        # much again in gradients, of one layer.
        gathered=0 if processes == 1 else 2 * outside + 3 * layer + unreduced,
    )


def _without_kernels(config: SamiTrainingConfig) -> SamiTrainingConfig:
    """Return a configuration without what needs a GPU's kernels: they keep no more than this."""
    return config.replaced(attention="sdpa", compile_layers=False, head="chunked", trackers=())


class _Adapted(nn.Module):
    """A frozen linear layer with an adapter that computes as PEFT's does.

    PEFT's own can't be made here: it moves modules, which torch refuses tensors without data.
    """

    def __init__(self, base: nn.Linear | Conv1D, parameters: LoraParameters) -> None:
        super().__init__()
        self.base = base
        columns, rows = base.weight.shape if isinstance(base, Conv1D) else base.weight.shape[::-1]
        self.first = nn.Linear(columns, parameters.rank, bias=False)
        self.second = nn.Linear(parameters.rank, rows, bias=False)
        self.dropout = nn.Dropout(parameters.dropout) if parameters.dropout else nn.Identity()
        self.scale = parameters.alpha / parameters.rank

    def forward(self, hidden: Tensor) -> Tensor:
        adapted = self.second(self.first(self.dropout(hidden.to(self.first.weight.dtype))))
        return self.base(hidden) + adapted * self.scale


class _AdaptedExperts(nn.Module):
    """Adds an adapter's product to the weights of a mixture's experts, as PEFT's does."""

    def __init__(self, weight: Tensor, parameters: LoraParameters) -> None:
        super().__init__()
        experts, rows, columns = weight.shape
        self.first = nn.Parameter(torch.empty(experts, parameters.rank, columns))
        self.second = nn.Parameter(torch.empty(experts, rows, parameters.rank))

    def forward(self, weight: Tensor) -> Tensor:
        factors = (self.second.to(weight.dtype), self.first.to(weight.dtype))
        return torch.baddbmm(weight, *factors)


def _add_adapters(model: PreTrainedModel, parameters: LoraParameters) -> None:
    model.requires_grad_(False)
    if parameters.frozen_weights == "bfloat16":
        cast_weights(model.parameters(), torch.bfloat16)
    if parameters.experts:
        for name in expert_weights(model):
            module, _, weight = name.rpartition(".")
            owner = model.get_submodule(module)
            adapted = _AdaptedExperts(getattr(owner, weight), parameters)
            nn.utils.parametrize.register_parametrization(owner, weight, adapted, unsafe=True)
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        parent, _, child = name.rpartition(".")
        wanted = parameters.target_modules is None or child in parameters.target_modules
        if isinstance(module, nn.Linear | Conv1D) and module is not head and wanted:
            setattr(model.get_submodule(parent), child, _Adapted(module, parameters))


def _bytes(tensors: Iterable[Any]) -> int:
    storages = {
        storage._cdata: storage.nbytes()
        for tensor in tensors
        if isinstance(tensor, Tensor)
        for storage in [tensor.untyped_storage()]
    }
    return sum(storages.values())


def _head_on_gpu(architecture: PretrainedConfig, head_tokens: int) -> int:
    """Return what the head takes more on a GPU: a chunk's logits and slopes at once, in fp32."""
    rows = min(head_tokens, CHUNK_TOKENS)
    return 2 * rows * architecture.get_text_config().vocab_size * 4
