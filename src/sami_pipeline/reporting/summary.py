"""What a run prints at its end: the outcome and where its report lies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sami_pipeline.evaluation.statistics import (
    ALL_PRINCIPLES,
    BOTH_TURNS,
    DESIRED,
    FIRST_TURN,
    OVERALL,
)
from sami_pipeline.reporting import headlines
from sami_pipeline.reporting.run_pages import write_index
from sami_pipeline.training.responses import shortage

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline import Pipeline

# What an experiment's outcome at the end of its run is made of, in how many lines at most.
_OUTCOME = (
    "win_rates", "compliance_difference", "steerability", "accuracy_difference", "compliance",
    "length_controlled", "controls", "degeneration", "judge_quality", "response_counts",
)  # fmt: skip
_LINES = 10
# Printed in this order where a run makes no report, or when asked for; the others are named with
# their place only.
_TABLES = {
    "comparison": "Runs compared (95 % intervals over questions or problems)",
    "run_differences": "Runs, paired difference from the first on what both asked",
    "parameter_differences": "Parameters in which the compared runs differ",
    "accuracy": "Math problems solved (95 % intervals over problems)",
    "accuracy_difference": "Math, paired difference from the baseline",
    "accuracy_by_seed": "Math, every training seed by itself",
    "win_rates": "Win rates (desired constitution, first turn; 95 % intervals over questions)",
    "length_controlled": "Win rates with length held equal (first turn; 95 % intervals)",
    "judge_quality": "The judge (all categories; 95 % intervals over questions)",
    "ratings": "Ratings from 1 to 10 (all turns and categories; 95 % intervals over questions)",
    "compliance_difference": "Statements followed, difference from the baseline (first turn)",
    "steerability": "Steerability: how much more a statement is followed when it is asked for",
    "by_seed": "Every training seed by itself (first turn; spread between seeds)",
    "compliance_by_wording": "Statements followed in trained and in unseen words (first turn)",
    "controls": "Controls: what answers win that deserve nothing, and how much answers repeat",
    "degeneration": "Answers that mostly repeat themselves, and length (all turns)",
    "held_out": "Objective on held-out queries (the teacher's responses)",
    "held_out_lengths": "Length of each model's own responses to held-out queries, tokens",
    "principle_writing": "Principles written, by category and attempt",
    "response_counts": "Training queries by status",
    "teacher_compliance": "Teacher: share that passes a check when asked to, and unasked",
}
_COLUMNS = {
    "principle_writing": ["category", "attempt", "status", "found", "kept"],
    "win_rates": [
        "judge", "constitution", "turn", "model", "opponent", "category", "n", "adjusted_win_rate",
        "adjusted_ci_low", "adjusted_ci_high", "p_holm", "wins", "ties", "losses", "invalid",
    ],
    "compliance_difference": [
        "model", "baseline", "constitution", "stance", "turn", "category", "n", "difference",
        "ci_low", "ci_high", "p_holm",
    ],
    "judge_quality": [
        "judge", "constitution", "reference", "metric", "n", "value", "ci_low", "ci_high",
    ],
}  # fmt: skip
# Of the longer tables, the rows with these values are printed: the headline, and of all turns
# the summaries.
_ROWS = {
    "win_rates": {"turn": FIRST_TURN, "constitution": DESIRED},
    "compliance_difference": {"turn": FIRST_TURN, "category": OVERALL},
    "length_controlled": {"turn": FIRST_TURN},
    "steerability": {"category": OVERALL, "principle": ALL_PRINCIPLES},
    "compliance_by_wording": {"category": OVERALL, "principle": ALL_PRINCIPLES},
    "degeneration": {"turn": BOTH_TURNS, "category": OVERALL},
    "ratings": {"turn": BOTH_TURNS, "category": OVERALL},
    "judge_quality": {"category": OVERALL},
}


def of_run(
    pipeline: Pipeline, catalog: CatalogProtocol, took: str, print_tables: bool = False
) -> str:
    """Return what a run has made, as text: the outcome of each report, or its tables.

    Args:
        pipeline: the nodes that ran.
        catalog: has what they made.
        took: the line that says what time, memory and disk the run took.
        print_tables: the tables of results too, which a report shows as well.
    """
    made = sorted(pipeline.all_outputs())
    reports = [name for name in made if name.rpartition(".")[2] == "report"]
    parts = ["\n"]
    if print_tables or not reports:
        parts += _tables(made, catalog)
    parts += [_outcome(name.rpartition(".")[0], catalog) for name in reports]
    parts += [f"All runs: {place}\n" for place in _index(reports, catalog)]
    parts.append(f"{took}\n")
    return "".join(parts)


def _index(reports: list[str], catalog: CatalogProtocol) -> list[str]:
    """Write the page of all runs again where a report was written, and return its address."""
    for name in reports:
        path = getattr(catalog[name], "_filepath", None)
        if path is not None and Path(path).is_file():
            # LAYER/RUN/EXPERIMENT/report.html
            return [write_index(Path(path).resolve().parents[2]).as_uri()]
    return []


def _outcome(experiment: str, catalog: CatalogProtocol) -> str:
    """Return an experiment's outcome and where its report lies, in at most ten lines."""
    tables = {
        name: catalog.load(f"{experiment}.{name}")
        for name in _OUTCOME
        if f"{experiment}.{name}" in catalog and catalog.exists(f"{experiment}.{name}")
    }
    found = headlines.cards(tables)
    lines = headlines.as_lines(found, headlines.before_you_believe(tables), _LINES - 3)
    return "\n".join(
        [
            *([f"{experiment}: what came out"] if lines else []),
            *(f"  {each}" for each in lines),
            f"Report: {_link(catalog[f'{experiment}.report'])}",
            "",
        ]
    )


def _link(dataset: Any) -> str:
    """Return a report's place as an address that terminals open."""
    path = getattr(dataset, "_filepath", None)
    return "" if path is None else Path(path).resolve().as_uri()


def _tables(made: list[str], catalog: CatalogProtocol) -> list[str]:
    parts, over_seeds = [], 0
    for table, title in _TABLES.items():
        for name in made:
            if name.rsplit(".", 1)[-1] != table:
                continue
            loaded = catalog.load(name)
            if "seeds" in loaded:
                over_seeds = max(over_seeds, int(loaded["seeds"].max()))
            if table == "response_counts":
                parts += [f"Little to learn from: {found}\n" for found in shortage(loaded)]
            if len(loaded):
                parts.append(f"{title}\n{_format(table, loaded)}\n\n")
    if over_seeds:
        parts.append(
            f"Each trained model is {over_seeds} trainings with different seeds; intervals of what "
            "was compared are over questions (or problems) and training seeds.\n\n"
        )
    places = [(name, place) for name in made if (place := _place(catalog[name]))]
    parts += [f"{name:<36} {place}\n" for name, place in places]
    return parts


def _format(name: str, table: pd.DataFrame) -> str:
    shown = table
    if name == "parameter_differences":  # a column for each run
        by = ["experiment", "parameter"]
        wide = table.pivot(index=by, columns="run", values="value").fillna("-").reset_index()
        runs = table["run"].drop_duplicates()
        return wide[[*by, *runs]].to_string(index=False)
    for column, value in _ROWS.get(name, {}).items():
        shown = shown[shown[column] == value]
    columns = list(_COLUMNS.get(name, shown.columns))
    if "seeds" in shown and "seeds" not in columns:
        columns.insert(columns.index("n") + 1, "seeds")
    shown = shown[columns]
    return shown.to_string(index=False, float_format="{:.3f}".format, na_rep="-")


def _place(dataset: Any) -> str | None:
    path = getattr(dataset, "_filepath", None) or getattr(dataset, "_folder", None)
    if path is None:
        return None
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return str(path)
