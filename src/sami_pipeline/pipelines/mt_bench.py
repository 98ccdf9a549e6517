"""Experiment 1: the shared pipelines, instantiated under the namespace ``mt_bench``."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from sami_pipeline.parameters import ExperimentParameters
from sami_pipeline.pipelines import (
    baseline_training,
    data_ingest,
    folded,
    mt_bench_eval,
    sami_iterations,
    training_summary,
)

NAME = "mt_bench"


def create_pipeline(experiment: ExperimentParameters) -> Pipeline:
    """Return the whole experiment.

    Each shared pipeline is a namespace inside the experiment's, so the graph folds into them,
    while datasets carry only the experiment's: ``mt_bench.responses``.
    """
    evaluation = Pipeline(
        folded(mt_bench_eval.create_pipeline(experiment), "mt_bench_eval"),
        inputs={
            f"{model}_checkpoint": checkpoint
            for model, checkpoint in experiment.earlier_models().items()
            if model in experiment.models.under_test
        },
    )
    return Pipeline(
        folded(data_ingest.create_pipeline(experiment), "data_ingest")
        + sami_iterations.create_pipeline(experiment)
        + folded(baseline_training.create_pipeline(experiment), "baseline_training")
        + folded(training_summary.create_pipeline(experiment), "training_summary")
        + evaluation,
        namespace=NAME,
    )
