"""Problems that each model solves and the baseline does not, less the reverse."""

from __future__ import annotations

import pandas as pd

from sami_pipeline.evaluation import math_accuracy
from sami_pipeline.parameters import AccuracyParameters, ModelsParameters
from sami_pipeline.result_tables.record import ResultTable
from sami_pipeline.result_tables.shown import OVER_PROBLEMS, Estimate, Table
from sami_pipeline.schemas import AccuracyDifference

Contract = AccuracyDifference


def make(
    attempts: pd.DataFrame, models: ModelsParameters, accuracy: AccuracyParameters
) -> pd.DataFrame:
    """Return the differences, paired problem by problem."""
    return math_accuracy.accuracy_difference(
        attempts, models.baseline, extraction="answer", ks=accuracy.reported, lineage=models.lineage
    )


TABLE = ResultTable(
    name="accuracy_difference",
    make=make,
    inputs={"attempts": "attempts", "models": "params:models", "accuracy": "params:accuracy"},
    shown=Table(
        "accuracy_difference",
        "results",
        "Difference from the baseline",
        "In percentage points, tokens aside, paired problem by problem. " + OVER_PROBLEMS,
        rows=("metric", "k"),
        columns=("model", "baseline"),
        estimate=Estimate("difference", signed=True, parity=0.0, other_units=("mean_tokens",)),
        ends="k",
    ),
)
