"""Check an answer against the statements of its constitution."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from sami_pipeline.evaluation.checks import parse_check
from sami_pipeline.evaluation.degeneration import is_degenerate

STATEMENT_COLUMNS = (
    "model",
    "question_id",
    "category",
    "turn",
    "constitution",
    "principle",
    "stance",
    "check",
    "passed",
    "degenerate",
)


class CheckedStatement(NamedTuple):
    """One statement of a constitution and whether an answer follows it."""

    principle: str
    stance: str
    check: str
    passed: bool


def check_statements(
    text: str,
    stances: Sequence[tuple[str, str]],
    principles: pd.DataFrame,
    *,
    truncated: bool,
) -> list[CheckedStatement]:
    """Return the outcome of every verifiable statement.

    Args:
        text: the answer.
        stances: (principle, "principle" | "antithesis") pairs.
        principles: the rows of the answer's category, as from ``tabulate_principles``.
        truncated: the answer reached its token limit.
    """
    columns = {"principle": "check", "antithesis": "antithesis_check"}
    indexed = principles.set_index("principle")
    checked = []
    for principle, stance in stances:
        specification = indexed.loc[principle, columns[stance]]
        if specification:
            check = parse_check(json.loads(specification))
            passed = check.passes(text, truncated=truncated)
            checked.append(CheckedStatement(principle, stance, check.name, passed))
    return checked


def check_answers(answers: pd.DataFrame, principles: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (answer, statement of its constitution).

    Args:
        answers: ``model, question_id, category, turn, constitution, stances, answer,
            finish_reason``; answers under no constitution have no statements and no rows.
        principles: as from ``tabulate_principles``.

    Returns:
        ``model, question_id, category, turn, constitution, principle, stance, check, passed,
        degenerate``, the input of the checklist judge and of the compliance tables.
    """
    by_category = dict(tuple(principles.groupby("category")))
    rows = []
    for answer in answers.itertuples(index=False):
        degenerate = is_degenerate(answer.answer)
        for statement in check_statements(
            answer.answer,
            json.loads(answer.stances),
            by_category[answer.category],
            truncated=answer.finish_reason == "length",
        ):
            rows.append(
                {
                    "model": answer.model,
                    "question_id": answer.question_id,
                    "category": answer.category,
                    "turn": answer.turn,
                    "constitution": answer.constitution,
                    **statement._asdict(),
                    "degenerate": degenerate,
                }
            )
    dtypes = dict.fromkeys(
        ("model", "question_id", "category", "constitution", "principle", "stance", "check"), "str"
    ) | {"turn": int, "passed": bool, "degenerate": bool}
    return pd.DataFrame(rows, columns=list(STATEMENT_COLUMNS)).astype(dtypes)
