"""Rows are shared among lanes by their prompts alone, and lanes end together."""

import threading
import time
from contextlib import closing

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sami_pipeline.engines import GenerationRequest, SamplingParameters, generate
from sami_pipeline.engines.lanes import may_run_side_by_side, share_out, side_by_side
from sami_pipeline.engines.transformers_engine import TransformersEngine
from sami_pipeline.models.prompts import Prompt


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), max_size=40), st.integers(1, 4)
)
def test_every_row_has_one_lane_and_lanes_come_out_even(prompts, lanes):
    shared = share_out(prompts, [1.0] * len(prompts), [None] * len(prompts), lanes)
    assert sorted(i for lane in shared for i in lane) == list(range(len(prompts)))
    assert all(lane == sorted(lane) for lane in shared)
    sizes = [len(lane) for lane in shared]
    # A group is at most a quarter of a lane's share, or one row.
    assert max(sizes) - min(sizes) <= max(1, len(prompts) / lanes / 4)


def test_attempts_at_one_problem_share_a_lane():
    prompts = [[problem] * 20 + [7] for problem in range(16) for _ in range(3)]
    shared = share_out(prompts, [1.0] * 48, [None] * 48, 2)
    assert {i // 3 for i in shared[0]}.isdisjoint({i // 3 for i in shared[1]})
    assert [len(lane) for lane in shared] == [24, 24]


def test_a_prompt_goes_where_most_of_it_was_read():
    prompts = [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert share_out(prompts, [1.0] * 4, [1, 1, 1, None], 2) == [[3], [0, 1, 2]]


def numbers(start):
    def write(stop):
        for number in range(start, start + 3):
            time.sleep(0.01)
            yield number, torch.get_num_threads(), threading.current_thread()

    return write


def test_lanes_share_the_threads_and_give_them_back():
    before = torch.get_num_threads()
    found = list(side_by_side([numbers(0), numbers(10)], 2))
    assert sorted(number for number, _, _ in found) == [0, 1, 2, 10, 11, 12]
    assert {threads for _, threads, _ in found} == {1}
    assert len({thread for _, _, thread in found}) == 2
    torch.set_num_threads(before)
    assert [n for n, _, _ in side_by_side([numbers(0), numbers(10)], 1)] == [0, 1, 2, 10, 11, 12]


def test_an_error_of_one_lane_ends_the_others_and_is_raised():
    ended = threading.Event()

    def fails(stop):
        yield 1
        raise MemoryError("too large")

    def goes_on(stop):
        while not stop.is_set():
            time.sleep(0.001)
            yield 2
        ended.set()

    with pytest.raises(MemoryError, match="too large"):
        list(side_by_side([fails, goes_on], 2))
    assert ended.is_set()


def test_who_stops_reading_ends_the_lanes():
    ended = []

    def goes_on(stop):
        while not stop.is_set():
            time.sleep(0.001)
            yield 1
        ended.append(True)

    with closing(side_by_side([goes_on, goes_on], 2)) as pieces:
        assert next(pieces) == 1
    assert ended == [True, True]


def test_texts_in_float32_do_not_depend_on_lanes(random_checkpoint):
    requests = [
        GenerationRequest(Prompt(text=f"Word {i % 5} and"), SamplingParameters(12, temperature), i)
        for i in range(10)
        for temperature in (0.0, 0.9)
    ]
    texts = []
    for lanes in (1, 2, 3):
        engine = TransformersEngine(
            random_checkpoint.folder, dtype="float32", batch_size=6, lanes=lanes
        )
        with closing(engine):
            assert len(engine.lanes) == lanes
            texts.append([each.text for each in generate(engine, requests, seed=0, description="")])
    assert texts[0] == texts[1] == texts[2]


def test_a_rotary_embedding_with_state_runs_in_one_lane():
    class Rotary(torch.nn.Linear):
        rope_type: object = "default"

    model = Rotary(1, 1)
    assert may_run_side_by_side(model)
    model.rope_type = "longrope"
    assert not may_run_side_by_side(model)
    model.rope_type = {"full_attention": "default", "sliding_attention": "dynamic"}
    assert not may_run_side_by_side(model)
