"""From the table of responses to grids, and from held-out grids to a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sami_pipeline.evaluation.statistics import bootstrap_mean
from sami_pipeline.prompts import Prompt
from sami_pipeline.responses import USABLE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sami_pipeline.core.grid import TextGrid

HELD_OUT_METRICS = (
    "loss",
    "mi_lower_bound",
    "row_accuracy",
    "column_accuracy",
    "response_tokens",
)


def select_grids(
    responses: pd.DataFrame, split: str, tokenizer: PreTrainedTokenizerBase
) -> list[TextGrid]:
    """Return one grid for each usable query of a split, in the order of the query ids."""
    from sami_pipeline.core.grid import TextGrid

    rows = responses[(responses["status"] == USABLE) & (responses["split"] == split)]
    return [
        TextGrid(
            prompts=[Prompt.from_json(p).render(tokenizer) for p in group["training_prompt"]],
            responses=group["response"].tolist(),
            ended=(group["finish_reason"] == "stop").tolist(),
        )
        for _, group in rows.sort_values(["query_id", "constitution_index"]).groupby("query_id")
    ]


def held_out_table(
    measured: Mapping[str, pd.DataFrame], *, resamples: int, seed: int
) -> pd.DataFrame:
    """Return ``stage, metric, n, value, ci_low, ci_high``, intervals over held-out queries.

    Args:
        measured: by stage ("before", "after"), one row per grid; where both are there, the
            paired difference follows as the stage "difference".
        resamples: bootstrap samples per interval.
        seed: of the bootstrap.
    """
    stages = dict(measured)
    if {"before", "after"} <= set(stages):
        stages["difference"] = stages["after"] - stages["before"]
    rows = []
    for stage, table in stages.items():
        for metric in HELD_OUT_METRICS:
            interval = bootstrap_mean(
                table[metric], np.arange(len(table)), resamples=resamples, seed=seed
            )
            rows.append(
                {
                    "stage": stage,
                    "metric": metric,
                    "n": interval.n,
                    "value": interval.estimate,
                    "ci_low": interval.low,
                    "ci_high": interval.high,
                }
            )
    dtypes = {"stage": "str", "metric": "str", "n": int}
    dtypes |= dict.fromkeys(("value", "ci_low", "ci_high"), float)
    return pd.DataFrame(rows, columns=list(dtypes)).astype(dtypes)
