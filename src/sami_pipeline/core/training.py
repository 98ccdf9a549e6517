"""The training loop, and SAMI's training: what the Kedro node and a notebook call.

The loop (``train``) has batches, schedule, optimiser, states and history. What it lowers is an
``Objective``: a loss of the log-probabilities of each grid.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import random
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers.modeling_layers import GradientCheckpointingLayer

from sami_pipeline import code_versions
from sami_pipeline.code_versions import CodeVersion
from sami_pipeline.core.adapters import (
    add_adapters,
    embedding_hooks_restored,
    merge_adapters,
    without_adapters,
)
from sami_pipeline.core.config import SamiTrainingConfig
from sami_pipeline.core.distributed import (
    Workers,
    current_workers,
    free_whole_weights,
    is_sharded,
    reduce_gradients,
    shard,
    whole,
)
from sami_pipeline.core.grid import Grid, TextGrid
from sami_pipeline.core.lengths import check_ids, check_lengths
from sami_pipeline.core.logprobs import (
    GridLogprobs,
    Reference,
    batched_grid_logprobs,
)
from sami_pipeline.core.model_outputs import computing_model
from sami_pipeline.core.objective import (
    matching_shares,
    mi_lower_bound,
    sami_loss,
    sami_loss_gradient,
)
from sami_pipeline.core.optimisers import build_optimiser, sample_weights, split_float32
from sami_pipeline.core.packing import Layout, packed_length
from sami_pipeline.core.probe import agree_on_layout, take_over_traits
from sami_pipeline.core.state import StateWriter, fingerprint, load_latest_state, save_state
from sami_pipeline.process_settings import give_back_freed_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Enough to see that updates vanish, few enough to cost nothing compared with a step.
SAMPLED_WEIGHTS_PER_TENSOR = 4096
# Of a grid, in the order in which they are computed.
METRICS = ("loss", "row_accuracy", "column_accuracy", "mi_lower_bound", "kl", "response_tokens")


@dataclass(frozen=True)
class TrainingResult:
    """What a run gives back.

    Attributes:
        model: the trained model, the same object that went in.
        history: one row per optimiser step, see ``train_sami``.
    """

    model: PreTrainedModel
    history: pd.DataFrame


AfterStep = Callable[["PreTrainedModel", int], None]


class Objective(ABC):
    """What a training lowers: a loss of the log-probabilities of each grid.

    The loss of a batch is the mean over its grids, each by its ``weight``.

    Attributes:
        name: of the training, where its steps are shown and logged.
        metrics: names of what ``measure`` returns; the loss is among them.
        shown: metrics next to the progress bar, by the word that stands for them.
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    shown: ClassVar[Mapping[str, str]]

    def settings(self) -> dict[str, Any]:
        """Return JSON-able settings that the result depends on and the configuration lacks."""
        return {}

    @abstractmethod
    def check(self, grids: Sequence[Grid]) -> None:
        """Refuse grids that the loss is not defined for.

        Raises:
            ValueError: names the grid.
        """

    def begun(
        self,
        model: PreTrainedModel,
        grids: Sequence[Grid],
        config: SamiTrainingConfig,
        state_folder: Path | None,
        run_fingerprint: dict[str, str],
        progress: bool,
    ) -> Sequence[Grid]:
        """Return the grids as ``loss`` takes them, once, before the first step or a saved state.

        Args:
            model: with its adapters, in the dtype that it is trained in, and untrained.
            grids: all of them.
            config: of the training.
            state_folder: where what took long may be kept; None keeps nothing.
            run_fingerprint: of the run that it is kept for.
            progress: show a progress bar.
        """
        return grids

    def weight(self, grid: Grid, batch: Sequence[Grid]) -> float:
        """Return how much a grid counts among those of its step; all count alike unless it says so.

        Args:
            grid: one of the batch.
            batch: all grids of the step, of every micro-batch and worker.

        Returns:
            On average over the batch 1.
        """
        return 1.0

    @abstractmethod
    def loss(self, grid: Grid, result: GridLogprobs) -> Tensor:
        """Return the loss of a grid in nats: a scalar, differentiable."""

    @abstractmethod
    def measure(self, grid: Grid, result: GridLogprobs) -> Tensor:
        """Return the ``metrics`` of a grid, (number of metrics,) fp64, on the model's device."""


def train_sami(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    grids: Sequence[Grid | TextGrid],
    config: SamiTrainingConfig,
    *,
    state_folder: Path | str | None = None,
    tracker_folder: Path | str | None = None,
    progress: bool = True,
    device: torch.device | None = None,
    after_step: AfterStep | None = None,
) -> TrainingResult:
    """Finetune a model with the SAMI objective (arXiv 2404.14313), in place.

    By default the weights are kept and updated in fp32; the forward and backward passes run
    under autocast to ``config.compute_dtype``. A learning rate of 5e-7 applied to bf16 weights,
    as published, rounds most updates away.

    In a ``torch.distributed`` group of several processes, all of them call this with the same
    arguments and train the model together (``core.distributed``); afterwards it is in shards, on
    ``device``. The first has its weights, on any device; the others may have a model on the meta
    device, without any.

    Args:
        model: a causal language model. Its weights are fp32, or bf16 if ``config.weights`` says
            so or ``config.lora`` freezes them.
        tokenizer: used for grids given as text.
        grids: one per query; square.
        config: see ``SamiTrainingConfig``.
        state_folder: where states are saved, as often as ``config`` says, and from where a killed
            run goes on.
        tracker_folder: where ``config.trackers`` that write files put them.
        progress: show a progress bar.
        device: this worker's, where there are several; None takes that of the model's weights.
        after_step: called with the model and the number of steps taken, after each; it may measure
            the model, and must leave weights and random numbers as they are.

    Returns:
        The model and its history: ``step, loss, row_accuracy, column_accuracy, mi_lower_bound,
        kl, response_tokens, gradient_norm, learning_rate, weights_moved, tokens_per_second,
        peak_memory_bytes``. Loss, bound and KL are means over the batch's grids in nats, before
        the step, the loss without the terms of KL and NLL; without ``config.kl_beta`` ``kl`` is 0.
        ``tokens_per_second`` counts the token positions that the model computes;
        ``weights_moved`` is the share of a fixed sample of weights that the step changed;
        ``peak_memory_bytes`` is that of the worker with the highest.

    Raises:
        ValueError: no grids, a grid that is not square, too long for the model or of another
            tokenizer, weights of the wrong dtype, or parameters that several workers can't follow.
        StateMismatchError: ``state_folder`` holds the state of another, unfinished run: of other
            data, parameters or code.
        FloatingPointError: a gradient is not finite; the states on disk are of the steps before.
    """
    if not isinstance(config, SamiTrainingConfig):
        raise ValueError(f"config: must be a SamiTrainingConfig, got {type(config).__name__}")
    return train(
        model, tokenizer, grids, config, SamiObjective.of(config), code_versions.of(train_sami),
        state_folder=state_folder, tracker_folder=tracker_folder, progress=progress, device=device,
        after_step=after_step,
    )  # fmt: skip


@dataclass(frozen=True)
class SamiObjective(Objective):
    """``sami_loss + kl_beta · (mean KL of a grid's cells) + nll_weight · (own responses' NLL)``.

    Attributes:
        length_normalise: see ``SamiTrainingConfig``.
        kl_beta: see ``SamiTrainingConfig``; used where log-probabilities come with a KL.
        nll_weight: see ``SamiTrainingConfig``.
    """

    length_normalise: bool
    kl_beta: float
    nll_weight: float

    name: ClassVar[str] = "SAMI"
    metrics: ClassVar[tuple[str, ...]] = METRICS
    shown: ClassVar[Mapping[str, str]] = {"row": "row_accuracy"}

    @classmethod
    def of(cls, config: SamiTrainingConfig) -> Self:
        """Return the objective that a configuration asks for."""
        return cls(config.length_normalise, config.kl_beta, config.nll_weight)

    def check(self, grids: Sequence[Grid]) -> None:
        """Refuse grids that are not square; see ``Objective``."""
        for index, grid in enumerate(grids):
            if grid.shape[0] != grid.shape[1]:
                raise ValueError(
                    f"grids[{index}]: {grid.shape[0]} prompts and {grid.shape[1]} responses; "
                    "the loss needs as many responses as constitutions"
                )

    def loss(self, grid: Grid, result: GridLogprobs) -> Tensor:
        """Return the loss of a grid; see ``Objective``."""
        loss = sami_loss(result.normalised(self.length_normalise))
        if result.kl is not None:
            loss = loss + self.kl_beta * result.kl.mean()
        if self.nll_weight:
            loss = loss - self.nll_weight * result.means.diagonal().mean()
        return loss

    def measure(self, grid: Grid, result: GridLogprobs) -> Tensor:
        """Return the ``METRICS`` of a grid; see ``Objective``."""
        return _metric_values(grid, result, self.length_normalise)


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    grids: Sequence[Grid | TextGrid],
    config: SamiTrainingConfig,
    objective: Objective,
    code: CodeVersion,
    *,
    state_folder: Path | str | None = None,
    tracker_folder: Path | str | None = None,
    progress: bool = True,
    device: torch.device | None = None,
    after_step: AfterStep | None = None,
) -> TrainingResult:
    """Train a model with an objective, in place.

    Args:
        model: see ``train_sami``, as is everything that is not explained here.
        tokenizer: used for grids given as text.
        grids: one per query.
        config: what is SAMI's objective in it counts only there.
        objective: what is lowered.
        code: of the caller; a state is gone on with by the same code only.
        state_folder: where states are saved.
        tracker_folder: of trackers.
        progress: show a progress bar.
        device: this worker's.
        after_step: what is called after each step.

    Returns:
        The model and its history: ``step``, the objective's metrics, and the columns from
        ``gradient_norm`` on that ``train_sami`` names.
    """
    state_folder = None if state_folder is None else Path(state_folder)
    tracker_folder = None if tracker_folder is None else Path(tracker_folder)
    token_grids = _tokenised(grids, tokenizer, config)
    workers = current_workers()
    device = device or model.device
    if device.type == "meta":
        raise ValueError("device: must be given where the model has no weights")
    if config.memory == "two_pass" and not isinstance(objective, SamiObjective):
        raise ValueError(f"memory: two_pass is SAMI's alone; {objective.name} takes single_pass")
    _check(model, token_grids, config, objective)
    check_ids(computing_model(model).get_input_embeddings().weight.shape[0], token_grids)
    check_lengths(computing_model(model).config, token_grids)
    if workers.count > 1:
        check_many_workers(token_grids, config)
    run_fingerprint: dict[str, str] = {}
    if state_folder is not None:
        own = (
            fingerprint(model, token_grids, config, code, objective.settings())
            if workers.is_first
            else {}
        )
        run_fingerprint = json.loads(workers.told(json.dumps(own)))
    batches = batch_schedule(len(token_grids), config)
    agree_on_layout(model)  # tried before its weights are cast, where rounding hides the least
    with (
        seeded(config.seed + workers.rank, device),
        prepared(model, config) as reference,
        _trackers(config, objective.name.lower(), tracker_folder) as log,
        StateWriter() as writer,
    ):
        layout, reason = agree_on_layout(model)
        logger.info("Rows are laid out as %s: %s", layout, reason)
        if workers.count > 1:
            for part in [model, *([] if reference is None else [reference.model])]:
                shard(part, device)
        optimiser = build_optimiser(model, config)
        token_grids = objective.begun(
            model, token_grids, config, state_folder, run_fingerprint, progress
        )
        start, history, most = 0, [], 0
        if state_folder is not None:
            start, history = load_latest_state(state_folder, model, optimiser, run_fingerprint)
            if start:
                logger.info(
                    "Going on after step %d of %d from %s", start, len(batches), state_folder
                )
        bar = tqdm(
            total=len(batches),
            initial=start,
            desc=f"{objective.name} steps",
            disable=not (progress and workers.is_first),
            file=sys.stderr,
        )
        saved_at = time.monotonic()
        for step in range(start, len(batches)):
            batch = [token_grids[index] for index in batches[step]]
            longest = _longest_micro_batch(batch, config, layout, workers)
            if device.type == "cpu" and longest > most:
                # Blocks that earlier steps have freed are too small for this one. To give them back
                # costs up to half of a step, so not before every step.
                give_back_freed_memory()
            most = max(most, longest)
            started = time.perf_counter()
            row = _take_step(
                model, optimiser, batch, step, len(batches), config, reference, objective
            )
            tokens = sum(packed_length(grid, layout) for grid in batch)
            row["tokens_per_second"] = tokens / (time.perf_counter() - started)
            row["peak_memory_bytes"] = int(workers.largest(peak_memory(model.device)))
            history.append(row)
            log(row)
            shown = {word: f"{row[name]:.2f}" for word, name in objective.shown.items()}
            bar.set_postfix({"loss": f"{row['loss']:.3f}", **shown}, refresh=False)
            bar.update()
            done, last = step + 1, step + 1 == len(batches)
            if state_folder is not None and (
                (last and config.saves_states) or _state_is_due(config, done, saved_at)
            ):
                save_state(
                    state_folder, done, model, optimiser, history, run_fingerprint,
                    finished=last, writer=writer if _takes_a_copy(device, workers) else None,
                )  # fmt: skip
                saved_at = time.monotonic()
            if after_step is not None:
                after_step(model, done)
                model.train()
        bar.close()
    return TrainingResult(model=model, history=pd.DataFrame(history))


def _longest_micro_batch(
    batch: Sequence[Grid], config: SamiTrainingConfig, layout: Layout, workers: Workers
) -> int:
    """Return the positions of the micro-batch of a step that has the most."""
    return max(
        sum(packed_length(grid, layout) for grid, _ in micro_batch)
        for micro_batch in workers.micro_batches(batch, config.grids_per_micro_batch)
    )


def _takes_a_copy(device: torch.device, workers: Workers) -> bool:
    """Return whether a state is copied, and written from the copy while the training goes on.

    One process on a CPU would need memory for another three times the weights, and nothing waits
    for its cores meanwhile.
    """
    return device.type != "cpu" or workers.count > 1


def _state_is_due(config: SamiTrainingConfig, steps_done: int, saved_at: float) -> bool:
    if config.save_state_every and steps_done % config.save_state_every == 0:
        return True
    if config.save_state_minutes is None:
        return False
    # By the slowest clock, so that all workers come to the same.
    passed = current_workers().largest(time.monotonic() - saved_at)
    return passed >= 60 * config.save_state_minutes


def _take_step(
    model: PreTrainedModel,
    optimiser: torch.optim.Optimizer,
    batch: Sequence[Grid],
    step: int,
    total_steps: int,
    config: SamiTrainingConfig,
    reference: Reference | None,
    objective: Objective,
) -> dict[str, float]:
    learning_rate = learning_rate_at(step, total_steps, config)
    for group in optimiser.param_groups:
        group["lr"] = learning_rate
    metrics = accumulate_gradients(model, batch, config, reference, objective)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    gradient_norm = whole(torch.nn.utils.get_total_norm(gradients))
    if not torch.isfinite(gradient_norm):
        raise FloatingPointError(
            f"step {step + 1}: the gradient norm is {gradient_norm.item()} and the loss "
            f"{metrics['loss']}; lower learning_rate"
        )
    torch.nn.utils.clip_grads_with_norm_(
        model.parameters(), config.max_gradient_norm or math.inf, gradient_norm
    )
    before = sample_weights(optimiser, SAMPLED_WEIGHTS_PER_TENSOR)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    moved = before != sample_weights(optimiser, SAMPLED_WEIGHTS_PER_TENSOR)
    moved_of, sampled = current_workers().sums([moved.sum().item(), moved.numel()])
    return {
        "step": step + 1,
        **metrics,
        "gradient_norm": gradient_norm.item(),
        "learning_rate": learning_rate,
        "weights_moved": moved_of / sampled,
    }


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw torch's random numbers from a seed, and leave its generators as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def prepared(model: PreTrainedModel, config: SamiTrainingConfig) -> Iterator[Reference | None]:
    """Make the model ready to be trained, yield what it is kept close to, and undo it all."""
    with embedding_hooks_restored(model), _made_ready(model, config) as reference:
        yield reference


@contextmanager
def _made_ready(model: PreTrainedModel, config: SamiTrainingConfig) -> Iterator[Reference | None]:
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if config.compile_layers and not layers:
        raise ValueError(
            f"compile_layers: the layers of {type(model).__name__} can't be told from its other "
            "modules (none is transformers' GradientCheckpointingLayer); set it to false"
        )
    reference = None
    if config.lora is not None:
        adapted = add_adapters(model, config.lora, config.seed)
        reference = Reference(model, lambda: without_adapters(model))
        if config.lora.frozen_weights == "bfloat16":
            full = [p for p in model.parameters() if p.dtype == torch.float32]
            cast_weights((p for p in full if not p.requires_grad), torch.bfloat16)
    elif config.kl_beta:
        initial = copy.deepcopy(model).requires_grad_(False).eval()
        # It computes as the model does, so that KL begins at 0.
        if config.weights == "bfloat16_remainder":  # halves up, where casting rounds them to even
            for parameter in initial.parameters():
                parameter.data = split_float32(parameter.detach().float())[0]
        elif config.weights == "bfloat16":
            cast_weights(initial.parameters(), torch.bfloat16)
        elif config.compute_dtype == "bfloat16" and current_workers().count == 1:
            # Autocast would round these at every product. Shards want one dtype a layer.
            linear = (m for m in initial.modules() if isinstance(m, torch.nn.Linear))
            embeds = initial.get_input_embeddings().weight  # the head's too where they are tied
            cast_weights((m.weight for m in linear if m.weight is not embeds), torch.bfloat16)
        take_over_traits(model, initial)
        reference = Reference(initial)
    if config.weights != "float32":
        # The optimiser takes trainable ones apart itself where it keeps their remainder.
        whole = config.weights == "bfloat16"
        cast_weights(
            (p for p in model.parameters() if whole or not p.requires_grad), torch.bfloat16
        )
    attention = model.config._attn_implementation
    if config.attention != "sdpa":
        model.set_attn_implementation(config.attention)
    if config.compile_layers:
        for layer in layers:
            layer.compile(dynamic=True)
    model.train()
    if config.gradient_checkpointing:
        _enable_checkpointing(model)
        if config.compile_layers:
            for layer in layers:
                _recompute_compiled(layer)
    model.zero_grad(set_to_none=True)  # a caller's own backward pass must not leak into step 1
    try:
        yield reference if config.kl_beta else None
    finally:
        model.eval()
        if config.gradient_checkpointing:
            _disable_checkpointing(model)
        for layer in layers:
            layer._compiled_call_impl = None
        if attention != model.config._attn_implementation:
            model.set_attn_implementation(attention)
        if config.lora is not None:
            if config.lora.frozen_weights == "bfloat16":
                # What the adapters have learnt is smaller than a bf16 weight can take.
                cast_weights(full, torch.float32)
            merge_adapters(model, adapted)


def accumulate_gradients(
    model: PreTrainedModel,
    batch: Sequence[Grid],
    config: SamiTrainingConfig,
    reference: Reference | None = None,
    objective: Objective | None = None,
) -> dict[str, float]:
    """Add the gradient of the batch's mean loss to the parameters and return its metrics.

    Args:
        model: see ``train``, as are the others.
        batch: the grids of a step.
        config: says how it is computed.
        reference: which a KL term keeps the model close to.
        objective: whose loss it is; None takes SAMI's.
    """
    objective = objective or SamiObjective.of(config)
    workers = current_workers()
    rows: list[Tensor] = []
    row_weights: list[float] = []
    micro_batches = workers.micro_batches(batch, config.grids_per_micro_batch)
    for number, micro_batch in enumerate(micro_batches, start=1):
        # The last reduces what the others have added up, too.
        reduce_gradients(
            model, config.reduce_every == "micro_batch" or number == len(micro_batches)
        )
        # The workers' gradients are averaged; the batch's mean wants their sum.
        grids = [grid for grid, _ in micro_batch]
        weights = [weight * objective.weight(grid, batch) for grid, weight in micro_batch]
        shares = [weight * workers.count for weight in weights]
        if config.memory == "two_pass":
            results = [
                _two_pass(model, grid, share, len(batch), config, reference)
                for grid, share in zip(grids, shares, strict=True)
            ]
        else:
            results = logprobs_as_trained(model, grids, config, reference)
            losses = [
                share * objective.loss(grid, result)
                for grid, result, share in zip(grids, results, shares, strict=True)
            ]
            (torch.stack(losses).sum() / len(batch)).backward()
        rows += map(objective.measure, grids, results)
        row_weights += weights
    # Read once, so that a GPU is not waited for after every grid.
    values = torch.stack(rows).cpu().flatten()
    names = objective.metrics
    table = np.array([value.item() for value in values]).reshape(len(rows), len(names))
    sums = workers.sums((table * np.array(row_weights)[:, None]).sum(axis=0))
    return {name: value / len(batch) for name, value in zip(names, sums, strict=True)}


def logprobs_as_trained(
    model: PreTrainedModel,
    grids: Sequence[Grid],
    config: SamiTrainingConfig,
    reference: Reference | None,
) -> list[GridLogprobs]:
    """Return the log-probabilities of grids in the precision that a configuration trains in."""
    dtype = getattr(torch, config.compute_dtype)
    mixed = config.weights == "float32" and dtype != torch.float32
    with torch.autocast(model.device.type, dtype=dtype, enabled=mixed):
        return batched_grid_logprobs(
            model,
            grids,
            pad_to_multiple=config.pad_to_multiple,
            head=config.head,
            reference=reference,
        )


def _two_pass(
    model: PreTrainedModel,
    grid: Grid,
    share: float,
    grids_in_batch: int,
    config: SamiTrainingConfig,
    reference: Reference | None,
) -> GridLogprobs:
    """Take a grid's gradient one constitution at a time (GradCache, arXiv 2101.06983)."""
    rows = [Grid([prompt], grid.response_ids) for prompt in grid.prompt_ids]
    devices = [model.device] if model.device.type == "cuda" else []
    # Forking the RNG gives both passes the same dropout.
    with torch.no_grad(), torch.random.fork_rng(devices):
        first_pass = [logprobs_as_trained(model, [row], config, None)[0] for row in rows]
    first = GridLogprobs(
        sums=torch.cat([row.sums for row in first_pass]), token_counts=first_pass[0].token_counts
    )
    weights = sami_loss_gradient(first.normalised(config.length_normalise)) / grids_in_batch * share
    divergences = []
    for number, (row, row_weights) in enumerate(zip(rows, weights, strict=True)):
        result = logprobs_as_trained(model, [row], config, reference)[0]
        loss = (row_weights * result.normalised(config.length_normalise)[0]).sum()
        if config.nll_weight:
            own = result.means[0, number] / len(rows) / grids_in_batch
            loss = loss - config.nll_weight * share * own
        if result.kl is not None:
            mean_kl = result.kl.mean() / len(rows) / grids_in_batch
            loss = loss + config.kl_beta * share * mean_kl
            divergences.append(result.kl.detach())
        loss.backward()
    return replace(first, kl=torch.cat(divergences)) if divergences else first


@torch.no_grad()
def evaluate_grids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    grids: Sequence[Grid | TextGrid],
    config: SamiTrainingConfig,
    *,
    description: str = "Held-out grids",
    progress: bool = True,
) -> pd.DataFrame:
    """Return one row per grid with the quantities of ``grid_metrics``, without training.

    The workers of a model in shards share the grids out, and all get all rows.

    In the precision of the weights, without autocast: in bf16 the MI bound of a single grid of
    SmolLM2-135M was off by 0.06 nats.
    """
    model.eval()
    workers = current_workers() if is_sharded(model) else Workers()
    rows = []
    for first in tqdm(
        range(0, len(grids), workers.count),
        desc=description,
        disable=not (progress and workers.is_first),
        file=sys.stderr,
    ):
        # All compute as often: the last ones, where grids have run out, compute one again.
        (grid,) = _tokenised([grids[min(first + workers.rank, len(grids) - 1)]], tokenizer, config)
        result = batched_grid_logprobs(model, [grid])[0]
        row = grid_metrics(grid, result, config.length_normalise)
        rows += workers.gathered(row)
    free_whole_weights(model)
    return pd.DataFrame(rows[: len(grids)])


def grid_metrics(grid: Grid, result: GridLogprobs, length_normalise: bool) -> dict[str, float]:
    """Return the loss, accuracies, MI bound and mean response length of one grid."""
    values = _metric_values(grid, result, length_normalise).tolist()
    return dict(zip(METRICS, values, strict=True))


def _metric_values(grid: Grid, result: GridLogprobs, length_normalise: bool) -> Tensor:
    """Return the ``METRICS`` of one grid, fp64, on the model's device."""
    logprobs = result.normalised(length_normalise).detach()
    values = [
        sami_loss(logprobs),
        *matching_shares(logprobs),
        mi_lower_bound(result.sums.detach()),
        logprobs.new_zeros(()) if result.kl is None else result.kl.detach().mean(),
        logprobs.new_full((), grid.response_tokens / grid.shape[1], dtype=torch.float64),
    ]
    return torch.stack([value.double() for value in values])


def batch_schedule(number_of_grids: int, config: SamiTrainingConfig) -> list[list[int]]:
    """Return the grid indices of every optimiser step: a seeded shuffle for each epoch.

    The last batch of an epoch may be smaller; no grid is dropped.
    """
    batches: list[list[int]] = []
    for epoch in range(config.epochs):
        order = list(range(number_of_grids))
        random.Random(f"{config.seed}/{epoch}").shuffle(order)
        batches += [
            order[first : first + config.batch_size]
            for first in range(0, len(order), config.batch_size)
        ]
    return batches[: config.max_steps]


def learning_rate_at(step: int, total_steps: int, config: SamiTrainingConfig) -> float:
    """Return the learning rate of a 0-based step: linear warm-up, then the schedule."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    factor = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }[config.schedule]
    return config.learning_rate * factor


def _tokenised(
    grids: Sequence[Grid | TextGrid],
    tokenizer: PreTrainedTokenizerBase | None,
    config: SamiTrainingConfig,
) -> list[Grid]:
    result = []
    for index, grid in enumerate(grids):
        if isinstance(grid, TextGrid):
            if tokenizer is None:
                raise ValueError(f"tokenizer: grids[{index}] is text, so the model's is needed")
            grid = grid.tokenise(tokenizer, train_on_eos=config.train_on_eos)
        elif not isinstance(grid, Grid):
            raise ValueError(
                f"grids[{index}]: must be a Grid or a TextGrid, got {type(grid).__name__}"
            )
        result.append(grid)
    return result


def _check(
    model: PreTrainedModel,
    grids: Sequence[Grid],
    config: SamiTrainingConfig,
    objective: Objective,
) -> None:
    if not grids:
        raise ValueError("grids: there is nothing to train on")
    objective.check(grids)
    allowed = {torch.float32}
    if config.weights != "float32" or config.lora is not None:
        allowed.add(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype not in allowed:
            raise ValueError(
                f"model: {name} is {parameter.dtype}; load the model with dtype=torch.float32, "
                "since small updates to 16-bit weights round away"
            )


def check_many_workers(grids: Sequence[Grid], config: SamiTrainingConfig) -> None:
    """Refuse what has not been verified, or can't be, with a model in shards.

    Raises:
        ValueError: names the parameter and the remedy.
    """
    config.check_many_workers()
    if config.memory == "two_pass" and len({grid.shape for grid in grids}) > 1:
        raise ValueError(
            "memory: two_pass on several workers needs grids with equally many constitutions, "
            "since all workers must go through as many passes; choose single_pass"
        )


@contextmanager
def _trackers(
    config: SamiTrainingConfig, name: str, folder: Path | None
) -> Iterator[Callable[[dict[str, float]], None]]:
    """Yield a function that logs a step wherever the configuration says."""
    if not (config.trackers and current_workers().is_first):
        yield lambda row: None
        return
    from accelerate import Accelerator

    accelerator = Accelerator(log_with=list(config.trackers), project_dir=folder)
    # accelerate leaves a tracker out when its package is missing.
    found = {str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with}
    for name in config.trackers:
        if name not in found:
            raise ValueError(f"trackers: the package of {name!r} is not installed")
    settings = {
        name: value if isinstance(value, bool | int | float) else str(value)
        for name, value in config.model_dump().items()
    }
    accelerator.init_trackers(name, settings)
    try:
        yield lambda row: accelerator.log(
            {name: value for name, value in row.items() if name != "step"}, step=int(row["step"])
        )
    finally:
        # Not end_training(), which would also end the group of workers.
        for tracker in accelerator.trackers:
            tracker.finish()


def cast_weights(parameters: Iterable[torch.nn.Parameter], dtype: torch.dtype) -> None:
    """Cast weights and leave buffers alone: the rotary frequencies need fp32."""
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)


def _enable_checkpointing(model: PreTrainedModel) -> None:
    # transformers 5.23 renamed it; 5.17 is supported.
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def _recompute_compiled(layer: GradientCheckpointingLayer) -> None:
    """Let a compiled layer be recomputed as a whole in the backward pass.

    transformers recomputes within ``forward`` from 5.24 on, so what is compiled would hold the
    recomputation. torch can't compile that around attention over a token tree, which it leaves
    uncompiled, and would run the whole layer operation by operation.
    """
    if not layer.gradient_checkpointing:
        return
    compiled, checkpoint = layer._compiled_call_impl, layer._gradient_checkpointing_func

    def call(*inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return compiled(*inputs, **options)
        return checkpoint(partial(compiled, **options), *inputs)

    layer.gradient_checkpointing = False
    layer._compiled_call_impl = call


def _disable_checkpointing(model: PreTrainedModel) -> None:
    disable = getattr(model, "activation_checkpointing_disable", None)
    (disable or model.gradient_checkpointing_disable)()


def peak_memory(device: torch.device) -> int:
    """Peak bytes allocated on a GPU, or the peak resident size of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        import psutil

        used = psutil.Process().memory_info()
        return getattr(used, "peak_wset", used.rss)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
