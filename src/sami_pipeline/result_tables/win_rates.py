"""Win rates by judge, constitution, turn and category."""

from __future__ import annotations

import pandas as pd

from sami_pipeline.evaluation import statistics
from sami_pipeline.result_tables.record import ResultTable
from sami_pipeline.result_tables.shown import OVER_QUESTIONS, Estimate, Table
from sami_pipeline.schemas import WinRates

Contract = WinRates


def make(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return win rates with intervals over questions."""
    return statistics.win_rates(verdicts)


TABLE = ResultTable(
    name="win_rates",
    make=make,
    inputs={"verdicts": "verdicts"},
    shown=Table(
        "win_rates",
        "results",
        "Win rates",
        "In percent, a tie counting half, so that 50 is parity. The headline is the desired "
        "constitution at the first turn; a triangle marks what leaves out parity with p of at most "
        "0.05 after Holm's correction for the number of categories. " + OVER_QUESTIONS,
        rows=("category",),
        columns=("model", "opponent"),
        estimate=Estimate("adjusted_win_rate", "adjusted_ci_low", "adjusted_ci_high", parity=0.5),
    ),
)
