"""dry_run: one node in the place of an experiment."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from sami_pipeline.parameters import ExperimentParameters
from sami_pipeline.pipelines.dry_run.nodes import examine_experiment


def create_pipeline(name: str, experiment: ExperimentParameters) -> Pipeline:
    """Return the pipeline that examines an experiment and makes nothing."""
    inputs = ("principle_files", "generation_prompt", "training_prompt", "evaluation_prompt")
    return Pipeline(
        [
            Node(
                examine_experiment(name, experiment),
                inputs=[*(f"{name}.{dataset}" for dataset in inputs), "params:dry_run_assumptions"],
                outputs=None,
                name=f"dry_run_{name}",
            )
        ]
    )
