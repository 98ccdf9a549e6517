"""baseline_training: what SAMI is compared with, trained on the same responses."""

from __future__ import annotations

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from sami_pipeline.parameters import ExperimentParameters
from sami_pipeline.pipelines import sami_training
from sami_pipeline.pipelines.baseline_training.nodes import train_baseline


def create_pipeline(
    experiment: ExperimentParameters, beside_queries: Sequence[str] = ()
) -> Pipeline:
    """Return the pipeline that trains the baselines the experiment asks for.

    SAMI after SFT is SAMI's own pipeline with SFT's model as its student.

    Args:
        experiment: its parameters.
        beside_queries: datasets that a baseline may read besides the responses.
    """
    models = experiment.trained_models()
    baselines = Pipeline(
        [
            Node(
                train_baseline(name),
                inputs=[
                    f"{experiment.models.student}_checkpoint",
                    "responses",
                    f"{name}_training_state",
                    "params:training",
                    "params:iterations",
                    *beside_queries,
                ],
                outputs=[f"{name}_checkpoint", f"{name}_history", f"{name}_held_out"],
                name=f"train_{name}",
            )
            for name in ("dpo", "sft")
            if name in models
        ]
    )
    if "sft_sami" not in models:
        return baselines
    return baselines + Pipeline(
        sami_training.create_pipeline(experiment.iterations.count, "sft_sami"),
        inputs={"student_checkpoint": "sft_checkpoint"},
    )
