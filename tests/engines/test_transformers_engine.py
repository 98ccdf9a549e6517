import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sami_pipeline.engines import (
    Completion,
    EngineParameters,
    GenerationRequest,
    SamplingParameters,
    TransformersParameters,
    generate,
    open_engine,
)
from sami_pipeline.engines.transformers_engine import TransformersEngine
from sami_pipeline.errors import InputError
from sami_pipeline.models.prompts import Prompt

QUESTIONS = ("Hello", "Tell me a long story about a cat, please.", "z", "Hello?", "1 + 1 = ")
PROMPTS = (
    *(Prompt(messages=(("user", text),)) for text in QUESTIONS),
    Prompt(text="Once upon a time"),
)
GREEDY = SamplingParameters(max_new_tokens=12)


@pytest.fixture(scope="module")
def engine(random_checkpoint) -> TransformersEngine:
    return TransformersEngine(random_checkpoint.folder, dtype="float32")


@pytest.fixture
def variant(random_checkpoint, tmp_path):
    """Return an engine on a copy of the model folder whose JSON files were changed."""

    def build(**changes: dict) -> TransformersEngine:
        folder = Path(shutil.copytree(random_checkpoint.folder, tmp_path / "variant"))
        for stem, content in changes.items():
            path = folder / f"{stem}.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | content))
        return TransformersEngine(folder, dtype="float32")

    return build


def complete(engine, prompts=PROMPTS, sampling=GREEDY, seed=0) -> list[Completion]:
    requests = [GenerationRequest(prompt, sampling) for prompt in prompts]
    return generate(engine, requests, seed=seed, description="Tests")


def readable_pair(text: str) -> str:
    """Return two neighbouring characters of a random text that are no broken UTF-8."""
    return re.search(r"[\x00-\x7f]{2}", text)[0]


def greedy_by_hand(folder, prompt, max_new_tokens) -> Completion:
    """Take the most likely token, one at a time, without batch, padding or cache."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt_ids = tokenizer(prompt.render(tokenizer), add_special_tokens=False)["input_ids"]
    ids, reason = list(prompt_ids), "length"
    for _ in range(max_new_tokens):
        with torch.no_grad():
            token = model(torch.tensor([ids])).logits[0, -1].argmax().item()
        if token == tokenizer.eos_token_id:
            reason = "stop"
            break
        ids.append(token)
    response = ids[len(prompt_ids) :]
    text = tokenizer.decode(response, skip_special_tokens=True)
    return Completion(text, reason, len(prompt_ids), len(response))


def test_greedy_is_the_most_likely_token_at_every_step(engine, random_checkpoint):
    expected = [greedy_by_hand(random_checkpoint.folder, prompt, 12) for prompt in PROMPTS]
    assert complete(engine) == expected
    assert len({completion.text for completion in expected}) > 1


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_batch_size_changes_nothing(engine, random_checkpoint, batch_size):
    other = TransformersEngine(random_checkpoint.folder, dtype="float32", batch_size=batch_size)
    assert complete(other) == complete(engine)


def test_order_of_the_requests_changes_nothing(engine):
    completions = complete(engine)
    order = [3, 0, 5, 2, 4, 1]
    assert complete(engine, [PROMPTS[i] for i in order]) == [completions[i] for i in order]


def test_sampling_is_reproducible_with_its_seed_and_differs_with_another(engine):
    sampling = SamplingParameters(max_new_tokens=16, temperature=1.0)
    one, again, other = (complete(engine, sampling=sampling, seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one != other
    assert one != complete(engine, sampling=SamplingParameters(max_new_tokens=16))


def test_samples_of_a_prompt_differ_and_the_same_sample_does_not(engine):
    sampling = SamplingParameters(max_new_tokens=16, temperature=1.0)
    requests = [GenerationRequest(PROMPTS[0], sampling, sample=i) for i in (0, 1, 2, 3, 2)]
    texts = [each.text for each in generate(engine, requests, seed=0, description="Tests")]
    assert len(set(texts)) == 4
    assert texts[4] == texts[2]


def test_low_temperature_and_narrow_nucleus_approach_greedy(engine):
    greedy = complete(engine)
    assert complete(engine, sampling=SamplingParameters(12, temperature=1e-4)) == greedy
    assert complete(engine, sampling=SamplingParameters(12, temperature=1.0, top_p=1e-6)) == greedy


def test_callers_generator_is_left_alone(engine):
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    complete(engine, sampling=SamplingParameters(4, temperature=1.0))
    assert torch.equal(before, torch.get_rng_state())


def test_no_requests_give_no_completions(engine):
    assert generate(engine, [], seed=0, description="Tests") == []


def test_requests_of_one_call_may_each_be_drawn_differently(engine):
    requests = [
        GenerationRequest(prompt, SamplingParameters(tokens, temperature))
        for tokens, temperature in ((12, 0.0), (3, 0.0), (7, 1.0))
        for prompt in PROMPTS[:3]
    ]
    mixed = generate(engine, requests, seed=0, description="Tests")
    assert mixed[:3] == complete(engine, PROMPTS[:3])
    assert mixed[3:6] == complete(engine, PROMPTS[:3], SamplingParameters(3))
    assert [completion.completion_tokens for completion in mixed[3:6]] == [3, 3, 3]
    assert all(completion.completion_tokens <= 7 for completion in mixed[6:])


class TestEnding:
    def test_response_that_reaches_its_limit_ends_by_length(self, engine):
        for completion in complete(engine):
            assert (completion.finish_reason, completion.completion_tokens) == ("length", 12)

    def test_response_that_the_model_ends_is_a_stop_without_the_end_token(self, engine):
        sampling = SamplingParameters(max_new_tokens=300, temperature=1.0)
        completions = complete(engine, PROMPTS * 2, sampling)
        stopped = [each for each in completions if each.finish_reason == "stop"]
        assert len(stopped) > 2, "each token ends the response with a probability of about 1/259"
        for completion in stopped:
            assert completion.completion_tokens < 300
            assert "<|im_end|>" not in completion.text
        for completion in completions:
            if completion.finish_reason == "length":
                assert completion.completion_tokens == 300

    def test_every_end_token_of_the_model_ends_a_response(self, engine, variant):
        """Instruct models have several: the end of the text and the end of the turn."""
        tokenizer = engine.tokenizer
        ids = engine.model.generate(
            **tokenizer(PROMPTS[0].render(tokenizer), return_tensors="pt").to(engine.device),
            max_new_tokens=12, do_sample=False, pad_token_id=2,
        )[0, -12:].tolist()  # fmt: skip
        other = variant(generation_config={"eos_token_id": [2, ids[5]]})
        completion = complete(other, PROMPTS[:1])[0]
        first = ids.index(ids[5])
        assert completion.finish_reason == "stop"
        assert completion.completion_tokens == first
        assert completion.text == tokenizer.decode(ids[:first])

    def test_stop_string_ends_the_response_and_is_cut_off(self, engine):
        whole = complete(engine, PROMPTS[:1])[0].text
        stop = readable_pair(whole)
        completion = complete(engine, PROMPTS[:1], SamplingParameters(12, stop=(stop, "\0")))[0]
        assert completion.text == whole[: whole.index(stop)]
        assert completion.finish_reason == "stop"
        assert completion.completion_tokens < 12

    def test_first_of_several_stop_strings_wins(self, engine):
        whole = complete(engine, PROMPTS[:1])[0].text
        pair = readable_pair(whole)
        sampling = SamplingParameters(12, stop=(pair[1], pair[0]))
        text = complete(engine, PROMPTS[:1], sampling)[0].text
        assert text == whole[: min(whole.index(pair[0]), whole.index(pair[1]))]

    def test_response_that_a_stop_string_ended_does_not_depend_on_its_neighbours(self, variant):
        engine = variant(tokenizer_config={"pad_token": "<|endoftext|>"})
        assert engine.tokenizer.pad_token_id not in (engine.tokenizer.eos_token_id, None)
        whole = complete(engine, PROMPTS[:1])[0].text
        sampling = SamplingParameters(12, stop=(readable_pair(whole),))
        alone = [complete(engine, [prompt], sampling)[0] for prompt in PROMPTS]
        assert {completion.finish_reason for completion in alone} == {"stop", "length"}
        assert complete(engine, PROMPTS, sampling) == alone

    def test_stop_string_counts_only_what_the_model_wrote(self, engine):
        """It may begin at the prompt's end: a prompt ends in a line break, "\\n###" stops."""
        prompt = Prompt(text="A line\n")
        whole = complete(engine, [prompt])[0]
        stop = "\n" + whole.text[0]
        assert stop not in whole.text
        completion = complete(engine, [prompt], SamplingParameters(12, stop=(stop,)))[0]
        assert completion == whole

    def test_prompt_that_leaves_no_room_is_counted_and_not_answered(self, engine):
        context = engine.model.config.max_position_embeddings
        too_long = Prompt(text="x" * (context - 11))
        completions = complete(engine, [PROMPTS[0], too_long, PROMPTS[2]])
        assert completions[1] == Completion("", "prompt_too_long", context - 11, 0)
        assert [completions[0], completions[2]] == complete(engine, [PROMPTS[0], PROMPTS[2]])

    def test_only_prompts_that_are_too_long(self, engine):
        context = engine.model.config.max_position_embeddings
        completions = complete(engine, [Prompt(text="x" * context)] * 2)
        assert [each.finish_reason for each in completions] == ["prompt_too_long"] * 2


def test_counts_are_those_of_the_rendered_prompt_and_of_the_response(engine):
    for prompt, completion in zip(PROMPTS, complete(engine), strict=True):
        ids = engine.tokenizer(prompt.render(engine.tokenizer), add_special_tokens=False)
        assert completion.prompt_tokens == len(ids["input_ids"])


def test_how_a_response_is_drawn_is_for_the_request_alone_to_say(engine, variant):
    """Published models bring their own defaults: do_sample, top_k, a repetition penalty."""
    other = variant(
        generation_config={
            "do_sample": True,
            "temperature": 0.3,
            "top_p": 0.5,
            "top_k": 3,
            "repetition_penalty": 1.5,
            "max_new_tokens": 2,
        }
    )
    assert complete(other) == complete(engine)
    sampling = SamplingParameters(12, temperature=1.0)
    assert complete(other, sampling=sampling) == complete(engine, sampling=sampling)


def test_engine_opens_as_its_parameters_say(random_checkpoint, engine):
    parameters = EngineParameters(
        transformers=TransformersParameters(dtype="float32", batch_size=2)
    )
    opened = open_engine(parameters, random_checkpoint.folder)
    assert opened.batch_size == 2
    assert opened.model.dtype == torch.float32
    assert complete(opened) == complete(engine)


def test_chat_prompt_for_a_model_without_chat_template_is_a_clear_error(variant, tmp_path):
    engine = variant()
    engine.tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        complete(engine)


class TestChoices:
    CHOICES = ("A", "B", "Cat", "Cab")

    def choose(self, engine, prompt, choices=CHOICES) -> Completion:
        return complete(engine, [prompt], SamplingParameters(4, choices=choices))[0]

    def test_probabilities_are_those_of_the_whole_choice(self, engine):
        """Two choices begin alike, and one ends where the other goes on."""
        model, tokenizer = engine.model, engine.tokenizer
        for prompt in PROMPTS:
            ids = tokenizer(prompt.render(tokenizer), add_special_tokens=False)["input_ids"]
            expected = []
            for choice in self.CHOICES:
                sequence = list(ids)
                total = 0.0
                for token in tokenizer(choice, add_special_tokens=False)["input_ids"]:
                    with torch.no_grad():
                        logits = model(torch.tensor([sequence])).logits[0, -1]
                    total += logits.log_softmax(-1)[token].item()
                    sequence.append(token)
                expected.append(total)
            completion = self.choose(engine, prompt)
            torch.testing.assert_close(
                torch.tensor(completion.choice_logprobs),
                torch.tensor(expected).log_softmax(0),
                atol=1e-4,
                rtol=0,
            )
            assert completion.text == self.CHOICES[expected.index(max(expected))]
            assert completion.finish_reason == "stop"

    def test_order_of_the_choices_changes_no_probability(self, engine):
        one = self.choose(engine, PROMPTS[1])
        other = self.choose(engine, PROMPTS[1], self.CHOICES[::-1])
        torch.testing.assert_close(
            torch.tensor(one.choice_logprobs), torch.tensor(other.choice_logprobs[::-1])
        )
        assert one.text == other.text
