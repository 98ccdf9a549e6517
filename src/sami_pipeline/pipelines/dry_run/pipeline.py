"""dry_run: what an experiment would need, instead of the experiment."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from kedro.pipeline import Node, Pipeline

from sami_pipeline.evaluation.workload import Workload
from sami_pipeline.parameters import ExperimentParameters
from sami_pipeline.pipelines import bind, with_datasets_under
from sami_pipeline.pipelines.dry_run.nodes import examine_experiment


def create_pipeline(
    name: str,
    experiment: ExperimentParameters,
    principles: Node,
    workload: Callable[[pd.DataFrame], Workload],
) -> Pipeline:
    """Return the pipeline that examines an experiment and makes nothing.

    Args:
        name: of the experiment.
        experiment: its parameters.
        principles: the node that makes them of raw files.
        workload: gives how much it trains on and writes, from the principles.
    """
    prompts = ("generation_prompt", "training_prompt", "evaluation_prompt")
    # Without its tag: what is checked before a run is written by it, and this is not.
    reader = Node(principles.func, inputs=principles.inputs, outputs="principles")
    # A name that the catalog does not know, so that they are not kept.
    in_memory = f"principles_of_{name}"
    read = Pipeline(
        with_datasets_under(name, Pipeline([reader])), outputs={f"{name}.principles": in_memory}
    )
    examine = Node(
        bind(examine_experiment, name=name, experiment=experiment, workload=workload),
        inputs=[
            in_memory,
            *(f"{name}.{prompt}" for prompt in prompts),
            "params:dry_run_assumptions",
        ],
        outputs=None,
        name=f"dry_run_{name}",
    )
    return read + Pipeline([examine])
