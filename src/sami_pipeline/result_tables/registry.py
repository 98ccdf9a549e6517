"""The tables of results that every experiment with judged answers makes, in their order."""

from sami_pipeline.result_tables import by_seed, compliance_by_wording, controls, steerability
from sami_pipeline.result_tables.record import ResultTable

RESULT_TABLES: tuple[ResultTable, ...] = (
    steerability.TABLE,
    by_seed.TABLE,
    controls.TABLE,
    compliance_by_wording.TABLE,
)
