"""Experiment 1: the shared pipelines, instantiated under the namespace ``mt_bench``."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from sami_pipeline.parameters import ExperimentParameters
from sami_pipeline.pipelines import data_ingest, mt_bench_eval, sami_generation, sami_training

NAME = "mt_bench"


def create_pipeline(experiment: ExperimentParameters) -> Pipeline:
    """Return the whole experiment.

    Each shared pipeline is a namespace inside the experiment's, so the graph folds into them,
    while datasets carry only the experiment's: ``mt_bench.responses``.
    """
    stages = (data_ingest, sami_generation, sami_training, mt_bench_eval)
    folded = [
        Pipeline(
            stage.create_pipeline(experiment),
            namespace=stage.__name__.rsplit(".", 1)[-1],
            prefix_datasets_with_namespace=False,
        )
        for stage in stages
    ]
    return Pipeline(sum(folded, start=Pipeline([])), namespace=NAME)
