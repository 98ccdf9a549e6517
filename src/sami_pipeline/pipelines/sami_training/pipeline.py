"""sami_training: the student is trained, and measured before and after."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from sami_pipeline.parameters import ExperimentParameters
from sami_pipeline.pipelines.sami_training.nodes import draw_learning_curve, train_model


def create_pipeline(experiment: ExperimentParameters) -> Pipeline:
    """Return the pipeline that turns the student into the model ``sami``."""
    return Pipeline(
        [
            Node(
                train_model,
                inputs=[
                    f"{experiment.models.student}_checkpoint",
                    "responses",
                    "sami_training_state",
                    "params:training",
                ],
                outputs=["sami_checkpoint", "history", "held_out"],
                name="train_sami",
            ),
            Node(
                draw_learning_curve,
                inputs="history",
                outputs="figure_learning_curve",
                name="draw_learning_curve",
            ),
        ]
    )
