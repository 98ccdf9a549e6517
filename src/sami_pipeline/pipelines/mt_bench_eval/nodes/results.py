"""Answers and verdicts become tables of results."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from sami_pipeline import schemas
from sami_pipeline.evaluation import judge_quality, judge_requests, length_control, statistics
from sami_pipeline.parameters import EvaluationParameters, JudgeParameters, ModelsParameters
from sami_pipeline.pipelines import combine_replicates, combine_tables, with_seeds
from sami_pipeline.tables import StoredTable


def tabulate_ratings(judgements: pd.DataFrame, parameters: JudgeParameters) -> pd.DataFrame:
    """Return mean ratings by model, constitution, category and turn."""
    return judge_requests.ratings(judgements, parameters)


def tabulate_win_rates(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return win rates by judge, constitution, turn and category with intervals over questions."""
    return statistics.win_rates(verdicts)


def tabulate_length_controlled(
    verdicts: pd.DataFrame, answers: pd.DataFrame | StoredTable, parameters: EvaluationParameters
) -> pd.DataFrame:
    """Return win rates with the length of the answers controlled, by judge and pair of models."""
    return length_control.length_controlled(
        verdicts, answers, resamples=parameters.resamples, seed=parameters.seed
    )


def tabulate_judge_quality(
    verdicts: pd.DataFrame,
    answers: pd.DataFrame | StoredTable,
    judgements: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return how far each judge agrees with the others, itself and the longer answer."""
    return judge_quality.judge_quality(verdicts, answers, judgements)


def tabulate_compliance(
    checked: pd.DataFrame, models: ModelsParameters
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return compliance by model, constitution, principle and category, and paired differences."""
    if checked.empty:
        return schemas.Compliance.empty(), schemas.ComplianceDifference.empty()
    return (
        statistics.compliance(checked, models.baseline, models.lineage),
        statistics.compliance_difference(checked, models.baseline, models.lineage),
    )


def tabulate_degeneration(answers: pd.DataFrame | StoredTable) -> pd.DataFrame:
    """Return degeneration rate, mean length and truncation by model, constitution and category."""
    return statistics.degeneration(answers)


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
