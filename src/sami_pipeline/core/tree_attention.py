"""Attention over a packed tree of tokens: each segment sees its own path and nothing else.

Queries of a segment attend to the keys of its path, so no (T, T) mask is built and no score
between unrelated tokens is ever computed. A mask over the whole row costs both: with two prompts of
400 and four responses of 250 tokens it took a third of the step on a CPU. On a CPU every segment is
a separate call, without padding. Elsewhere, where starting a kernel takes as long as a small one
runs, the segments of a level of the tree are one padded call.

Where layers are compiled, all of it is one operator, which torch does not look into: a layer stays
one graph, and is not compiled again for every combination of lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention.bias import causal_lower_right

from sami_pipeline.core.packing import Segment

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


# Scores of a segment and head from which on its call fills a GPU alone. FlashAttention then skips
# what its mask hides, and no mask is written out.
_LARGE = 2**20
# How many times the scores of its segments a padded call may compute.
_MOST_PADDED = 2.0
# Keys of a padded call, so that a mask's rows lie where kernels can load them at once.
_ALIGNED = 16


class TokenTree:
    """The segments of a packed row, with the masks and places that layers share.

    Attributes:
        segments: in the order of the row.
        lengths: of the segments.
        table: (segments, 3) int64 on the CPU, from which ``_tree_of`` makes the tree again: length,
            offset, and the index of the segment before it on its path, or -1.
    """

    def __init__(self, segments: tuple[Segment, ...]) -> None:
        self.segments = segments
        parents = [segment.ancestors[-1] if segment.ancestors else -1 for segment in segments]
        self.table = torch.tensor(
            [[s.length, s.offset, parent] for s, parent in zip(segments, parents, strict=True)]
        )
        self.lengths = [segment.length for segment in segments]
        self._masks: dict[Any, Tensor | None] = {}
        self._levels: dict[Any, _Levels] = {}

    def levels(self, group: int, device: torch.device) -> _Levels:
        """Return the calls of attention level by level.

        Args:
            group: query heads that share a key head.
            device: where their places are put.
        """
        if (group, device) not in self._levels:
            self._levels[group, device] = _Levels(self, group, device)
        return self._levels[group, device]

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


@dataclass(frozen=True)
class _Call:
    """Segments whose queries attend in one call.

    Attributes:
        segments: their indices.
        length: queries of each, padded: L.
        keys: of each, padded: K.
    """

    segments: tuple[int, ...]
    length: int
    keys: int


class _Levels:
    """Attention in one call a level of a tree: what is computed together, and where it lies.

    The queries of all heads that share a key head stand behind each other, so that keys are never
    repeated. With B segments, ``group`` G heads a key head, L queries and K keys a call has the
    shapes (key heads, B, G · L, width) and (key heads, B, K, width), and a mask (1, B, G · L, K).

    Attributes:
        calls: what is computed together.
        queries: places of all calls' queries (Σ B · G · L) among G · T ones of a key head.
        keys: places of all calls' keys (Σ B · K) in the row.
        outputs: for each of the T · G outputs of a key head, its place among the calls' queries.
    """

    def __init__(self, tree: TokenTree, group: int, device: torch.device) -> None:
        self.tree, self.group, self.device = tree, group, device
        self.calls = _calls(tree.segments)
        total = sum(tree.lengths)
        row = torch.arange(total).split(tree.lengths)
        heads = torch.arange(group)[:, None]
        queries, keys, outputs, slots = [], [], torch.empty(total, group, dtype=torch.long), 0
        for call in self.calls:
            for index in call.segments:
                segment = tree.segments[index]
                path = torch.cat([row[p] for p in (*segment.ancestors, index)])
                keys.append(_padded(path, call.keys))
                queries.append(_padded(row[index] + total * heads, call.length).flatten())
                within = torch.arange(segment.length)
                outputs[row[index]] = (slots + within + call.length * heads).T
                slots += group * call.length
        self.queries, self.keys, self.outputs = (
            _Places(index, size, device)
            for index, size in (
                (torch.cat(queries), group * total),
                (torch.cat(keys), total),
                (outputs.flatten(), slots),
            )
        )
        self._masks: dict[Any, Tensor] = {}

    def mask(self, call: _Call, window: int | None, like: Tensor) -> Tensor:
        """Return the additive mask (1, B, G · L, K) of a call of several segments."""
        key = (call, window, like.dtype)
        if key not in self._masks:
            segments = [self.tree.segments[index] for index in call.segments]
            offsets, lengths = (
                torch.tensor(numbers, device=self.device)[:, None]
                for numbers in ([s.offset for s in segments], [s.length for s in segments])
            )
            # A path's positions count from 0 without a gap, so they are the places of its keys.
            # What fills the queries up sees what the last one sees: no row is without a key.
            within = torch.arange(call.length, device=self.device)
            query = (offsets + within.minimum(lengths - 1))[:, None, :, None]
            keys = torch.arange(call.keys, device=self.device)
            hidden = keys > query
            if window is not None:
                hidden |= query - keys >= window
            mask = torch.zeros(hidden.shape, dtype=like.dtype, device=self.device)
            mask.masked_fill_(hidden, float("-inf"))
            self._masks[key] = mask.expand(-1, self.group, -1, -1).flatten(1, 2)[None]
        return self._masks[key]


def _calls(segments: tuple[Segment, ...]) -> list[_Call]:
    """Return the calls of attention: a level in one, unless padding or size speak against it."""
    by_level: dict[int, list[int]] = {}
    for index, segment in enumerate(segments):
        by_level.setdefault(len(segment.ancestors), []).append(index)
    parts: list[list[int]] = []
    for level in by_level.values():
        part: list[int] = []
        for index in sorted(level, key=lambda i: _scores(segments[i]), reverse=True):
            if _scores(segments[index]) > _LARGE:
                parts.append([index])
            elif not part or _padding([segments[i] for i in (*part, index)]) > _MOST_PADDED:
                part = [index]
                parts.append(part)
            else:
                part.append(index)
    return [_call(part, [segments[index] for index in part]) for part in parts]


def _call(indices: list[int], segments: list[Segment]) -> _Call:
    length = max(segment.length for segment in segments)
    keys = max(segment.offset + segment.length for segment in segments)
    if len(segments) > 1:
        keys = -(-keys // _ALIGNED) * _ALIGNED
    return _Call(tuple(indices), length, keys)


def _scores(segment: Segment) -> int:
    return segment.length * (segment.offset + segment.length)


def _padding(segments: list[Segment]) -> float:
    call = _call([], segments)
    return call.length * call.keys * len(segments) / sum(map(_scores, segments))


def _padded(places: Tensor, length: int) -> Tensor:
    """Fill up the last dimension with -1."""
    return F.pad(places, (0, length - places.shape[-1]), value=-1)


class _Places:
    """Rows that are taken from a tensor, some of them several times, and the way back.

    A gradient is the sum over all the times a row was taken, added up in a fixed order, which
    ``index_add`` would not keep on a GPU, and rounded once.

    Args:
        index: (N,) int64 of the rows; -1 takes any, whose gradient is 0.
        size: rows that there are.
        device: of the tensors.
    """

    def __init__(self, index: Tensor, size: int, device: torch.device) -> None:
        self.index = index.clamp_min(0).to(device)
        real = (index >= 0).nonzero().flatten()
        order = index[real].argsort(stable=True)
        slots, counts = real[order], index[real].bincount(minlength=size)
        starts = counts.cumsum(0) - counts
        back, self.groups, target, done = [], [], torch.empty(size, dtype=torch.long), 0
        # Rows that are taken equally often are added up at once.
        for times in counts.unique().tolist():
            rows = (counts == times).nonzero().flatten()
            if times:
                back.append(slots[starts[rows, None] + torch.arange(times)].flatten())
            self.groups.append((len(rows), times))
            target[rows] = done + torch.arange(len(rows))
            done += len(rows)
        self.back = torch.cat(back).to(device)
        self.target = target.to(device)

    def take(self, tensor: Tensor) -> Tensor:
        """Return (rows of others, N, width) of a tensor (rows of others, size, width)."""
        return _Take.apply(tensor, self)

    def gradient(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the tensor from that of what was taken."""
        taken = gradient.index_select(1, self.back)
        if [times for _, times in self.groups] == [1]:
            return taken
        sizes = [rows * times for rows, times in self.groups]
        parts = [
            part.unflatten(1, (rows, times)).sum(2)
            if times > 1
            else part
            if times
            else part.new_zeros(len(part), rows, part.shape[2])
            for part, (rows, times) in zip(taken.split(sizes, dim=1), self.groups, strict=True)
        ]
        return torch.cat(parts, dim=1).index_select(1, self.target)


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, places: _Places) -> Tensor:
        ctx.places = places
        return tensor.index_select(1, places.index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.places.gradient(gradient), None


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
        stacked = _keep_queries(ctx, query, key, value, mask, scale)
        weights = _attention_weights(stacked, key[0], mask)
        return torch.bmm(weights, value[0]).view(*query.shape[:3], value.shape[-1])

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


class _MatmulGradient(_MatmulAttention):
    """The same where the gradient alone is wanted: nothing is computed before that."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
    ) -> Tensor:
        _keep_queries(ctx, query, key, value, mask, scale)
        return query.new_empty(*query.shape[:3], value.shape[-1])


def _keep_queries(
    ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
) -> Tensor:
    """Keep what the backward pass needs; return queries (key heads, G · L, width).

    The weights are computed again there: kept, they would be the largest activation of the layer.
    """
    _, heads, length, width = query.shape
    groups = key.shape[1]
    stacked = (query * scale).reshape(groups, heads // groups * length, width)
    ctx.save_for_backward(stacked, key[0], value[0], mask)
    ctx.scale, ctx.shape = scale, query.shape
    return stacked


def _attention_weights(stacked: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    scores = torch.bmm(stacked, key.transpose(1, 2))
    scores.view(len(key), -1, *mask.shape).add_(mask)
    return scores.softmax(-1)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    scale: float,
    dropout: float,
    gradient_only: bool = False,
) -> Tensor:
    if query.dtype == torch.bfloat16 and query.device.type == "cpu" and not dropout:
        function = _MatmulGradient if gradient_only else _MatmulAttention
        return function.apply(query, key, value, mask, scale)
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
        (1, T, heads, head_dim) and None instead of attention weights.

    Raises:
        TokenTreeError: an option changes the scores in a way that this attention does not know.
    """
    if token_tree is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    for name in ("softcap", "position_bias", "s_aux"):
        if options.get(name) is not None:
            raise TokenTreeError(f"attention on token trees takes no {name}")
    # The one that is handed through has one element; a layer that makes its own from it would be
    # ignored, and what it learns about it.
    if attention_mask is not None and attention_mask.numel() > 1:
        raise TokenTreeError("attention on token trees takes no mask that a layer has made itself")
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
    if torch.compiler.is_compiling() and not dropout:
        return torch.ops.sami_pipeline.tree_attention(query, key, value, tree.table, scale, window)
    return _walk(query, key, value, tree, dropout=dropout, scale=scale, window=window)


@torch.compiler.disable  # it would be compiled again for every combination of lengths
def _walk(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: TokenTree,
    *,
    dropout: float,
    scale: float,
    window: int | None,
    gradient_only: bool = False,
) -> Tensor:
    """Return as ``_attend_along_paths`` does.

    Args:
        query: (1, heads, T, width).
        key: (1, key heads, T, width).
        value: as ``key``, of any width.
        tree: of the T tokens.
        dropout: of attention weights.
        scale: of the scores.
        window: see ``TokenTree.mask``.
        gradient_only: the values are not read, and may be anything.
    """
    attend = _segment_by_segment if query.device.type == "cpu" else _level_by_level
    return attend(
        query, key, value, tree, dropout=dropout, scale=scale, window=window,
        gradient_only=gradient_only,
    )  # fmt: skip


@lru_cache(maxsize=2)  # a step has one, or one a side of the model's original context
def _tree_of(rows: tuple[tuple[int, int, int], ...]) -> TokenTree:
    """Return the tree of a ``TokenTree.table``, with what its layers share."""
    segments: list[Segment] = []
    for length, offset, parent in rows:
        ancestors = (*segments[parent].ancestors, parent) if parent >= 0 else ()
        segments.append(Segment(length, offset, ancestors))
    return TokenTree(tuple(segments))


def _define_operators() -> None:
    """Make ``torch.ops.sami_pipeline.tree_attention`` known, with its gradient.

    The gradient is that of the same calls, done once more. ``torch.library.custom_op`` would switch
    differentiation off within them.
    """
    library = torch.library
    states = "Tensor query, Tensor key, Tensor value, Tensor table, float scale, SymInt? window"
    forward, backward = "sami_pipeline::tree_attention", "sami_pipeline::tree_attention_backward"
    library.define(forward, f"({states}) -> Tensor")
    library.define(backward, f"(Tensor gradient, {states}) -> (Tensor, Tensor, Tensor)")

    def tree_of(table: Tensor) -> TokenTree:
        return _tree_of(tuple(map(tuple, table.tolist())))

    @library.impl(forward, "CompositeExplicitAutograd")
    @torch.no_grad()
    def attend(
        query: Tensor, key: Tensor, value: Tensor, table: Tensor, scale: float, window: int | None
    ) -> Tensor:
        return _walk(query, key, value, tree_of(table), dropout=0.0, scale=scale, window=window)

    @library.impl(backward, "CompositeExplicitAutograd")
    def differentiate(
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        table: Tensor,
        scale: float,
        window: int | None,
    ) -> tuple[Tensor, ...]:
        states = [state.detach().requires_grad_() for state in (query, key, value)]
        with torch.enable_grad():
            output = _walk(
                *states, tree_of(table), dropout=0.0, scale=scale, window=window,
                gradient_only=True,
            )  # fmt: skip
        return tuple(g.contiguous() for g in torch.autograd.grad(output, states, gradient))

    @library.register_fake(forward)
    def shape(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
        return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])

    @library.register_fake(backward)
    def shapes(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Any:
        return tuple(state.new_empty(state.shape) for state in (query, key, value))

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.scale, ctx.window = inputs
        ctx.save_for_backward(*tensors)

    def gradient_of(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients = torch.ops.sami_pipeline.tree_attention_backward(
            gradient, *ctx.saved_tensors, ctx.scale, ctx.window
        )
        return (*gradients, None, None, None)

    library.register_autograd(forward, gradient_of, setup_context=keep)


_define_operators()


def _segment_by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: TokenTree,
    *,
    dropout: float,
    scale: float,
    window: int | None,
    gradient_only: bool = False,
) -> Tensor:
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
            _attend(
                queries[index], path_keys, path_values, mask, scale=scale, dropout=dropout,
                gradient_only=gradient_only,
            )
        )  # fmt: skip
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def _level_by_level(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: TokenTree,
    *,
    dropout: float,
    scale: float,
    window: int | None,
    gradient_only: bool = False,  # torch's fused kernels need what they returned
) -> Tensor:
    _, heads, total, width = query.shape
    key_heads = key.shape[1]
    group = heads // key_heads
    levels = tree.levels(group, query.device)
    sizes = [len(call.segments) * group * call.length for call in levels.calls]
    key_sizes = [len(call.segments) * call.keys for call in levels.calls]
    queries = levels.queries.take(query.reshape(key_heads, group * total, width)).split(sizes, 1)
    keys, values = (levels.keys.take(t.squeeze(0)).split(key_sizes, 1) for t in (key, value))
    outputs = []
    for call, *states in zip(levels.calls, queries, keys, values, strict=True):
        alone = len(call.segments) == 1
        # One segment: (key heads, G, L, width) with one key head for all; else B instead of G.
        shapes = [(group if alone else len(call.segments), -1)] + 2 * [(len(call.segments), -1)]
        states = [state.unflatten(1, shape) for state, shape in zip(states, shapes, strict=True)]
        if alone:
            mask = tree.mask(tree.segments[call.segments[0]], window, query)
        else:
            mask = levels.mask(call, window, query)
        output = F.scaled_dot_product_attention(
            *states, attn_mask=mask, dropout_p=dropout, scale=scale, enable_gqa=alone and group > 1
        )
        outputs.append(output.flatten(1, 2))
    output = levels.outputs.take(torch.cat(outputs, dim=1)).unflatten(1, (total, group))
    # (key heads, T, G, width) to (1, T, heads, width).
    return output.transpose(0, 1).contiguous().view(1, total, heads, -1)


def use_tree_attention() -> None:
    """Let every model with transformers' sdpa attention take token trees.

    The function that transformers looks up under "sdpa" is exchanged for one that computes the same
    where no tree is given, in this process. So no model has to be switched over and back, and a
    layer that is computed again in the backward pass finds it too.
    """
    from transformers import AttentionInterface

    AttentionInterface.register("sdpa", tree_attention_forward)
