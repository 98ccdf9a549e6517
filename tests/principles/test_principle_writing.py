"""A model's answers become principles files as a person would write them."""

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sami_pipeline.engines import Completion
from sami_pipeline.errors import InputError
from sami_pipeline.parameters import PrincipleWritingParameters
from sami_pipeline.principles.constitutions import tabulate_principles
from sami_pipeline.principles.writing import (
    WritingPrompt,
    new_pairs,
    normalised,
    parse_pairs,
    write_principles,
)
from sami_pipeline.schemas import PrincipleWriting

BRIEF = ("Write at most 20 words.", "Write more than 100 words.")
WARM = ("Be warm and friendly.", "Be cold and formal.")
EXAMPLE = ("Begin with a summary.", "Never summarise anything.")


def labelled(*pairs: tuple[str, str]) -> str:
    return "\n\n".join(f"Principle: {one}\nAntithesis: {other}" for one, other in pairs)


@pytest.mark.parametrize(
    "text",
    [
        labelled(BRIEF, WARM),
        f"Sure! Here they are:\n\n{labelled(BRIEF, WARM)}\n\nShall I write more?",
        f"1. Principle: {BRIEF[0]}\n   Antithesis: {BRIEF[1]}\n"
        f"2. Principle: {WARM[0]}\n   Antithesis: {WARM[1]}",
        f"**Principle 1:** {BRIEF[0]}\n**Antithesis 1:** {BRIEF[1]}\n\n"
        f"**Principle 2:** *{WARM[0]}*\n**Antithesis 2:** *{WARM[1]}*",
        f"- __Principle__: {BRIEF[0]}\n- __Antithesis__: {BRIEF[1]}\n"
        f"* principle: {WARM[0]}\n* antithesis: {WARM[1]}",
        f"PRINCIPLE:\n{BRIEF[0]}\nANTITHESIS:\n{BRIEF[1]}\n\n"
        f"PRINCIPLE:\n{WARM[0]}\nANTITHESIS:\n{WARM[1]}",
        f"principles:\n  - principle: '{BRIEF[0]}'\n    antithesis: '{BRIEF[1]}'\n"
        f'  - principle: "{WARM[0]}"\n    antithesis: "{WARM[1]}"',
        f'[\n  {{\n    "principle": "{BRIEF[0]}",\n    "antithesis": "{BRIEF[1]}"\n  }},\n'
        f'  {{\n    "principle": "{WARM[0]}",\n    "antithesis": "{WARM[1]}"\n  }}\n]',
        f'[{{"principle": "{BRIEF[0]}", "antithesis": "{BRIEF[1]}"}}, '
        f'{{"principle": "{WARM[0]}", "antithesis": "{WARM[1]}"}}]',
    ],
    ids=["lines", "talk", "numbers", "markdown", "bullets", "below", "yaml", "json", "flat_json"],
)  # fmt: skip
def test_pairs_are_read_from_the_forms_that_models_write(text):
    assert parse_pairs(text) == [BRIEF, WARM]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Be brief.",
        "Principle: Be very brief.",
        "Antithesis: Be long.\nPrinciple: Be very brief.",
        "Principle: Be very brief.\nAntithesis:",
        "Principle: Be brief now.\nAntithesis: be brief, now!",
        "Principle: Brief\nAntithesis: Long",
        f"Principle: {'word ' * 100}\nAntithesis: Be brief now.",
        "The main principle: be brief.\nIts antithesis: be long.",
        "Principles: Be very brief.\nAntitheses: Be very long.",
    ],
)
def test_what_is_no_pair_gives_none(text):
    assert parse_pairs(text) == []


def test_principle_without_its_antithesis_takes_no_other_ones():
    text = f"Principle: Be funny always.\n{labelled(BRIEF)}\nAntithesis: Be sad always."
    assert parse_pairs(text) == [BRIEF]


def test_end_of_an_answer_that_was_cut_off_is_left_out():
    text = labelled(BRIEF, WARM)
    assert parse_pairs(text[:-8], truncated=True) == [BRIEF]
    assert parse_pairs(text[: text.index("Antithesis: Be cold")], truncated=True) == [BRIEF]
    assert parse_pairs(text + "\n\nPrin", truncated=True) == [BRIEF, WARM]


@given(st.lists(st.sampled_from(["Principle", "antithesis", ":", "\n", "{", ",", "1. ", "x y"])))
def test_reading_never_raises_and_gives_one_line_statements(pieces):
    for pair in parse_pairs("".join(pieces)):
        for statement in pair:
            assert statement == " ".join(statement.split())
            assert normalised(statement)


def test_repeated_and_turned_round_pairs_are_not_new():
    again = ("write AT most 20 words", "Something else entirely.")
    turned = WARM[::-1]
    assert new_pairs([BRIEF, again, WARM, turned], []) == [BRIEF, WARM]
    assert new_pairs([BRIEF, WARM], ["Write, at most: 20 words"]) == [WARM]
    assert new_pairs([turned], WARM) == []
    assert normalised("  Ｂe   brief!") == normalised("be brief")


PROMPT = WritingPrompt.parse(
    {
        "prompt": "{count} pairs for {description}, not:\n{existing}\n" + labelled(EXAMPLE),
        "descriptions": {"writing": "texts", "math": "problems"},
    }
)


class Writer:
    """Gives prepared answers, and keeps what it was asked."""

    def __init__(self, *rounds: dict[str, str], finish_reason: str = "stop") -> None:
        self.rounds, self.requests, self.finish_reason = list(rounds), [], finish_reason

    def __call__(self, requests) -> list[Completion]:
        self.requests.append(requests)
        answers = self.rounds.pop(0)
        texts = [
            next(
                text
                for name, text in answers.items()
                if PROMPT.descriptions[name] in request.prompt.messages[-1][1]
            )
            for request in requests
        ]
        return [Completion(text, self.finish_reason, 1, 1) for text in texts]


def write(writer, existing=None, **changes):
    parameters = PrincipleWritingParameters.model_validate(
        {"source": "random:0", "categories": ["writing", "math"], "per_category": 1} | changes
    )
    files, table = write_principles(existing or {}, PROMPT, parameters, writer, "a test")
    return files, PrincipleWriting.validate(table)


def statuses(table: pd.DataFrame) -> list[tuple[str, int, str]]:
    return list(table[["category", "attempt", "status"]].itertuples(index=False, name=None))


def test_written_files_are_such_as_a_person_would_write():
    files, table = write(Writer({"writing": labelled(BRIEF), "math": labelled(WARM)}))
    assert statuses(table) == [("writing", 0, "complete"), ("math", 0, "complete")]
    saved = {
        f"{name}.yml": yaml.safe_load(yaml.safe_dump(content)) for name, content in files.items()
    }
    principles = tabulate_principles(saved)
    assert principles[["category", "statement", "antithesis"]].values.tolist() == [
        ["math", *WARM], ["writing", *BRIEF],
    ]  # fmt: skip
    assert set(principles["written_by"]) == {"a test"}
    assert set(principles["check"]) == {""}


def test_malformed_answer_is_asked_again_as_another_sample_and_then_reported():
    writer = Writer(
        {"writing": labelled(BRIEF), "math": "Two."}, {"math": "Four."}, {"math": "Six."}
    )
    files, table = write(writer)
    assert list(files) == ["writing"]
    asked = [(round, len(requests)) for round, requests in enumerate(writer.requests)]
    assert asked == [(0, 2), (1, 1), (2, 1)]
    assert [requests[-1].sample for requests in writer.requests] == [0, 1, 2]
    failed = table[table["category"] == "math"]
    assert failed["status"].tolist() == ["malformed"] * 3
    assert failed["text"].tolist() == ["Two.", "Four.", "Six."]


def test_later_attempt_adds_what_is_missing_and_no_more():
    writer = Writer(
        {"writing": labelled(BRIEF), "math": labelled(WARM)},
        {"writing": labelled(BRIEF, WARM, ("Use no verbs.", "Use many verbs."))} | {"math": ""},
        {"math": ""},
    )
    files, table = write(writer, per_category=2)
    written = [p["principle"] for p in files["writing"]["principles"]]
    assert written == [BRIEF[0], WARM[0]]
    counts = table.set_index(["category", "attempt"])
    assert counts.loc[("writing", 1), ["status", "found", "kept"]].tolist() == ["complete", 3, 1]
    assert counts.loc[("math", 0), "status"] == "incomplete"
    assert len(files["math"]["principles"]) == 1


def test_existing_principles_and_the_prompts_example_are_not_written_again():
    existing = {"writing": [{"id": "be_warm", "principle": WARM[0], "antithesis": WARM[1]}]}
    repeating = labelled(WARM, EXAMPLE, ("Be warm, and be funny.", "Never be funny."))
    writer = Writer({"writing": repeating, "math": repeating})
    files, _ = write(writer, existing)
    (new,) = files["writing"]["principles"]
    assert new["principle"] == "Be warm, and be funny."
    assert f"- {WARM[0]}" in writer.requests[0][0].prompt.messages[-1][1]
    assert files["math"]["principles"][0]["principle"] == WARM[0], "each category has its own"


def test_names_are_the_first_words_and_differ_from_all_others():
    existing = {
        "writing": [{"id": "use_short_words_only", "principle": "One two", "antithesis": "3 4"}]
    }
    answer = labelled(
        ("Use short words only.", "Use long words."),
        ("Use short words only, please.", "Use no words."),
        ("«Écris» en français!", "Write in English."),
        ("日本語 で", "Write in English now."),
    )
    files, _ = write(Writer({"writing": answer}), existing, categories=["writing"], per_category=4)
    assert [each["id"] for each in files["writing"]["principles"]] == [
        "use_short_words_only_2", "use_short_words_only_3", "ecris_en_francais", "principle",
    ]  # fmt: skip


@pytest.mark.parametrize("reason", ["prompt_too_long", "failed"])
def test_answer_that_never_came_says_why(reason):
    writer = Writer(*[{"writing": "", "math": ""}] * 2, finish_reason=reason)
    files, table = write(writer, attempts=2)
    assert files == {}
    assert set(table["status"]) == {reason}


def test_answer_goes_on_with_the_opening_unless_it_started_over():
    prompt = PROMPT.model_copy(update={"opening": "Principle:"})
    assert prompt.build("math", 1, []).messages[-1] == ("assistant", "Principle:")
    whole = labelled(BRIEF)
    assert parse_pairs(prompt.answer(whole.removeprefix("Principle:"))) == [BRIEF]
    assert prompt.answer(whole) == whole
    assert prompt.answer("") == ""


def test_shipped_prompt_describes_every_category_and_asks_for_nothing_it_shows(project_folder):
    path = project_folder / "data" / "01_raw" / "principle_writing" / "prompt.yml"
    prompt = WritingPrompt.parse(yaml.safe_load(path.read_text("utf-8")))
    parameters = PrincipleWritingParameters.model_validate({"source": "random:0"})
    examples = parse_pairs(prompt.prompt)
    assert len(examples) == 2
    answer = prompt.answer(labelled(*examples).removeprefix(prompt.opening))
    files, table = write_principles(
        {},
        prompt,
        parameters,
        lambda requests: [Completion(answer, "stop", 1, 1) for _ in requests],
        "a test",
    )
    assert files == {}
    assert set(table["found"]) == {2}
    assert len(table) == 3 * 8


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"prompt": "{count}"}, "prompt: the placeholder {description} is missing"),
        ({"prompt": "{count} {description} {other}"}, "prompt: only"),
        ({"prompts": "x"}, "prompts"),
    ],
)
def test_wrong_prompt_file_is_named_with_its_field(changes, fault):
    with pytest.raises(InputError, match="writing_prompt: ") as raised:
        WritingPrompt.parse(PROMPT.model_dump() | changes)
    assert fault in str(raised.value)
    with pytest.raises(InputError, match="descriptions: coding is missing"):
        PROMPT.build("coding", 1, [])


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"source": None}, "name the model that writes"),
        ({"temperature": 0}, "attempts: at temperature 0"),
        ({"categories": ["poetry"]}, "categories"),
    ],
)
def test_wrong_parameters_are_refused(changes, fault):
    with pytest.raises(ValidationError, match=fault):
        PrincipleWritingParameters.model_validate({"source": "random:0"} | changes)
