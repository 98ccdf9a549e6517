"""Answers that mostly repeat themselves, and how long answers are."""

from __future__ import annotations

import pandas as pd

from sami_pipeline.evaluation import statistics
from sami_pipeline.result_tables.record import ResultTable
from sami_pipeline.result_tables.shown import OVER_QUESTIONS, Estimate, Table
from sami_pipeline.schemas import Degeneration
from sami_pipeline.tables import StoredTable

Contract = Degeneration


def make(answers: pd.DataFrame | StoredTable) -> pd.DataFrame:
    """Return rate, mean length and truncation by model, constitution and category."""
    return statistics.degeneration(answers)


TABLE = ResultTable(
    name="degeneration",
    make=make,
    inputs={"answers": "answers"},
    shown=Table(
        "degeneration",
        "degeneration",
        "Answers that mostly repeat themselves",
        "In percent. They follow no statement and solve nothing. " + OVER_QUESTIONS,
        rows=("category",),
        columns=("model",),
        estimate=Estimate("degeneration_rate"),
    ),
)
