"""The training_summary pipeline."""

from sami_pipeline.pipelines.training_summary.pipeline import create_pipeline

__all__ = ["create_pipeline"]
