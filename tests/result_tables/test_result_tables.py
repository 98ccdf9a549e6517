"""Steerability and controls on answers whose worth is known."""

import json
from importlib import import_module

import numpy as np
import pandas as pd
import pytest

from sami_pipeline.errors import InputError
from sami_pipeline.evaluation.checklist import judge_checklist
from sami_pipeline.evaluation.length_control import length_controlled
from sami_pipeline.evaluation.statistics import (
    compliance_difference,
    degeneration,
    win_rates,
)
from sami_pipeline.pipelines import mt_bench_eval
from sami_pipeline.pipelines.mt_bench_eval.nodes.answering import constitute_questions
from sami_pipeline.principles.constitutions import tabulate_principles
from sami_pipeline.principles.statements import check_answers
from sami_pipeline.reporting.outcome import outcome
from sami_pipeline.result_tables import compliance_by_wording, controls, steerability
from sami_pipeline.result_tables.registry import RESULT_TABLES
from sami_pipeline.schemas import Constitutions
from sami_pipeline.session.experiments import experiment_parameters

QUESTIONS = 24
PRINCIPLES = tabulate_principles(
    {
        "math.yml": {
            "category": "math",
            "principles": [
                {
                    "id": "list", "principle": "Use a list.", "antithesis": "Use no list.",
                    "check": {"name": "bullet_list", "minimum_items": 2},
                    "antithesis_check": {"name": "flowing_prose"},
                },
                {
                    "id": "long", "principle": "Write a lot.", "antithesis": "Write little.",
                    "check": {"name": "minimum_words", "words": 20},
                    "antithesis_check": {"name": "maximum_words", "words": 19},
                },
            ],
        }
    }
)  # fmt: skip
LIST = (
    "- The first point is about {}.\n- The second one is about something else, at some length, so "
    "that it is long enough."
)
PROSE = "It is about {}."


def answers(**texts) -> pd.DataFrame:
    """Answers of each model: a function of question, turn and constitution."""
    stances = {
        "desired": [["list", "principle"], ["long", "principle"]],
        "contrasting": [["list", "antithesis"], ["long", "antithesis"]],
    }
    return pd.DataFrame(
        [
            (
                model, f"q{question:02}", "math", turn, constitution,
                json.dumps(stances[constitution]), text(question, turn, constitution), "stop", 9,
                False,
            )
            for model, text in texts.items()
            for question in range(QUESTIONS)
            for turn, constitution in ((1, "desired"), (2, "desired"), (1, "contrasting"))
        ],
        columns=[
            "model", "question_id", "category", "turn", "constitution", "stances", "answer",
            "finish_reason", "completion_tokens", "degenerate",
        ],
    )  # fmt: skip


ASKED = pd.DataFrame(
    [(f"q{n:02}", turn, f"What about number {n}?") for n in range(QUESTIONS) for turn in (1, 2)],
    columns=["question_id", "turn", "question"],
)


def obeys(question: int, turn: int, constitution: str) -> str:
    return (LIST if constitution == "desired" else PROSE).format(f"{question} at turn {turn}")


def always_a_list(question: int, turn: int, constitution: str) -> str:
    return LIST.format(f"{question} at turn {turn}")


def constant(question: int, turn: int, constitution: str) -> str:
    return LIST.format("nothing")


def tables_of(given: pd.DataFrame, judge=None, *, controlled=True) -> dict[str, pd.DataFrame]:
    """All tables that the words of the outcome are made from, or all but the controls."""
    checked = check_answers(given, PRINCIPLES)
    verdicts = judge_checklist(checked, "sami", "base")
    if judge is not None:
        verdicts = judge(verdicts, given)
    tables = {
        "win_rates": win_rates(verdicts),
        "length_controlled": length_controlled(verdicts, given, resamples=200, seed=0),
        "compliance_difference": compliance_difference(checked, "base"),
        "degeneration": degeneration(given),
        "steerability": steerability.steerability(given, PRINCIPLES, "base"),
    }
    if controlled:
        tables["controls"] = controls.controls(given, ASKED, PRINCIPLES, "base")
    return tables


def overall(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["category"] == "overall") & (table["principle"] == "all")]


# steerability


def test_who_obeys_is_steered_and_who_always_does_the_same_is_not():
    table = steerability.steerability(answers(base=always_a_list, sami=obeys), PRINCIPLES, "base")
    steerability.Contract.validate(table)
    levels = overall(table).set_index(["model", "baseline", "stance"])["steerability"]
    assert levels["base", ""].tolist() == [0, 0]
    assert levels["sami", ""].tolist() == [1, 1]
    assert levels["sami", "base"].tolist() == [1, 1]
    assert set(table["n"]) == {QUESTIONS}
    tested = overall(table).set_index(["model", "baseline"])["p_value"]
    assert (tested["base", ""] == 1).all() and (tested["sami", ""] < 1e-6).all()


def test_a_principle_that_a_question_has_in_one_stance_only_says_nothing():
    given = answers(base=obeys)
    same = json.dumps([["list", "principle"], ["long", "antithesis"]])
    given.loc[given["constitution"] == "contrasting", "stances"] = same
    table = steerability.steerability(given, PRINCIPLES, "base")
    assert set(table["principle"]) == {"all", "long"}


def test_without_contrasting_answers_there_is_no_steerability():
    given = answers(base=obeys, sami=obeys)
    table = steerability.steerability(given[given["constitution"] == "desired"], PRINCIPLES, "base")
    assert steerability.Contract.validate(table).empty


# controls


def controls_of(**texts) -> pd.DataFrame:
    table = controls.controls(answers(**texts), ASKED, PRINCIPLES, "base")
    return controls.Contract.validate(table).set_index(["control", "model", "constitution"])


def test_constant_texts_win_where_the_opponent_does_not_do_what_it_is_asked():
    table = controls_of(base=always_a_list, sami=obeys)
    table = table.set_index("opponent", append=True)["value"]
    key = ("constant_text_a_constitution", "constant")
    assert table[*key, "contrasting", "base"] == 1, "a short text beats a list that was not wanted"
    assert table[*key, "desired", "base"] == 0.5
    assert table[*key, "contrasting", "sami"] == 0.5
    assert table["constant_text", "constant", "desired", "sami"] <= 0.5


def test_an_answer_is_level_with_itself_and_with_itself_moved_to_another_question():
    table = controls_of(base=always_a_list, sami=always_a_list)["value"]
    assert (table.loc["against_itself"] == 0.5).all()
    assert (table.loc["other_questions"] == 0.5).all(), "the checklist does not see relevance"


def test_repetition_is_counted_where_it_is():
    repeating = {
        "base": lambda question, turn, constitution: f"What about number {question}?",
        "sami": lambda question, turn, constitution: LIST.format(question),
    }
    table = controls_of(**repeating)["value"]
    assert table["repeats_question", "base", "desired"] == 1
    assert table["repeats_question", "sami", "desired"] == 0
    assert table["repeats_first_answer", "sami", "desired"] == 1
    assert ("repeats_first_answer", "sami", "contrasting") not in table, "one turn"
    assert table["distinct_answers", "sami", "desired"] == 1
    assert (
        controls_of(base=obeys, sami=constant)["value"]["distinct_answers", "sami", "desired"] == 0
    )


@pytest.mark.parametrize(
    ("text", "source", "expected"),
    [
        ("What about number 7?", "what about NUMBER 7", True),
        ("Seven is a prime number.", "What about number 7?", False),
        ("number", "What about number 7?", True),
        ("", "What about number 7?", False),
        ("!!!", "!!!", False),
    ],
)
def test_a_text_repeats_another_if_it_holds_little_else(text, source, expected):
    assert controls.repeats_text(text, source) == expected


# What nobody may read as a win


def test_an_honest_win_is_called_one():
    def half(question, turn, constitution):
        """Half of the answers are prose, of these half shorter than SAMI's list, half longer."""
        if question % 2 == 0:
            return obeys(question, turn, constitution)
        return PROSE.format(question) if question % 4 == 1 else f"{question} " + 60 * "is a number "

    given = answers(base=half, sami=obeys)
    # By a judge that meaningless texts were not put to.
    said = outcome(tables_of(given, lambda verdicts, _: verdicts.assign(judge="pairwise")))
    assert "under the desired constitution, at the first turn" in said
    assert "sami beats base (75.0 %" in said
    # The checklist gives as much to a constant text.
    said = outcome(tables_of(given))
    assert "sami beats base" not in said
    assert "which is no win: a constant text wins against base as often" in said


def test_a_win_by_the_longer_answers_alone_is_doubted():
    def half(question, turn, constitution):
        return PROSE.format(question) if question % 2 else obeys(question, turn, constitution)

    said = outcome(tables_of(answers(base=half, sami=obeys)))
    assert "sami beats base" not in said
    assert "sami is preferred to base" in said
    assert "which is no win" in said


@pytest.mark.parametrize("base", [obeys, always_a_list])
def test_constant_answers_win_nothing(base):
    said = outcome(tables_of(answers(base=base, sami=constant)))
    assert "sami beats" not in said


def test_of_two_constant_texts_neither_wins():
    def prose(question, turn, constitution):
        return PROSE.format("nothing")

    for first, second in ((prose, constant), (constant, prose)):
        said = outcome(tables_of(answers(base=first, sami=second)))
        assert "beats" not in said, "whichever of two constant texts is preferred"
        assert "only 0 % of the answers" in said or "can be seen" in said


def test_random_answers_are_seldom_told_apart():
    claimed = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)

        def guess(question, turn, constitution, generator=generator):
            text = LIST if generator.random() < 0.5 else PROSE
            return text.format(f"{question} {turn} {generator.integers(1000)}")

        # The controls can only take a claim back, and take two thirds of the time.
        said = outcome(tables_of(answers(base=guess, sami=guess), controlled=False))
        claimed += "beats" in said or "loses to" in said
    assert claimed <= 2


def test_verdicts_of_length_alone_are_no_win():
    def longer(question, turn, constitution):
        return LIST.format(f"{question} {turn}" + " and more" * (question % 7))

    def shorter(question, turn, constitution):
        return LIST.format(f"{question} {turn}" + " and more" * (3 if question % 6 == 0 else 0))

    def by_length(verdicts, given):
        size = given.assign(size=given["answer"].str.len())
        size = size.set_index(["model", "question_id", "turn", "constitution"])["size"]
        key = verdicts[["question_id", "turn", "constitution"]].itertuples(index=False, name=None)
        lead = [size["sami", *each] - size["base", *each] for each in key]
        return verdicts.assign(
            judge="pairwise", winner=np.select([np.array(lead) > 0, np.array(lead) < 0],
                                               ["model", "opponent"], "tie"),
        )  # fmt: skip

    tables = tables_of(answers(base=shorter, sami=longer), by_length)
    plain = tables["win_rates"]
    plain = plain[(plain["category"] == "overall") & (plain["turn"] == "1")]
    assert (plain["p_holm"] < 0.05).all(), "taken alone it looks like a win"
    said = outcome(tables)
    assert "sami beats base" not in said
    assert "with length held equal no difference can be seen" in said


# The registry


def test_every_table_is_in_the_file_of_its_name_with_its_contract():
    for table in RESULT_TABLES:
        module = import_module(f"sami_pipeline.result_tables.{table.name}")
        assert module.TABLE is table
        assert module.Contract.__doc__.startswith("One row is ")
        assert table.shown.name == table.name


def test_without_the_contrasting_constitution_no_question_is_asked_under_it():
    parameters = experiment_parameters("mt_bench")
    evaluation = parameters.evaluation.model_copy(update={"contrasting": False})
    questions = ASKED.assign(category="math")
    asked = constitute_questions(questions, PRINCIPLES, evaluation)
    assert set(asked["constitution"]) == {"desired"}
    assert asked["query_id"].nunique() == QUESTIONS
    both = constitute_questions(questions, PRINCIPLES, parameters.evaluation)
    assert set(both["constitution"]) == {"desired", "contrasting"}
    graph = mt_bench_eval.create_pipeline(parameters.model_copy(update={"evaluation": evaluation}))
    assert "steerability" not in graph.all_outputs() and "controls" in graph.all_outputs()
    assert "steerability" in mt_bench_eval.create_pipeline(parameters).all_outputs()


# compliance by wording


def in_both_wordings(**texts) -> pd.DataFrame:
    """Answers whose contrasting constitution is the desired one in its training words instead."""
    given = answers(**texts)
    trained = given["constitution"] == "contrasting"
    desired = json.dumps([["list", "principle"], ["long", "principle"]])
    given.loc[trained, "stances"] = desired
    given.loc[trained, "constitution"] = "desired_trained_wording"
    return given


def test_who_follows_the_trained_words_alone_is_told_from_who_follows_both():
    def words_alone(question: int, turn: int, constitution: str) -> str:
        return (LIST if constitution == "contrasting" else PROSE).format(question)

    given = in_both_wordings(base=always_a_list, sami=words_alone)
    table = compliance_by_wording.compliance_by_wording(check_answers(given, PRINCIPLES))
    compliance_by_wording.Contract.validate(table)
    rows = overall(table).set_index(["model", "wording"])
    assert rows["compliance"].to_dict() == {
        ("base", "trained"): 1.0, ("base", "unseen"): 1.0, ("base", "trained - unseen"): 0.0,
        ("sami", "trained"): 1.0, ("sami", "unseen"): 0.0, ("sami", "trained - unseen"): 1.0,
    }  # fmt: skip
    assert rows.loc[("sami", "trained - unseen"), ["n", "rows"]].tolist() == [24, 48]
    assert rows.loc[("sami", "trained - unseen"), "p_holm"] < 0.001
    assert rows.loc[("base", "trained - unseen"), "p_holm"] == 1
    said = outcome({"compliance_by_wording": table})
    assert "unseen ones (no difference can be seen, 0.0 points" in said
    assert "unseen ones (+" not in said
    assert "in trained words, 0.0 % [" in said
    assert said.count("(no difference") == 1, "of base alone"


def test_answers_without_checks_give_an_empty_table():
    unchecked = PRINCIPLES.assign(check="", antithesis_check="")
    table = compliance_by_wording.compliance_by_wording(
        check_answers(in_both_wordings(sami=obeys), unchecked)
    )
    compliance_by_wording.Contract.validate(table)
    assert table.empty


def test_questions_are_asked_in_the_training_words_where_evaluation_has_others():
    own = {"id": "a", "principle": "Surely do.", "antithesis": "Never do."}
    other = own | {"evaluation": {"principle": "Do."}}
    principles = tabulate_principles(
        {
            "math.yml": {"category": "math", "principles": [other]},
            "stem.yml": {"category": "stem", "principles": [own]},
        }
    )
    questions = pd.DataFrame(
        {"question_id": ["1", "2"], "category": ["math", "stem"], "turn": 1, "question": "?"}
    )
    evaluation = experiment_parameters("mt_bench").evaluation
    asked = evaluation.model_copy(update={"trained_wording": True, "contrasting": False})
    table = constitute_questions(questions, principles, asked)
    Constitutions.validate(table)
    words = table.set_index(["query_id", "constitution"])["text"].to_dict()
    assert words == {
        ("1", "desired"): "Do.",
        ("1", "desired_trained_wording"): "Surely do.",
        ("2", "desired"): "Surely do.",
    }
    with pytest.raises(InputError, match="trained_wording: no principle is worded differently"):
        constitute_questions(questions[1:], principles, asked)
