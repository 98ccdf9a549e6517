"""Steerability: how much more a model follows a statement that it is asked to follow.

A model may follow a principle often because it always does so, whatever it is asked. Here the same
question is answered twice, once asked for the statement and once for its opposite, and the
difference counts: an answer that does not depend on the constitution has a steerability of 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pandas as pd
import pandera.pandas as pa
from pandera.typing import Series

from sami_pipeline.evaluation.intervals import DIFFERENCE, mean_interval, paired_p
from sami_pipeline.evaluation.seeds import (
    OPPONENT_SEED,
    SEED,
    Lineage,
    seed_columns,
    seed_pairs,
    seeds_in,
)
from sami_pipeline.evaluation.statistics import (
    ALL_PRINCIPLES,
    ANSWER_KEY,
    OVERALL,
    by_category,
    by_constitution,
    complies,
    estimates,
    with_clusters,
    with_corrected_p,
)
from sami_pipeline.parameters import JudgedParameters, ModelsParameters
from sami_pipeline.principles.constitutions import OPPOSITE, TRAINED_WORDING
from sami_pipeline.principles.statements import check_answers
from sami_pipeline.result_tables.record import ResultTable
from sami_pipeline.result_tables.shown import Estimate, Table
from sami_pipeline.tables import StoredTable, columns_of

_STATEMENT = ["question_id", "principle", "stance"]
_COMPARISON = ["model", "baseline", "constitution", "stance", "principle"]


class Contract(pa.DataFrameModel):
    """One row is how much more a model follows a statement when it is asked to, in one category.

    ``steerability`` is the mean over questions of a difference of two answers at the first turn, in
    [-1, 1]: whether the statement is followed where ``constitution`` asks for it, less whether it
    is followed where its opposite is asked for. With a ``baseline`` it is what the model has more
    than the baseline; without ("") the p-values say whether it could be 0. ``n`` counts questions.
    """

    model: Series[str]
    baseline: Series[str]
    constitution: Series[str]
    stance: Series[str] = pa.Field(isin=list(OPPOSITE))
    principle: Series[str]
    category: Series[str] = pa.Field(str_length={"min_value": 1})
    n: Series[int] = pa.Field(ge=1)
    rows: Series[int] = pa.Field(ge=1)
    seeds: Series[int] | None = pa.Field(ge=0)
    steerability: Series[float] = pa.Field(ge=-2, le=2)
    ci_low: Series[float] = pa.Field(ge=-2, le=2, nullable=True)
    ci_high: Series[float] = pa.Field(ge=-2, le=2, nullable=True)
    detectable: Series[float] = pa.Field(ge=0, nullable=True)
    p_value: Series[float] = pa.Field(gt=0, le=1, nullable=True)
    p_holm: Series[float] = pa.Field(gt=0, le=1, nullable=True)

    class Config:
        """Columns are exactly those named; these together name a row."""

        strict = True
        unique = (*_COMPARISON, "category")


def paired_statements(
    answers: pd.DataFrame | StoredTable, principles: pd.DataFrame
) -> pd.DataFrame:
    """Return whether a statement is followed where it is asked for, and where its opposite is.

    Args:
        answers: as ``check_answers`` takes them; those of the first turn count.
        principles: as from ``tabulate_principles``.

    Returns:
        One row per (model, question_id, principle, stance) whose statement is asked for under one
        constitution and its opposite under another: ``category``, ``constitution`` (the one that
        asks for it) and ``gain``, which is 1, 0 or -1. A principle for which a question has only
        one stance, as sampled contrasts can have, has no row.
    """
    columns = ["model", *ANSWER_KEY, "category", "stances", "answer", "finish_reason", "degenerate"]
    first = columns_of(answers, [*columns, SEED])
    statement = [*_STATEMENT, *seed_columns(first)]
    first = first[(first["turn"] == 1) & (first["constitution"] != TRAINED_WORDING)]
    swapped = first.assign(
        stances=[
            json.dumps([[principle, OPPOSITE[stance]] for principle, stance in json.loads(each)])
            for each in first["stances"]
        ]
    )
    sides = []
    for asked, rows in ((True, first), (False, swapped)):
        checked = check_answers(rows, principles)
        kept = checked[["model", *statement, "category", "constitution"]]
        sides.append(kept.assign(followed=complies(checked)).drop_duplicates(["model", *statement]))
        if not asked:
            sides[-1] = sides[-1].drop(columns=["category", "constitution"])
    pairs = sides[0].merge(sides[1], on=["model", *statement], suffixes=("_asked", "_unasked"))
    gain = pairs["followed_asked"].astype(int) - pairs["followed_unasked"].astype(int)
    return pairs[["model", *statement, "category", "constitution"]].assign(gain=gain)


def steerability(
    answers: pd.DataFrame | StoredTable,
    principles: pd.DataFrame,
    baseline: str,
    lineage: Lineage | None = None,
) -> pd.DataFrame:
    """Return how much more each model follows what it is asked than what it is not.

    Args:
        answers: of all models under test, under both constitutions.
        principles: their statements and checks.
        baseline: the model that the others are compared with, question by question.
        lineage: see ``evaluation.seeds``.

    Returns:
        The rows of `Contract`, principle "all" (all statements of one stance) first.
    """
    pairs = paired_statements(answers, principles)
    values = dict(list(pairs.groupby("model", sort=False)))
    levels = [(model, "", rows, DIFFERENCE) for model, rows in values.items()]
    for model, rows in values.items():
        if model != baseline and baseline in values:
            compared = seed_pairs(pairs, model, baseline, lineage or {}) if SEED in pairs else None
            both = _on_the_same(rows, values[baseline], compared)
            gained = both.assign(gain=both["gain"] - both["gain_other"])
            levels.append((model, baseline, gained, (-2.0, 2.0)))
    records = []
    for model, other, rows, limits in levels:
        for constitution, stance, principle, category, cell in _cells(rows):
            options = {"limits": limits, "seeds": seeds_in(cell)}
            result = mean_interval(cell["gain"], cell["question_id"], **options)
            p_value = paired_p(cell["gain"], cell["question_id"], **options)
            key = (model, other, constitution, stance, principle, category)
            measures = (*result.counts, result.seeds, *result.bounds, result.detectable, p_value)
            records.append((*key, *measures))
    measures = ["steerability", "ci_low", "ci_high", "detectable", "p_value"]
    table = estimates(pairs, records, [*_COMPARISON, "category"], measures)
    return with_corrected_p(table, _COMPARISON, matches=["model"])


def _on_the_same(
    rows: pd.DataFrame, others: pd.DataFrame, compared: Sequence[tuple[int, int]] | None
) -> pd.DataFrame:
    """Return two models' gains on the same statements, of every pair of replicates compared."""
    if compared is None:
        return rows.merge(
            others, on=[*_STATEMENT, "category", "constitution"], suffixes=("", "_other"),
            validate="1:1",
        )  # fmt: skip
    return pd.concat(
        [
            _on_the_same(
                rows[rows[SEED] == seed], others[others[SEED] == other].drop(columns=SEED), None
            ).assign(**{OPPONENT_SEED: other})
            for seed, other in compared
        ],
        ignore_index=True,
    )


def _cells(pairs: pd.DataFrame) -> Iterator[tuple[str, str, str, str, pd.DataFrame]]:
    """Yield (constitution, stance, principle, category, rows)."""
    for constitution, under in by_constitution(pairs):
        for stance, asked in under.groupby("stance", sort=False):
            for principle, part in [
                (ALL_PRINCIPLES, asked),
                *asked.groupby("principle", sort=False),
            ]:
                for category, cell in by_category(with_clusters(part, ["category", "gain"])):
                    yield constitution, stance, principle, category, cell


def make(
    answers: pd.DataFrame | StoredTable, principles: pd.DataFrame, models: ModelsParameters
) -> pd.DataFrame:
    """Return the steerability of every model under test."""
    return steerability(answers, principles, models.baseline, models.lineage)


def _asks_for_opposites(parameters: JudgedParameters) -> bool:
    return parameters.evaluation.contrasting


TABLE = ResultTable(
    name="steerability",
    make=make,
    inputs={"answers": "answers", "principles": "principles", "models": "params:models"},
    wanted=_asks_for_opposites,
    shown=Table(
        "steerability",
        "results",
        "Steerability",
        "How much more often a statement is followed where it is asked for than where its "
        "opposite is, in percentage points, on the same questions at the first turn. An answer "
        "that does not depend on the constitution has 0. 95 % intervals over questions.",
        rows=("stance", "principle"),
        columns=("model", "baseline"),
        estimate=Estimate("steerability", signed=True, parity=0.0),
        where={"category": (OVERALL,)},
    ),
)
