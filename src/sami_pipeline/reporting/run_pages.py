"""Pages about several runs: an index of all there are, and some of them side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from sami_pipeline import files
from sami_pipeline.figures import measure
from sami_pipeline.reporting.contents import Matrix, overviews
from sami_pipeline.reporting.outcome import written_p
from sami_pipeline.reporting.page import (
    bare,
    csv_address,
    embedded,
    figure_scripts,
    rendered,
)
from sami_pipeline.reporting.run import flattened
from sami_pipeline.result_tables.shown import Cell, Estimate, Table

INDEX = "index.html"
_HEADLINES = Table(
    "comparison", "", "", rows=("model", "metric"), columns=("run",), estimate=Estimate("value")
)
_DIFFERENCE = Estimate("difference", signed=True, parity=0.0, other_units=("mean_tokens",))
# What of a command says more than its pipeline.
_GIVEN = ("env", "runtime_params")


def write_comparison(
    comparison: pd.DataFrame,
    run_differences: pd.DataFrame,
    parameter_differences: pd.DataFrame,
    figure: go.Figure,
) -> str:
    """Return runs side by side as one HTML page that needs no network.

    Args:
        comparison: see ``schemas.Comparison``.
        run_differences: see ``schemas.RunDifferences``.
        parameter_differences: see ``schemas.ParameterDifferences``.
        figure: of the comparison.
    """
    runs = list(dict.fromkeys(comparison["run"]))
    by_run = comparison.groupby("run")["experiment"].unique()
    return rendered(
        "compare.html",
        figure_scripts(),
        runs=runs,
        reports={run: [] if run == "pooled" else list(by_run[run]) for run in runs},
        parameters=[
            _parameters(rows, experiment)
            for experiment, rows in parameter_differences.groupby("experiment", sort=False)
        ],
        differences=_differences(run_differences),
        headlines=_grids(_HEADLINES, comparison),
        tables={
            "comparison": comparison,
            "run_differences": run_differences,
            "parameter_differences": parameter_differences,
        },
        figure=embedded(bare(figure)),
        csv_of=csv_address,
    )


def _grids(table: Table, data: pd.DataFrame) -> list[Matrix]:
    """Return the grids of each experiment, named by it."""
    return [
        Matrix(experiment, grid.header, grid.heads, grid.rows, note=grid.note)
        for experiment, rows in data.groupby("experiment", sort=False)
        for grid in overviews(table, rows)
    ]


def _differences(data: pd.DataFrame) -> list[Matrix]:
    """Return a grid for each experiment and pair of runs, with all that a difference rests on."""
    header = [
        "model", "measure", "difference", "p, corrected", "would be found from", "paired",
        "left out",
    ]  # fmt: skip
    return [
        Matrix(
            f"{experiment}: {run} \N{MINUS SIGN} {other}",
            header,
            2,
            [
                [
                    Cell(row["model"]),
                    Cell(measure(row["metric"])),
                    _DIFFERENCE.cell(row),
                    Cell("–" if pd.isna(row["p_holm"]) else written_p(row["p_holm"])),
                    Cell(_found_from(row["detectable"])),
                    Cell(str(row["n"])),
                    Cell(str(row["left_out"])),
                ]
                for row in rows.to_dict("records")
            ],
        )
        for (experiment, run, other), rows in data.groupby(
            ["experiment", "run", "other_run"], sort=False
        )
    ]


def _found_from(detectable: float) -> str:
    """Return the smallest difference that would be found, in points, or that none would be."""
    if pd.isna(detectable):
        return "–"
    return f"{100 * detectable:.0f}" if detectable <= 1 else "none"


def _parameters(rows: pd.DataFrame, experiment: str) -> Matrix:
    runs = list(dict.fromkeys(rows["run"]))
    values = {(row.parameter, row.run): row.value for row in rows.itertuples()}
    return Matrix(
        experiment,
        ["parameter", *runs],
        1,
        [
            [Cell(name), *(Cell(values.get((name, run)) or "–") for run in runs)]
            for name in dict.fromkeys(rows["parameter"])
        ],
    )


def write_index(folder: Path) -> Path:
    """Write the page of all runs that have a report, and return its place.

    Args:
        folder: holds RUN/EXPERIMENT/run_record.json and the reports.
    """
    runs = [_described(path) for path in sorted(folder.glob("*/*/run_record.json"))]
    page = rendered(
        INDEX,
        [],
        runs=sorted(runs, key=lambda run: run["finished"], reverse=True),
        comparisons=sorted(path.parts[-3] for path in folder.glob("*/compare_runs/report.html")),
    )
    files.write_text(folder / INDEX, page)
    return folder / INDEX


def _described(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": path.parts[-3], "experiment": path.parts[-2], "finished": "", "seconds": 0.0,
        "given": "", "outcome": [], "fault": "", "report": (path.parent / "report.html").is_file(),
    }  # fmt: skip
    try:
        record = json.loads(path.read_text("utf-8"))
        attempts = [each for node in record["nodes"] for each in node["attempts"]]
        last = max(attempts, key=lambda each: each["started"], default=None)
        if last is not None:
            found["finished"] = last["started"][:16].replace("T", " ")
            found["given"] = _given(last["command"])
        found["seconds"] = sum(each["seconds"] or 0.0 for each in attempts)
        found["outcome"] = record.get("outcome", [])
    except (OSError, ValueError, KeyError, TypeError) as error:
        found["fault"] = f"{path.name} can't be read ({type(error).__name__}); repeat the run"
    return found


def _given(command: Mapping[str, Any]) -> str:
    given = {name: command[name] for name in _GIVEN if command.get(name)}
    parts = [
        f"{name.removeprefix('runtime_params.')} = {value}"
        for name, value in flattened(given).items()
        if not name.endswith("run_name")
    ]
    return ", ".join(parts)
