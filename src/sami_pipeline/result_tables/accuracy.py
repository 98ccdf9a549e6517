"""Problems that each model solves."""

from __future__ import annotations

import pandas as pd

from sami_pipeline.evaluation import math_accuracy
from sami_pipeline.parameters import AccuracyParameters
from sami_pipeline.result_tables.record import ResultTable
from sami_pipeline.result_tables.shown import OVER_PROBLEMS, Estimate, Table
from sami_pipeline.schemas import Accuracy

Contract = Accuracy


def make(attempts: pd.DataFrame, accuracy: AccuracyParameters) -> pd.DataFrame:
    """Return accuracy by model, metric and number of attempts."""
    return math_accuracy.accuracy(attempts, extraction="answer", ks=accuracy.reported)


TABLE = ResultTable(
    name="accuracy",
    make=make,
    inputs={"attempts": "attempts", "accuracy": "params:accuracy"},
    shown=Table(
        "accuracy",
        "results",
        "Problems solved",
        "In percent, tokens aside. pass at k: the chance that at least one of k sampled attempts "
        "is right; maj at k: that the most frequent answer of k is. " + OVER_PROBLEMS,
        rows=("metric", "k"),
        columns=("model",),
        estimate=Estimate("value", other_units=("mean_tokens",)),
        ends="k",
    ),
)
