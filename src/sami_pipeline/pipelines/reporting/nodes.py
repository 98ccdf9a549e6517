"""Nodes of reporting: one page that shows what was run and what came out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from sami_pipeline.models.checkpoints import Checkpoint
from sami_pipeline.parameters import ExperimentParameters
from sami_pipeline.reporting import RunDescription, Subject, describe_models, write_page
from sami_pipeline.reporting.record import RunRecord
from sami_pipeline.tables import StoredTable


def write_report(
    node_records: Path,
    *,
    experiment: str,
    subject: Subject,
    parameters: ExperimentParameters,
    nodes: Sequence[str],
    **results: pd.DataFrame | StoredTable | go.Figure | Checkpoint,
) -> tuple[str, dict[str, Any]]:
    """Return the experiment's report as one HTML page, and what was run for other programs.

    Args:
        node_records: the folder with what each node ran on and how long it took.
        experiment: its name.
        subject: how the report speaks of it.
        parameters: its own.
        nodes: names of the nodes before it, in their order.
        results: tables, figures and checkpoints, by dataset.
    """
    results = {
        name: result.read() if isinstance(result, StoredTable) else result
        for name, result in results.items()
    }
    tables, figures, checkpoints = (
        {name: result for name, result in results.items() if isinstance(result, kind)}
        for kind in (pd.DataFrame, go.Figure, Checkpoint)
    )
    description = RunDescription(
        experiment=experiment,
        subject=subject,
        # Paths are layer/run/experiment/dataset throughout the catalog.
        run=node_records.parent.parent.name,
        parameters=parameters.model_dump(mode="json"),
        models=describe_models(parameters, checkpoints),
        nodes=nodes,
        records=RunRecord(node_records).read_all(nodes),
        drawn=parameters.drawn_models(),
    )
    answers = subject.browser(
        tables, parameters.models.baseline, parameters.report.questions_per_category
    )
    page = write_page(description, tables, figures, answers)
    return page, description.to_json(tables)
