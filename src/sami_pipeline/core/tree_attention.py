"""Attention over a packed tree of tokens: each segment sees its own path and nothing else.

Every segment attends with one call to the keys of its path, so no (T, T) mask is built and no
score between unrelated tokens is ever computed. A mask over the whole row costs both: with two
prompts of 400 and four responses of 250 tokens it took a third of the step on a CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention.bias import causal_lower_right

from sami_pipeline.core.packing import Segment

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class TokenTree:
    """The segments of a packed row, with the masks that layers share."""

    def __init__(self, segments: tuple[Segment, ...]) -> None:
        self.segments = segments
        self.lengths = [segment.length for segment in segments]
        self._masks: dict[Any, Tensor | None] = {}

    def mask(self, segment: Segment, window: int | None, like: Tensor) -> Tensor:
        """Return the additive mask (length, offset + length) of a segment over its path.

        A path's positions count from 0 without a gap, so the mask is causal from the lower right
        corner, within the sliding window if there is one.
        """
        length, offset = segment.length, segment.offset
        if window is not None and window >= offset + length:
            window = None
        key = (length, offset, window, like.dtype)
        if key not in self._masks:
            self._masks[key] = _path_mask(length, offset, window, like)
        return self._masks[key]

    def block_mask(self, window: int | None, device: torch.device) -> BlockMask:
        """Return the same rules as a mask of FlexAttention over the whole row."""
        from torch.nn.attention.flex_attention import create_block_mask

        count = len(self.segments)
        on_path = torch.eye(count, dtype=torch.bool)
        for index, segment in enumerate(self.segments):
            on_path[index, list(segment.ancestors)] = True
        on_path = on_path.to(device)
        owner = torch.repeat_interleave(torch.arange(count), torch.tensor(self.lengths)).to(device)
        position = torch.cat(
            [torch.arange(s.offset, s.offset + s.length) for s in self.segments]
        ).to(device)

        def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            distance = position[query] - position[key]
            seen = on_path[owner[query], owner[key]] & (distance >= 0)
            return seen if window is None else seen & (distance < window)

        total = sum(self.lengths)
        return create_block_mask(allowed, None, None, total, total, device=device)


def _path_mask(length: int, offset: int, window: int | None, like: Tensor) -> Tensor:
    if like.is_cuda and window is None:
        # FlashAttention knows this mask by name and skips what it hides.
        return causal_lower_right(length, offset + length)
    query = torch.arange(offset, offset + length, device=like.device)[:, None]
    key = torch.arange(offset + length, device=like.device)[None, :]
    hidden = key > query
    if window is not None:
        hidden |= query - key >= window
    mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(hidden, float("-inf"))


class _MatmulAttention(torch.autograd.Function):
    """Attention of one segment by plain matrix products, for 16-bit numbers on a CPU.

    There torch's fused kernel computes in fp32: 250 tokens over 650 keys of 9 heads took it
    13.4 ms forward and backward, this 5.8 ms, with errors in log-probabilities of the same size
    (0.0028 against 0.0032 nats a token on SmolLM2-135M). Queries of the heads that share a key
    head are stacked, so keys are never repeated.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
    ) -> Tensor:
        _, heads, length, width = query.shape
        groups = key.shape[1]
        stacked = (query * scale).reshape(groups, heads // groups * length, width)
        key, value = key[0], value[0]
        weights = _attention_weights(stacked, key, mask)
        # The weights are computed again in the backward pass: kept, they would be the largest
        # activation of the layer.
        ctx.save_for_backward(stacked, key, value, mask)
        ctx.scale, ctx.shape = scale, query.shape
        return torch.bmm(weights, value).view(1, heads, length, value.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        stacked, key, value, mask = ctx.saved_tensors
        weights = _attention_weights(stacked, key, mask)
        gradient = gradient.reshape(*stacked.shape[:2], value.shape[-1])
        d_value = torch.bmm(weights.transpose(1, 2), gradient)
        d_weights = torch.bmm(gradient, value.transpose(1, 2))
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
        d_query = torch.bmm(d_scores, key).mul_(ctx.scale).view(ctx.shape)
        d_key = torch.bmm(d_scores.transpose(1, 2), stacked)
        return d_query, d_key[None], d_value[None], None, None


def _attention_weights(stacked: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    scores = torch.bmm(stacked, key.transpose(1, 2))
    scores.view(len(key), -1, *mask.shape).add_(mask)
    return scores.softmax(-1)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scale: float, dropout: float
) -> Tensor:
    if query.dtype == torch.bfloat16 and query.device.type == "cpu" and not dropout:
        return _MatmulAttention.apply(query, key, value, mask, scale)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip


def tree_attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    token_tree: TokenTree | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention in the signature of transformers; see ``AttentionInterface`` there.

    Args:
        module: the attention layer.
        query: (1, heads, T, head_dim) when a tree is given.
        key: (1, key-value heads, T, head_dim).
        value: as ``key``, of any width.
        attention_mask: only read without a tree.
        token_tree: the segments of the row; None is transformers' own sdpa attention.
        options: ``dropout``, ``scaling`` and ``sliding_window`` are read with a tree; without one
            all are passed on.

    Returns:
        (1, T, heads, head_dim) and None in the place of attention weights.

    Raises:
        TokenTreeError: an option changes the scores in a way that this attention does not know.
    """
    if token_tree is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    for name in ("softcap", "position_bias", "s_aux"):
        if options.get(name) is not None:
            raise TokenTreeError(f"attention on token trees takes no {name}")
    return _attend_along_paths(
        query,
        key,
        value,
        token_tree,
        dropout=options.get("dropout") or 0.0,
        scaling=options.get("scaling"),
        window=options.get("sliding_window"),
    ), None


class TokenTreeError(ValueError):
    """A model asks attention for something that it can't do on a token tree."""


@torch.compiler.disable  # it would be compiled again for every combination of lengths
def _attend_along_paths(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: TokenTree,
    *,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Return (1, T, heads, width): each segment's attention to its path."""
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    # One split has one concatenation as its backward; slices would each fill a whole row.
    queries, keys, values = (t.split(tree.lengths, dim=2) for t in (query, key, value))
    outputs = []
    for index, segment in enumerate(tree.segments):
        path = (*segment.ancestors, index)
        path_keys, path_values = (
            pieces[index] if len(path) == 1 else torch.cat([pieces[p] for p in path], dim=2)
            for pieces in (keys, values)
        )
        mask = tree.mask(segment, window, query)
        outputs.append(
            _attend(queries[index], path_keys, path_values, mask, scale=scale, dropout=dropout)
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def use_tree_attention() -> None:
    """Let every model with transformers' sdpa attention take token trees.

    The function that transformers looks up under "sdpa" is exchanged for one that computes the same
    where no tree is given, in this process. So no model has to be switched over and back, and a
    layer that is computed again in the backward pass finds it too.
    """
    from transformers import AttentionInterface

    AttentionInterface.register("sdpa", tree_attention_forward)
