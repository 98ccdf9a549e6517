"""The sami_generation pipeline."""

from sami_pipeline.pipelines.sami_generation.pipeline import create_pipeline

__all__ = ["create_pipeline"]
