"""Problems that each model solves, by how answers are read and family of problems."""

from __future__ import annotations

import pandas as pd

from sami_pipeline.evaluation import math_accuracy
from sami_pipeline.result_tables.record import ResultTable
from sami_pipeline.result_tables.shown import OVER_PROBLEMS, Estimate, Table
from sami_pipeline.schemas import AccuracyBreakdown

Contract = AccuracyBreakdown


def make(attempts: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy by model, reading, family, metric and number of attempts."""
    return math_accuracy.accuracy_breakdown(attempts)


TABLE = ResultTable(
    name="accuracy_breakdown",
    make=make,
    inputs={"attempts": "attempts"},
    shown=Table(
        "accuracy_breakdown",
        "results",
        "Problems solved, by reading and family",
        "In percent. answer is what a careful reader takes (after ####, in a box, after “the "
        "answer is”, the last number) and is judged everywhere else; strict is what stands after "
        "####, "
        "flexible the last number, the other two are lm-evaluation-harness's. " + OVER_PROBLEMS,
        rows=("family", "reading", "metric", "k"),
        columns=("model",),
        estimate=Estimate("value"),
        ends="k",
    ),
)
