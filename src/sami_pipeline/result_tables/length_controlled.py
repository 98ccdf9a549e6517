"""Win rates with the length of the answers controlled."""

from __future__ import annotations

import pandas as pd

from sami_pipeline.evaluation import length_control
from sami_pipeline.parameters import EvaluationParameters
from sami_pipeline.result_tables.record import ResultTable
from sami_pipeline.result_tables.shown import OVER_QUESTIONS, Estimate, Table
from sami_pipeline.schemas import LengthControlled
from sami_pipeline.tables import StoredTable

Contract = LengthControlled


def make(
    verdicts: pd.DataFrame, answers: pd.DataFrame | StoredTable, evaluation: EvaluationParameters
) -> pd.DataFrame:
    """Return them by judge and pair of models."""
    return length_control.length_controlled(
        verdicts, answers, resamples=evaluation.resamples, seed=evaluation.seed
    )


TABLE = ResultTable(
    name="length_controlled",
    make=make,
    inputs={"verdicts": "verdicts", "answers": "answers", "evaluation": "params:evaluation"},
    shown=Table(
        "length_controlled",
        "results",
        "Win rates with length held equal",
        "In percent, a tie counting half, so that 50 is parity. stratified: the mean of the win "
        "rates where the model's answer is longer and where it is not; glm: that of a logistic "
        "regression on the difference in length, at equal lengths. Where brevity is itself a "
        "principle, length is part of what is judged. " + OVER_QUESTIONS,
        rows=("method",),
        columns=("model", "opponent"),
        estimate=Estimate("win_rate", parity=0.5),
    ),
)
