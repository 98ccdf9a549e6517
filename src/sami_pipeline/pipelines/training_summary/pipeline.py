"""training_summary: the tables of all trained models together."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from sami_pipeline.parameters import ExperimentParameters
from sami_pipeline.pipelines import bind, combined
from sami_pipeline.pipelines.training_summary.nodes import draw_learning_curve


def create_pipeline(experiment: ExperimentParameters) -> Pipeline:
    """Return the pipeline that brings the trained models' histories and measures together."""
    replicates = {
        name: (model, seed)
        for model in experiment.trained_models()
        for name, seed in experiment.replicates(model).items()
    }
    return Pipeline(
        [
            *(combined(replicates, table) for table in ("history", "held_out")),
            Node(
                bind(draw_learning_curve, models=experiment.drawn_models()),
                inputs="history",
                outputs="figure_learning_curve",
                name="draw_learning_curve",
            ),
        ]
    )
