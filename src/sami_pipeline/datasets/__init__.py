"""Kedro connectors that Kedro lacks."""

from sami_pipeline.datasets.checkpoint import CheckpointDataset
from sami_pipeline.datasets.previews import ReportPage, TextTable
from sami_pipeline.datasets.query_files import PrinciplesSource, QueryTableFile
from sami_pipeline.datasets.raw_files import JsonLinesDataset, StrictYamlDataset
from sami_pipeline.datasets.stored_parquet import StoredParquet
from sami_pipeline.datasets.working_folder import WorkingFolder

__all__ = [
    "CheckpointDataset",
    "JsonLinesDataset",
    "PrinciplesSource",
    "QueryTableFile",
    "ReportPage",
    "StoredParquet",
    "StrictYamlDataset",
    "TextTable",
    "WorkingFolder",
]
