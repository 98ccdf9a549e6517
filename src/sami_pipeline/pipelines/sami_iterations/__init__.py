"""SAMI from queries to a trained model, once an iteration."""

from sami_pipeline.pipelines.sami_iterations.pipeline import create_pipeline

__all__ = ["create_pipeline"]
