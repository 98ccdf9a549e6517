"""The lengths of what models write to held-out queries."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from sami_pipeline.evaluation import statistics
from sami_pipeline.pipelines import combine_replicates, combine_tables, with_seeds


def tabulate_held_out_lengths(
    *responses: pd.DataFrame, replicates: Mapping[str, tuple[str, int]]
) -> pd.DataFrame:
    """Return the mean length of each model's responses to held-out queries.

    Args:
        responses: of each replicate.
        replicates: model and seed of every table, in the order of the tables.
    """
    together = (
        combine_replicates(*responses, replicates=replicates)
        if with_seeds(replicates)
        else combine_tables(*responses)
    )
    return statistics.response_lengths(together)
