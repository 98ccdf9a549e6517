"""Experiment 1: the shared pipelines, instantiated under the namespace ``mt_bench``."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from sami_pipeline.parameters import MtBenchParameters
from sami_pipeline.pipelines import experiment_pipeline, mt_bench_eval

NAME = "mt_bench"


def create_pipeline(experiment: MtBenchParameters) -> Pipeline:
    """Return the whole experiment: SAMI and its baselines, compared on MT-Bench."""
    evaluation = mt_bench_eval.create_pipeline(experiment)
    return experiment_pipeline.assemble(NAME, experiment, evaluation, "mt_bench_eval")
