import pytest
from pydantic import ValidationError

from sami_pipeline.errors import InputError
from sami_pipeline.models.prompts import Prompt, PromptTemplate

CHAT = PromptTemplate(kind="chat", turn="{query}\n\nRules:\n{constitution}")
PLAIN = PromptTemplate(
    kind="plain",
    preamble="An example.\n\n",
    turn="Q: {query}\nRules: {constitution}\nA:",
    turn_without_constitution="Q: {query}\nA:",
    answer_end="\n--\n",
    stop=("\nQ:",),
)


@pytest.fixture(scope="module")
def tokenizer(random_checkpoint):
    return random_checkpoint.load_tokenizer()


@pytest.fixture
def bare_tokenizer(random_checkpoint):
    """The same tokenizer without a chat template."""
    tokenizer = random_checkpoint.load_tokenizer()
    tokenizer.chat_template = None
    return tokenizer


def adding_bos(tokenizer):
    """Let a tokenizer begin every text with its beginning-of-sequence token, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A",
        special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)],
    )
    return tokenizer


def test_chat_prompt_is_one_user_message():
    prompt = CHAT.build(["Why?"], constitution="1. Be brief.")
    assert prompt == Prompt(messages=(("user", "Why?\n\nRules:\n1. Be brief."),))


def test_answer_begins_as_the_constitutions_stance_has_it():
    begins = {"steps": {"principle": " Step by step:", "antithesis": " It is"}}
    template = PLAIN.model_copy(update={"answer_begins": begins})
    for stance, begin in begins["steps"].items():
        taken = [("latex", "principle"), ("steps", stance)]
        text = template.build(["Why?"], constitution="C", stances=taken).text
        assert text.removeprefix(PLAIN.build(["Why?"], constitution="C").text) == begin
    assert template.build(["Why?"]).text == PLAIN.build(["Why?"]).text


def test_system_message_comes_first_and_once():
    template = CHAT.model_copy(update={"system": "You help."})
    prompt = template.build(["Why?", "And?"], ["So."], constitution="Short.")
    assert [role for role, _ in prompt.messages] == ["system", "user", "assistant", "user"]
    assert prompt.messages[0] == ("system", "You help.")


def test_later_turn_follows_the_earlier_ones_with_their_answers():
    prompt = CHAT.build(["One?", "Two?", "Three?"], ["1", "2"], constitution="C")
    assert prompt.messages == (
        ("user", "One?\n\nRules:\nC"),
        ("assistant", "1"),
        ("user", "Two?\n\nRules:\nC"),
        ("assistant", "2"),
        ("user", "Three?\n\nRules:\nC"),
    )
    plain = PLAIN.build(["One?", "Two?"], ["1"], constitution="C")
    assert plain.text == "An example.\n\nQ: One?\nRules: C\nA:1\n--\nQ: Two?\nRules: C\nA:"


def test_without_constitution_no_rules_are_mentioned():
    assert CHAT.build(["Why?"]).messages == (("user", "Why?"),)
    assert PLAIN.build(["Why?"]).text == "An example.\n\nQ: Why?\nA:"


@pytest.mark.parametrize("answers", [(), ("1", "2")])
def test_wrong_number_of_earlier_answers_is_an_error(answers):
    with pytest.raises(ValueError, match="2 queries need 1 earlier answers"):
        CHAT.build(["One?", "Two?"], answers)


@pytest.mark.parametrize("template", [CHAT, PLAIN], ids=["chat", "plain"])
def test_braces_in_query_answer_and_constitution_survive(template):
    query, answer, rules = "f = {x: {}}", "{constitution} {0}", "Write {query} and {{both}}."
    prompt = template.build([query, query], [answer], constitution=rules)
    text = prompt.text or "\n".join(content for _, content in prompt.messages)
    assert text.count(query) == 2
    assert text.count(rules) == 2
    assert text.count(answer) == 1


def test_doubled_braces_of_a_template_are_written_once():
    template = PromptTemplate(kind="chat", turn='{query} {constitution} {{"a": 1}}')
    assert template.build(["Q"], constitution="C").messages == (("user", 'Q C {"a": 1}'),)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"kind": "chat", "turn": "{query}"}, r"turn: the placeholder {constitution}"),
        ({"kind": "chat", "turn": "{constitution}"}, r"turn: the placeholder {query}"),
        (
            {"turn": "{query} {constitution}", "turn_without_constitution": "?", "kind": "chat"},
            r"turn_without_constitution: the placeholder {query}",
        ),
        ({"kind": "chat", "turn": "{query}{constitution}", "preamble": "x"}, "preamble: only"),
        ({"kind": "plain", "turn": "{query}{constitution}", "system": "x"}, "system: only"),
        ({"kind": "chat"}, "turn"),
        ({"kind": "other", "turn": "{query}{constitution}"}, "kind"),
        ({"kind": "chat", "turn": "{query}{constitution}", "ends": ["x"]}, "ends"),
    ],
)
def test_bad_template_is_an_error_that_names_the_field(fields, named):
    with pytest.raises(ValidationError, match=named):
        PromptTemplate.model_validate(fields)


@pytest.mark.parametrize("turn", ["{query}{constitution}{mood}", "{query}{constitution}{"])
def test_placeholder_that_nothing_fills_is_an_error_when_the_template_is_read(turn):
    with pytest.raises(ValidationError, match="turn"):
        PromptTemplate(kind="chat", turn=turn)


@pytest.mark.parametrize(
    "prompt",
    [
        CHAT.build(["Größe?\n{x}", "“Zwei”"], ['a "quoted" answer'], constitution="1. Ja\n2. Nein"),
        PLAIN.build(["Größe?\t☃"], constitution="C"),
        CHAT.build(["Q"]),
    ],
    ids=["chat", "plain", "bare"],
)
def test_json_round_trip_is_one_line(prompt):
    line = prompt.to_json()
    assert "\n" not in line
    assert Prompt.from_json(line) == prompt


def test_rendered_chat_tokenises_to_what_the_chat_template_gives(tokenizer):
    prompt = CHAT.build(["Größe?", "And <|im_end|>?"], ["So\n"], constitution="1. A\n2. B")
    messages = [{"role": role, "content": content} for role, content in prompt.messages]
    expected = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    rendered = tokenizer(prompt.render(tokenizer), add_special_tokens=False)["input_ids"]
    assert rendered == expected


def test_rendered_chat_never_gets_a_second_bos(random_checkpoint):
    """Many chat templates write the BOS themselves; the rendered text has it just once."""
    tokenizer = adding_bos(random_checkpoint.load_tokenizer())
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
    text = CHAT.build(["Q"]).render(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1


def test_plain_prompt_gets_no_bos_where_the_tokenizer_adds_none(tokenizer):
    prompt = PLAIN.build(["Q"], constitution="C")
    assert tokenizer("", add_special_tokens=True)["input_ids"] == []
    assert prompt.render(tokenizer) == prompt.text


def test_plain_prompt_gets_the_bos_that_the_tokenizer_adds(random_checkpoint):
    tokenizer = adding_bos(random_checkpoint.load_tokenizer())
    prompt = PLAIN.build(["Q"], constitution="C")
    rendered = tokenizer(prompt.render(tokenizer), add_special_tokens=False)["input_ids"]
    assert rendered == tokenizer(prompt.text, add_special_tokens=True)["input_ids"]
    assert rendered[0] == tokenizer.bos_token_id
    assert rendered.count(tokenizer.bos_token_id) == 1


def test_chat_prompt_for_a_tokenizer_without_template_is_a_clear_error(bare_tokenizer):
    with pytest.raises(InputError, match="no chat template; choose a plain prompt template"):
        CHAT.build(["Q"]).render(bare_tokenizer)
    assert PLAIN.build(["Q"]).render(bare_tokenizer).endswith("A:")


def test_shipped_templates_ask_what_they_are_given(templates):
    for name, template in templates.items():
        assert template.kind == ("chat" if name.startswith("chat") else "plain"), name
    for template in templates.values():
        prompt = template.build(["A QUERY", "ANOTHER"], ["AN ANSWER"], constitution="SOME RULES")
        text = prompt.text or "\n".join(content for _, content in prompt.messages)
        places = [text.index(part) for part in ("A QUERY", "AN ANSWER", "ANOTHER")]
        assert places == sorted(places)
        assert text.count("SOME RULES") == 2
        assert "SOME RULES" not in str(template.build(["A QUERY"]))


def test_shipped_plain_template_stops_before_the_next_turn(templates):
    text = templates["plain"].build(["ONE", "TWO"], ["AN ANSWER"], constitution="C").text
    between = text.split("AN ANSWER")[1].split("TWO")[0]
    assert any(stop in between for stop in templates["plain"].stop)


@pytest.mark.parametrize("opening", ["My final verdict is: [[", "1."])
def test_response_goes_on_with_a_final_assistant_message(tokenizer, opening):
    question = (("system", "You judge."), ("user", "A or B?"))
    asked = Prompt(messages=question).render(tokenizer)
    begun = Prompt(messages=(*question, ("assistant", opening)))
    assert begun.render(tokenizer) == asked + opening
    assert Prompt.from_json(begun.to_json()) == begun


NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
)
DROPS_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}[{{ m['role'] }}] {{ m['content'] }}\n"
    "{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM])
def test_system_text_stands_in_front_of_the_users_where_the_template_has_no_system_role(
    bare_tokenizer, template
):
    bare_tokenizer.chat_template = template
    prompt = Prompt(
        (("system", "You judge."), ("user", "A or B?"), ("assistant", "A"), ("user", "?"))
    )
    rendered = prompt.render(bare_tokenizer).removeprefix(bare_tokenizer.bos_token)
    assert rendered == "[user] You judge.\n\nA or B?\n[assistant] A\n[user] ?\n"


def test_system_text_stays_where_the_template_has_a_system_role(tokenizer):
    prompt = Prompt((("system", "You judge."), ("user", "A or B?")))
    assert prompt.render(tokenizer).startswith("<|im_start|>system\nYou judge.<|im_end|>\n")
