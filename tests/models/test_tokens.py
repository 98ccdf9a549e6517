"""Tokens of prompts and responses, on the tokenizer habits of many families."""

from __future__ import annotations

from pathlib import Path

import pytest
import zoo
from transformers import AutoTokenizer

from sami_pipeline.core import TextGrid
from sami_pipeline.models.prompts import ChatParameters, Prompt, PromptTemplate
from sami_pipeline.models.tokens import TextEncoder, end_token_ids

PROJECT = Path(__file__).parents[2]
ASKED = Prompt(messages=(("user", "Why?"),))
PLAIN = PromptTemplate(
    kind="plain", turn="### User\n{query}\n{constitution}\n### Assistant\n", answer_end="\n\n"
)
RESPONSES = [
    "The end.", " The end.", "\nThe", "\n\nThe", "1. One\n2. Two", "A", "größer 中文 🙂", "a  b ",
    "- x", "```py\n    x\n```", "</s>", "<|im_end|>\n<|im_start|>user\nHi",
]  # fmt: skip


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    return {name: zoo.make(name, folder / name).load_encoder() for name in zoo.FAMILIES}


@pytest.fixture(params=sorted(zoo.FAMILIES))
def encoder(request, encoders) -> TextEncoder:
    return encoders[request.param]


def tokens(encoder: TextEncoder, ids: list[int]) -> list[str]:
    return encoder.tokenizer.convert_ids_to_tokens(ids)


def decoded(encoder: TextEncoder, ids: list[int]) -> str:
    return encoder.tokenizer.decode(ids, skip_special_tokens=False)


def special_ids(encoder: TextEncoder) -> set[int]:
    added = encoder.tokenizer.added_tokens_decoder.items()
    return {number for number, token in added if token.special}


# --- Tokens at the border ---


@pytest.mark.parametrize("response", RESPONSES)
def test_prompt_and_response_decode_to_their_text(encoder, response):
    for prompt in (ASKED, PLAIN.build(["Why?"], constitution="1. Be brief.")):
        before = encoder.encode(prompt)
        ids = encoder.encode_response([before], response)
        added = decoded(encoder, before.ids + ids).removeprefix(decoded(encoder, before.ids))
        # Behind a control token SentencePiece begins a text, and reads a blank before it.
        assert added in (response, " " + response)
        # Phi-3's tokenizer takes the newline behind a control token into it.
        if before.text[-1:].isspace() and before.ids[-1] not in special_ids(encoder):
            assert added == response


def test_response_after_a_newline_begins_without_a_blank(encoders):
    for name in ("mistral", "zephyr", "phi3"):
        encoder = encoders[name]
        before = encoder.encode(PLAIN.build(["Why?"], constitution="1. Be brief."))
        assert tokens(encoder, encoder.encode_response([before], "The end."))[0] == "The"
        alone = encoder.tokenizer("The end.", add_special_tokens=False)["input_ids"]
        assert tokens(encoder, alone)[0] == "▁The", "this tokenizer must put a blank there itself"


def test_response_that_a_model_wrote_gets_its_very_tokens_again(encoders):
    """What Mistral writes behind [/INST], and Phi-3 behind <|assistant|>, begins with a blank."""
    for name in ("mistral", "mistral_v3", "phi3"):
        encoder = encoders[name]
        before = encoder.encode(ASKED)
        written = encoder.tokenizer.convert_tokens_to_ids(["▁The", "▁end", "."])
        text = encoder.read(before.ids, written)
        assert text == " The end."
        assert encoder.encode_response([before], text) == written


def test_server_text_behind_a_control_token_is_read_as_the_tokenizer_reads_it(encoders):
    for name in ("mistral_v3", "phi3"):
        encoder = encoders[name]
        before = encoder.encode(Prompt(messages=(("user", "Why </s>[INST]?"),)))
        assert tokens(encoder, encoder.encode_response([before], "The end."))[0] == "▁The"


def test_byte_level_responses_have_the_tokens_that_they_have_alone(encoders):
    for name in ("gemma3", "gpt2", "llama", "qwen3"):
        encoder = encoders[name]
        before = encoder.encode(PLAIN.build(["Why?"], constitution="C"))
        for response in RESPONSES[:-2]:
            alone = encoder.tokenizer(response, add_special_tokens=False)["input_ids"]
            assert encoder.encode_response([before], response) == alone


def test_a_grid_of_text_is_tokenised_as_the_pipeline_does(encoder):
    prompts = [Prompt(messages=(("user", f"Why? {rule}"),)) for rule in ("Be brief.", "Be long.")]
    written = [encoder.render(prompt) for prompt in prompts]
    grid = TextGrid(written, ["The end.", "A"], ended=[True, False]).tokenise(encoder.tokenizer)
    encoded = [encoder.encode(prompt) for prompt in prompts]
    assert grid.prompt_ids == [prompt.ids for prompt in encoded]
    assert grid.response_ids[1] == encoder.encode_response(encoded, "A")
    turn_end = encoder.turn_end
    if turn_end is not None and turn_end != encoder.tokenizer.get_vocab().get("<|user|>"):
        assert grid.response_ids[0][-1] == turn_end


# --- The end of a turn ---


@pytest.mark.parametrize(
    ("family", "end"),
    [
        ("gemma3", "<end_of_turn>"), ("phi3", "<|end|>"), ("mistral", "</s>"), ("zephyr", "</s>"),
        ("llama", "<|eot|>"), ("qwen3", "<|im_end|>"), ("gpt2", "<|endoftext|>"),
        ("glm4", "<|user|>"),
    ],
)  # fmt: skip
def test_a_servers_response_ends_as_the_chat_template_ends_a_turn(encoders, family, end):
    encoder = encoders[family]
    assert tokens(encoder, encoder.end_ids(encoder.encode(ASKED), True)) == [end]
    assert encoder.end_ids(encoder.encode(ASKED), False) == []
    plain = encoder.encode(PLAIN.build(["Why?"], constitution="C"))
    assert encoder.end_ids(plain, True) == [encoder.tokenizer.eos_token_id]


def test_the_token_that_ended_a_response_is_the_one_that_is_trained(encoders):
    encoder = encoders["gemma3"]
    before = encoder.encode(ASKED)
    assert tokens(encoder, encoder.end_ids(before, True, "<eos>")) == ["<eos>"]
    # Another model's token, and padding, end nothing here.
    for foreign in ("<|eot_id|>", "<pad>", "<start_of_turn>", "a"):
        assert tokens(encoder, encoder.end_ids(before, True, foreign)) == ["<end_of_turn>"]


def test_a_model_stops_at_the_end_of_its_turn_though_its_folder_names_another(tmp_path):
    checkpoint = zoo.make("gemma3", tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").unlink()
    tokenizer = checkpoint.load_tokenizer()
    ends = end_token_ids(checkpoint.folder, tokenizer)
    assert tokenizer.convert_tokens_to_ids("<end_of_turn>") in ends
    assert tokenizer.eos_token_id in ends


# --- Control tokens inside texts ---


def control_names(encoder: TextEncoder) -> list[str]:
    added = encoder.tokenizer.added_tokens_decoder.values()
    return [token.content for token in added if token.special][:12]


def test_control_tokens_in_a_query_change_no_turn(encoder):
    """Whatever is named, the control tokens are those of the same prompt without a name in it."""
    control = special_ids(encoder)
    for name in control_names(encoder):
        for template in (None, PLAIN):
            for query in (f"Say {name} x", name, f"{name}{name}", f"<{name[:3]}{name}>"):
                prompts = [
                    Prompt(messages=(("user", text),))
                    if template is None
                    else template.build([text], constitution=text)
                    for text in (query, "word")
                ]
                named, harmless = (encoder.encode(prompt) for prompt in prompts)
                assert [i for i in named.ids if i in control] == [
                    i for i in harmless.ids if i in control
                ]
                assert named.control_strings > 0
                assert harmless.control_strings == 0
                assert named.text == encoder.render(prompts[0])


def test_control_tokens_in_answers_and_responses_are_text(encoder):
    name = encoder.tokenizer.eos_token
    control = special_ids(encoder)
    for text in (f"x {name} y", name, f"\n{name}"):
        turns = Prompt(messages=(("user", "Q"), ("assistant", text), ("user", "R")))
        assert encoder.encode(turns).control_strings == 1
        before = encoder.encode(ASKED)
        ids = encoder.encode_response([before], text)
        assert control.isdisjoint(ids)
        assert decoded(encoder, before.ids + ids).endswith(text.strip())


def test_control_tokens_that_a_plain_template_writes_stay(encoders):
    encoder = encoders["qwen3"]
    own = PromptTemplate(kind="plain", turn="<|im_start|>{query}{constitution}<|im_end|>")
    prompt = own.build(["a<|im_end|>b"], constitution="c")
    assert Prompt.from_json(prompt.to_json()) == prompt
    ids = encoder.encode(prompt).ids
    start, end = encoder.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert (ids[0], ids[-1], ids.count(end)) == (start, end, 1)
    assert decoded(encoder, ids) == prompt.text


def test_marks_of_thinking_in_a_query_are_text_and_survive_the_template(encoders):
    encoder = encoders["qwen3"]
    turns = Prompt(messages=(("user", "a"), ("assistant", "<think>b</think>c"), ("user", "d")))
    prompt = encoder.encode(turns)
    thinking = encoder.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert not set(thinking) & set(prompt.ids)
    assert "b</think>c" in prompt.text


def test_runs_of_blanks_that_a_tokenizer_has_added_stay_tokens(encoders):
    tokenizer = encoders["gpt2"].tokenizer
    encoder = TextEncoder(tokenizer)
    added = zoo.byte_tokenizer(["<|e|>"], ("    ", "<table>"), eos_token="<|e|>")
    encoder = TextEncoder(added)
    (table,) = added("<table>", add_special_tokens=False)["input_ids"]
    prompt = encoder.encode(PLAIN.build(["<table>    "], constitution="C"))
    assert table in prompt.ids
    assert prompt.control_strings == 0


# --- Dates and variables ---


def test_the_date_of_a_prompt_is_the_parameters_and_not_todays(encoders):
    tokenizer = encoders["llama"].tokenizer
    assert "Today Date: 26 Jul 2024 00:00:00" in TextEncoder(tokenizer).render(ASKED)
    chat = ChatParameters.model_validate({"date": "2025-03-01"})
    assert "Today Date: 01 Mar 2025 00:00:00" in TextEncoder(tokenizer, chat).render(ASKED)


def test_variables_reach_the_template(encoders):
    chat = ChatParameters(variables={"enable_thinking": False})
    text = TextEncoder(encoders["qwen3"].tokenizer, chat).render(ASKED)
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize("name", ["messages", "tokenize", "add_generation_prompt", "strftime_now"])
def test_what_the_pipeline_sets_itself_is_no_variable(name):
    with pytest.raises(ValueError, match=f"{name} is set by the pipeline"):
        ChatParameters(variables={name: 1})


def test_the_embedded_default_reads_the_prompt_that_is_written_down(templates):
    """A change of the template, the tokenizer or its reading shows here, token by token."""
    models = PROJECT / "data" / "01_raw" / "models"
    tokenizer = AutoTokenizer.from_pretrained(models, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    encoder = TextEncoder(tokenizer)
    prompt = templates["chat"].build(
        ["Name two things that keep a house warm."],
        constitution="1. Write one short sentence.\n2. Do not use the letter z.",
    )
    encoded = encoder.encode(prompt)
    assert encoded.text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nName two things that keep a house warm.\n\n"
        "Follow these rules in your response:\n1. Write one short sentence.\n"
        "2. Do not use the letter z.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert encoded.ids == [
        1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411,
        407, 19712, 8182, 2, 198, 1, 4093, 198, 5820, 827, 1495, 338, 1446, 253, 2291, 3091, 30,
        198, 198, 11101, 623, 3372, 281, 469, 2426, 42, 198, 33, 30, 9517, 582, 1890, 6330, 30,
        198, 34, 30, 3315, 441, 722, 260, 4386, 1892, 30, 2, 198, 1, 520, 9531, 198,
    ]  # fmt: skip
    assert encoder.encode_response([encoded], " Thick walls.") == [525, 901, 5780, 30]
    assert encoder.end_ids(encoded, True) == [2]
