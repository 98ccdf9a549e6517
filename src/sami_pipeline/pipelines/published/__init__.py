"""The published pipeline."""

from sami_pipeline.pipelines.published.pipeline import NAME, create_pipeline

__all__ = ["NAME", "create_pipeline"]
