"""sami_generation: contrasting constitutions and a response under each."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from sami_pipeline.pipelines.sami_generation.nodes import (
    constitute_queries,
    measure_teacher,
    prepare_responses,
    write_responses_in,
)


def create_pipeline(iteration: int = 1) -> Pipeline:
    """Return the pipeline in which the teacher writes the training responses of an iteration."""
    return Pipeline(
        [
            Node(
                constitute_queries,
                inputs=["queries", "principles", "params:constitutions"],
                outputs="constitutions",
                name="constitute_queries",
            ),
            Node(
                write_responses_in(iteration),
                inputs=[
                    "teacher_checkpoint",
                    "queries",
                    "constitutions",
                    "generation_prompt",
                    "params:generation",
                    "params:iterations",
                ],
                outputs="generations",
                name="write_responses",
            ),
            Node(
                measure_teacher,
                inputs=["generations", "principles"],
                outputs="teacher_compliance",
                name="measure_teacher",
            ),
            Node(
                prepare_responses,
                inputs=["generations", "principles", "training_prompt", "params:generation"],
                outputs=["responses", "response_counts"],
                name="prepare_responses",
            ),
        ]
    )
