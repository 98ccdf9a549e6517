"""How the shared pipelines make an experiment."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from sami_pipeline.parameters import ExperimentParameters
from sami_pipeline.pipelines import (
    baseline_training,
    data_ingest,
    folded,
    reporting,
    sami_iterations,
    training_summary,
    with_datasets_under,
)


def assemble(
    name: str, experiment: ExperimentParameters, evaluation: Pipeline, evaluation_name: str
) -> Pipeline:
    """Return an experiment: its nodes fold into the shared pipelines, its datasets carry its name.

    A node is ``sami_training.train_sami``, a dataset ``mt_bench.responses``.
    """
    earlier = {
        f"{model}_checkpoint": checkpoint
        for model, checkpoint in experiment.earlier_models().items()
        if model in experiment.models.under_test
    }
    stages = (
        folded(data_ingest.create_pipeline(experiment), "data_ingest")
        + sami_iterations.create_pipeline(experiment)
        + folded(baseline_training.create_pipeline(experiment), "baseline_training")
        + folded(training_summary.create_pipeline(experiment), "training_summary")
        + Pipeline(folded(evaluation, evaluation_name), inputs=earlier)
    )
    report = folded(reporting.create_pipeline(name, experiment, stages), "reporting")
    return with_datasets_under(name, stages + Pipeline(report, inputs=earlier))
