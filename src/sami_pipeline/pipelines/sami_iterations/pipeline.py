"""sami_iterations: sami_generation and sami_training, once an iteration."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from sami_pipeline.parameters import ExperimentParameters
from sami_pipeline.pipelines import folded, sami_generation, sami_training
from sami_pipeline.training.baselines.registry import SAMI

_SHARED_INPUTS = {"queries", "problems", "principles", "training_prompt", "completions"}
_SHARED_PARAMETERS = {"constitutions", "generation", "training", "iterations"}


def create_pipeline(experiment: ExperimentParameters) -> Pipeline:
    """Return all iterations of SAMI.

    Each is the same two pipelines. The teacher of the first is the experiment's; each later one
    takes the model of the iteration before, and asks it with the prompt it was trained under. The
    datasets of the last iteration have the plain names, those of an earlier one its namespace:
    ``iteration_1.responses``.
    """
    count = experiment.iterations.count
    return sum((_iteration(experiment, k, k == count) for k in range(1, count + 1)), Pipeline([]))


def _iteration(experiment: ExperimentParameters, number: int, is_last: bool) -> Pipeline:
    first = number == 1
    inputs = {
        "student_checkpoint": f"{experiment.models.student}_checkpoint",
        "teacher_checkpoint": (
            f"{experiment.models.teacher}_checkpoint"
            if first
            else f"iteration_{number - 1}.sami_checkpoint"
        ),
        "generation_prompt": "generation_prompt" if first else "training_prompt",
        **{name: name for name in _SHARED_INPUTS},
    }
    teacher = experiment.models.teacher if first else None
    generation = sami_generation.create_pipeline(number, teacher=teacher)
    # Replicates are of the last iteration alone: all are trained on the same responses.
    names = [SAMI]
    if is_last:
        names = experiment.replicates(SAMI) if SAMI in experiment.trained_models() else []
    training = sum(
        (
            sami_training.create_pipeline(number, name, further)
            for further, name in enumerate(names)
        ),
        Pipeline([]),
    )
    steps = folded(generation, "sami_generation") + folded(training, "sami_training")
    return Pipeline(
        steps,
        inputs={name: source for name, source in inputs.items() if name in steps.inputs()},
        parameters={
            name: name for name in _SHARED_PARAMETERS if f"params:{name}" in steps.inputs()
        },
        namespace=None if is_last else f"iteration_{number}",
    )
