"""The vllm engine against vLLM itself, on the embedded 135M model and on random ones."""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from sami_pipeline import PROJECT_FOLDER, engines
from sami_pipeline.datasets import CheckpointDataset
from sami_pipeline.engines import (
    Completion,
    CompletionStore,
    EngineParameters,
    GenerationRequest,
    SamplingParameters,
    TransformersParameters,
    VllmParameters,
    generate,
    open_engine,
    vllm_server,
)
from sami_pipeline.errors import EngineError
from sami_pipeline.models.checkpoints import ModelSource, import_model
from sami_pipeline.models.prompts import Prompt

pytestmark = pytest.mark.vllm

SMOL = "gguf:data/01_raw/models/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTIONS = (
    "Hello",
    "Name three colours as a list of bullet points.",
    "Write a short poem about the sea.",
    "What is 2 + 3?",
)
PROMPTS = (
    *(Prompt(messages=(("user", text),)) for text in QUESTIONS),
    Prompt(messages=(("system", "You are brief."), ("user", "Why is the sky blue?"))),
    Prompt(text="Once upon a time"),
)
GREEDY = SamplingParameters(max_new_tokens=32)
SAMPLED = SamplingParameters(16, temperature=1.0, top_p=0.9)
VLLM = EngineParameters(
    kind="vllm",
    vllm=VllmParameters(dtype="float32", max_model_len=512),
)
TRANSFORMERS = EngineParameters(transformers=TransformersParameters(dtype="float32"))


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    engines.release()
    assert not vllm_server._servers


def saved(source: str, folder: Path) -> Path:
    dataset = CheckpointDataset(filepath=str(folder))
    dataset.save(import_model(ModelSource.model_validate(source), PROJECT_FOLDER))
    return dataset.load().folder


@pytest.fixture(scope="module")
def smol(tmp_path_factory) -> Path:
    return saved(SMOL, tmp_path_factory.mktemp("models") / "smol")


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """A random model of the same architecture as ``random_checkpoint``."""
    return saved("random:1", tmp_path_factory.mktemp("models") / "other")


def ask(folder, requests, parameters=VLLM, seed=0, store=None) -> list[Completion]:
    with closing(open_engine(parameters, folder)) as engine:
        return generate(engine, requests, seed=seed, description="Tests", store=store)


def requests_for(sampling, prompts=PROMPTS, samples=1) -> list[GenerationRequest]:
    return [GenerationRequest(p, sampling, sample) for p in prompts for sample in range(samples)]


def group_is_gone(server) -> bool:
    for worker in server._workers:
        try:
            os.killpg(worker._process.pid, 0)
        except ProcessLookupError:
            continue
        return False
    return True


class TestOnTheEmbeddedModel:
    def test_greedy_texts_reasons_and_counts_are_those_of_the_transformers_engine(self, smol):
        requests = requests_for(GREEDY)
        completions = ask(smol, requests)
        assert completions == ask(smol, requests, TRANSFORMERS)
        assert len({each.text for each in completions}) == len(PROMPTS)
        assert {each.finish_reason for each in completions} == {"stop", "length"}

    def test_stop_strings_end_a_response_as_in_the_transformers_engine(self, smol):
        whole = ask(smol, requests_for(GREEDY))
        requests = [
            GenerationRequest(prompt, replace(GREEDY, stop=("never there", each.text[4:7])))
            for prompt, each in zip(PROMPTS, whole, strict=True)
        ]
        completions = ask(smol, requests)
        assert completions == ask(smol, requests, TRANSFORMERS)
        for cut, each in zip(completions, whole, strict=True):
            assert cut.finish_reason == "stop"
            assert cut.text == each.text[: each.text.find(each.text[4:7])]
            assert cut.completion_tokens < each.completion_tokens

    def test_samples_differ_and_each_has_its_seed_whatever_else_is_asked(self, smol):
        requests = requests_for(SAMPLED, samples=4)
        completions = ask(smol, requests)
        assert len({each.text for each in completions}) > 20
        some = [requests[i] for i in (17, 2, 3, 9)]
        assert ask(smol, some) == [completions[i] for i in (17, 2, 3, 9)]
        assert ask(smol, requests, seed=1) != completions

    def test_seeds_hold_where_prompts_are_more_than_vllm_reads_at_once(self, smol):
        words = [Prompt(text=f"{i} " + "and so on " * 100) for i in range(60)]
        requests = requests_for(replace(SAMPLED, max_new_tokens=2), words)
        completions = ask(smol, requests)
        assert sum(each.prompt_tokens for each in completions) > 16_000
        assert ask(smol, requests[-3:]) == completions[-3:]

    def test_unseeded_samples_differ(self, smol):
        # The same process serves both: how seeds are made is no matter of the server's.
        settings = VLLM.vllm.model_copy(update={"request_seeds": False})
        with closing(open_engine(VLLM, smol)) as engine:
            engine._parameters = settings
            drawn = [
                generate(engine, requests_for(SAMPLED, samples=2), seed=0, description="Tests")
                for _ in range(2)
            ]
        assert drawn[0] != drawn[1]

    def test_requests_of_one_call_may_each_be_drawn_differently(self, smol):
        requests = (
            requests_for(GREEDY)
            + requests_for(SAMPLED)
            + requests_for(replace(GREEDY, max_new_tokens=3))
        )
        completions = ask(smol, requests)
        n = len(PROMPTS)
        assert completions[:n] == ask(smol, requests[:n])
        assert completions[n : 2 * n] == ask(smol, requests[n : 2 * n])
        assert [each.completion_tokens for each in completions[2 * n :]] == [3] * n

    def test_response_is_one_of_the_choices(self, smol):
        choices = ("[[A]]", "[[B]]", "[[C]]", "no verdict at all, for both are alike")
        for temperature in (0.0, 2.0):
            sampling = SamplingParameters(4, temperature=temperature, choices=choices)
            completions = ask(smol, requests_for(sampling, samples=4 if temperature else 1))
            assert {each.text for each in completions} <= set(choices)
            assert {each.finish_reason for each in completions} == {"stop"}
        assert len({each.text for each in completions}) > 1

    def test_prompt_that_leaves_no_room_is_answered_so_and_the_others_as_before(self, smol):
        long = Prompt(text="word " * 600)
        requests = requests_for(GREEDY, [PROMPTS[0], long, PROMPTS[1]])
        completions = ask(smol, requests)
        assert completions[1].finish_reason == "prompt_too_long"
        assert completions[1].text == ""
        assert completions[1].prompt_tokens > 600
        assert [completions[0], completions[2]] == ask(smol, requests[::2])
        assert ask(smol, requests[1:2]) == completions[1:2]

    def test_responses_come_in_pieces_while_others_are_still_written(self, smol):
        requests = requests_for(replace(GREEDY, max_new_tokens=400), [PROMPTS[5]])
        requests += requests_for(GREEDY)
        with closing(open_engine(VLLM, smol)) as engine:
            pieces = [set(piece) for piece in engine.stream(requests, seed=0)]
        assert len(pieces) > 1
        assert 0 in pieces[-1]
        assert sorted(index for piece in pieces for index in piece) == list(range(len(requests)))

    def test_what_is_stored_starts_nothing(self, smol, tmp_path):
        store = CompletionStore(tmp_path)
        completions = ask(smol, requests_for(GREEDY), store=store)
        engines.release()
        assert ask(smol, requests_for(GREEDY), store=store) == completions
        assert not vllm_server._servers


class TestOnRandomModels:
    def test_next_checkpoint_takes_the_place_of_the_last_without_a_restart(
        self, random_checkpoint, other
    ):
        models = (random_checkpoint.folder, other, random_checkpoint.folder)
        written, processes = [], set()
        for folder in models:
            written.append(ask(folder, requests_for(GREEDY)))
            processes.add(vllm_server._servers[0]._workers[0]._process.pid)
        expected = [ask(folder, requests_for(GREEDY), TRANSFORMERS) for folder in models]
        assert written == expected
        assert written[0] != written[1]
        assert len(processes) == 1

    def test_stream_that_is_left_alone_disturbs_no_later_one(self, random_checkpoint):
        endless = replace(GREEDY, max_new_tokens=400)
        with closing(open_engine(VLLM, random_checkpoint.folder)) as engine:
            stream = engine.stream(requests_for(endless), seed=0)
            with pytest.raises(KeyboardInterrupt):
                for _ in stream:
                    raise KeyboardInterrupt
            server = engine._server
        completions = ask(random_checkpoint.folder, requests_for(GREEDY))
        assert completions == ask(random_checkpoint.folder, requests_for(GREEDY), TRANSFORMERS)
        assert group_is_gone(server)

    def test_killed_worker_is_one_clear_line_and_the_next_engine_starts_again(
        self, random_checkpoint
    ):
        short = requests_for(replace(GREEDY, max_new_tokens=2))
        long = requests_for(replace(GREEDY, max_new_tokens=480), samples=1)
        with closing(open_engine(VLLM, random_checkpoint.folder)) as engine:
            generate(engine, short, seed=0, description="Tests")
            server = engine._server
            log = server._workers[0].log
            os.kill(server._workers[0]._process.pid, signal.SIGKILL)
            with pytest.raises(EngineError, match="ended by SIGKILL") as caught:
                generate(engine, long, seed=0, description="Tests")
        assert str(caught.value).endswith(f"; its log: {log}")
        assert "\n" not in str(caught.value)
        assert "vLLM" in log.read_text() or "vllm" in log.read_text()
        log.unlink()
        assert group_is_gone(server)
        assert not vllm_server._servers

    def test_copies_of_the_model_share_the_prompts(self, random_checkpoint):
        two = VLLM.vllm.model_copy(update={"data_parallel_size": 2})
        parameters = VLLM.model_copy(update={"vllm": two})
        requests = requests_for(GREEDY) + requests_for(SAMPLED, samples=3)
        completions = ask(random_checkpoint.folder, requests, parameters)
        assert completions[: len(PROMPTS)] == ask(
            random_checkpoint.folder, requests[: len(PROMPTS)], TRANSFORMERS
        )
        assert len(vllm_server._servers[0]._workers) == 2

    def test_wrong_setting_is_one_line_with_vllms_own_reason(self, random_checkpoint):
        settings = VLLM.vllm.model_copy(update={"max_model_len": 10**6})
        parameters = VLLM.model_copy(update={"vllm": settings})
        with pytest.raises(EngineError, match=r"max_model_len .*; its log: ") as caught:
            ask(random_checkpoint.folder, requests_for(GREEDY), parameters)
        assert "\n" not in str(caught.value)
        Path(re.search(r"its log: (\S+)", str(caught.value))[1]).unlink()
