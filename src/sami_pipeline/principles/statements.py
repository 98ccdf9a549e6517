"""Check an answer against the statements of its constitution."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from sami_pipeline import schemas
from sami_pipeline.evaluation.seeds import SEED, seed_columns
from sami_pipeline.principles.checks import Check, parse_check
from sami_pipeline.principles.degeneration import is_degenerate
from sami_pipeline.tables import StoredTable, parts_of

_ANSWER = ("model", "question_id", "category", "turn", "constitution")


class CheckedStatement(NamedTuple):
    """One statement of a constitution and whether an answer follows it.

    Attributes:
        principle: the principle's id.
        stance: "principle" or "antithesis".
        check: the check's name.
        asked: what the check asks for in words, which may be looser than the statement.
        evidence: by what the answer was judged ("40 words; at most 30 words asked").
        passed: whether the answer passes the check.
    """

    principle: str
    stance: str
    check: str
    asked: str
    evidence: str
    passed: bool


class StatementChecks:
    """The checks of one category's statements, each parsed once.

    Args:
        principles: the rows of the category, as from ``tabulate_principles``.
    """

    def __init__(self, principles: pd.DataFrame) -> None:
        self._checks: dict[tuple[str, str], Check | None] = {
            (principle, stance): parse_check(json.loads(specification)) if specification else None
            for stance, column in (("principle", "check"), ("antithesis", "antithesis_check"))
            for principle, specification in zip(
                principles["principle"], principles[column], strict=True
            )
        }

    def outcomes(
        self, text: str, stances: Sequence[tuple[str, str]], *, truncated: bool
    ) -> list[CheckedStatement]:
        """Return the outcome of every verifiable statement; see ``check_statements``."""
        statements = []
        for principle, stance in stances:
            if (check := self._checks[principle, stance]) is not None:
                passed, evidence = check.judge(text, truncated=truncated)
                statements.append(
                    CheckedStatement(principle, stance, check.name, check.asked, evidence, passed)
                )
        return statements


def checks_by_category(principles: pd.DataFrame) -> dict[str, StatementChecks]:
    """Return the checks of each category's statements."""
    return {category: StatementChecks(rows) for category, rows in principles.groupby("category")}


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
    return StatementChecks(principles).outcomes(text, stances, truncated=truncated)


def check_answers(answers: pd.DataFrame | StoredTable, principles: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (answer, statement of its constitution).

    Args:
        answers: ``model, question_id, category, turn, constitution, stances, answer,
            finish_reason`` and, where they are known, ``degenerate`` and ``seed``; answers under no
            constitution have no statements and no rows.
        principles: as from ``tabulate_principles``.

    Returns:
        The rows of `schemas.Checked`, with ``seed`` if the answers have it: the input of the
        checklist judge and of the compliance tables.
    """
    checks = checks_by_category(principles)
    tables = [schemas.Checked.empty()]
    read = [*_ANSWER, "stances", "answer", "finish_reason"]
    for part in parts_of(answers, [*read, "degenerate", SEED]):
        if "degenerate" not in part:
            part = part.assign(degenerate=[is_degenerate(text) for text in part["answer"]])
        # The training seed follows, where there are several.
        kept = ["degenerate", *seed_columns(part)]
        columns = [part[column].tolist() for column in read]
        rest = zip(*(part[column].tolist() for column in kept), strict=True)
        rows = [
            (*key, *statement, *own)
            for *key, stances, text, reason, own in zip(*columns, rest, strict=True)
            for statement in checks[key[2]].outcomes(
                text, json.loads(stances), truncated=reason == "length"
            )
        ]
        names = [*_ANSWER, *CheckedStatement._fields, *kept]
        tables.append(schemas.Checked.tabulate(pd.DataFrame(rows, columns=names)))
    return pd.concat(tables if len(tables) == 1 else tables[1:], ignore_index=True)
