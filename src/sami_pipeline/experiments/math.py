"""Experiment 2 of arXiv 2410.01704: SAMI, SFT and both in turn, compared on math problems."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from sami_pipeline import schemas
from sami_pipeline.evaluation.asked import asked_to_attempt
from sami_pipeline.evaluation.workload import attempted
from sami_pipeline.experiments.record import Experiment
from sami_pipeline.parameters import MathParameters
from sami_pipeline.pipelines import math_accuracy
from sami_pipeline.pipelines.data_ingest import nodes
from sami_pipeline.reporting.answers import math_answers
from sami_pipeline.reporting.comparison import Headline, headline_accuracy
from sami_pipeline.reporting.run import Subject
from sami_pipeline.vocabulary import RAW


def ingest(parameters: MathParameters) -> Pipeline:
    """Return the node that collects the problems, those to train on being the queries."""
    return Pipeline(
        [
            Node(
                nodes.collect_problems,
                inputs="params:problems",
                outputs=["problems", "queries"],
                name="collect_problems",
                tags=RAW,
            ),
        ]
    )


EXPERIMENT = Experiment(
    name="math",
    parameters=MathParameters,
    subject=Subject(
        title="SAMI on math problems",
        answers="Attempts at problems",
        questions="",
        browser=math_answers,
    ),
    ingest=ingest,
    evaluation=math_accuracy.create_pipeline,
    evaluation_name="math_accuracy",
    workload=attempted,
    asked=asked_to_attempt,
    categories=("math",),
    headlines={"accuracy": Headline(schemas.Accuracy, headline_accuracy)},
    beside_queries=("problems",),
)
