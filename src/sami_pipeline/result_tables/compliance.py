"""How often each model follows what it was asked to follow."""

from __future__ import annotations

import pandas as pd

from sami_pipeline.evaluation import statistics
from sami_pipeline.evaluation.statistics import OVERALL
from sami_pipeline.parameters import ModelsParameters
from sami_pipeline.result_tables.record import ResultTable
from sami_pipeline.result_tables.shown import OVER_QUESTIONS, Estimate, Table
from sami_pipeline.schemas import Compliance

Contract = Compliance


def make(checked: pd.DataFrame, models: ModelsParameters) -> pd.DataFrame:
    """Return compliance by model, constitution, principle and category."""
    if checked.empty:
        return Contract.empty()
    return statistics.compliance(checked, models.baseline, models.lineage)


TABLE = ResultTable(
    name="compliance",
    make=make,
    inputs={"checked": "checked", "models": "params:models"},
    shown=Table(
        "compliance",
        "results",
        "Compliance by principle",
        "Share of the answers that follow the statement which they were asked to follow, in "
        "percent; the opposites of principles apart. " + OVER_QUESTIONS,
        rows=("principle",),
        columns=("model",),
        estimate=Estimate("compliance"),
        where={"category": (OVERALL,)},
    ),
)
