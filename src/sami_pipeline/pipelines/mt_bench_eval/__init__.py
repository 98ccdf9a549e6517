"""The mt_bench_eval pipeline."""

from sami_pipeline.pipelines.mt_bench_eval.pipeline import create_pipeline

__all__ = ["create_pipeline"]
