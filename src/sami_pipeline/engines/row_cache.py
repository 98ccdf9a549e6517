"""Keys and values of rows that come and go, and attention over them without repeated keys.

A row is one response that is being written. Its keys and values stand in a slot of one tensor a
layer, from position 0 on, and are written in place. Rows of different lengths are read together:
each query has the position of its own row, which the model's own mask (causal, sliding, chunked) is
asked about. transformers looks attention and masks up by name; here they are registered under
``ATTENTION``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import and_masks, causal_mask_function, padding_mask_function

ATTENTION = "sami_rows"
# Slots grow by this many positions at a time, so that few copies are made; on a GPU by more, since
# recorded steps (step_graphs.py) know where keys lie.
_GROWTH = 128
_GROWTH_ON_GPU = 512
# On a CPU so many rows attend together, over as many keys as the longest of them has. On a GPU all
# do: starting a kernel costs more there than keys that are masked.
_ROWS_AT_ONCE = 16


def row_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend, with the keys of a group of query heads read as they are.

    With one query token the heads of a group stand as query positions of one attention: a single
    token has no causal order to keep, so the result is the same as with repeated keys.

    Args:
        module: the attention layer.
        query: (rows, heads, queries, width).
        key: (rows, key heads, keys, width).
        value: (rows, key heads, keys, value width).
        attention_mask: (rows, 1, queries, keys), added to the scores; as from ``row_mask``.
        scaling: of the scores; None is one over the root of the width.
        softcap: scores are squashed to below it, as in arXiv 2408.00118.
        s_aux: (heads,) logits of attention sinks, as in gpt-oss.
        **kwargs: what other attention functions need.

    Returns:
        (rows, queries, heads, value width), and no weights.

    Raises:
        NotImplementedError: a position bias.
    """
    if kwargs.get("position_bias") is not None:
        raise NotImplementedError("attention with a position bias")
    rows, heads, queries, width = query.shape
    key_heads = key.shape[1]
    # (rows, key heads, group, queries, width)
    grouped = query.view(rows, key_heads, heads // key_heads, queries, width)

    def attend(
        part: torch.Tensor,
        sinks: torch.Tensor | None,
        few: slice = slice(None),
        width: int | None = None,
    ) -> torch.Tensor:
        keys, values = key[few, :, :width], value[few, :, :width]
        mask = attention_mask[few, :, :, :width]
        if softcap is None and sinks is None:
            return scaled_dot_product_attention(part, keys, values, attn_mask=mask, scale=scaling)
        return _plain_attention(part, keys, values, mask, scaling, softcap, sinks)

    # (key heads, group)
    sinks = None if s_aux is None else s_aux.view(key_heads, -1)
    if queries == 1:
        column = None if sinks is None else sinks[None, :, :, None]
        widths = getattr(attention_mask, "widths", None) or [None]
        size = _ROWS_AT_ONCE if len(widths) > 1 else rows
        parts = []
        for number, width in enumerate(widths):
            few = slice(number * size, (number + 1) * size)
            parts.append(attend(grouped[few, :, :, 0], column, few, width))
        output = torch.cat(parts).reshape(rows, heads, 1, -1)
    else:
        parts = [
            attend(grouped[:, :, i], None if sinks is None else sinks[None, :, i, None, None])
            for i in range(heads // key_heads)
        ]
        output = torch.stack(parts, 2).view(rows, heads, queries, -1)
    return output.transpose(1, 2).contiguous(), None


def _plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attend as transformers' eager functions do, softmax in fp32.

    Args:
        query: (rows, key heads, n, width).
        key: (rows, key heads, keys, width).
        value: (rows, key heads, keys, value width).
        mask: (rows, 1, 1 or n, keys).
        scaling: of the scores.
        softcap: of the scores.
        sinks: (1, key heads, 1 or n, 1).
    """
    scores = query @ key.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + mask
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype).expand(*scores.shape[:3], 1)], -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return weights[..., : key.shape[2]] @ value


def row_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., torch.Tensor] = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> torch.Tensor:
    """Return what is added to the scores: 0 for keys that a query may see.

    Args:
        batch_size: rows.
        q_length: queries of each row.
        kv_length: keys of each row.
        q_offset: position of the first query, or (rows, queries) positions, as ``RowCache`` gives.
        kv_offset: position of the first key.
        mask_function: of row, head, query position and key position, by the model.
        attention_mask: (rows, keys), False at padding.
        dtype: of the scores.
        use_vmap: the function can't be asked about many positions at once.
        device: of the scores.
        **kwargs: what other mask functions need.

    Returns:
        (rows, 1, queries, keys). With one query each it has an attribute ``widths``: how many keys
        each ``_ROWS_AT_ONCE`` rows need.

    Raises:
        NotImplementedError: ``use_vmap``.
    """
    if use_vmap:
        raise NotImplementedError("a mask that is no function of positions")
    if attention_mask is not None:
        padding = torch.nn.functional.pad(
            attention_mask, (0, max(0, kv_length + kv_offset - attention_mask.shape[-1]))
        )
        mask_function = and_masks(mask_function, padding_mask_function(padding))
    rows_differ = isinstance(q_offset, torch.Tensor) and q_offset.ndim == 2
    if rows_differ:
        positions = q_offset[:, None, :, None]
    else:
        positions = (torch.arange(q_length, device=device) + q_offset)[None, None, :, None]
    rows = torch.arange(batch_size, device=device)[:, None, None, None]
    heads = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
    keys = (torch.arange(kv_length, device=device) + kv_offset)[None, None, None, :]
    seen = mask_function(rows, heads, positions, keys).expand(batch_size, 1, q_length, kv_length)
    mask = torch.zeros(seen.shape, dtype=dtype, device=device)
    # Not -inf: padding that sees nothing would be NaN.
    mask.masked_fill_(~seen, torch.finfo(dtype).min)
    if rows_differ and q_length == 1 and mask.device.type == "cpu":
        mask.widths = [int(few.max()) + 1 for few in q_offset.split(_ROWS_AT_ONCE)]
    return mask


def register() -> None:
    """Let models find ``row_attention`` under the name ``ATTENTION``."""
    AttentionInterface.register(ATTENTION, row_attention)
    AttentionMaskInterface.register(ATTENTION, row_mask)


class _RowLayer(CacheLayerMixin):
    """Keys and values of one layer, (slots, key heads, capacity, width)."""

    is_sliding = False

    def __init__(self, cache: RowCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        shape = (self.cache.slots, key_states.shape[1], self.cache.capacity)
        # Zeros: what is masked is multiplied by 0, and must be finite.
        self.keys = key_states.new_zeros(*shape, key_states.shape[-1])
        self.values = value_states.new_zeros(*shape, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        cache = self.cache
        for whole, new in ((self.keys, key_states), (self.values, value_states)):
            # Indices with a slice between them come first: (rows, queries, key heads, width).
            whole[cache.write_slots, :, cache.write_positions] = new.transpose(1, 2)
        read = cache.read_slots
        return self.keys[read, :, : cache.width], self.values[read, :, : cache.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.width, 0

    def get_seq_length(self) -> int:
        return self.cache.width

    def get_max_length(self) -> int:
        return -1


class RowCache(Cache):
    """Keys and values of up to ``slots`` rows, written in place.

    The last position of every slot takes what padding writes, and is never read.

    Args:
        slots: rows at once.
        device: of the model.
    """

    def __init__(self, slots: int, device: torch.device) -> None:
        super().__init__(layer_class_to_replicate=lambda: _RowLayer(self))
        self.slots = slots
        self.capacity = 0
        self.device = device
        self._growth = _GROWTH_ON_GPU if device.type == "cuda" else _GROWTH
        self._numbers = torch.arange(slots, device=device)[:, None]
        self.width = 0
        self.read_slots: slice | torch.Tensor = slice(0)
        self.positions = self.write_slots = self.write_positions = torch.empty(0)

    def reserve(self, positions: int) -> None:
        """Make room for that many positions in every slot; what is there stays."""
        if positions < self.capacity:
            return
        self.capacity = (positions // self._growth + 1) * self._growth
        for layer in self.layers:
            for name in ("keys", "values"):
                old = getattr(layer, name)
                new = old.new_zeros(*old.shape[:2], self.capacity, old.shape[3])
                new[:, :, : old.shape[2]] = old
                setattr(layer, name, new)

    def prepare(self, slots: Sequence[int], starts: Sequence[int], counts: Sequence[int]) -> None:
        """Say where the next pass of the model reads and writes.

        Each row has ``max(counts)`` queries, the last ``counts[i]`` of them real, so that the last
        one is always the row's last token.

        Args:
            slots: of the rows; neighbouring ones are read where they are, others are copied first.
            starts: positions that each row has already.
            counts: tokens that each row is given.
        """
        queries = max(counts)
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        self.width = max(ends)
        self.reserve(self.width)
        positions = torch.tensor(ends)[:, None] + torch.arange(-queries, 0)
        real = torch.arange(queries) >= queries - torch.tensor(counts)[:, None]
        # (rows, queries)
        self.positions = positions.where(real, torch.tensor(0)).to(self.device)
        unread = torch.tensor(self.capacity - 1)
        self.write_positions = positions.where(real, unread).to(self.device)
        numbers = torch.tensor(slots, device=self.device)
        self.write_slots = numbers[:, None]
        first, last = slots[0], slots[-1] + 1
        neighbours = list(slots) == list(range(first, last))
        self.read_slots = slice(first, last) if neighbours else numbers

    def point(
        self, rows: int, width: int, positions: torch.Tensor, write_positions: torch.Tensor
    ) -> None:
        """Say the same of one query each in the first slots, by tensors that stay where they are.

        Args:
            rows: how many slots.
            width: keys that are read of each.
            positions: (rows, 1) of the queries.
            write_positions: (rows, 1) where their keys and values go.
        """
        self.width, self.read_slots = width, slice(0, rows)
        self.write_slots = self._numbers[:rows]
        self.positions, self.write_positions = positions, write_positions

    def get_query_offset(self, layer_idx: int = 0) -> torch.Tensor:
        """Return the position of every query, (rows, queries)."""
        return self.positions

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return how many keys the next pass reads, and the position of the first."""
        return self.width, 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the length of the longest row."""
        return self.width

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first positions of one slot to another."""
        for layer in self.layers:
            layer.keys[target, :, :length] = layer.keys[source, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]

    def take(self, slot: int, length: int) -> list[torch.Tensor]:
        """Return copies of a slot's first positions: keys and values, layer by layer."""
        return [
            whole[slot, :, :length].clone()
            for layer in self.layers
            for whole in (layer.keys, layer.values)
        ]

    def put(self, slot: int, taken: Sequence[torch.Tensor], length: int) -> None:
        """Write the first positions of what ``take`` returned into a slot."""
        for number, layer in enumerate(self.layers):
            layer.keys[slot, :, :length] = taken[2 * number][:, :length]
            layer.values[slot, :, :length] = taken[2 * number + 1][:, :length]
