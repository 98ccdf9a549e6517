"""The sami_training pipeline."""

from sami_pipeline.pipelines.sami_training.pipeline import create_pipeline

__all__ = ["create_pipeline"]
