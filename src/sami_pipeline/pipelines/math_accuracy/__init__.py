"""The math_accuracy pipeline."""

from sami_pipeline.pipelines.math_accuracy.pipeline import create_pipeline

__all__ = ["create_pipeline"]
