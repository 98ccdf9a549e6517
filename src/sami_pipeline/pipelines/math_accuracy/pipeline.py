"""math_accuracy: models under test attempt the problems and are compared."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from sami_pipeline.parameters import ExperimentParameters
from sami_pipeline.pipelines import bind, combined, for_each_model, result_nodes
from sami_pipeline.pipelines.math_accuracy import nodes
from sami_pipeline.result_tables.registry import ATTEMPTED


def create_pipeline(experiment: ExperimentParameters) -> Pipeline:
    """Return the pipeline that measures every model under test on the test problems."""
    replicates = experiment.replicates_under_test()
    return Pipeline(
        [
            *for_each_model(
                list(replicates),
                nodes.attempt_as,
                inputs=[
                    "problems",
                    "principles",
                    "evaluation_prompt",
                    "params:accuracy",
                    "completions",
                ],
                output="attempts",
            ),
            combined(replicates, "attempts"),
            *result_nodes(ATTEMPTED, experiment),
            Node(
                bind(nodes.draw_accuracy, models=experiment.drawn_models()),
                inputs=["accuracy", "params:accuracy"],
                outputs=["figure_accuracy", "figure_attempts"],
                name="draw_accuracy",
            ),
        ]
    )
