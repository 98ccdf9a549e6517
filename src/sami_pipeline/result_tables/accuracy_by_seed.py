"""Problems that every training of a model solves by itself."""

from __future__ import annotations

import pandas as pd

from sami_pipeline.evaluation import math_accuracy
from sami_pipeline.parameters import AccuracyParameters, ExperimentParameters
from sami_pipeline.result_tables.record import ResultTable
from sami_pipeline.result_tables.shown import Estimate, Table
from sami_pipeline.schemas import AccuracyBySeed

Contract = AccuracyBySeed


def make(attempts: pd.DataFrame, accuracy: AccuracyParameters) -> pd.DataFrame:
    """Return the accuracy of every training seed by itself."""
    return math_accuracy.accuracy_by_seed(attempts, extraction="answer", ks=accuracy.reported)


def _several(parameters: ExperimentParameters) -> bool:
    return parameters.seeds > 1


TABLE = ResultTable(
    name="accuracy_by_seed",
    make=make,
    inputs={"attempts": "attempts", "accuracy": "params:accuracy"},
    wanted=_several,
    shown=Table(
        "accuracy_by_seed",
        "results",
        "Every training seed by itself",
        "In percent, tokens aside: what a seed is worth. 95 % intervals over problems, of each "
        "training alone; the whole table has the mean of the seeds and the standard deviation "
        "between them (spread).",
        rows=("model", "metric", "k"),
        columns=("seed",),
        estimate=Estimate("value", other_units=("mean_tokens",)),
        ends="k",
    ),
)
