"""Tokenising grids and laying them out as model rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sami_pipeline.core import Grid, TextGrid
from sami_pipeline.core.grid import PackedRows, pack_rows

few = settings(deadline=None, max_examples=40)

# Every token of this grid is another number, so a misplaced one is seen.
GRID = Grid([[10, 11, 12], [20, 21]], [[30, 31], [40], [50, 51, 52]])

sequences = st.lists(st.integers(3, 100), min_size=1, max_size=6)
several = st.lists(sequences, min_size=1, max_size=4)
many_grids = st.lists(st.builds(Grid, several, several), min_size=1, max_size=3)


def test_shared_prefix_gives_a_row_to_each_constitution():
    rows = pack_rows([GRID])
    assert rows.input_ids.tolist() == [
        [10, 11, 12, 30, 31, 40, 50, 51, 52],
        [20, 21, 30, 31, 40, 50, 51, 52, 0],
    ]
    assert rows.segment_ids.tolist() == [
        [0, 0, 0, 1, 1, 2, 3, 3, 3],
        [0, 0, 1, 1, 2, 3, 3, 3, -1],
    ]


def test_positions_go_on_from_the_prompt_for_every_response():
    assert pack_rows([GRID]).position_ids.tolist() == [
        [0, 1, 2, 3, 4, 3, 3, 4, 5],
        [0, 1, 2, 3, 2, 2, 3, 4, 0],
    ]


def test_the_last_prompt_token_predicts_the_first_token_of_every_response():
    rows = pack_rows([GRID])
    assert rows.source_index.tolist() == [2, 3, 2, 2, 6, 7, 10, 11, 10, 10, 14, 15]
    predicting = rows.input_ids.flatten()[rows.source_index].tolist()
    assert predicting == [12, 30, 12, 12, 50, 51, 21, 30, 21, 21, 50, 51]
    assert rows.target_ids.tolist() == [30, 31, 40, 50, 51, 52] * 2


def test_repeated_gives_a_row_to_each_cell_in_the_same_order():
    rows = pack_rows([GRID], layout="repeated")
    assert rows.input_ids.tolist() == [
        [10, 11, 12, 30, 31, 0],
        [10, 11, 12, 40, 0, 0],
        [10, 11, 12, 50, 51, 52],
        [20, 21, 30, 31, 0, 0],
        [20, 21, 40, 0, 0, 0],
        [20, 21, 50, 51, 52, 0],
    ]
    assert rows.position_ids[3].tolist() == [0, 1, 2, 3, 0, 0]
    assert rows.padding_mask.tolist()[1] == [1, 1, 1, 1, 0, 0]
    assert rows.source_index.tolist() == [2, 3, 8, 14, 15, 16, 19, 20, 25, 31, 32, 33]
    assert rows.target_ids.tolist() == pack_rows([GRID]).target_ids.tolist()


@few
@given(many_grids, st.sampled_from(["shared_prefix", "repeated"]), st.sampled_from([1, 8]))
def test_cells_come_by_grid_then_constitution_then_response(grids, layout, multiple):
    rows = pack_rows(grids, layout=layout, pad_to_multiple=multiple)
    cells = [(prompt, y) for grid in grids for prompt in grid.prompt_ids for y in grid.response_ids]
    assert rows.cell_lengths == [len(y) for _, y in cells]
    assert rows.grid_shapes == [grid.shape for grid in grids]
    assert rows.target_ids.tolist() == [token for _, y in cells for token in y]
    # Each target's predecessor, by id and by position, is the one of the cell taken alone.
    source_ids = rows.input_ids.flatten()[rows.source_index].tolist()
    source_positions = rows.position_ids.flatten()[rows.source_index].tolist()
    assert source_ids == [t for x, y in cells for t in [x[-1], *y[:-1]]]
    assert source_positions == [len(x) - 1 + i for x, y in cells for i in range(len(y))]
    assert rows.input_ids.shape[1] % multiple == 0


@few
@given(many_grids, st.sampled_from(["shared_prefix", "repeated"]))
def test_row_tokens_counts_what_the_model_computes(grids, layout):
    rows = pack_rows(grids, layout=layout)
    assert rows.padding_mask.sum().item() == sum(grid.row_tokens(layout) for grid in grids)
    assert all(g.response_tokens == sum(map(len, g.response_ids)) for g in grids)


def test_row_length_is_rounded_up_and_never_further():
    assert pack_rows([GRID], pad_to_multiple=9).input_ids.shape == (2, 9)
    assert pack_rows([GRID], pad_to_multiple=8).input_ids.shape == (2, 16)
    padded = pack_rows([GRID], pad_to_multiple=16, pad_token_id=99)
    assert padded.input_ids[0].tolist()[9:] == [99] * 7
    assert padded.source_index.tolist()[:3] == [2, 3, 2]
    assert padded.source_index.tolist()[6] == 16 + 1


def _separate_mask(rows: PackedRows, row: int, window: int | None) -> list[list[bool]]:
    """The mask worked out from the definition: each [prompt, y_j] attends causally on its own."""
    segments, positions = rows.segment_ids[row].tolist(), rows.position_ids[row].tolist()
    allowed = [[q == k for k in range(len(segments))] for q in range(len(segments))]
    for response in range(max(segments) + 1):
        own = [t for t, s in enumerate(segments) if s in (0, response)]
        for q in own:
            for k in own:
                distance = positions[q] - positions[k]
                if distance >= 0 and (window is None or distance < window):
                    allowed[q][k] = True
    return allowed


@few
@given(
    many_grids,
    st.sampled_from(["shared_prefix", "repeated"]),
    st.one_of(st.none(), st.integers(1, 8)),
)
def test_mask_lets_each_response_see_what_it_sees_in_a_row_of_its_own(grids, layout, window):
    rows = pack_rows(grids, layout=layout, pad_to_multiple=4)
    mask = rows.attention_mask(window)
    count, length = rows.input_ids.shape
    assert mask.shape == (count, 1, length, length)
    assert mask.dtype == torch.bool
    for row in range(count):
        assert mask[row, 0].tolist() == _separate_mask(rows, row, window)


@few
@given(many_grids, st.one_of(st.none(), st.integers(1, 8)))
def test_mask_is_causal_keeps_responses_apart_and_isolates_padding(grids, window):
    rows = pack_rows(grids, pad_to_multiple=8)
    for segments, mask in zip(rows.segment_ids, rows.attention_mask(window)[:, 0], strict=True):
        for q, k in mask.nonzero().tolist():
            assert k <= q
            assert segments[k] in (0, segments[q])
            if segments[q] == -1 or segments[k] == -1:
                assert q == k
        assert mask.diagonal().all(), "a query without any key gives NaN"


def test_sliding_window_counts_positions_and_not_places_in_the_row():
    rows = pack_rows([Grid([[10, 11, 12, 13]], [[30, 31, 32, 33], [40, 41]])])
    # Token 41 stands tenth in the row, at position 5: with a window of 3 it sees 3, 4 and 5.
    seen = rows.attention_mask(3)[0, 0, 9].nonzero().flatten().tolist()
    assert seen == [3, 8, 9]
    assert rows.attention_mask(None)[0, 0, 9].nonzero().flatten().tolist() == [0, 1, 2, 3, 8, 9]


def test_a_window_longer_than_the_row_changes_nothing():
    rows = pack_rows([GRID])
    assert torch.equal(rows.attention_mask(100), rows.attention_mask())


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        ([], [[1]], "prompt_ids: a grid needs"),
        ([[1]], [], "response_ids: a grid needs"),
        ([[1], []], [[1]], r"prompt_ids\[1\]: is empty"),
        ([[1]], [[1], [2], []], r"response_ids\[2\]: is empty"),
    ],
)
def test_a_grid_without_tokens_is_refused_and_the_place_named(prompts, responses, message):
    with pytest.raises(ValueError, match=message):
        Grid(prompts, responses)


def test_shape_names_constitutions_first():
    assert GRID.shape == (2, 3)


# --- Tokenising ---


def test_prompt_and_response_are_tokenised_apart(border_tokenizer):
    def ids(*tokens: str) -> list[int]:
        return border_tokenizer.convert_tokens_to_ids(list(tokens))

    joint = border_tokenizer("abcd", add_special_tokens=False)["input_ids"]
    assert joint == ids("a", "bc", "d"), "the tokenizer of this test must merge across the border"
    grid = TextGrid(["ab"], ["cd"], [False]).tokenise(border_tokenizer)
    assert grid.prompt_ids == [ids("ab")]
    assert grid.response_ids == [ids("cd")]


def test_no_special_tokens_are_added_but_written_ones_are_read(border_tokenizer):
    grid = TextGrid(["<s>ab"], ["cd"], [False]).tokenise(border_tokenizer)
    assert grid.prompt_ids[0][0] == border_tokenizer.bos_token_id
    assert len(grid.prompt_ids[0]) == 2
    assert border_tokenizer.eos_token_id not in grid.prompt_ids[0] + grid.response_ids[0]


def test_end_of_sequence_follows_only_responses_that_ended(border_tokenizer):
    end = border_tokenizer.eos_token_id
    text = TextGrid(["ab", "a"], ["cd", "ef"], ended=[True, False])
    grid = text.tokenise(border_tokenizer)
    assert [response.count(end) for response in grid.response_ids] == [1, 0]
    assert grid.response_ids[0][-1] == end
    assert all(end not in prompt for prompt in grid.prompt_ids)
    untrained = text.tokenise(border_tokenizer, train_on_eos=False)
    assert untrained.response_ids == [grid.response_ids[0][:-1], grid.response_ids[1]]


def test_an_empty_response_that_ended_is_one_token_and_one_that_did_not_is_refused(
    border_tokenizer,
):
    grid = TextGrid(["ab"], [""], [True]).tokenise(border_tokenizer)
    assert grid.response_ids == [[border_tokenizer.eos_token_id]]
    with pytest.raises(ValueError, match=r"response_ids\[0\]: is empty"):
        TextGrid(["ab"], [""], [False]).tokenise(border_tokenizer)


def test_each_response_must_say_whether_it_ended(border_tokenizer):
    with pytest.raises(ValueError, match="shorter"):
        TextGrid(["ab", "a"], ["cd", "ef"], ended=[True]).tokenise(border_tokenizer)
