"""Nodes of published: the paper's own answers and verdicts through our statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from sami_pipeline import PROJECT_FOLDER, figures
from sami_pipeline.evaluation import length_control
from sami_pipeline.inputs import answer_files
from sami_pipeline.parameters import PublishedParameters
from sami_pipeline.reporting import RunDescription, Subject, write_page
from sami_pipeline.reporting.answers import published_answers
from sami_pipeline.tables import StoredTable

SUBJECT = Subject(
    title="Published results of arXiv 2410.01704 on MT-Bench",
    answers="Published answers",
    questions="",
    browser=lambda tables, _, shown: published_answers(tables, shown),
)


def collect_published(parameters: PublishedParameters) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the published answers and verdicts as tables; see ``inputs.answer_files``."""
    return answer_files.collect_published(parameters, PROJECT_FOLDER)


def tabulate_length_controlled(
    verdicts: pd.DataFrame, answers: pd.DataFrame, parameters: PublishedParameters
) -> pd.DataFrame:
    """Return win rates with the length of the answers controlled."""
    return length_control.length_controlled(
        verdicts, answers, resamples=parameters.resamples, seed=parameters.seed
    )


def draw_win_rates(table: pd.DataFrame, parameters: PublishedParameters) -> go.Figure:
    """Return the win rates with the paper's own as a layer."""
    return figures.win_rates(table, parameters.rates, parameters.source)


def write_report(
    node_records: Path,
    parameters: PublishedParameters,
    **results: pd.DataFrame | StoredTable | go.Figure,
) -> str:
    """Return one HTML page with the outcome, tables, figures and all answers."""
    results = {
        name: result.read() if isinstance(result, StoredTable) else result
        for name, result in results.items()
    }
    tables: dict[str, Any] = {
        name: result for name, result in results.items() if isinstance(result, pd.DataFrame)
    }
    description = RunDescription(
        experiment="published",
        subject=SUBJECT,
        run=node_records.parent.parent.name,
        parameters=parameters.model_dump(mode="json"),
        models=[
            {
                "name": model,
                "role": "baseline" if model == parameters.baseline else "under test",
                "source": f"published answers, {file}",
            }
            for model, file in parameters.answers.items()
        ],
        nodes=[],
        records=[],
    )
    drawn = {name: result for name, result in results.items() if isinstance(result, go.Figure)}
    browser = published_answers(tables, parameters.report.questions_per_category)
    return write_page(description, tables, drawn, browser)
