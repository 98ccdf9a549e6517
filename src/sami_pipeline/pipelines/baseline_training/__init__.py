"""The baseline_training pipeline."""

from sami_pipeline.pipelines.baseline_training.pipeline import create_pipeline

__all__ = ["create_pipeline"]
