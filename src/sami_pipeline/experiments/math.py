"""Experiment 2: the shared pipelines, instantiated under the namespace ``math``."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from sami_pipeline.parameters import MathParameters
from sami_pipeline.pipelines import experiment_pipeline, math_accuracy

NAME = "math"


def create_pipeline(experiment: MathParameters) -> Pipeline:
    """Return the whole experiment: SAMI, SFT and both in turn, compared on math problems."""
    evaluation = math_accuracy.create_pipeline(experiment)
    return experiment_pipeline.assemble(NAME, experiment, evaluation, "math_accuracy")
