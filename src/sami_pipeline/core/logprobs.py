"""Log-probabilities of every response under every constitution, with one forward pass."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sami_pipeline.core.distributed import computed_inside_forward
from sami_pipeline.core.grid import Grid
from sami_pipeline.core.heads import Head, token_kl, token_logprobs
from sami_pipeline.core.packing import Layout, PackedTokens, pack
from sami_pipeline.core.tree_attention import TREE_ATTENTION, TokenTree, use_tree_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# Families whose layers mix tokens nowhere but in the attention function that transformers looks
# up, and hand it all keyword arguments: read in their source and compared with separate rows in
# tests/core/test_logprobs.py. Others use the repeated layout.
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


def choose_layout(model: PreTrainedModel) -> tuple[Layout, str]:
    """Return the layout this model can be trusted with, and why.

    Sharing a prompt needs attention that keeps the branches of a tree apart. Eager attention and
    FlashAttention-2 would silently let them see each other.
    """
    config = model.config
    attention = config._attn_implementation
    if config.model_type not in SHARED_PREFIX_MODEL_TYPES:
        return (
            "repeated",
            f"model type {config.model_type!r} has not been verified with token trees",
        )
    if attention not in ("sdpa", TREE_ATTENTION, "flex_attention"):
        return "repeated", f"{attention!r} attention can't keep the branches of a token tree apart"
    return "shared_prefix", f"{config.model_type} with {attention} attention takes token trees"


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
        ValueError: "shared_prefix" is asked of a model that would silently misread its mask.
    """
    trusted, reason = choose_layout(model)
    if layout == "shared_prefix" and trusted == "repeated":
        raise ValueError(f"layout: the prompt can't be shared, since {reason}")
    tokens = pack(
        grids, layout=layout or trusted, pad_to_multiple=pad_to_multiple, device=model.device
    )

    def compute() -> tuple[Tensor, Tensor | None]:
        outputs = _response_outputs(model, tokens)
        logprobs = outputs.logprobs(tokens.target_ids, head, chunk_tokens)
        if reference is None:
            return logprobs, None
        with torch.no_grad(), reference.context():
            initial = computed_inside_forward(
                reference.model, lambda: _response_outputs(reference.model, tokens)
            )
        return logprobs, outputs.kl(initial)

    # The head is read without its layer, which in a model in shards FSDP would not notice.
    logprobs, kl = computed_inside_forward(model, compute)
    return _split_cells(logprobs, kl, tokens)


@dataclass(frozen=True)
class _ResponseOutputs:
    """What a model computed at the positions that predict response tokens.

    Attributes:
        hidden: (N, H) final hidden states, or the (N, V) logits where the head is not known.
        weight: (V, H) output embedding, or None where ``hidden`` are logits.
        bias: (V,) or None.
        softcap: see ``token_logprobs``.
        scale: see ``token_logprobs``.
    """

    hidden: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    def logprobs(self, targets: Tensor, head: Head, chunk_tokens: int | None) -> Tensor:
        """(N,) log-probabilities of the targets in nats."""
        if self.weight is None:
            return -F.cross_entropy(self.hidden, targets, reduction="none")
        return token_logprobs(
            self.hidden,
            self.weight,
            targets,
            bias=self.bias,
            softcap=self.softcap,
            scale=self.scale,
            head=head,
            chunk_tokens=chunk_tokens,
        )

    def kl(self, reference: _ResponseOutputs) -> Tensor:
        """(N,) KL divergence from the reference in nats."""
        if self.weight is None or reference.weight is None:
            logp, logq = self.hidden.log_softmax(-1), reference.hidden.log_softmax(-1)
            return (logp.exp() * (logp - logq)).sum(-1)
        return token_kl(
            self.hidden,
            self.weight,
            reference.hidden,
            reference.weight,
            bias=self.bias,
            reference_bias=reference.bias,
            softcap=self.softcap,
            scale=self.scale,
        )


def _response_outputs(model: PreTrainedModel, tokens: PackedTokens) -> _ResponseOutputs:
    inputs = {
        "input_ids": tokens.input_ids,
        "position_ids": tokens.position_ids,
        "use_cache": False,
        **_attention_inputs(model, tokens),
    }
    if model.config.model_type not in KNOWN_HEAD_MODEL_TYPES:
        logits = model(**inputs).logits.flatten(0, 1)[tokens.source_index]
        return _ResponseOutputs(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    hidden = model.base_model(**inputs).last_hidden_state
    head = model.get_output_embeddings()
    text_config = model.config.get_text_config()
    return _ResponseOutputs(
        hidden.flatten(0, 1)[tokens.source_index],
        head.weight,
        getattr(head, "bias", None),
        getattr(text_config, "final_logit_softcapping", None),
        _logit_scale(text_config),
    )


def _attention_inputs(model: PreTrainedModel, tokens: PackedTokens) -> dict[str, Any]:
    """Return what tells this model's attention which tokens see each other."""
    if tokens.segments is None:
        return {"attention_mask": tokens.padding_mask}
    tree = TokenTree(tokens.segments)
    device = tokens.input_ids.device
    if model.config._attn_implementation == "flex_attention":
        return {
            "attention_mask": _for_layer_types(
                model.config, lambda window: tree.block_mask(window, device)
            )
        }
    use_tree_attention(model)
    # transformers hands a ready 4D mask through. It is never read; were a layer to read it in
    # spite of the tree, its NaN would show.
    unread = torch.full((1, 1, 1, 1), float("nan"), device=device)
    return {
        "attention_mask": _for_layer_types(model.config, lambda window: unread),
        "token_tree": tree,
    }


def _for_layer_types(config: Any, mask: Callable[[int | None], Any]) -> Any:
    """Return a mask in the form the model takes: one, or one for each of its layer types.

    A ready mask bypasses the model's own sliding window, so the window is part of it.
    """
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None or config.model_type in ("llama", "mistral", "gemma"):
        return mask(window if config.model_type == "mistral" else None)
    masks = {"full_attention": mask(None)}
    if "sliding_attention" in layer_types:
        masks["sliding_attention"] = mask(window)
    return masks


def _logit_scale(config: Any) -> float:
    if getattr(config, "logits_scaling", None):  # Granite divides
        return 1.0 / config.logits_scaling
    return getattr(config, "logit_scale", None) or 1.0  # Cohere multiplies


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
