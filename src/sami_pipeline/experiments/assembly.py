"""How the shared pipelines make an experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kedro.pipeline import Pipeline

from sami_pipeline.pipelines import (
    baseline_training,
    data_ingest,
    folded,
    reporting,
    sami_iterations,
    training_summary,
    with_datasets_under,
)

if TYPE_CHECKING:
    from sami_pipeline.experiments.record import Experiment
    from sami_pipeline.parameters import ExperimentParameters


def assemble(experiment: Experiment, parameters: ExperimentParameters) -> Pipeline:
    """Return an experiment: its nodes fold into the shared pipelines, its datasets carry its name.

    A node is ``sami_training.train_sami``, a dataset ``mt_bench.responses``.
    """
    earlier = {
        f"{model}_checkpoint": checkpoint
        for model, checkpoint in parameters.earlier_models().items()
        if model in parameters.models.under_test
    }
    ingest = data_ingest.create_pipeline(parameters, experiment.categories)
    baselines = baseline_training.create_pipeline(parameters, experiment.beside_queries)
    evaluation = experiment.evaluation(parameters)
    stages = (
        folded(ingest + experiment.ingest(parameters), "data_ingest")
        + sami_iterations.create_pipeline(parameters)
        + folded(baselines, "baseline_training")
        + folded(training_summary.create_pipeline(parameters), "training_summary")
        + Pipeline(folded(evaluation, experiment.evaluation_name), inputs=earlier)
    )
    report = folded(
        reporting.create_pipeline(experiment.name, experiment.subject, parameters, stages),
        "reporting",
    )
    return with_datasets_under(experiment.name, stages + Pipeline(report, inputs=earlier))
