"""baseline_training: what SAMI is compared with, trained on the same responses."""

from __future__ import annotations

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from sami_pipeline.parameters import ExperimentParameters
from sami_pipeline.pipelines import bind, sami_training
from sami_pipeline.pipelines.baseline_training.nodes import train_baseline
from sami_pipeline.training.baselines.record import Baseline, function
from sami_pipeline.training.baselines.registry import baselines


def create_pipeline(
    experiment: ExperimentParameters, beside_queries: Sequence[str] = ()
) -> Pipeline:
    """Return the pipeline that trains the baselines the experiment asks for.

    SAMI after a baseline is SAMI's own pipeline with that model as its student.

    Args:
        experiment: its parameters.
        beside_queries: datasets that a baseline may read besides the responses.
    """
    wanted = set(experiment.trained_models())
    return sum(
        (
            _after(experiment, baseline, name, further)
            if baseline.is_sami
            else _alone(experiment, baseline, name, further, beside_queries)
            for model, baseline in baselines().items()
            if model in wanted
            for further, name in enumerate(experiment.replicates(model))
        ),
        Pipeline([]),
    )


def _student(experiment: ExperimentParameters, baseline: Baseline, further: int) -> str:
    """Return what a replicate goes on with: that of the same seed, where it is trained here."""
    if not baseline.starts_from:
        return f"{experiment.models.student}_checkpoint"
    return f"{list(experiment.replicates(baseline.starts_from))[further]}_checkpoint"


def _alone(
    experiment: ExperimentParameters,
    baseline: Baseline,
    name: str,
    further: int,
    beside_queries: Sequence[str],
) -> Pipeline:
    return Pipeline(
        [
            Node(
                bind(
                    train_baseline,
                    baseline=baseline,
                    # Bound as functions, so that a change in one counts for this node.
                    method=function(baseline.method),
                    choose=function(baseline.choose) if baseline.choose else None,
                    name=name,
                    further=further,
                ),
                inputs={
                    "student": _student(experiment, baseline, further),
                    "responses": "responses",
                    "state_folder": f"{name}_training_state",
                    "parameters": "params:training",
                    "iterations": "params:iterations",
                    **{dataset: dataset for dataset in beside_queries},
                },
                outputs=[f"{name}_checkpoint", f"{name}_history", f"{name}_held_out"],
                name=f"train_{name}",
            )
        ]
    )


def _after(
    experiment: ExperimentParameters, baseline: Baseline, name: str, further: int
) -> Pipeline:
    return Pipeline(
        sami_training.create_pipeline(experiment.iterations.count, name, further),
        inputs={"student_checkpoint": _student(experiment, baseline, further)},
    )
