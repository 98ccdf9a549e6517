"""How the shared pipelines make an experiment."""

from sami_pipeline.pipelines.experiment_pipeline.assembly import assemble

__all__ = ["assemble"]
