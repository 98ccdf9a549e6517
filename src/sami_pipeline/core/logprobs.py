"""Log-probabilities of every response under every constitution, with one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from sami_pipeline.core.distributed import computed_inside_forward, is_sharded
from sami_pipeline.core.grid import Grid
from sami_pipeline.core.heads import Head
from sami_pipeline.core.lengths import check_ids, check_lengths, sides_of_original_context
from sami_pipeline.core.model_outputs import computing_model, response_outputs
from sami_pipeline.core.packing import Layout, PackedTokens, pack
from sami_pipeline.core.probe import choose_layout, traits_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "GridLogprobs",
    "Reference",
    "batched_grid_logprobs",
    "choose_layout",
    "grid_logprobs",
]


@dataclass(frozen=True)
class GridLogprobs:
    """Log-probabilities of one grid.

    Attributes:
        sums: (n_c, n_r) fp32 (fp64 for an fp64 model), log p(y_j | x, c_i) in nats summed over
            the response's tokens.
        token_counts: (n_r,) int64, tokens of each response.
        kl: (n_c, n_r), KL(π ‖ π_reference) in nats, averaged over the response's tokens; None
            without a reference.
    """

    sums: Tensor
    token_counts: Tensor
    kl: Tensor | None = None

    @property
    def means(self) -> Tensor:
        """(n_c, n_r), ``sums`` divided by the response lengths: nats per token."""
        return self.sums / self.token_counts

    def normalised(self, length_normalise: bool) -> Tensor:
        """``means`` or ``sums``: the grid the loss is taken on."""
        return self.means if length_normalise else self.sums


@dataclass(frozen=True)
class Reference:
    """The model that a trained one is kept close to.

    Attributes:
        model: it is only read; may be the trained model itself if ``context`` undoes the training.
        context: entered while it computes, such as one that switches adapters off.
    """

    model: PreTrainedModel
    context: Callable[[], AbstractContextManager] = nullcontext


def grid_logprobs(model: PreTrainedModel, grid: Grid, **options: Any) -> GridLogprobs:
    """Return the log-probabilities of one grid; see ``batched_grid_logprobs`` for the options.

    Example:
        >>> result = grid_logprobs(model, Grid(prompt_ids, response_ids))
        >>> sami_loss(result.means).backward()
    """
    return batched_grid_logprobs(model, [grid], **options)[0]


def batched_grid_logprobs(
    model: PreTrainedModel,
    grids: Sequence[Grid],
    *,
    layout: Layout | None = None,
    pad_to_multiple: int = 1,
    head: Head = "auto",
    chunk_tokens: int | None = None,
    reference: Reference | None = None,
) -> list[GridLogprobs]:
    """Return log p(y_j | x, c_i) for all cells of several grids, in one forward pass.

    Only response tokens count and only the positions that predict them reach the output head.

    Args:
        model: a causal language model of transformers.
        grids: any shapes and lengths.
        layout: "shared_prefix" or "repeated"; None takes ``choose_layout``.
        pad_to_multiple: see ``pack``.
        head: see ``token_logprobs``.
        chunk_tokens: see ``token_logprobs``.
        reference: also return the KL divergence from this model.

    Returns:
        One ``GridLogprobs`` a grid, differentiable with respect to the model's parameters.

    Raises:
        ValueError: an option is unknown, "shared_prefix" is asked of a model that would misread
            it, a grid is longer than the model's positions, or the model can't be used at all.
    """
    for name, value, known in (("layout", layout, (None, *get_args(Layout))),
                               ("head", head, get_args(Head))):  # fmt: skip
        if value not in known:
            choices = ", ".join(str(choice) for choice in known)
            raise ValueError(f"{name}: must be one of {choices}, got {value!r}")
    if not grids:
        raise ValueError("grids: none are given")
    policy = computing_model(model)
    traits = traits_of(policy)
    if traits.refusal:
        raise ValueError(f"model: {traits.refusal}")
    if layout == "shared_prefix" and traits.layout == "repeated":
        raise ValueError(f"layout: the prompt can't be shared, since {traits.reason}")
    layout = layout or traits.layout
    if reference is not None and traits_of(reference.model).layout == "repeated":
        layout = "repeated"
    check_ids(policy.get_input_embeddings().weight.shape[0], grids)
    check_lengths(policy.config, grids)
    sides = sides_of_original_context(policy.config, grids)
    if len(sides) > 1:
        options = {
            "layout": layout, "head": head, "chunk_tokens": chunk_tokens, "reference": reference,
        }  # fmt: skip
        return _one_side_at_a_time(model, grids, sides, options)
    tokens = pack(
        grids,
        layout=layout,
        pad_to_multiple=pad_to_multiple if sides == [None] else 1,
        device=policy.device,
    )

    def compute() -> tuple[Tensor, Tensor | None]:
        outputs = response_outputs(policy, tokens, traits.mask_form, traits.logits)
        if reference is None:
            return outputs.logprobs(tokens.target_ids, head, chunk_tokens), None
        kept = computing_model(reference.model)
        known = traits_of(kept)
        with torch.no_grad(), reference.context():
            initial = computed_inside_forward(
                kept, lambda: response_outputs(kept, tokens, known.mask_form, known.logits)
            )
        return outputs.logprobs_and_kl(tokens.target_ids, initial, head, chunk_tokens)

    # The head is read without its layer, which in a model in shards FSDP would not notice.
    logprobs, kl = computed_inside_forward(policy, compute)
    return _split_cells(logprobs, kl, tokens)


def _split_cells(logprobs: Tensor, kl: Tensor | None, tokens: PackedTokens) -> list[GridLogprobs]:
    sums = _cell_sums(logprobs, tokens)
    counts = torch.tensor(tokens.cell_lengths, device=sums.device)
    mean_kl = None if kl is None else _cell_sums(kl, tokens) / counts
    result, start = [], 0
    for n_prompts, n_responses in tokens.grid_shapes:
        shape, cells = (n_prompts, n_responses), slice(start, start + n_prompts * n_responses)
        result.append(
            GridLogprobs(
                sums=sums[cells].view(shape),
                token_counts=counts[start : start + n_responses],
                kl=None if mean_kl is None else mean_kl[cells].view(shape),
            )
        )
        start = cells.stop
    return result


def _cell_sums(per_token: Tensor, tokens: PackedTokens) -> Tensor:
    # split + sum adds in a fixed order; index_add would not be reproducible on a GPU.
    return torch.stack([cell.sum() for cell in per_token.split(tokens.cell_lengths)])


def _one_side_at_a_time(
    model: PreTrainedModel,
    grids: Sequence[Grid],
    sides: Sequence[Sequence[tuple[int, int, int]]],
    options: dict[str, Any],
) -> list[GridLogprobs]:
    """Compute the cells of each side of a model's original context in a separate pass."""
    if is_sharded(model):
        raise ValueError(
            "grids: some cells are longer than the model's original context and some are not; its "
            "longrope scaling keeps them apart, which takes one process"
        )
    cells: dict[tuple[int, int, int], GridLogprobs] = {}
    for side in sides:
        alone = [Grid([grids[n].prompt_ids[i]], [grids[n].response_ids[j]]) for n, i, j in side]
        cells |= zip(side, batched_grid_logprobs(model, alone, **options), strict=True)
    results = []
    for number, grid in enumerate(grids):
        n_prompts, n_responses = grid.shape
        rows = [[cells[number, i, j] for j in range(n_responses)] for i in range(n_prompts)]
        has_kl = rows[0][0].kl is not None
        results.append(
            GridLogprobs(
                sums=torch.stack([torch.cat([c.sums[0] for c in row]) for row in rows]),
                token_counts=torch.cat([cell.token_counts for cell in rows[0]]),
                kl=torch.stack([torch.cat([c.kl[0] for c in row]) for row in rows])
                if has_kl
                else None,
            )
        )
    return results
