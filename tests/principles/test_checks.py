import json
from collections import Counter
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from check_texts import BLIND, UNSEEN
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from sami_pipeline.principles import checks
from sami_pipeline.principles.checks import AnyCheck, Check, Found, check_names, parse_check
from sami_pipeline.principles.checks.ifeval import IFEVAL

CHECK_NAMES = check_names()
CASES = Path(__file__).parents[3] / "shared" / "cases" / "check_texts.jsonl"
REQUIRED = {
    "starts_with": {"text": "Sure"},
    "does_not_start_with": {"text": "Sure"},
    "last_line_starts_with": {"text": "In short"},
    "does_not_end_with_line": {"text": "In short"},
    "contains_any": {"phrases": ["however", "on the other hand"]},
    "contains_none": {"phrases": ["however", "on the other hand"]},
    "maximum_words": {"words": 5},
    "minimum_words": {"words": 5},
    "maximum_mean_sentence_words": {"words": 5},
    "minimum_mean_sentence_words": {"words": 5},
    "keyword_frequency": {"keyword": "sea"},
    "letter_frequency": {"letter": "z"},
    "exact_bullets": {"items": 2},
    "paragraphs": {"paragraphs": 2},
    "paragraph_starts_with": {"paragraph": 2, "text": "Then"},
    "maximum_sentences": {"sentences": 2},
    "minimum_sentences": {"sentences": 2},
    "ends_with": {"text": "Any more questions?"},
}
BULLETS = "Fruit:\n- apples\n- pears\n\nEnjoy."
NUMBERS = "1. Wash.\n2. Cut.\n3. Eat."
CODE = "Try this:\n```python\n# a comment\n- 1\n1. x\nprint('Why me? You!')\n```\nDone."
OPEN_CODE = "Try this:\n```python\nprint(1)"
TABLE = "| Name | Age |\n|------|:---:|\n| Ann | 30 |\n| Bob | 25 |"
PROSE = "The sea is wide. It was calm in 1920, and the ships came home."


def check(name: str, **parameters) -> Check:
    return parse_check({"name": name, **REQUIRED.get(name, {}), **parameters})


PASSES = [
    ("bullet_list", {}, BULLETS),
    ("bullet_list", {}, "* **Foo**: one\n* **Bar**: two"),
    ("bullet_list", {}, "**- Foo**\n**- Bar**"),
    ("bullet_list", {}, "• one\n•two"),
    ("bullet_list", {}, "> + one\n> + two"),
    ("bullet_list", {"minimum_items": 3}, "- a\n  - b\n  - c"),
    ("numbered_list", {}, NUMBERS),
    ("numbered_list", {}, "**1. Foo**\nWords.\n\n**2. Bar**\nWords."),
    ("numbered_list", {}, "**1.** Foo\n**2.** Bar"),
    ("numbered_list", {}, "1) one\n2) two"),
    ("numbered_list", {}, "(1) one\n(2) two"),
    ("numbered_list", {}, "Step 1: Wash.\nStep 2: Cut."),
    ("numbered_list", {}, "**Step 1:** Wash.\n### Step 2 - Cut."),
    ("numbered_list", {"minimum_items": 3}, "1. a\n   1. x\n   2. y\n2. b\n   1. z\n3. c"),
    ("any_list", {}, BULLETS),
    ("any_list", {}, NUMBERS),
    ("flowing_prose", {}, PROSE),
    ("flowing_prose", {}, "It rose by 3.5 percent.\n1920 was better - much better."),
    ("flowing_prose", {}, "**Bold** and *italic* words - with a dash.\n\n-5 degrees is cold."),
    ("flowing_prose", {"maximum_paragraphs": 2}, "One.\n\n\n  \nTwo.\nStill two.\n\n---\n"),
    ("fenced_code", {}, CODE),
    ("fenced_code", {}, "1. Run:\n   ```\n   ls\n   ```"),
    ("fenced_code", {}, "- ```\n  ls\n  ```"),
    ("no_fenced_code", {}, "Use `x = 1` and ```inline``` code."),
    ("markdown_table", {}, TABLE),
    ("markdown_table", {}, "Name | Age\n--- | ---\nAnn | 30\nBob | 25"),
    ("markdown_table", {"minimum_rows": 1}, "A\n\n|x|\n|-|\n|1|\n\nB"),
    ("markdown_heading", {}, "## Sea\nWide."),
    ("markdown_heading", {}, "Sea\n===\nWide."),
    ("no_markdown_heading", {}, "#hashtag and C# are none.\n**Bold**\n\n---\nText"),
    ("no_markdown_heading", {}, CODE),
    ("bold_text", {}, "A **bold move** it was."),
    ("bold_text", {}, "A __bold__ move, ***both*** even."),
    ("bold_text", {}, "**`code`** in bold"),
    ("no_bold_text", {}, "2**3 and 4**2, `**x**`, ** not ** bold, snake__case__name, *italic*"),
    ("no_bold_text", {}, "```\nf(**a, **b)\n```\nis code."),
    ("starts_with", {}, "Sure, here it is."),
    ("starts_with", {}, '  "**sure**!" she said'),
    ("starts_with", {}, "> # SURE\nwhat"),
    ("starts_with", {"text": "Short answer: yes"}, "**Short answer:** Yes."),
    ("starts_with", {"text": "Here’s"}, "here's one"),
    ("starts_with", {"text": "- "}, "- a list"),
    ("does_not_start_with", {}, "Surely not."),
    ("does_not_start_with", {}, "I am sure."),
    ("last_line_starts_with", {}, "Long.\n\n**In short:** yes.\n\n---\n"),
    ("last_line_starts_with", {}, "In short, yes."),
    ("does_not_end_with_line", {}, "In short, yes.\nBut also no."),
    ("contains_any", {}, "That, However, is it."),
    ("contains_any", {}, "On the\nother   hand no."),
    ("contains_any", {"phrases": ["c++"]}, "I like C++."),
    ("contains_any", {"phrases": ["in my opinion"]}, "In **my** opinion."),
    ("contains_none", {}, "Howevermuch you try."),
    ("question_at_end", {}, "Fine. And you?"),
    ("question_at_end", {}, '*"And you?!"* 😊\n'),
    ("question_mark", {}, "Why? Because."),
    ("no_question_mark", {}, "See https://a.example/?q=1 and `a ? b : c`."),
    ("no_question_mark", {}, CODE),
    ("exclamation", {}, "Great!"),
    ("exclamation", {"minimum": 2}, "Great!!! **Wow!**"),
    ("no_exclamation", {}, "5! = 120, n! grows, a != b, ![image](x.png)."),
    ("first_person", {}, "I think so."),
    ("first_person", {}, "My dog ran. It was fun. We laughed. The end."),
    ("first_person", {"minimum_share": 1.0}, "i'm glad. i think so. Give it to me."),
    ("no_first_person", {}, "World War I ended.\n\nI. Introduction"),
    (
        "no_first_person",
        {},
        "I. Causes\nII. Type I and type II errors\nI/O and I = V/R, a gold mine.",
    ),
    ("no_first_person", {}, CODE + " Mystery, omen, it."),
    ("second_person", {}, "Ask yourself."),
    ("second_person", {}, "YOU'RE right"),
    ("no_second_person", {}, "The young youth." + CODE[9:]),
    ("direct_speech", {}, 'He said, "come in now."'),
    ("direct_speech", {}, "He said, “come in.”"),
    ("no_direct_speech", {}, 'The word "sea" and 6" pipes.'),
    ("no_direct_speech", {}, '```\nprint("hello big world")\n```\nprints it.'),
    ("maximum_words", {}, "It's a well-known 3.5 mark."),
    ("minimum_words", {}, "It's a well-known 3.5 mark."),
    ("maximum_mean_sentence_words", {}, "Short one. Dr. Smith knows e.g. this."),
    ("maximum_mean_sentence_words", {}, "1. Four words are here\n2. Four words are here"),
    ("minimum_mean_sentence_words", {}, "These are exactly five words. Now these are six of them!"),
    ("json_object", {}, 'Here: {"a": [1, {"b": null}]} done'),
    ("json_object", {}, 'For {name}:\n```json\n{"a": 1}\n```'),
    ("key_value_lines", {}, "Name: Ann\nDate of birth: 1920"),
    ("key_value_lines", {}, "- **Name:** Ann\n- **Age**: 30"),
    ("final_answer_line", {}, "Think.\n**Answer:** 42"),
    ("final_answer_line", {"marker": "The answer is"}, "the answer is 42."),
    ("contains_digit", {}, "Route 66"),
    ("no_digit", {}, "Route sixty-six"),
    ("upper_case", {}, "ALL CAPS HERE, LIKE `code` AND 12!"),
    ("lower_case", {}, "all small, `Code` and 12!"),
    ("lower_case", {"minimum_share": 0.5}, "Mostly Small"),
    ("letter", {}, "**Dear Ann,**\n\nit fell."),
    ("letter", {"greeting": "Hello"}, "Hello Ann!\nIt fell."),
    ("no_letter", {}, "It fell, my dear.\nSincerely, a fence."),
    ("placeholders", {}, "Call [name]."),
    ("highlighted_sections", {"minimum": 2}, "*One* and **two**."),
    ("capital_words", {"minimum": 2}, "NASA and ESA fly."),
    ("keyword_frequency", {"minimum": 2}, "Sea, oh sea."),
    ("letter_frequency", {"minimum": 3}, "Zigzag, fizz"),
    ("exact_bullets", {}, BULLETS),
    ("paragraphs", {}, "One.\n\n***\n\nTwo.\nStill two."),
    ("paragraph_starts_with", {}, "One.\n\nThen two."),
    ("maximum_sentences", {}, "One. Two!"),
    ("minimum_sentences", {}, "One. Two!"),
    ("labelled_sections", {}, "**Section 1**\na\nSECTION 2: b"),
    ("postscript", {}, "Dear Ann.\n\nP.S. Come."),
    ("title_in_brackets", {}, "<<The sea>>\nIt is wide."),
    ("quotation", {}, '"It is wide."'),
    ("no_comma", {}, "It is wide."),
    ("two_responses", {}, "One.\n******\nTwo."),
    ("ends_with", {}, 'Bye. Any more questions?"'),
]

FAILS = [
    ("bullet_list", {}, "- only one\nand more"),
    ("bullet_list", {}, "**Bold**\n**Bold**\n--- \n* * *\n- - -\n-5\n-6"),
    ("bullet_list", {}, "```\n- a\n- b\n```\ncode"),
    ("bullet_list", {}, "text\n-\n-\n"),
    ("numbered_list", {}, "3. a\n2. b\n1. c"),
    ("numbered_list", {}, "1.5 litres\n2.5 litres"),
    ("numbered_list", {}, "1920. A year.\n1921. Another."),
    ("numbered_list", {}, "1. /*\n2. /*\n3. /*"),
    ("numbered_list", {}, "First of all 1. this and 2. that"),
    ("any_list", {}, PROSE),
    ("any_list", {}, "- one\n1. one"),
    ("flowing_prose", {}, BULLETS),
    ("flowing_prose", {}, NUMBERS),
    ("flowing_prose", {}, "# Title\nText."),
    ("flowing_prose", {}, "Title\n-----\nText."),
    ("flowing_prose", {}, TABLE),
    ("flowing_prose", {}, CODE),
    ("flowing_prose", {}, OPEN_CODE),
    ("flowing_prose", {"maximum_paragraphs": 1}, "One.\n \nTwo."),
    ("fenced_code", {}, "Use `x = 1`, or ```x``` inline."),
    ("fenced_code", {}, "Nothing:\n```\n\n```"),
    ("fenced_code", {}, OPEN_CODE),
    ("no_fenced_code", {}, CODE),
    ("no_fenced_code", {}, OPEN_CODE),
    ("markdown_table", {}, "| Name | Age |\n|---|---|\n| Ann | 30 |"),
    ("markdown_table", {}, "a | b\nc | d\ne | f"),
    ("markdown_table", {}, f"```\n{TABLE}\n```"),
    ("markdown_heading", {}, "#hashtag\n**Bold line**"),
    ("markdown_heading", {}, CODE),
    ("markdown_heading", {}, TABLE),
    ("no_markdown_heading", {}, "### Sea"),
    ("bold_text", {}, "An *italic* word and 2 ** 3 ** 4"),
    ("no_bold_text", {}, "A **b** c"),
    ("starts_with", {}, "Surely not."),
    ("starts_with", {}, "I am sure."),
    ("does_not_start_with", {}, "**Sure!**"),
    ("last_line_starts_with", {}, "In short, yes.\nBut also no."),
    ("does_not_end_with_line", {}, "Long.\n\n*In short*, yes."),
    ("contains_any", {}, "Howevermuch you try, on the other handle."),
    ("contains_none", {}, "HOWEVER!"),
    ("question_at_end", {}, "And you? Fine."),
    ("question_at_end", {}, "Why?\nBecause"),
    ("question_mark", {}, "See https://a.example/?q=1 and `a ? b : c`."),
    ("no_question_mark", {}, "Why? Because."),
    ("no_question_mark", {}, "なぜ？"),
    ("exclamation", {}, "5! = 120 and a != b"),
    ("exclamation", {"minimum": 2}, "Great!!!"),
    ("no_exclamation", {}, "Great!"),
    ("first_person", {}, "World War I. Part I. A coal mine."),
    ("first_person", {"minimum_share": 0.5}, "I ran. It was fun. We laughed. The end."),
    ("no_first_person", {}, "So am I."),
    ("no_first_person", {}, "That is mine."),
    ("no_first_person", {}, "Then i will go."),
    ("second_person", {}, "The young youth."),
    ("no_second_person", {}, "Thank you."),
    ("direct_speech", {}, "He said, 'come in now.'"),
    ("direct_speech", {}, 'The "sea" is "wide"'),
    ("no_direct_speech", {}, '"Come in," he said.'),
    ("maximum_words", {}, "One two three four five six"),
    ("minimum_words", {}, "One two three four"),
    ("maximum_mean_sentence_words", {}, "This sentence is a little bit too long."),
    ("maximum_mean_sentence_words", {}, "```\nx = 1\n```"),
    ("minimum_mean_sentence_words", {}, "Short one. And one more. Yes."),
    ("minimum_mean_sentence_words", {}, "- one\n- two\n- three\n- four\n- five\n- six"),
    ("json_object", {}, "[1, 2]"),
    ("json_object", {}, '{"a": 1'),
    ("json_object", {}, "{'a': 1}"),
    ("json_object", {}, "const x = {}"),
    ("key_value_lines", {}, "Name: Ann\nThere is nothing else: https://a.example"),
    ("key_value_lines", {}, "12:30\nhttps://a.example\nName:\nStep 1: go\nStep 2: run"),
    ("key_value_lines", {}, "What you should do next: run\nWhat you should do then: walk"),
    ("final_answer_line", {}, "Answer: 42\nI hope that helps"),
    ("final_answer_line", {}, "Think.\nAnswer: **"),
    ("contains_digit", {}, "Route sixty-six"),
    ("no_digit", {}, "Route 66"),
    ("upper_case", {}, "Only A FEW capitals here"),
    ("upper_case", {}, "12 34"),
    ("lower_case", {}, "one Capital"),
    ("lower_case", {}, "12 34"),
    ("letter", {}, "Dear Ann,"),
    ("no_letter", {}, "Here you are:\n\nDear Ann,\nit fell."),
    ("placeholders", {}, "See [the page](https://a.example)."),
    ("highlighted_sections", {}, "2 * 3 * 4\n* one\n* two"),
    ("capital_words", {}, "I am A. Smith."),
    ("keyword_frequency", {"minimum": 2}, "The seaside sea."),
    ("letter_frequency", {}, "None."),
    ("exact_bullets", {}, BULLETS + "\n- plums"),
    ("paragraphs", {}, "One.\nStill one."),
    ("paragraph_starts_with", {}, "One.\n\nThentwo."),
    ("maximum_sentences", {}, "One. Two. Three."),
    ("minimum_sentences", {}, "One, two."),
    ("labelled_sections", {}, "Section 1\nonly"),
    ("postscript", {}, "See the PS file."),
    ("title_in_brackets", {}, "1 << 2 and 3 >> 1\n<< >>"),
    ("quotation", {}, '"It" is wide.'),
    ("no_comma", {}, "It is, well, wide."),
    ("two_responses", {}, "One.\n******\nOne."),
    ("ends_with", {}, "Any more questions? Bye."),
]

TRUNCATED = [
    ("bullet_list", {}, "- one\n- tw", True),
    ("numbered_list", {}, "1. one\n2.", False),
    ("flowing_prose", {"maximum_paragraphs": 1}, "The sea is", True),
    ("fenced_code", {}, OPEN_CODE, True),
    ("fenced_code", {}, "Try:\n```python\n", False),
    ("no_fenced_code", {}, OPEN_CODE, False),
    ("no_fenced_code", {}, "The sea", True),
    ("markdown_table", {}, TABLE[:-6], True),
    ("bold_text", {}, "A **very impor", True),
    ("no_bold_text", {}, "A **very impor", False),
    ("no_bold_text", {}, "The sea is ", True),
    ("starts_with", {}, "Sure, the", True),
    ("does_not_start_with", {}, "The sea", True),
    ("last_line_starts_with", {}, "Long.\nIn short, ye", False),
    ("does_not_end_with_line", {}, "Long.\nThe s", False),
    ("contains_any", {}, "It is however", True),
    ("question_at_end", {}, "And you?", False),
    ("no_question_mark", {}, "The sea", True),
    ("first_person", {}, "I think tha", True),
    ("direct_speech", {}, 'He said, "come in no', True),
    ("direct_speech", {}, "He said, “come in no", True),
    ("direct_speech", {}, 'He said "no" and went', False),
    ("no_direct_speech", {}, 'He said "no" and went', True),
    ("maximum_words", {}, "Two words", False),
    ("minimum_words", {}, "One two three four five", True),
    ("minimum_words", {}, "One two", False),
    ("maximum_mean_sentence_words", {}, "Short one. Then a long one that never comes to", True),
    ("minimum_mean_sentence_words", {}, "These are exactly five words. And", True),
    ("json_object", {}, '{"a": 1, "b"', False),
    ("json_object", {}, '{"a": 1} and the', True),
    ("final_answer_line", {}, "Answer: 4", False),
]


@pytest.mark.parametrize(("name", "parameters", "text"), PASSES)
def test_accepts_what_follows_the_statement(name, parameters, text):
    assert check(name, **parameters).passes(text)


@pytest.mark.parametrize(("name", "parameters", "text"), FAILS)
def test_rejects_what_does_not_follow_the_statement(name, parameters, text):
    assert not check(name, **parameters).passes(text)


@pytest.mark.parametrize(("name", "parameters", "text", "expected"), TRUNCATED)
def test_judges_truncated_text_by_what_can_be_known(name, parameters, text, expected):
    assert check(name, **parameters).passes(text, truncated=True) is expected


def test_every_check_has_a_passing_and_a_failing_example():
    assert {row[0] for row in PASSES} == {row[0] for row in FAILS} == set(CHECK_NAMES)


@pytest.mark.parametrize(("specification", "text", "follows"), [*BLIND, *UNSEEN])
def test_texts_that_were_written_blindly_are_judged_right(specification, text, follows):
    assert parse_check(specification).passes(text) is follows


# What check_texts.jsonl says and the check does not, by line, and why.
DISAGREED = {
    48: "a list of two emoji says nothing in words, and a text that says nothing follows nothing",
    49: "prose may hold numbers unless `numbers: false` forbids them, as where the statement does",
    105: "`starts_with` asks for a beginning; that it begins a letter is asked by `letter`",
    113: "`does_not_start_with` asks for no more than its name; `no_letter` forbids the letter",
}


@pytest.mark.skipif(not CASES.is_file(), reason="needs the folder of cases")
def test_collected_texts_are_judged_as_their_statements_say():
    wrong = []
    for number, line in enumerate(CASES.read_text("utf-8").splitlines(), start=1):
        case = json.loads(line)
        found = parse_check(case["check"]).passes(case["text"], truncated=case["truncated"])
        wrong += [number] * (found != case["follows"])
    assert wrong == sorted(DISAGREED)


@pytest.mark.parametrize(
    ("specification", "text", "follows"),
    [
        ({"name": "flowing_prose", "numbers": False}, "There are 5 apples.", False),
        ({"name": "letter"}, "Dear me, what a day! I went home.", False),
        ({"name": "no_letter"}, "Here is a letter:\n\nDear John,\nSincerely, A", False),
    ],
)
def test_what_the_plain_check_leaves_open_is_asked_by_the_stricter_one(
    specification, text, follows
):
    assert parse_check(specification).passes(text) is follows


@pytest.mark.parametrize("bullet", "-*+–—•●○▪◦‣·・✓")
def test_no_list_with_bullets_of_any_kind_is_prose(bullet):
    text = f"Two fruits:\n{bullet} apples\n{bullet} pears"
    assert check("bullet_list").passes(text)
    assert not check("flowing_prose").passes(text)


@pytest.mark.parametrize(
    ("name", "parameters", "text", "evidence"),
    [
        ("maximum_words", {"words": 30}, "word " * 40, "40 words; at most 30 words asked"),
        ("numbered_list", {}, "2. b\n3. c", "the first number is 2; at least 2 lines numbered"),
        ("flowing_prose", {}, "One.\n- two", "1 bullet; prose without lists"),
        ("no_fenced_code", {}, "So:\nreturn x\n", "the line “return x”; no code asked"),
        ("question_mark", {}, "No.", "no question mark; a question asked"),
        ("letter", {}, "Hello.", "it begins “Hello.”; a letter that begins with “Dear” asked"),
        ("maximum_mean_sentence_words", {}, "One two. Three.", "1.5 words a sentence; at most 5"),
        ("upper_case", {}, "ABc", "67%; 80% capitals asked"),
        ("contains_any", {}, "No.", "none; one of: however, on the other hand asked"),
        ("maximum_words", {}, "...", "nothing said; at most 5 words asked"),
    ],
)
def test_evidence_says_what_was_found_and_what_was_asked(name, parameters, text, evidence):
    assert check(name, **parameters).judge(text).evidence.startswith(evidence)


def test_evidence_of_a_text_that_was_cut_off_says_so():
    evidence = check("maximum_words").judge("Two words", truncated=True).evidence
    assert evidence == "cut off before its end; at most 5 words asked"


def test_every_name_belongs_to_one_class_and_says_what_it_asks():
    assert max(Counter(CHECK_NAMES).values()) == 1
    for name in CHECK_NAMES:
        assert check(name).asked
        assert "{" not in check(name).asked


def test_every_instruction_of_ifeval_is_mapped_to_checks_that_exist():
    assert len(IFEVAL) == 25
    assert {name for names in IFEVAL.values() for name in names} <= set(CHECK_NAMES)
    assert [name for name, stands_for in IFEVAL.items() if not stands_for] == [
        "language:response_language"
    ]


def test_a_check_is_added_by_one_class_and_its_name_in_the_list(monkeypatch):
    class Shouted(Check):
        name: Literal["shouted", "no_shouting"]
        asks: ClassVar = {"shouted": "an exclamation mark", "no_shouting": "none"}

        def _found(self, text: str, truncated: bool) -> Found:
            return Found("!" in text, f"{text.count('!')} marks")

    monkeypatch.setattr(checks, "CHECKS", [*checks.CHECKS, Shouted])
    assert parse_check({"name": "shouted"}).judge("Oh!") == (
        True,
        "1 marks; an exclamation mark asked",
    )
    assert not parse_check({"name": "no_shouting"}).passes("Oh!")
    assert "shouted" in check_names()


@pytest.mark.parametrize("name", CHECK_NAMES)
@pytest.mark.parametrize("text", ["", "   ", "\n\t\n", "\u200b", "...", "```\n```", "---"])
@pytest.mark.parametrize("truncated", [False, True])
def test_text_that_says_nothing_passes_nothing(name, text, truncated):
    assert not check(name).passes(text, truncated=truncated)


MARKUP = st.text(alphabet='a1I?!.:;-*#_`~|>"“”(){}[]\\/ \n\t\r\u2028é²①٣İ中', max_size=80)


@settings(max_examples=150, deadline=None)
@given(text=st.text() | MARKUP, truncated=st.booleans())
def test_no_text_makes_a_check_raise(text, truncated):
    for name in CHECK_NAMES:
        assert check(name).passes(text, truncated=truncated) in (True, False)


@settings(max_examples=150, deadline=None)
@given(text=st.text() | MARKUP, phrase=MARKUP.filter(str.strip))
def test_no_phrase_makes_a_check_raise(text, phrase):
    for name in ("starts_with", "last_line_starts_with", "final_answer_line", "contains_any"):
        key = {"final_answer_line": "marker", "contains_any": "phrases"}.get(name, "text")
        check(name, **{key: [phrase] if key == "phrases" else phrase}).passes(text)


OPPOSITES = [
    ("markdown_heading", "no_markdown_heading"),
    ("bold_text", "no_bold_text"),
    ("starts_with", "does_not_start_with"),
    ("last_line_starts_with", "does_not_end_with_line"),
    ("contains_any", "contains_none"),
    ("exclamation", "no_exclamation"),
    ("second_person", "no_second_person"),
    ("direct_speech", "no_direct_speech"),
    ("contains_digit", "no_digit"),
]


@settings(max_examples=100, deadline=None)
@given(text=(st.text() | MARKUP).filter(lambda text: any(map(str.isalnum, text))))
def test_finished_text_passes_exactly_one_of_two_opposites(text):
    for positive, negative in OPPOSITES:
        assert check(positive).passes(text) != check(negative).passes(text), positive


@pytest.mark.parametrize("name", CHECK_NAMES)
@pytest.mark.parametrize("unit", [" ", "a ", "a;", "(", "*", "- ", "1. ", "if =", "<", "dear "])
@pytest.mark.timeout(20)
def test_long_texts_without_an_end_are_judged_at_once(name, unit):
    check(name).passes(unit * 10_000 + "x")


def test_deeply_nested_braces_are_no_json_object():
    assert not check("json_object").passes('{"a":' * 200_000)


@pytest.mark.parametrize(
    ("specification", "fragments"),
    [
        ({"name": "bulet_list"}, ["unknown check 'bulet_list'", *CHECK_NAMES]),
        ({"minimum_items": 2}, ["unknown check None", "bullet_list"]),
        ({"name": ["bullet_list"]}, ["unknown check"]),
        ("bullet_list", ["unknown check"]),
        ({"name": "bullet_list", "minimum": 2}, ["bullet_list", "'minimum'", "minimum_items"]),
        ({"name": "bullet_list", "minimum_items": 0}, ["'minimum_items'", "greater than"]),
        ({"name": "bold_text", "minimum": 2}, ["'minimum'", "parameters: none"]),
        ({"name": "starts_with"}, ["'text'", "required"]),
        ({"name": "starts_with", "text": " \x1c"}, ["'text'", "blank"]),
        ({"name": "contains_any", "phrases": []}, ["'phrases'"]),
        ({"name": "contains_any", "phrases": "however"}, ["'phrases'"]),
        ({"name": "contains_any", "phrases": ["a", ""]}, ["'phrases.1'", "blank"]),
        ({"name": "upper_case", "minimum_share": 80}, ["'minimum_share'"]),
    ],
)
def test_wrong_specification_is_refused_in_one_clear_line(specification, fragments):
    with pytest.raises(ValueError) as error:
        parse_check(specification)
    message = str(error.value)
    assert not isinstance(error.value, ValidationError)
    assert "\n" not in message
    assert all(fragment in message for fragment in fragments), message


def test_checks_are_frozen_hashable_and_survive_a_round_trip():
    for name in CHECK_NAMES:
        original = check(name)
        assert parse_check(original.model_dump(mode="json")) == original
        assert hash(original) == hash(check(name))
        with pytest.raises(ValidationError):
            original.name = "bullet_list"


def test_checks_are_told_apart_inside_another_model():
    class Statement(BaseModel):
        check: AnyCheck

    statement = Statement.model_validate({"check": {"name": "minimum_words", "words": 3}})
    assert statement.check == check("minimum_words", words=3)
