"""Laying grids out as one packed tree of tokens, or as padded rows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sami_pipeline.core import Grid
from sami_pipeline.core.packing import PackedTokens, Segment, pack, packed_length

few = settings(deadline=None, max_examples=60)
LAYOUTS = ["shared_prefix", "repeated"]

# Every token of this grid is another number, so a misplaced one is seen.
GRID = Grid([[10, 11, 12], [20, 21]], [[30, 31], [40], [50, 51, 52]])

# So few different tokens that prompts share beginnings, contain and equal each other.
prompts = st.lists(st.lists(st.integers(3, 5), min_size=1, max_size=6), min_size=1, max_size=5)
responses = st.lists(st.lists(st.integers(3, 9), min_size=1, max_size=4), min_size=1, max_size=4)
containers = st.sampled_from([list, tuple, np.array])


@st.composite
def grids_of_ids(draw) -> Grid:
    """A grid whose sequences are lists, tuples or arrays, in any mixture."""
    return Grid(
        [draw(containers)(prompt) for prompt in draw(prompts)],
        [draw(containers)(response) for response in draw(responses)],
    )


many_grids = st.lists(grids_of_ids(), min_size=1, max_size=3)


def cells_of(grids: list[Grid]) -> list[tuple[list[int], list[int]]]:
    """(prompt, response) of every cell, ordered by grid, constitution, response."""
    return [
        ([int(t) for t in prompt], [int(t) for t in response])
        for grid in grids
        for prompt in grid.prompt_ids
        for response in grid.response_ids
    ]


def starts_of(packed: PackedTokens) -> list[int]:
    lengths = [segment.length for segment in packed.segments]
    return [sum(lengths[:index]) for index in range(len(lengths))]


def seen_from(packed: PackedTokens, place: int) -> list[tuple[int, int]]:
    """(token, position) of everything on the path of a place in the tree, in order, itself last."""
    starts = starts_of(packed)
    own = max(index for index, start in enumerate(starts) if start <= place)
    ranges = [
        range(starts[a], starts[a] + packed.segments[a].length)
        for a in packed.segments[own].ancestors
    ]
    path = [t for r in [*ranges, range(starts[own], place + 1)] for t in r]
    return [(packed.input_ids[0, t].item(), packed.position_ids[0, t].item()) for t in path]


# --- The tree ---


@few
@given(many_grids, st.sampled_from([1, 8]))
def test_every_prediction_is_made_from_its_own_prompt_and_response_alone(grids, multiple):
    packed = pack(grids, pad_to_multiple=multiple)
    sources, targets = packed.source_index.tolist(), packed.target_ids.tolist()
    number = 0
    for prompt, response in cells_of(grids):
        for step, token in enumerate(response):
            before = [*prompt, *response[:step]]
            expected = list(zip(before, range(len(before)), strict=True))
            assert seen_from(packed, sources[number]) == expected
            assert targets[number] == token
            number += 1
    assert number == len(sources) == len(targets)


@few
@given(many_grids)
def test_the_leaves_of_the_tree_are_the_cells(grids):
    packed = pack(grids)
    starts = starts_of(packed)
    inner = {a for segment in packed.segments for a in segment.ancestors}
    leaves = [index for index in range(len(packed.segments)) if index not in inner]
    ends = [starts[index] + packed.segments[index].length - 1 for index in leaves]
    paths = Counter(tuple(seen_from(packed, end)) for end in ends)
    cells = Counter(
        tuple((token, place) for place, token in enumerate([*prompt, *response]))
        for prompt, response in cells_of(grids)
    )
    assert paths == cells


@few
@given(many_grids)
def test_what_prompts_have_in_common_is_stored_once(grids):
    def nodes_of_prefix_tree(grid: Grid) -> int:
        prefixes = {
            tuple(map(int, prompt[:length]))
            for prompt in grid.prompt_ids
            for length in range(1, len(prompt) + 1)
        }
        return len(prefixes) + len(grid.prompt_ids) * sum(map(len, grid.response_ids))

    expected = [nodes_of_prefix_tree(grid) for grid in grids]
    assert [packed_length(grid) for grid in grids] == expected
    assert pack(grids).input_ids.shape == (1, sum(expected))


@few
@given(many_grids)
def test_segments_are_not_empty_and_name_their_whole_path(grids):
    segments = pack(grids).segments
    for index, segment in enumerate(segments):
        assert segment.length > 0
        assert all(ancestor < index for ancestor in segment.ancestors)
        assert segment.offset == sum(segments[a].length for a in segment.ancestors)
        for depth, ancestor in enumerate(segment.ancestors):
            assert segments[ancestor].ancestors == segment.ancestors[:depth]


def test_a_shared_query_is_followed_by_branches_and_each_of_these_by_all_responses():
    packed = pack([Grid([[10, 11, 12], [10, 11, 20, 21]], [[30, 31], [40]])])
    assert packed.input_ids.tolist() == [[10, 11, 12, 30, 31, 40, 20, 21, 30, 31, 40]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 2, 3, 4, 5, 4]]
    assert packed.segments == (
        Segment(2, 0, ()),
        Segment(1, 2, (0,)),
        Segment(2, 3, (0, 1)),
        Segment(1, 3, (0, 1)),
        Segment(2, 2, (0,)),
        Segment(2, 4, (0, 4)),
        Segment(1, 4, (0, 4)),
    )
    assert packed.source_index.tolist() == [2, 3, 2, 7, 8, 7]
    assert packed.padding_mask is None


def test_prompts_without_a_common_token_are_trees_of_their_own():
    packed = pack([GRID])
    assert packed.input_ids.tolist() == [
        [10, 11, 12, 30, 31, 40, 50, 51, 52, 20, 21, 30, 31, 40, 50, 51, 52]
    ]
    assert [s.ancestors for s in packed.segments] == [
        (), (0,), (0,), (0,), (), (4,), (4,), (4,),
    ]  # fmt: skip
    assert packed.source_index.tolist() == [2, 3, 2, 2, 6, 7, 10, 11, 10, 10, 14, 15]


def test_identical_prompts_are_stored_once_and_keep_their_own_cells():
    grid = Grid([[10, 11]] * 3, [[30], [40, 41]])
    packed = pack([grid])
    assert packed.input_ids.tolist() == [[10, 11, *[30, 40, 41] * 3]]
    assert packed.source_index.tolist() == [1, 1, 3, 1, 1, 6, 1, 1, 9]
    assert packed.grid_shapes == [(3, 2)]


def test_a_prompt_that_begins_another_gets_its_responses_at_its_own_end():
    packed = pack([Grid([[10, 11, 12], [10, 11]], [[30, 31]])])
    assert sorted(packed.input_ids[0].tolist()) == [10, 11, 12, 30, 30, 31, 31]
    first, _, second, _ = packed.source_index.tolist()
    assert seen_from(packed, first) == [(10, 0), (11, 1), (12, 2)]
    assert seen_from(packed, second) == [(10, 0), (11, 1)]
    assert packed.target_ids.tolist() == [30, 31, 30, 31]


def test_grids_never_share_even_the_same_prompt():
    one = Grid([[10, 11]], [[30]])
    packed = pack([one, one])
    assert packed.input_ids.tolist() == [[10, 11, 30, 10, 11, 30]]
    assert [s.ancestors for s in packed.segments] == [(), (0,), (), (2,)]


@few
@given(many_grids, st.integers(1, 40))
def test_padding_is_a_segment_apart_and_no_longer_than_needed(grids, multiple):
    packed, bare = pack(grids, pad_to_multiple=multiple), pack(grids)
    length, bare_length = packed.input_ids.shape[1], bare.input_ids.shape[1]
    assert length % multiple == 0
    assert bare_length <= length < bare_length + multiple
    assert packed.input_ids[0, :bare_length].tolist() == bare.input_ids[0].tolist()
    assert packed.source_index.tolist() == bare.source_index.tolist()
    assert packed.segments[: len(bare.segments)] == bare.segments
    padding = packed.segments[len(bare.segments) :]
    assert padding == (() if length == bare_length else (Segment(length - bare_length, 0, ()),))
    assert packed.position_ids[0, bare_length:].tolist() == list(range(length - bare_length))


# --- Padded rows ---


def test_repeated_gives_a_row_to_each_cell_in_the_same_order():
    packed = pack([GRID], layout="repeated")
    assert packed.input_ids.tolist() == [
        [10, 11, 12, 30, 31, 0],
        [10, 11, 12, 40, 0, 0],
        [10, 11, 12, 50, 51, 52],
        [20, 21, 30, 31, 0, 0],
        [20, 21, 40, 0, 0, 0],
        [20, 21, 50, 51, 52, 0],
    ]
    assert packed.position_ids[3].tolist() == [0, 1, 2, 3, 0, 0]
    assert packed.padding_mask.tolist()[1] == [1, 1, 1, 1, 0, 0]
    assert packed.source_index.tolist() == [2, 3, 8, 14, 15, 16, 19, 20, 25, 31, 32, 33]
    assert packed.segments is None


@few
@given(many_grids)
def test_the_length_of_repeated_rows_counts_what_the_model_computes(grids):
    packed = pack(grids, layout="repeated")
    lengths = [packed_length(grid, "repeated") for grid in grids]
    assert packed.padding_mask.sum().item() == sum(lengths)
    assert all(packed_length(grid) <= length for grid, length in zip(grids, lengths, strict=True))


def test_row_length_is_rounded_up_and_never_further():
    assert pack([GRID], layout="repeated", pad_to_multiple=6).input_ids.shape == (6, 6)
    padded = pack([GRID], layout="repeated", pad_to_multiple=4)
    assert padded.input_ids.shape == (6, 8)
    assert padded.source_index.tolist()[:3] == [2, 3, 8 + 2]


# --- Both ---


@few
@given(many_grids, st.sampled_from(LAYOUTS), st.sampled_from([1, 8]))
def test_cells_come_by_grid_then_constitution_then_response(grids, layout, multiple):
    packed = pack(grids, layout=layout, pad_to_multiple=multiple)
    cells = cells_of(grids)
    assert packed.cell_lengths == [len(y) for _, y in cells]
    assert packed.grid_shapes == [grid.shape for grid in grids]
    assert packed.target_ids.tolist() == [token for _, y in cells for token in y]
    # Each target's predecessor, by id and by position, is the one of the cell taken alone.
    source_ids = packed.input_ids.flatten()[packed.source_index].tolist()
    source_positions = packed.position_ids.flatten()[packed.source_index].tolist()
    assert source_ids == [t for x, y in cells for t in [x[-1], *y[:-1]]]
    assert source_positions == [len(x) - 1 + i for x, y in cells for i in range(len(y))]
    assert packed.input_ids.shape[1] % multiple == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_tensors_are_integers_on_the_device_asked_for(layout):
    packed = pack([GRID], layout=layout, device="meta")
    tensors = (packed.input_ids, packed.position_ids, packed.source_index, packed.target_ids)
    assert {t.device.type for t in tensors} == {"meta"}
    assert {t.dtype for t in tensors} == {torch.int64}


@pytest.mark.parametrize("kind", [tuple, np.array])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_container_of_the_ids_does_not_matter(kind, layout):
    grid = Grid([[10, 11, 12], [10, 11], [10, 20]], [[30], [40, 41]])
    other = Grid([kind(x) for x in grid.prompt_ids], [kind(y) for y in grid.response_ids])
    packed, same = pack([other], layout=layout), pack([grid], layout=layout)
    assert packed.input_ids.tolist() == same.input_ids.tolist()
    assert packed.segments == same.segments
    assert packed_length(other, layout) == packed_length(grid, layout)
