"""The tables of results that experiments make, in their order."""

from sami_pipeline.result_tables import (
    accuracy,
    accuracy_breakdown,
    accuracy_by_seed,
    accuracy_difference,
    by_seed,
    compliance,
    compliance_by_wording,
    compliance_difference,
    controls,
    degeneration,
    judge_quality,
    length_controlled,
    ratings,
    steerability,
    win_rates,
)
from sami_pipeline.result_tables.record import ResultTable

JUDGED: tuple[ResultTable, ...] = (
    win_rates.TABLE,
    length_controlled.TABLE,
    judge_quality.TABLE,
    ratings.TABLE,
    compliance.TABLE,
    compliance_difference.TABLE,
    degeneration.TABLE,
    steerability.TABLE,
    by_seed.TABLE,
    controls.TABLE,
    compliance_by_wording.TABLE,
)
"""Of every experiment whose answers are judged."""

ATTEMPTED: tuple[ResultTable, ...] = (
    accuracy_by_seed.TABLE,
    accuracy.TABLE,
    accuracy_difference.TABLE,
    accuracy_breakdown.TABLE,
)
"""Of every experiment in which problems are attempted."""

RESULT_TABLES = (*JUDGED, *ATTEMPTED)
"""All of them."""
