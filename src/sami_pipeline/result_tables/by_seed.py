"""Headline figures of every training seed by itself, and how much they differ between seeds.

What a seed is worth: where the spread between seeds is as large as the difference between two
models, one training of each says little. The spread holds what the questions asked have to do with
it too, so it is above 0 where seeds do not matter.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import pandera.pandas as pa
from pandera.typing import Series

from sami_pipeline.evaluation import statistics
from sami_pipeline.evaluation.seeds import NO_SEED, SEED
from sami_pipeline.evaluation.statistics import ALL_PRINCIPLES, FIRST_TURN, OVERALL
from sami_pipeline.parameters import EvaluationParameters, JudgedParameters, ModelsParameters
from sami_pipeline.result_tables.record import ResultTable
from sami_pipeline.result_tables.shown import Estimate, Table
from sami_pipeline.result_tables.steerability import steerability
from sami_pipeline.tables import StoredTable, columns_of

MEASURES = (
    "win_rate", "compliance", "compliance_difference", "steerability", "steerability_difference",
)  # fmt: skip
_KEY = ["measure", "judge", "constitution", "stance", "model", "opponent"]


class Contract(pa.DataFrameModel):
    """One row is one headline figure of one training of a model.

    All categories at the first turn; ``opponent`` is who the model is compared with, if anybody.
    The interval is that of this training alone, over questions (and the opponent's seeds, where it
    has some), and so is ``p_value``, of an exact paired test against 0 (a win rate: against one
    half); a compliance has none. ``mean`` is that of all seeds of the model, ``spread`` the
    standard deviation between them.
    """

    measure: Series[str] = pa.Field(isin=list(MEASURES))
    judge: Series[str]
    constitution: Series[str]
    stance: Series[str]
    model: Series[str]
    opponent: Series[str]
    seed: Series[int] = pa.Field(ge=0)
    n: Series[int] = pa.Field(ge=0)
    rows: Series[int] = pa.Field(ge=0)
    value: Series[float] = pa.Field(ge=-2, le=2, nullable=True)
    ci_low: Series[float] = pa.Field(ge=-2, le=2, nullable=True)
    ci_high: Series[float] = pa.Field(ge=-2, le=2, nullable=True)
    p_value: Series[float] = pa.Field(ge=0, le=1, nullable=True)
    mean: Series[float] = pa.Field(ge=-2, le=2, nullable=True)
    spread: Series[float] = pa.Field(ge=0, nullable=True)

    class Config:
        """Columns are exactly those named; these together name a row."""

        strict = True
        unique = (*_KEY, "seed")


def by_seed(
    verdicts: pd.DataFrame,
    checked: pd.DataFrame,
    answers: pd.DataFrame | StoredTable,
    principles: pd.DataFrame,
    models: ModelsParameters,
    *,
    contrasting: bool,
) -> pd.DataFrame:
    """Return the rows of `Contract`.

    Args:
        verdicts: of all judges, with ``seed`` and ``opponent_seed``.
        checked: as ``check_answers`` gives them, with ``seed``.
        answers: as ``steerability`` takes them, with ``seed``.
        principles: their statements and checks.
        models: names the baseline.
        contrasting: opposite constitutions were asked for, so that there is steerability.
    """
    names = ["model", "question_id", "turn", "constitution", "stances", "answer", "finish_reason"]
    answers = columns_of(answers, [*names, "category", "degenerate", SEED])
    # One category: only what is over all of them is shown.
    first = [table[table["turn"] == 1].assign(category="every") for table in (verdicts, checked)]
    answers = answers[answers["turn"] == 1]
    trained = answers.loc[answers[SEED] != NO_SEED, ["model", SEED]].drop_duplicates()
    parts = [
        found.assign(seed=seed, model=model)
        for model, seed in trained.itertuples(index=False, name=None)
        for found in _figures(model, seed, *first, answers, principles, models, contrasting)
    ]
    columns = [*_KEY, "seed", "n", "rows", "value", "ci_low", "ci_high", "p_value"]
    table = pd.concat(parts, ignore_index=True)[columns]
    values = table.groupby(_KEY, sort=False)["value"]
    table = table.assign(mean=values.transform("mean"), spread=values.transform("std"))
    order = table["measure"].map(MEASURES.index)
    return table.loc[order.sort_values(kind="stable").index].reset_index(drop=True)


def _figures(
    model: str,
    seed: int,
    verdicts: pd.DataFrame,
    checked: pd.DataFrame,
    answers: pd.DataFrame,
    principles: pd.DataFrame,
    models: ModelsParameters,
    contrasting: bool,
) -> Iterator[pd.DataFrame]:
    """Yield the figures of one training."""
    own = verdicts[(verdicts["model"] == model) & (verdicts[SEED] == seed)]
    if len(own):
        rates = statistics.win_rates(own).drop(columns=["ci_low", "ci_high"])
        rates = rates.rename(
            columns={
                "adjusted_win_rate": "value",
                "adjusted_ci_low": "ci_low",
                "adjusted_ci_high": "ci_high",
            }
        )
        yield _headline(rates).assign(measure="win_rate", stance="")
    if checked.empty:
        return
    rows = checked[(checked["model"] == model) & (checked[SEED] == seed)]
    followed = statistics.compliance(rows).rename(columns={"compliance": "value"})
    followed = followed[followed["principle"] == ALL_PRINCIPLES]
    yield _headline(followed).assign(measure="compliance", judge="", opponent="")
    if model != models.baseline:
        both = pd.concat([rows, checked[checked["model"] == models.baseline]])
        gained = statistics.compliance_difference(both, models.baseline, models.lineage)
        gained = gained.rename(columns={"difference": "value", "baseline": "opponent"})
        yield _headline(gained).assign(measure="compliance_difference", judge="")
    if contrasting:
        rows = answers[(answers["model"] == model) & (answers[SEED] == seed)]
        if model != models.baseline:
            rows = pd.concat([rows, answers[answers["model"] == models.baseline]])
        steered = steerability(rows, principles, models.baseline, models.lineage)
        steered = steered.rename(columns={"steerability": "value", "baseline": "opponent"})
        steered = steered[(steered["model"] == model) & (steered["category"] == OVERALL)]
        steered = steered[steered["principle"] == ALL_PRINCIPLES]
        compared = steered["opponent"] != ""
        measures = compared.map({False: "steerability", True: "steerability_difference"})
        yield steered.assign(measure=measures, judge="")


def _headline(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["category"] == OVERALL) & (table["turn"] == FIRST_TURN)]


def make(
    verdicts: pd.DataFrame,
    checked: pd.DataFrame,
    answers: pd.DataFrame | StoredTable,
    principles: pd.DataFrame,
    models: ModelsParameters,
    evaluation: EvaluationParameters,
) -> pd.DataFrame:
    """Return the headline figures of every training."""
    return by_seed(
        verdicts, checked, answers, principles, models, contrasting=evaluation.contrasting
    )


def _several(parameters: JudgedParameters) -> bool:
    return parameters.seeds > 1


TABLE = ResultTable(
    name="by_seed",
    make=make,
    inputs={
        "verdicts": "verdicts",
        "checked": "checked",
        "answers": "answers",
        "principles": "principles",
        "models": "params:models",
        "evaluation": "params:evaluation",
    },
    wanted=_several,
    shown=Table(
        "by_seed",
        "results",
        "Every training seed by itself",
        "In percent or percentage points, all categories at the first turn: what a seed is worth. "
        "95 % intervals over questions, of each training alone; the whole table has the mean of "
        "the seeds and the standard deviation between them (spread).",
        rows=("measure", "model", "opponent", "stance"),
        columns=("seed",),
        estimate=Estimate("value"),
    ),
)
