"""The tables of results that every experiment with judged answers makes, in their order."""

from sami_pipeline.result_tables import controls, steerability, wordings
from sami_pipeline.result_tables.record import ResultTable

RESULT_TABLES: tuple[ResultTable, ...] = (
    steerability.TABLE,
    controls.TABLE,
    wordings.TABLE,
)
