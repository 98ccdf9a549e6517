"""How grids are laid out as model inputs: one packed tree of tokens, or padded rows.

``shared_prefix`` packs all grids into one row without padding. The prompts of a grid form a
prefix tree, so what they have in common (template, query) is computed once for all constitutions,
and every prompt once for all its responses; each response hangs from its prompt as a leaf
(arXiv 2410.20305 shares one prompt between responses; the tree shares between prompts too).
``repeated`` gives a padded row ``[prompt_i | y_j]`` to every cell, as the published trainer does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sami_pipeline.core.grid import Grid

Layout = Literal["shared_prefix", "repeated"]


@dataclass(frozen=True)
class Segment:
    """A run of tokens that are computed once.

    Attributes:
        length: number of tokens.
        offset: position of the first token: how many tokens lie before it on its path.
        ancestors: indices of the segments before it on its path, root first.
    """

    length: int
    offset: int
    ancestors: tuple[int, ...]


@dataclass(frozen=True)
class PackedTokens:
    """Model inputs for several grids, and where the predictions of each cell's tokens lie.

    Attributes:
        input_ids: (rows, T) int64; one row if ``segments`` are given.
        position_ids: (rows, T) int64, counted along each token's own path.
        source_index: (N,) int64 index into the flattened (rows · T) hidden states: the position
            that predicts each response token.
        target_ids: (N,) int64 tokens to predict.
        cell_lengths: number of tokens of each cell, cells ordered by grid, constitution, response.
        grid_shapes: (n_c, n_r) per grid.
        segments: for the packed tree, its segments in the order of the row; None for rows.
        padding_mask: for padded rows, (rows, T) int64, 1 for real tokens; None for the tree.
    """

    input_ids: Tensor
    position_ids: Tensor
    source_index: Tensor
    target_ids: Tensor
    cell_lengths: list[int]
    grid_shapes: list[tuple[int, int]]
    segments: tuple[Segment, ...] | None = None
    padding_mask: Tensor | None = None


def pack(
    grids: Sequence[Grid],
    *,
    layout: Layout = "shared_prefix",
    pad_to_multiple: int = 1,
    device: torch.device | str = "cpu",
) -> PackedTokens:
    """Lay grids out as model inputs.

    Args:
        grids: any mixture of shapes and lengths.
        layout: see the module's docstring. The cells come in the same order in both.
        pad_to_multiple: round the row length up, so that compiled code sees few shapes.
        device: where the tensors are put.
    """
    pack_layout = _pack_tree if layout == "shared_prefix" else _pack_rows
    return pack_layout(grids, pad_to_multiple, torch.device(device))


def packed_length(grid: Grid, layout: Layout = "shared_prefix") -> int:
    """Return how many token positions are computed for a grid, without padding."""
    if layout == "shared_prefix":
        return sum(segment.length for segment in _Tree([grid]).segments)
    n_prompts, n_responses = grid.shape
    prompt_tokens = sum(len(prompt) for prompt in grid.prompt_ids)
    return prompt_tokens * n_responses + n_prompts * grid.response_tokens


class _Tree:
    """The segments of several grids, filled by walking each grid's prefix tree."""

    def __init__(self, grids: Sequence[Grid]) -> None:
        self.token_ids: list[int] = []
        self.segments: list[Segment] = []
        self._starts: list[int] = []
        # Of the cell (grid, constitution, response): the packed places that predict its tokens.
        self.sources: dict[tuple[int, int, int], list[int]] = {}
        for number, grid in enumerate(grids):
            self._grow(number, grid, list(range(len(grid.prompt_ids))), ())

    def _add(self, token_ids: Sequence[int], ancestors: tuple[int, ...]) -> int:
        offset = 0
        if ancestors:
            parent = self.segments[ancestors[-1]]
            offset = parent.offset + parent.length
        self._starts.append(len(self.token_ids))
        self.token_ids.extend(token_ids)
        self.segments.append(Segment(len(token_ids), offset, ancestors))
        return len(self.segments) - 1

    def _grow(
        self, number: int, grid: Grid, prompts: list[int], ancestors: tuple[int, ...]
    ) -> None:
        """Add what these prompts have in common after their ancestors, then each branch."""
        start = 0
        if ancestors:
            parent = self.segments[ancestors[-1]]
            start = parent.offset + parent.length
        stop = start + _common_length([tuple(grid.prompt_ids[i][start:]) for i in prompts])
        if stop > start:
            segment = self._add(grid.prompt_ids[prompts[0]][start:stop], ancestors)
            ancestors = (*ancestors, segment)
        branches: dict[int, list[int]] = {}
        for i in prompts:
            if len(grid.prompt_ids[i]) == stop:
                self._add_responses(number, grid, i, ancestors)
            else:
                branches.setdefault(grid.prompt_ids[i][stop], []).append(i)
        for branch in branches.values():
            self._grow(number, grid, branch, ancestors)

    def _add_responses(self, number: int, grid: Grid, i: int, ancestors: tuple[int, ...]) -> None:
        # The last prompt position predicts the first token of every response.
        last = self._starts[ancestors[-1]] + self.segments[ancestors[-1]].length - 1
        for j, response in enumerate(grid.response_ids):
            start = self._starts[self._add(response, ancestors)]
            self.sources[number, i, j] = [last, *range(start, start + len(response) - 1)]

    def pad_to(self, multiple: int) -> None:
        """Round the number of tokens up with a separate segment, which nothing attends to."""
        missing = -len(self.token_ids) % multiple
        if missing:
            self._add([0] * missing, ())

    def position_ids(self) -> Iterator[int]:
        for segment in self.segments:
            yield from range(segment.offset, segment.offset + segment.length)


def _pack_tree(grids: Sequence[Grid], pad_to_multiple: int, device: torch.device) -> PackedTokens:
    tree = _Tree(grids)
    tree.pad_to(pad_to_multiple)
    sources = [s for number, grid in enumerate(grids) for s in _in_order(tree, number, grid)]
    return PackedTokens(
        input_ids=_integers([tree.token_ids], device),
        position_ids=_integers([list(tree.position_ids())], device),
        source_index=_integers(sources, device),
        segments=tuple(tree.segments),
        **_targets(grids, device),
    )


def _in_order(tree: _Tree, number: int, grid: Grid) -> Iterator[int]:
    n_prompts, n_responses = grid.shape
    for i in range(n_prompts):
        for j in range(n_responses):
            yield from tree.sources[number, i, j]


def _pack_rows(grids: Sequence[Grid], pad_to_multiple: int, device: torch.device) -> PackedTokens:
    cells = [(p, y) for grid in grids for p in grid.prompt_ids for y in grid.response_ids]
    longest = max(len(prompt) + len(response) for prompt, response in cells)
    length = -(-longest // pad_to_multiple) * pad_to_multiple

    def padded(values: list[int]) -> list[int]:
        return values + [0] * (length - len(values))

    sizes = [len(prompt) + len(response) for prompt, response in cells]
    sources = [
        row * length + len(prompt) - 1 + step
        for row, (prompt, response) in enumerate(cells)
        for step in range(len(response))
    ]
    return PackedTokens(
        input_ids=_integers([padded([*prompt, *response]) for prompt, response in cells], device),
        position_ids=_integers([padded(list(range(size))) for size in sizes], device),
        source_index=_integers(sources, device),
        padding_mask=_integers([padded([1] * size) for size in sizes], device),
        **_targets(grids, device),
    )


def _targets(grids: Sequence[Grid], device: torch.device) -> dict:
    cells = [response for grid in grids for _ in grid.prompt_ids for response in grid.response_ids]
    return {
        "target_ids": _integers([token for response in cells for token in response], device),
        "cell_lengths": [len(response) for response in cells],
        "grid_shapes": [grid.shape for grid in grids],
    }


def _integers(values: list, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.long, device=device)


def _common_length(sequences: Sequence[tuple[int, ...]]) -> int:
    """Return how many first tokens all sequences share; only the extremes need comparing."""
    first, last = min(sequences), max(sequences)
    for index, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b:
            return index
    return min(len(first), len(last))
