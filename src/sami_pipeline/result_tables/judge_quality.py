"""How far each judge can be trusted."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from sami_pipeline.evaluation import judge_quality
from sami_pipeline.evaluation.statistics import OVERALL
from sami_pipeline.parameters import JudgedParameters
from sami_pipeline.result_tables.record import ResultTable
from sami_pipeline.result_tables.shown import OVER_QUESTIONS, Estimate, Table
from sami_pipeline.schemas import JudgeQuality
from sami_pipeline.tables import StoredTable

Contract = JudgeQuality


def make(
    verdicts: pd.DataFrame,
    answers: pd.DataFrame | StoredTable,
    judgements: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return how far each judge agrees with the others, itself and the longer answer."""
    return judge_quality.judge_quality(verdicts, answers, judgements)


def _what_models_said(parameters: JudgedParameters) -> Mapping[str, str]:
    return {"judgements": "judgements"} if parameters.judge.is_model else {}


TABLE = ResultTable(
    name="judge_quality",
    make=make,
    inputs={"verdicts": "verdicts", "answers": "answers"},
    more_inputs=_what_models_said,
    shown=Table(
        "judge_quality",
        "judge",
        "How far the judge can be trusted",
        "As shares, kappa aside. agreement and kappa: with the judge named as reference, one half "
        "and zero being chance; longer preferred: decided verdicts for the longer answer; flip "
        "rate: comparisons that change with the order of the answers; first preferred: decided "
        "calls for the answer shown first; self agreement: pairs of repeats of a call with the "
        "same verdict; invalid: verdicts or calls that could not be read. " + OVER_QUESTIONS,
        rows=("constitution", "metric", "reference"),
        columns=("judge",),
        where={"category": (OVERALL,)},
        estimate=Estimate("value", percent=False, digits=3),
    ),
)
