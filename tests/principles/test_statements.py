import json

import pandas as pd
import pytest

from sami_pipeline.principles.constitutions import tabulate_principles
from sami_pipeline.principles.statements import CheckedStatement, check_answers, check_statements
from sami_pipeline.schemas import Checked

LOOP = "I knead my dough. " * 40

PRINCIPLES = tabulate_principles(
    {
        "writing.yml": {
            "category": "writing",
            "principles": [
                {
                    "id": "brief",
                    "principle": "Be brief.",
                    "antithesis": "Say a lot.",
                    "check": {"name": "maximum_words", "words": 5},
                    "antithesis_check": {"name": "minimum_words", "words": 8},
                },
                {
                    "id": "numbers",
                    "principle": "Use numbers.",
                    "antithesis": "Use no numbers.",
                    "check": {"name": "contains_digit"},
                    "antithesis_check": {"name": "no_digit"},
                },
                {"id": "kind", "principle": "Be kind.", "antithesis": "Be rude."},
            ],
        },
        "math.yml": {
            "category": "math",
            "principles": [
                # The same id as in writing, with the checks the other way round.
                {
                    "id": "numbers",
                    "principle": "Use no numbers.",
                    "antithesis": "Use numbers.",
                    "check": {"name": "no_digit"},
                    "antithesis_check": {"name": "contains_digit"},
                }
            ],
        },
    }
)
WRITING = PRINCIPLES[PRINCIPLES["category"] == "writing"]
ALL = [("brief", "principle"), ("numbers", "principle"), ("kind", "principle")]
NONE = [(name, "antithesis") for name, _ in ALL]


def outcomes(text, stances, truncated=False) -> dict[str, bool]:
    checked = check_statements(text, stances, WRITING, truncated=truncated)
    return {statement.principle: statement.passed for statement in checked}


def test_principle_is_judged_by_its_check_and_antithesis_by_the_other():
    assert outcomes("Take 3 eggs.", ALL) == {"brief": True, "numbers": True}
    assert outcomes("Take 3 eggs.", NONE) == {"brief": False, "numbers": False}
    long = "Take as many eggs as you can carry home"
    assert outcomes(long, ALL) == {"brief": False, "numbers": False}
    assert outcomes(long, NONE) == {"brief": True, "numbers": True}


def test_antithesis_is_not_merely_the_principle_denied():
    """Six words are neither at most five nor at least eight; swapped checks would show here."""
    six = "Take some eggs and beat them"
    assert outcomes(six, [("brief", "principle")]) == {"brief": False}
    assert outcomes(six, [("brief", "antithesis")]) == {"brief": False}


def test_stances_may_be_mixed_and_keep_their_order():
    stances = [("numbers", "antithesis"), ("brief", "principle")]
    assert check_statements("Beat the eggs.", stances, WRITING, truncated=False) == [
        CheckedStatement(
            "numbers", "antithesis", "no_digit", "no digit", "no digit; no digit asked", True
        ),
        CheckedStatement(
            "brief",
            "principle",
            "maximum_words",
            "at most 5 words",
            "3 words; at most 5 words asked",
            True,
        ),
    ]


def test_statements_without_a_check_have_no_outcome():
    assert outcomes("Anything.", [("kind", "principle"), ("kind", "antithesis")]) == {}


def test_answer_that_was_cut_off_cannot_be_known_to_be_brief():
    assert outcomes("Take 3 eggs", ALL, truncated=True) == {"brief": False, "numbers": True}


def answer(text, stances, category="writing", **changes) -> dict:
    return {
        "model": "base",
        "question_id": "81",
        "category": category,
        "turn": 1,
        "constitution": "desired",
        "stances": json.dumps(stances),
        "answer": text,
        "finish_reason": "stop",
    } | changes


def test_every_statement_of_every_answer_has_a_row_that_names_both():
    answers = pd.DataFrame(
        [
            answer("Take 3 eggs.", ALL),
            answer("Take 3 eggs.", NONE, constitution="contrasting"),
            answer("Eggs.", ALL, model="sami"),
            answer("Take 3.", [("numbers", "principle")], "math", question_id="111", turn=2),
        ]
    )
    checked = check_answers(answers, PRINCIPLES)
    Checked.validate(checked)
    key = ["model", "question_id", "turn", "constitution", "principle"]
    assert checked.set_index(key)["passed"].to_dict() == {
        ("base", "81", 1, "desired", "brief"): True,
        ("base", "81", 1, "desired", "numbers"): True,
        ("base", "81", 1, "contrasting", "brief"): False,
        ("base", "81", 1, "contrasting", "numbers"): False,
        ("sami", "81", 1, "desired", "brief"): True,
        ("sami", "81", 1, "desired", "numbers"): False,
        # The category's own principles count: in math the same id asks for the opposite.
        ("base", "111", 2, "desired", "numbers"): False,
    }


def test_answers_under_no_constitution_have_no_statements():
    answers = pd.DataFrame([answer("Eggs.", ALL), answer("Eggs.", [], constitution="none")])
    assert set(check_answers(answers, PRINCIPLES)["constitution"]) == {"desired"}


@pytest.mark.parametrize(("reason", "passed"), [("stop", True), ("length", False)])
def test_finish_reason_decides_whether_an_ending_can_be_judged(reason, passed):
    table = check_answers(pd.DataFrame([answer("Eggs.", ALL, finish_reason=reason)]), PRINCIPLES)
    assert table.set_index("principle").loc["brief", "passed"] == passed


def test_rows_of_an_answer_that_repeats_itself_say_so():
    answers = pd.DataFrame([answer(LOOP, ALL), answer("Eggs.", ALL, question_id="82")])
    checked = check_answers(answers, PRINCIPLES)
    assert checked.groupby("question_id")["degenerate"].agg(set).to_dict() == {
        "81": {True},
        "82": {False},
    }


def test_nothing_to_check_gives_an_empty_table_that_the_catalog_accepts():
    answers = pd.DataFrame([answer("Eggs.", [("kind", "principle")])])
    checked = check_answers(answers, PRINCIPLES)
    assert checked.empty
    Checked.validate(checked)
