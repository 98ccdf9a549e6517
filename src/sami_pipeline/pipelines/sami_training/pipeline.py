"""sami_training: the student is trained, and measured before and after."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from sami_pipeline.pipelines import bind
from sami_pipeline.pipelines.sami_training.nodes import train_model


def create_pipeline(iteration: int = 1, model: str = "sami", further: int = 0) -> Pipeline:
    """Return the pipeline that trains the student with SAMI, as the model of that name.

    Args:
        iteration: from 1.
        model: its name, or that of one of its replicates.
        further: what its seed is above that of the parameters.
    """
    return Pipeline(
        [
            Node(
                bind(train_model, iteration=iteration, name=model, further=further),
                inputs=[
                    "student_checkpoint",
                    "responses",
                    f"{model}_training_state",
                    f"{model}_trackers",
                    "params:training",
                    "params:iterations",
                ],
                outputs=[f"{model}_checkpoint", f"{model}_history", f"{model}_held_out"],
                name=f"train_{model}",
            ),
        ]
    )
