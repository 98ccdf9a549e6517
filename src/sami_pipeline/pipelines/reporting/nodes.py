"""Nodes of reporting: one page that shows what was run and what came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from sami_pipeline.models.checkpoints import Checkpoint
from sami_pipeline.parameters import ExperimentParameters
from sami_pipeline.reporting import RunDescription, Subject, describe_models, write_page
from sami_pipeline.reporting.record import RunRecord
from sami_pipeline.tables import StoredTable


def report_on(
    name: str, subject: Subject, experiment: ExperimentParameters, nodes: Sequence[str]
) -> Callable[..., tuple[str, dict[str, Any]]]:
    """Return the node function that reports on an experiment.

    Args:
        name: of the experiment.
        subject: how the report speaks of it.
        experiment: its parameters.
        nodes: names of the nodes before it, in their order.
    """

    def write_report(
        node_records: Path, **results: pd.DataFrame | StoredTable | go.Figure | Checkpoint
    ) -> tuple[str, dict[str, Any]]:
        """Return the experiment's report as one HTML page, and what was run for other programs."""
        results = {
            name: result.read() if isinstance(result, StoredTable) else result
            for name, result in results.items()
        }
        tables, figures, checkpoints = (
            {name: result for name, result in results.items() if isinstance(result, kind)}
            for kind in (pd.DataFrame, go.Figure, Checkpoint)
        )
        description = RunDescription(
            experiment=name,
            subject=subject,
            # Paths are layer/run/experiment/dataset throughout the catalog.
            run=node_records.parent.parent.name,
            parameters=experiment.model_dump(mode="json"),
            models=describe_models(experiment, checkpoints),
            nodes=nodes,
            records=RunRecord(node_records).read_all(nodes),
        )
        answers = subject.browser(
            tables, experiment.models.baseline, experiment.report.questions_per_category
        )
        page = write_page(description, tables, figures, answers)
        return page, description.to_json(tables)

    return write_report
