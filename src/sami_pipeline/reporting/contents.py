"""What a report shows: its sections, and the tables and figures of each, in their order.

A table or figure that a run makes and that is named here is in the report, and so is every table of
``result_tables`` that is not, after the others of its section.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from sami_pipeline.evaluation.intervals import FEWEST_CLUSTERS
from sami_pipeline.evaluation.statistics import (
    BOTH_TURNS,
    DESIRED,
    FIRST_TURN,
    OVERALL,
    OVERALL_PAPER,
)
from sami_pipeline.figures import label, measure
from sami_pipeline.result_tables.registry import RESULT_TABLES
from sami_pipeline.result_tables.shown import (
    OVER_PROBLEMS,
    OVER_QUESTIONS,
    Cell,
    Estimate,
    Figure,
    Table,
)

# Columns that say what was asked and who judged; each combination is shown by itself.
ASKED = ("judge", "constitution", "stance", "turn", "seed")


SECTIONS = {
    "outcome": "The outcome",
    "results": "Results",
    "answers": "Answers",
    "degeneration": "Repetition and length",
    "judge": "The judge",
    "training": "Training",
    "run": "What was run",
}

_TOKENS_INTERVAL = ("mean_tokens_ci_low", "mean_tokens_ci_high")
_TEACHER = (
    "A contrast can be learnt where the share that passes a check when asked to differs from the "
    "share that passes it unasked."
)

# In their order, tables of ``result_tables`` by name.
_CONTENTS: tuple[Table | Figure | str, ...] = (
    Figure(
        "figure_win_rates",
        "results",
        "Win rate by category",
        "A tie counts half; dashed: parity; a panel a constitution, the desired one at the first "
        "turn and, where two were asked, at both. " + OVER_QUESTIONS,
    ),
    Figure(
        "figure_questions",
        "results",
        "The same questions, answered by two models",
        "Statements followed at the first turn; numbers count questions, for each pair of "
        "replicates where models have several training seeds. Above the dashed line the "
        "model at the left follows more.",
    ),
    "win_rates",
    "ratings",
    "length_controlled",
    "compliance_difference",
    Figure(
        "figure_compliance",
        "results",
        "Compliance with each principle",
        "Share of the answers that were asked to follow it and do, at the first turn; principles "
        "and antitheses apart. " + OVER_QUESTIONS,
    ),
    "compliance",
    Figure("figure_accuracy", "results", "Problems solved at one attempt", OVER_PROBLEMS),
    "accuracy",
    "accuracy_difference",
    "accuracy_by_seed",
    "accuracy_breakdown",
    Figure(
        "figure_attempts",
        "results",
        "Problems solved by number of attempts",
        "Solid: at least one of k attempts is right; dotted: the most frequent answer is. Bands: "
        + OVER_PROBLEMS,
    ),
    Figure(
        "figure_lengths",
        "degeneration",
        "Length of answers by constitution",
        "Mean number of tokens. " + OVER_QUESTIONS,
    ),
    "degeneration",
    Table(
        "degeneration",
        "degeneration",
        "Length of answers",
        "Mean number of tokens. " + OVER_QUESTIONS,
        rows=("category",),
        columns=("model",),
        estimate=Estimate("mean_tokens", *_TOKENS_INTERVAL, percent=False),
        whole=False,
    ),
    Table(
        "held_out_lengths",
        "degeneration",
        "Length of models' own responses to held-out queries",
        "Mean number of tokens. 95 % intervals over queries.",
        rows=("constitution",),
        columns=("model",),
        estimate=Estimate("mean_tokens", *_TOKENS_INTERVAL, percent=False),
    ),
    "judge_quality",
    Figure(
        "figure_learning_curve",
        "training",
        "Learning curves",
        "Means over each batch, before the step. Each method has its own loss.",
    ),
    Table(
        "held_out",
        "training",
        "The objective on held-out queries",
        "SAMI's own objective on the teacher's responses, in nats and as accuracies, before and "
        "after training, and the paired difference. 95 % intervals over queries.",
        rows=("metric", "stage"),
        columns=("model",),
        estimate=Estimate("value", percent=False, digits=3),
    ),
    Table(
        "response_counts",
        "training",
        "Training queries by status",
        "Only those whose responses are all usable are trained on or held out to measure on.",
    ),
    Table("teacher_compliance", "training", "How well the teacher follows a principle", _TEACHER),
    Table(
        "history",
        "training",
        "Every optimiser step",
        "Means over each batch, before the step. Each method has its own loss.",
    ),
)

_TABLES = {table.name: table.shown for table in RESULT_TABLES}
CONTENTS: tuple[Table | Figure, ...] = (
    *(_TABLES.pop(part) if isinstance(part, str) else part for part in _CONTENTS),
    *_TABLES.values(),
)
"""All that a report shows, as far as a run makes it."""

# What the browser of answers and the count of tokens are made of.
_TEXTS = (
    "answers", "attempts", "checked", "generations", "judgements", "principles", "problems",
    "question_constitutions", "questions", "verdicts",
)  # fmt: skip
SHOWN = tuple(dict.fromkeys([*(part.name for part in CONTENTS), *_TEXTS]))
"""Names of all results that a report shows, where a run makes them."""


@dataclass(frozen=True)
class Matrix:
    """A table of cells as a page shows it.

    Attributes:
        caption: what tells it from the other grids of its table, or "".
        header: titles of all columns.
        heads: how many columns at the left name the row.
        rows: the cells, text or numbers with intervals.
        folded: show it only when asked, as what is on the second turn alone.
        note: how small a difference it could show, or "".
    """

    caption: str
    header: list[str]
    heads: int
    rows: list[list[Cell]]
    folded: bool = False
    note: str = ""


def overviews(table: Table, data: pd.DataFrame) -> list[Matrix]:
    """Return a table's numbers, one grid for each judge and turn that it has.

    Args:
        table: how it is shown.
        data: the rows, in any order. Where two belong into one cell there is no overview: only the
            whole table can show both.
    """
    if table.estimate is None:
        return []
    for column, values in (table.where or {}).items():
        data = data[data[column].isin(values)]
    if table.ends:
        data = data[data[table.ends].isin([data[table.ends].min(), data[table.ends].max()])]
    by = [
        column for column in ASKED if column in data and column not in (*table.rows, *table.columns)
    ]
    if data.empty or data.duplicated([*by, *table.rows, *table.columns]).any():
        return []
    if {"turn", "constitution"} <= set(by):
        data = _in_order_of_headline(data)
    grids = []
    for judging, part in data.groupby(by, sort=False) if by else [((), data)]:
        asked = dict(zip(by, judging, strict=True))
        caption = ", ".join(f"{name}: {label(str(value))}" for name, value in asked.items())
        folded = asked.get("turn", FIRST_TURN) != FIRST_TURN and (
            asked["turn"] != BOTH_TURNS or asked.get("constitution", DESIRED) != DESIRED
        )
        grids.append(replace(_grid(table, part, caption), folded=folded))
    return grids


def _in_order_of_headline(data: pd.DataFrame) -> pd.DataFrame:
    """Return rows judge by judge, the first turn first; both turns only where there are two."""
    twice = data.loc[data["turn"] == "2", "constitution"].unique()
    data = data[(data["turn"] != BOTH_TURNS) | data["constitution"].isin(twice)]
    order = pd.DataFrame(
        {
            column: data[column].map({name: i for i, name in enumerate(data[column].unique())})
            for column in ASKED
            if column in data and column != "turn"
        }
    ).assign(turn=data["turn"].map({FIRST_TURN: 0, BOTH_TURNS: 1, "2": 2}))
    return data.loc[order.sort_values(list(order), kind="stable").index]


def _grid(table: Table, data: pd.DataFrame, caption: str) -> Matrix:
    names = data[list(table.columns)].drop_duplicates().itertuples(index=False, name=None)
    columns, rows = list(names), {}
    for record in data.to_dict("records"):
        row = rows.setdefault(tuple(record[name] for name in table.rows), {})
        row[tuple(record[name] for name in table.columns)] = table.estimate.cell(record)
    link = _LINKS.get(table.columns[-1], "{}")
    # A number without a baseline is the model's own.
    titles = [(link if names[-1] != "" else "{}").format(*map(str, names)) for names in columns]
    return Matrix(
        caption,
        [*(label(name) for name in table.rows), *titles],
        len(table.rows),
        [
            [
                *(_head(*each) for each in zip(table.rows, names, strict=True)),
                *(row.get(c, Cell("–")) for c in columns),
            ]
            for names, row in rows.items()
        ],
        note=" ".join(filter(None, (_over_seeds(data), _detectable(data), _bounds(data)))),
    )


def _head(column: str, name: object) -> Cell:
    """Return what names a row; a model keeps the name that it has everywhere else."""
    return Cell((str(name) if column == "model" else measure(str(name))) or "–")


def _over_seeds(data: pd.DataFrame) -> str:
    """Say that intervals are over training seeds too, where there are several."""
    if "seeds" not in data or data["seeds"].max() < 2:
        return ""
    return (
        f"Of models trained here, {data['seeds'].max()} trainings with different seeds are taken "
        "together, and intervals and p-values are over questions and training seeds."
    )


def _bounds(data: pd.DataFrame) -> str:
    """Say what the win rates would be, were all invalid verdicts losses or wins."""
    if "if_invalid_lost" not in data:
        return ""
    rows = data[(data["category"] == OVERALL) & (data["invalid"] > 0)]
    if rows.empty:
        return ""
    found = [
        f"{row['model']} against {row['opponent']} {100 * row['if_invalid_lost']:.1f} to "
        f"{100 * row['if_invalid_won']:.1f} ({row['invalid']} of {row['invalid'] + row['rows']} "
        "verdicts)"
        for row in rows.to_dict("records")
    ]
    return (
        "Verdicts that could not be read are left out. Were all of them losses or all wins, the "
        f"rate over all categories would be: {', '.join(found)}."
    )


def _detectable(data: pd.DataFrame) -> str:
    """Say how small a difference the rows would show, over all categories and in one of them."""
    if "detectable" not in data or "category" not in data:
        return ""
    single = data[~data["category"].isin([OVERALL, OVERALL_PAPER])]
    overall = data[data["category"] == OVERALL]
    most = 0.5 if "adjusted_win_rate" in data else 2.0 if "steerability" in data else 1.0
    found = []
    for words, rows in (
        ("over all categories", overall),
        ("in a category by itself", single[single["n"] >= FEWEST_CLUSTERS]),
    ):
        size = rows["detectable"].median()
        if not pd.isna(size):
            asked = f"{words} ({_counted(rows['n'])})"
            found.append(f"{100 * size:.0f} points {asked}" if size <= most else f"none {asked}")
    notes = []
    if found:
        notes.append(
            "Smallest difference from parity that would be found in four of five cases: "
            f"{', '.join(found)}."
        )
    few = overall if (overall["n"] < FEWEST_CLUSTERS).any() else single
    few = few.loc[few["n"] < FEWEST_CLUSTERS, "n"]
    if len(few):
        notes.append(f"With {_counted(few)} no difference could be shown.")
    return " ".join(notes)


def _counted(questions: pd.Series) -> str:
    """Return a number of questions, or the least and the greatest."""
    least, most = int(questions.min()), int(questions.max())
    if least == most:
        return f"{least} question{'s' * (least != 1)}"
    return f"{least} to {most} questions"


# How a column is called that compares two models.
_LINKS = {"opponent": "{} against {}", "baseline": "{} − {}", "other_run": "{} − {}"}


def whole(data: pd.DataFrame) -> Matrix:
    """Return every row and column of a table, numbers written short."""
    rows = [[Cell(_written(value)) for value in row] for row in data.itertuples(index=False)]
    return Matrix("", [label(name) for name in data], 0, rows)


def _written(value: Any) -> str:
    if isinstance(value, float):
        return "–" if pd.isna(value) else f"{value:.4g}"
    return "–" if value is None else str(value)
