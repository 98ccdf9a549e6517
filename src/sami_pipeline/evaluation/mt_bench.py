"""The MT-Bench protocol: one or two turns a question, each category at its temperature.

arXiv 2306.05685; 80 questions, 10 in each of 8 categories.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from sami_pipeline import schemas
from sami_pipeline.parameters import EvaluationParameters
from sami_pipeline.principles.degeneration import is_degenerate

# Whose answers the second turn goes on from.
FOLLOWED = ("desired", "none")


def plan_first_turn(
    questions: pd.DataFrame, constitutions: pd.DataFrame, *, without_constitution: bool
) -> pd.DataFrame:
    """Return what is asked at turn 1: every question under each of its constitutions.

    Args:
        questions: ``question_id, category, turn, question``.
        constitutions: ``query_id, constitution, stances, text``, where query_id is a question_id.
        without_constitution: also ask every question under none.

    Returns:
        ``question_id, category, turn, question, constitution, stances, text``; text is None
        under no constitution.
    """
    first = questions[questions["turn"] == 1][["question_id", "category", "turn", "question"]]
    columns = ["query_id", "constitution", "stances", "text"]
    asked = first.merge(
        constitutions[columns], left_on="question_id", right_on="query_id", validate="1:m"
    ).drop(columns="query_id")
    if without_constitution:
        bare = first[first["question_id"].isin(constitutions["query_id"])].assign(
            constitution="none", stances="[]", text=None
        )
        asked = pd.concat([asked, bare], ignore_index=True)
    return asked


def plan_second_turn(first_turn: pd.DataFrame, questions: pd.DataFrame) -> pd.DataFrame:
    """Return what is asked at turn 2, with the first turn's question and answer.

    The second turn follows the answers under the desired constitution and under none; the
    contrasting one is asked at turn 1 only.

    Args:
        first_turn: the rows of ``plan_first_turn`` with their ``answer``.
        questions: all turns.
    """
    second = questions[questions["turn"] == 2][["question_id", "turn", "question"]]
    followed = first_turn[first_turn["constitution"].isin(FOLLOWED)]
    followed = followed.rename(columns={"question": "first_question", "answer": "first_answer"})
    columns = ["question_id", "category", "constitution", "stances", "text"]
    return followed[[*columns, "first_question", "first_answer"]].merge(
        second, on="question_id", validate="m:1"
    )


def requests_per_question(parameters: EvaluationParameters, turns: int) -> int:
    """Return how many answers a model gives to a question; see the plans of both turns.

    Args:
        parameters: under which constitutions is asked.
        turns: of the question, 1 or 2.
    """
    bare = int(parameters.without_constitution)
    first_alone = int(parameters.contrasting) + int(parameters.trained_wording)
    return 1 + first_alone + bare + (turns - 1) * (1 + bare)


def answer_questions(
    model: str,
    questions: pd.DataFrame,
    constitutions: pd.DataFrame,
    generate: Callable[[pd.DataFrame, str], pd.DataFrame],
    *,
    without_constitution: bool,
) -> pd.DataFrame:
    """Return a model's answers to the turns of every question, of which there are one or two.

    Args:
        model: its name.
        questions: see ``plan_first_turn``.
        constitutions: see ``plan_first_turn``.
        generate: takes the planned rows and a description, returns them with ``prompt, answer,
            finish_reason, prompt_tokens, completion_tokens``.
        without_constitution: see ``plan_first_turn``.

    Returns:
        The rows of `schemas.Answers`: one per (question, turn, constitution).
    """
    planned = plan_first_turn(questions, constitutions, without_constitution=without_constitution)
    answers = generate(planned, f"{model}: turn 1")
    if (questions["turn"] == 2).any():
        second = generate(plan_second_turn(answers, questions), f"{model}: turn 2")
        answers = pd.concat([answers, second], ignore_index=True)
    answers = answers.assign(model=model)
    answers["degenerate"] = [is_degenerate(text) for text in answers["answer"]]
    answers = answers.sort_values(["question_id", "turn", "constitution"], ignore_index=True)
    return schemas.Answers.tabulate(answers)


WRONG_REFERENCES = frozenset(
    map(str, (104, 105, 109, 111, 113, 114, 120, 122, 124, 125, 126, 128, 130))
)
"""Questions whose GPT-4 reference answer is wrong, as pull request 3158 of FastChat lists them."""


def references(
    question_id: str, own: Sequence[str] | None, published: Sequence[str] | None
) -> list[str]:
    """Return the reference answer to each turn of a question, "" where there is none.

    Args:
        question_id: the question's id.
        own: what the question file itself gives, where it does.
        published: GPT-4's answers, where there are any; left out where they are wrong.
    """
    if question_id in WRONG_REFERENCES:
        published = None
    turns = [[*(given or ()), "", ""][:2] for given in (own, published)]
    return [first or second for first, second in zip(*turns, strict=True)]


def with_published_references(questions: pd.DataFrame) -> pd.DataFrame:
    """Return questions with GPT-4's reference answers, the wrong ones too, where there are any."""
    if "published_reference" not in questions:  # of one's own
        return questions
    return questions.assign(reference=questions["published_reference"])


def asked_questions(questions: pd.DataFrame, parameters: EvaluationParameters) -> pd.DataFrame:
    """Return what is asked: the first questions of each category, up to as many turns as wanted.

    Args:
        questions: ``question_id, category, turn``, one row a turn.
        parameters: ``questions_per_category`` and ``turns``.
    """
    questions = questions[questions["turn"] <= parameters.turns]
    per_category = parameters.questions_per_category
    if per_category is None:
        return questions
    ids = questions.drop_duplicates("question_id").groupby("category").head(per_category)
    return questions[questions["question_id"].isin(ids["question_id"])]
