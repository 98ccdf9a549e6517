"""Compliance under the wording that was trained on, and under one that was not.

A model may have learnt the words of its training constitutions rather than what they ask. Where
principles have another wording for evaluation, the same question is asked under both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandera.typing import Series

from sami_pipeline.evaluation.intervals import DIFFERENCE, SHARE, mean_interval, paired_p
from sami_pipeline.evaluation.seeds import seed_columns, seeds_in
from sami_pipeline.evaluation.statistics import (
    ALL_PRINCIPLES,
    DESIRED,
    OVERALL,
    by_category,
    complies,
    estimates,
    with_clusters,
    with_corrected_p,
)
from sami_pipeline.principles.constitutions import TRAINED_WORDING
from sami_pipeline.result_tables.record import ResultTable
from sami_pipeline.result_tables.shown import Estimate, Table

if TYPE_CHECKING:
    from sami_pipeline.parameters import JudgedParameters

WORDINGS = ("trained", "unseen", "trained - unseen")
_KEY = ["model", "wording", "principle"]


class Contract(pa.DataFrameModel):
    """One row is how often a model follows principles in one wording, or the paired difference.

    ``compliance`` is a share of statements of the desired constitution at the first turn, asked in
    the words of training ("trained") or of evaluation ("unseen"); of "trained - unseen" it is a
    difference in [-1, 1] on the same questions, whose p-values say whether it could be 0. ``n``
    counts questions, ``rows`` statements.
    """

    model: Series[str]
    wording: Series[str] = pa.Field(isin=WORDINGS)
    principle: Series[str]
    category: Series[str] = pa.Field(str_length={"min_value": 1})
    n: Series[int] = pa.Field(ge=1)
    rows: Series[int] = pa.Field(ge=1)
    seeds: Series[int] | None = pa.Field(ge=0)
    compliance: Series[float] = pa.Field(ge=-1, le=1)
    ci_low: Series[float] = pa.Field(ge=-1, le=1, nullable=True)
    ci_high: Series[float] = pa.Field(ge=-1, le=1, nullable=True)
    detectable: Series[float] = pa.Field(ge=0, nullable=True)
    p_value: Series[float] = pa.Field(gt=0, le=1, nullable=True)
    p_holm: Series[float] = pa.Field(gt=0, le=1, nullable=True)

    class Config:
        """Columns are exactly those named; these together name a row."""

        strict = True
        unique = (*_KEY, "category")


def compliance_by_wording(checked: pd.DataFrame) -> pd.DataFrame:
    """Return how often each model follows the principles in either wording, and the difference.

    Args:
        checked: as from ``check_answers``; questions that were asked in one wording alone are left
            out, since their principles have no other.

    Returns:
        The rows of `Contract`, principle "all" first.
    """
    first = checked[checked["turn"] == 1]
    first = first.assign(followed=complies(first).astype(float))
    statement = ["model", "question_id", "principle", "category", *seed_columns(first)]
    sides = {
        wording: first.loc[first["constitution"] == constitution, [*statement, "followed"]]
        for wording, constitution in zip(WORDINGS, (TRAINED_WORDING, DESIRED), strict=False)
    }
    trained, unseen, change = WORDINGS
    pairs = sides[trained].merge(sides[unseen], on=statement, suffixes=("", "_unseen"))
    pairs = pairs.rename(columns={"followed": trained, "followed_unseen": unseen})
    pairs[change] = pairs[trained] - pairs[unseen]
    records = []
    for model, rows in pairs.groupby("model", sort=False):
        for principle, part in [
            (ALL_PRINCIPLES, rows),
            *rows.groupby("principle", sort=False),
        ]:
            for category, cell in by_category(with_clusters(part, ["category", *WORDINGS])):
                for wording in WORDINGS:
                    limits = DIFFERENCE if wording == change else SHARE
                    options = {"limits": limits, "seeds": seeds_in(cell)}
                    result = mean_interval(cell[wording], cell["question_id"], **options)
                    tested = (np.nan, np.nan)
                    if wording == change:
                        p_value = paired_p(cell[wording], cell["question_id"], **options)
                        tested = (result.detectable, p_value)
                    key = (model, wording, principle, category)
                    counts = (*result.counts, result.seeds)
                    records.append((*key, *counts, *result.bounds, *tested))
    values = ["compliance", "ci_low", "ci_high", "detectable", "p_value"]
    table = estimates(checked, records, [*_KEY, "category"], values)
    return with_corrected_p(table, _KEY, matches=["model"])


def make(checked: pd.DataFrame) -> pd.DataFrame:
    """Return compliance by wording of every model under test."""
    return compliance_by_wording(checked)


def _asks_in_both(parameters: JudgedParameters) -> bool:
    return parameters.evaluation.trained_wording


TABLE = ResultTable(
    name="compliance_by_wording",
    make=make,
    inputs={"checked": "checked"},
    wanted=_asks_in_both,
    shown=Table(
        "compliance_by_wording",
        "results",
        "Compliance in trained and in unseen words",
        "How often principles are followed, in percent, where they are worded as in training and "
        "where they are worded differently, on the same questions at the first turn, and the "
        "paired difference in percentage points. Categories without another wording are left out. "
        "95 % intervals over questions.",
        rows=("principle", "wording"),
        columns=("model",),
        estimate=Estimate("compliance"),
        where={"category": (OVERALL,)},
    ),
)
