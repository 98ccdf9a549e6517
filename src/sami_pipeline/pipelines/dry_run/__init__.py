"""dry_run: what an experiment would need, instead of the experiment."""

from sami_pipeline.pipelines.dry_run.pipeline import create_pipeline

__all__ = ["create_pipeline"]
