"""Grids of token ids, and tokenising grids of text."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sami_pipeline.core import Grid, TextGrid

sequences = st.lists(st.integers(3, 100), min_size=1, max_size=6)
several = st.lists(sequences, min_size=1, max_size=4)


@settings(deadline=None, max_examples=40)
@given(st.builds(Grid, several, several))
def test_response_tokens_count_each_response_once(grid):
    assert grid.response_tokens == sum(map(len, grid.response_ids))


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        ([], [[1]], "prompt_ids: a grid needs"),
        ([[1]], [], "response_ids: a grid needs"),
        ([[1], []], [[1]], r"prompt_ids\[1\]: is empty"),
        ([[1]], [[1], [2], []], r"response_ids\[2\]: is empty"),
        ("text", [[1]], "prompt_ids: a grid needs at least one sequence of token ids"),
        (["text"], [[1]], r"prompt_ids\[0\]: is text, where token ids belong; use TextGrid"),
        ([[1]], [[2], "text"], r"response_ids\[1\]: is text"),
        ([[1, "text"]], [[1]], r"prompt_ids\[0\]: must be a sequence of token ids"),
        ([[1.0]], [[1]], r"prompt_ids\[0\]: must be a sequence of token ids"),
        ([[True]], [[1]], r"prompt_ids\[0\]: must be a sequence of token ids"),
        ([[-100]], [[1]], r"prompt_ids\[0\]: must be a sequence of token ids"),
        ([1, 2], [[1]], r"prompt_ids\[0\]: must be a sequence of token ids"),
    ],
)
def test_a_grid_of_anything_but_tokens_is_refused_and_the_place_named(prompts, responses, message):
    with pytest.raises(ValueError, match=message):
        Grid(prompts, responses)


def test_shape_names_constitutions_first():
    assert Grid([[10, 11, 12], [20, 21]], [[30, 31], [40], [50]]).shape == (2, 3)


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ended": [True]}, "ended: give one for each of the 2 responses, got 1"),
        ({"end_tokens": ["</s>"] * 3}, "end_tokens: give one for each of the 2 responses, got 3"),
        ({"prompts": "ab"}, "prompts: must be a sequence of texts"),
        ({"responses": [[1], [2]]}, "responses: must be a sequence of texts; for token ids there"),
    ],
)
def test_a_text_grid_that_does_not_fit_together_is_refused(changes, message):
    fields = {"prompts": ["ab", "a"], "responses": ["cd", "ef"], "ended": [True, False]}
    with pytest.raises(ValueError, match=message):
        TextGrid(**{**fields, **changes})


def test_a_tokenizer_without_an_end_is_refused_where_an_end_is_trained(border_tokenizer):
    endless = copy.deepcopy(border_tokenizer)
    endless.eos_token = None
    text = TextGrid(["ab"], ["cd"], [True])
    with pytest.raises(ValueError, match="tokenizer: has no end-of-sequence token"):
        text.tokenise(endless)
    assert text.tokenise(endless, train_on_eos=False).response_ids == [
        text.tokenise(border_tokenizer).response_ids[0][:-1]
    ]
