"""The data_ingest pipeline."""

from sami_pipeline.pipelines.data_ingest.pipeline import create_pipeline, principles_node

__all__ = ["create_pipeline", "principles_node"]
