"""math_accuracy: models under test attempt the problems and are compared."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from sami_pipeline.parameters import ExperimentParameters
from sami_pipeline.pipelines import combined, for_each_model
from sami_pipeline.pipelines.math_accuracy import nodes


def create_pipeline(experiment: ExperimentParameters) -> Pipeline:
    """Return the pipeline that measures every model under test on the test problems."""
    replicates = experiment.replicates_under_test()
    by_seed = Node(
        nodes.tabulate_seeds,
        inputs=["attempts", "params:accuracy"],
        outputs="accuracy_by_seed",
        name="tabulate_seeds",
    )
    return Pipeline(
        [
            *([by_seed] if experiment.seeds > 1 else []),
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
            Node(
                nodes.tabulate_accuracy,
                inputs=["attempts", "params:models", "params:accuracy"],
                outputs=["accuracy", "accuracy_difference", "accuracy_breakdown"],
                name="tabulate_accuracy",
            ),
            Node(
                nodes.draw_accuracy,
                inputs=["accuracy", "params:accuracy"],
                outputs=["figure_accuracy", "figure_attempts"],
                name="draw_accuracy",
            ),
        ]
    )
