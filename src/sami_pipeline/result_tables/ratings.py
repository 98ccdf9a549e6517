"""Mean ratings of the judges that rate."""

from __future__ import annotations

import pandas as pd

from sami_pipeline.evaluation import judge_requests
from sami_pipeline.evaluation.judge_kinds import judge_kind
from sami_pipeline.parameters import JudgedParameters, JudgeParameters
from sami_pipeline.result_tables.record import ResultTable
from sami_pipeline.result_tables.shown import OVER_QUESTIONS, Estimate, Table
from sami_pipeline.schemas import Ratings

Contract = Ratings


def make(judgements: pd.DataFrame, judge: JudgeParameters) -> pd.DataFrame:
    """Return mean ratings by model, constitution, category and turn."""
    return judge_requests.ratings(judgements, judge)


def _somebody_rates(parameters: JudgedParameters) -> bool:
    return any(judge_kind(one.kind).rates for one in parameters.judge.by_place.values())


TABLE = ResultTable(
    name="ratings",
    make=make,
    inputs={"judgements": "judgements", "judge": "params:judge"},
    wanted=_somebody_rates,
    shown=Table(
        "ratings",
        "results",
        "Ratings",
        "Mean of the judge's ratings from 1 to 10. " + OVER_QUESTIONS,
        rows=("category",),
        columns=("model",),
        estimate=Estimate("rating", percent=False, digits=2),
    ),
)
