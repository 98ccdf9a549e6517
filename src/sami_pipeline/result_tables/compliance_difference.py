"""How much more often each model follows it than the baseline."""

from __future__ import annotations

import pandas as pd

from sami_pipeline.evaluation import statistics
from sami_pipeline.parameters import ModelsParameters
from sami_pipeline.result_tables.record import ResultTable
from sami_pipeline.result_tables.shown import OVER_QUESTIONS, Estimate, Table
from sami_pipeline.schemas import ComplianceDifference

Contract = ComplianceDifference


def make(checked: pd.DataFrame, models: ModelsParameters) -> pd.DataFrame:
    """Return the differences, paired statement by statement."""
    if checked.empty:
        return Contract.empty()
    return statistics.compliance_difference(checked, models.baseline, models.lineage)


TABLE = ResultTable(
    name="compliance_difference",
    make=make,
    inputs={"checked": "checked", "models": "params:models"},
    shown=Table(
        "compliance_difference",
        "results",
        "Compliance against the baseline",
        "Difference in the share of statements of its constitution that an answer follows, in "
        "percentage points, paired statement by statement; principles and antitheses apart. "
        + OVER_QUESTIONS,
        rows=("category",),
        columns=("model", "baseline"),
        estimate=Estimate("difference", signed=True, parity=0.0),
    ),
)
