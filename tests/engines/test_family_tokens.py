"""What local engines make of tokens, and training of that, on the habits of many families."""

from __future__ import annotations

from contextlib import closing

import pandas as pd
import pytest
import torch
import zoo

from sami_pipeline.core import SamiTrainingConfig, train_sami
from sami_pipeline.engines import GenerationRequest, SamplingParameters
from sami_pipeline.engines.tokens import read_completion
from sami_pipeline.engines.transformers_engine import TransformersEngine
from sami_pipeline.evaluation.judge_kinds import KINDS, judge_kind
from sami_pipeline.models.prompts import ChatParameters, Prompt
from sami_pipeline.models.tokens import TextEncoder
from sami_pipeline.training.data import select_grids

SAMPLED = SamplingParameters(max_new_tokens=12, temperature=1.0)
RULES = ("Be brief.", "Be long.")
ENDS = {"gemma3": "<end_of_turn>", "phi3": "<|end|>", "mistral": "</s>", "gpt2": "<|endoftext|>"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    return {name: zoo.make(name, folder / name) for name in (*ENDS, "qwen3", "mistral_v3")}


def prompt(rule: str) -> Prompt:
    return Prompt(messages=(("user", f"Why </s><|im_end|>?\n{rule}"),))


@pytest.mark.parametrize("family", ENDS)
def test_what_a_model_writes_is_trained_with_its_tokens_and_its_end(checkpoints, family):
    checkpoint = checkpoints[family]
    encoder = checkpoint.load_encoder()
    end = encoder.tokenizer.convert_tokens_to_ids(ENDS[family])
    requests = [
        GenerationRequest(prompt(rule), SAMPLED, sample=s) for rule in RULES for s in (0, 1)
    ]
    with closing(TransformersEngine(checkpoint.folder, dtype="float32")) as engine:
        pieces = list(engine.stream(requests, seed=0))
    written = {index: each for piece in pieces for index, each in piece.items()}
    assert len(written) == 4
    for index, completion in written.items():
        before = encoder.encode(requests[index].prompt)
        assert completion.prompt_tokens == len(before.ids)
        if "\ufffd" not in completion.text:  # random tokens need not be whole characters
            ids = encoder.encode_response([before], completion.text)
            read_again = encoder.read(before.ids, ids)
            # Phi-3's tokenizer reads a blank behind <|assistant|>, as real ones write; a random
            # model may write none.
            assert read_again in (completion.text, " " * (family == "phi3") + completion.text)
    rows = pd.DataFrame(
        [
            {
                "query_id": "q", "grid": 0, "constitution_index": index, "split": "train",
                "status": "usable", "prompt": prompt(rule).to_json(),
                "training_prompt": prompt(rule).to_json(), "response": f"The {rule}",
                "finish_reason": "stop", "end_token": ENDS[family],
            }
            for index, rule in enumerate(RULES)
        ]
    )  # fmt: skip
    grids = select_grids(rows, "train", encoder)
    assert [ids[-1] for ids in grids[0].response_ids] == [end, end]
    model = checkpoint.load_model(torch.float32, "cpu")
    config = SamiTrainingConfig(batch_size=1, learning_rate=1e-3, compute_dtype="float32")
    history = train_sami(model, None, grids, config, progress=False).history
    assert history["loss"].notna().all()


def read(encoder: TextEncoder, text: str, before: str = "") -> tuple[str, str, str]:
    tokenizer = encoder.tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    asked = encoder.encode(Prompt(messages=(("user", "Why?"),))).ids
    asked = asked + tokenizer(before, add_special_tokens=False)["input_ids"]
    completion = read_completion(encoder, asked, ids, encoder.ends, SAMPLED)
    return completion.text, completion.thinking, completion.end_token


def test_thinking_is_kept_apart_from_the_response_unless_asked_for(checkpoints):
    encoder = checkpoints["qwen3"].load_encoder()
    whole = "<think>\nHm.\n</think>\n\nThe end.<|im_end|>"
    assert read(encoder, whole) == ("The end.", "Hm.", "<|im_end|>")
    assert read(encoder, "Hm.</think>The end.<|im_end|>", "<think>\n")[:2] == ("The end.", "Hm.")
    # Cut off while it thought: there is no response yet.
    assert read(encoder, "<think>\nHm") == ("", "Hm", "")
    assert read(encoder, "Hm", "<think>\n") == ("", "Hm", "")
    assert read(encoder, "Say <think> twice.")[:2] == ("Say <think> twice.", "")
    keeping = TextEncoder(encoder.tokenizer, ChatParameters(keep_thinking=True), encoder.ends)
    assert read(keeping, whole)[0] == "<think>\nHm.\n</think>\n\nThe end."


@pytest.mark.parametrize("family", ["mistral", "phi3", "gpt2"])
def test_choices_are_read_with_the_tokens_that_they_have_in_place(checkpoints, family):
    """▁A is another token than A, and the one that is read must follow [[ in the text."""
    checkpoint = checkpoints[family]
    asked = Prompt(messages=(("user", "A or B?"), ("assistant", "My verdict is: [[")))
    choice = SamplingParameters(max_new_tokens=1, choices=("A", "B"))
    with closing(TransformersEngine(checkpoint.folder, dtype="float32")) as engine:
        ((completion,),) = [
            list(p.values()) for p in engine.stream([GenerationRequest(asked, choice)], seed=0)
        ]
        before = engine.encoder.encode(asked).ids
        follows = engine.tokenizer.convert_tokens_to_ids(["A", "B"])
        with torch.inference_mode():
            logits = engine.model(torch.tensor([before])).logits[0, -1, follows].float()
    expected = logits.log_softmax(-1)
    assert torch.tensor(completion.choice_logprobs).allclose(expected, atol=1e-5)


CONSTRAINED = {kind.constrained: kind.name for kind in KINDS}.values()


@pytest.mark.parametrize("family", ["mistral", "mistral_v3", "phi3"])
def test_a_judges_verdicts_are_read_as_they_stand_behind_its_own_words(checkpoints, family):
    """SentencePiece, which puts a blank before what it is given alone: ▁A, where A follows."""
    with closing(TransformersEngine(checkpoints[family].folder, dtype="float32")) as engine:

        def tokens(text: str) -> list[int]:
            return engine.tokenizer(text, add_special_tokens=False)["input_ids"]

        for kind in CONSTRAINED:
            opening, choices = judge_kind(kind).constrained
            asked = Prompt(messages=(("user", "Which one?"), ("assistant", opening)))
            sampling = SamplingParameters(max_new_tokens=5, choices=choices)
            (piece,) = engine.stream([GenerationRequest(asked, sampling)], seed=0)
            before = engine.encoder.encode(asked)
            sums = []
            for choice in choices:
                # Of the text in one piece, control tokens and all.
                whole = engine.tokenizer(before.text + choice, add_special_tokens=False)[
                    "input_ids"
                ]
                assert whole[: len(before.ids)] == before.ids
                ids = torch.tensor([whole])
                with torch.inference_mode():
                    read = engine.model(ids).logits[:, :-1].float().log_softmax(-1)
                logprobs = read.gather(-1, ids[:, 1:, None])[0, len(before.ids) - 1 :, 0]
                sums.append(logprobs.sum())
                alone = "this tokenizer must put a blank before what it is given alone"
                assert tokens(choice) != whole[len(before.ids) :], alone
            expected = torch.stack(sums).log_softmax(-1)
            assert torch.tensor(piece[0].choice_logprobs).allclose(expected, atol=1e-5), kind
            assert piece[0].text == choices[int(expected.argmax())]
