"""Log-probabilities of every response under every constitution, with one forward pass."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sami_pipeline.core.grid import Grid, Layout, PackedRows, pack_rows
from sami_pipeline.core.heads import token_logprobs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# Families whose forward takes a ready 4D mask and explicit positions, read in their source and
# compared with separate rows in tests/core/test_logprobs.py. Others use the repeated layout.
SHARED_PREFIX_MODEL_TYPES = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text"}
)
# Families whose logits are head(hidden), scaled or capped as ``_token_logprobs`` does it. Others
# make their own logits at every position: dearer, but never wrong.
KNOWN_HEAD_MODEL_TYPES = SHARED_PREFIX_MODEL_TYPES | {
    "gemma2", "phi", "phi3", "granite", "cohere", "mixtral",
}  # fmt: skip


@dataclass(frozen=True)
class GridLogprobs:
    """Log-probabilities of one grid.

    Attributes:
        sums: (n_c, n_r) fp32 (fp64 for an fp64 model), log p(y_j | x, c_i) in nats summed over
            the response's tokens.
        token_counts: (n_r,) int64, tokens of each response.
    """

    sums: Tensor
    token_counts: Tensor

    @property
    def means(self) -> Tensor:
        """(n_c, n_r), ``sums`` divided by the response lengths: nats per token."""
        return self.sums / self.token_counts

    def normalised(self, length_normalise: bool) -> Tensor:
        """``means`` or ``sums``: the grid the loss is taken on."""
        return self.means if length_normalise else self.sums


def choose_layout(model: PreTrainedModel) -> tuple[Layout, str]:
    """Return the row layout this model can be trusted with, and why.

    Sharing a prompt between responses needs an attention implementation that obeys a boolean 4D
    mask; eager attention *adds* the mask and FlashAttention-2 ignores it, both silently.
    """
    config = model.config
    if config.model_type not in SHARED_PREFIX_MODEL_TYPES:
        return "repeated", f"model type {config.model_type!r} has not been verified with 4D masks"
    if config._attn_implementation != "sdpa":
        return "repeated", f"{config._attn_implementation!r} attention takes no boolean 4D mask"
    return "shared_prefix", f"{config.model_type} with sdpa attention obeys boolean 4D masks"


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
    chunk_tokens: int | None = None,
) -> list[GridLogprobs]:
    """Return log p(y_j | x, c_i) for all cells of several grids, in one forward pass.

    Only response tokens count and only the positions that predict them reach the output head.

    Args:
        model: a causal language model of transformers.
        grids: any shapes and lengths.
        layout: "shared_prefix" or "repeated"; None takes ``choose_layout``.
        pad_to_multiple: see ``pack_rows``.
        chunk_tokens: see ``token_logprobs``.

    Returns:
        One ``GridLogprobs`` a grid, differentiable with respect to the model's parameters.

    Raises:
        ValueError: "shared_prefix" is asked of a model that would silently misread its mask.
    """
    trusted, reason = choose_layout(model)
    if layout == "shared_prefix" and trusted == "repeated":
        raise ValueError(f"layout: the prompt can't be shared, since {reason}")
    layout = layout or trusted
    rows = pack_rows(grids, layout=layout, pad_to_multiple=pad_to_multiple, device=model.device)
    return _split_cells(_token_logprobs(model, rows, layout, chunk_tokens), rows)


def _token_logprobs(
    model: PreTrainedModel, rows: PackedRows, layout: Layout, chunk_tokens: int | None
) -> Tensor:
    mask = _attention_masks(model.config, rows) if layout == "shared_prefix" else rows.padding_mask
    inputs = {
        "input_ids": rows.input_ids,
        "attention_mask": mask,
        "position_ids": rows.position_ids,
        "use_cache": False,
    }
    if model.config.model_type not in KNOWN_HEAD_MODEL_TYPES:
        logits = model(**inputs).logits.flatten(0, 1)[rows.source_index]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return -F.cross_entropy(logits, rows.target_ids, reduction="none")
    hidden = model.base_model(**inputs).last_hidden_state
    head = model.get_output_embeddings()
    text_config = model.config.get_text_config()
    return token_logprobs(
        hidden.flatten(0, 1)[rows.source_index],
        head.weight,
        rows.target_ids,
        bias=getattr(head, "bias", None),
        softcap=getattr(text_config, "final_logit_softcapping", None),
        scale=_logit_scale(text_config),
        chunk_tokens=chunk_tokens,
    )


def _logit_scale(config: Any) -> float:
    if getattr(config, "logits_scaling", None):  # Granite divides
        return 1.0 / config.logits_scaling
    return getattr(config, "logit_scale", None) or 1.0  # Cohere multiplies


def _attention_masks(config: Any, rows: PackedRows) -> Tensor | dict[str, Tensor]:
    """Return the mask in the form the model takes: one tensor, or one for each layer type.

    A 4D mask bypasses the model's own sliding window, so the window is written into it.
    """
    layer_types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if layer_types is not None and config.model_type not in ("llama", "mistral", "gemma"):
        masks = {"full_attention": rows.attention_mask()}
        if "sliding_attention" in layer_types:
            masks["sliding_attention"] = rows.attention_mask(window)
        return masks
    return rows.attention_mask(window if config.model_type == "mistral" else None)


def _split_cells(logprobs: Tensor, rows: PackedRows) -> list[GridLogprobs]:
    # split + sum adds in a fixed order; index_add would not be reproducible on a GPU.
    cells = torch.stack([cell.sum() for cell in logprobs.split(rows.cell_lengths)])
    counts = torch.tensor(rows.cell_lengths, device=cells.device)
    result, start = [], 0
    for n_prompts, n_responses in rows.grid_shapes:
        stop = start + n_prompts * n_responses
        result.append(
            GridLogprobs(
                sums=cells[start:stop].view(n_prompts, n_responses),
                token_counts=counts[start : start + n_responses],
            )
        )
        start = stop
    return result
