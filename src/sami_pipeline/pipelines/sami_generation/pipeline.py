"""sami_generation: contrasting constitutions and a response under each."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from sami_pipeline.parameters import HOSTED, WORKED_SOLUTIONS
from sami_pipeline.pipelines import bind
from sami_pipeline.pipelines.sami_generation.nodes import (
    constitute_queries,
    copy_solutions,
    measure_teacher,
    prepare_responses,
    write_responses,
)

# What the nodes that write responses ask for, in this order.
_ASKED = ["queries", "constitutions", "generation_prompt"]
_SETTINGS = ["params:generation", "params:iterations"]


def create_pipeline(iteration: int = 1, *, teacher: str | None = None) -> Pipeline:
    """Return the pipeline that makes the training responses of an iteration.

    Args:
        iteration: number of the iteration, from 1.
        teacher: ``HOSTED`` or ``WORKED_SOLUTIONS``, which are no models of this project; any
            other is the input ``teacher_checkpoint``.
    """
    return Pipeline(
        [
            Node(
                constitute_queries,
                inputs=["queries", "principles", "params:constitutions"],
                outputs="constitutions",
                name="constitute_queries",
            ),
            _writing(iteration, teacher),
            Node(
                measure_teacher,
                inputs=["generations", "principles"],
                outputs="teacher_compliance",
                name="measure_teacher",
            ),
            Node(
                prepare_responses,
                inputs=[
                    "generations",
                    "principles",
                    "training_prompt",
                    "student_checkpoint",
                    "params:generation",
                ],
                outputs=["responses", "response_counts"],
                name="prepare_responses",
            ),
        ]
    )


def _writing(iteration: int, teacher: str | None) -> Node:
    if teacher == WORKED_SOLUTIONS:
        return Node(
            copy_solutions,
            inputs=["problems", *_ASKED, "student_checkpoint", *_SETTINGS],
            outputs="generations",
            name="copy_solutions",
        )
    hosted = teacher == HOSTED
    return Node(
        bind(write_responses, iteration=iteration),
        inputs=[
            *_ASKED, *_SETTINGS, "completions", *([] if hosted else ["teacher_checkpoint"]),
        ],
        outputs="generations",
        name="ask_hosted_teacher" if hosted else "write_responses",
    )  # fmt: skip
