"""reporting: one page that shows what was run and what came out."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from sami_pipeline.parameters import ExperimentParameters
from sami_pipeline.pipelines import bind
from sami_pipeline.pipelines.reporting.nodes import write_report
from sami_pipeline.reporting import Subject
from sami_pipeline.reporting.contents import SHOWN


def create_pipeline(
    name: str, subject: Subject, experiment: ExperimentParameters, stages: Pipeline
) -> Pipeline:
    """Return the pipeline that reports on an experiment.

    Args:
        name: of the experiment.
        subject: how the report speaks of it.
        experiment: its parameters.
        stages: what comes before; the report shows what it makes of ``contents.SHOWN``.
    """
    made = stages.all_outputs()
    # Of these only the tokens are counted.
    counted = sorted(r for r in made if r.endswith((".generations", "_held_out_responses")))
    shown = [*(result for result in SHOWN if result in made), *counted]
    checkpoints = [f"{model}_checkpoint" for model in experiment.models.tested_checkpoints]
    nodes = [node.name for node in stages.nodes]
    return Pipeline(
        [
            Node(
                bind(
                    write_report,
                    experiment=name,
                    subject=subject,
                    parameters=experiment,
                    nodes=nodes,
                ),
                inputs={result: result for result in ("node_records", *shown, *checkpoints)},
                outputs=["report", "run_record"],
                name="write_report",
            ),
        ]
    )
