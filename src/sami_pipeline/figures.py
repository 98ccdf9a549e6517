"""Plotly figures from tidy tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sami_pipeline.evaluation.statistics import BOTH_TURNS
from sami_pipeline.parameters import PublishedDifference

# Okabe & Ito's palette, told apart with colour-blind eyes too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LAYOUT = {
    "template": "plotly_white",
    "font": {"family": "system-ui, sans-serif", "size": 14},
    "margin": {"l": 70, "r": 30, "t": 90, "b": 60},
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 1, "xanchor": "right"},
}
_LABELS = {"overall": "overall (8)", "overall_paper": "overall (paper's 7)", "stem": "STEM"}


def label(name: str) -> str:
    """Return how a category, model or measure is written for readers."""
    return _LABELS.get(name, name.replace("_", " "))


def _error_bars(table: pd.DataFrame, value: str, low: str, high: str) -> dict:
    return {
        "type": "data",
        "symmetric": False,
        "array": (100 * (table[high] - table[value])).clip(lower=0),
        "arrayminus": (100 * (table[value] - table[low])).clip(lower=0),
        "color": "#444444",
        "thickness": 1.5,
    }


def win_rates(table: pd.DataFrame) -> go.Figure:
    """Return win rates by category, the figure of experiment 1.

    Bars are the adjusted win rate (a tie counts half) of both turns in percent with 95 % intervals
    over questions; 50 % is parity. One panel a judge. Hovering shows wins, ties and losses.

    Args:
        table: as from ``evaluation.statistics.win_rates``.
    """
    table = table[table["turn"] == BOTH_TURNS]
    judges = table["judge"].unique().tolist()
    figure = make_subplots(
        rows=len(judges), cols=1, shared_xaxes=True, vertical_spacing=0.16 / len(judges),
        subplot_titles=[f"{judge} judge" for judge in judges] if len(judges) > 1 else None,
    )  # fmt: skip
    names = table[["model", "opponent"]].drop_duplicates().itertuples(index=False, name=None)
    colours = dict(zip(names, cycle(COLOURS), strict=False))
    matches = table.groupby(["judge", "model", "opponent"], sort=False)
    for (judge, model, opponent), rows in matches:
        figure.add_bar(
            row=judges.index(judge) + 1,
            col=1,
            name=f"{model} against {opponent}",
            legendgroup=f"{model} against {opponent}",
            showlegend=judge == judges[0],
            x=[label(category) for category in rows["category"]],
            y=100 * rows["adjusted_win_rate"],
            error_y=_error_bars(rows, "adjusted_win_rate", "adjusted_ci_low", "adjusted_ci_high"),
            marker_color=colours[model, opponent],
            customdata=rows[["wins", "ties", "losses", "n"]],
            hovertemplate="%{x}: %{y:.1f} %<br>%{customdata[0]} wins, %{customdata[1]} ties, "
            "%{customdata[2]} losses of %{customdata[3]}<extra>%{fullData.name}</extra>",
        )
    figure.add_hline(y=50, line_dash="dash", line_color="#666666")
    figure.update_layout(
        **{**_LAYOUT, "legend": {"orientation": "h", "y": -0.3 / len(judges), "x": 0}},
        height=None if len(judges) == 1 else 160 + 300 * len(judges),
        title={
            "text": "MT-Bench: win rate by category<br>"
            "<sup>both turns; a tie counts half; 95 % bootstrap intervals over questions; "
            "dashed: parity</sup>"
        },
        showlegend=True,
    )
    figure.update_yaxes(title="win rate, %", range=[0, 100])
    return figure


def compliance(table: pd.DataFrame) -> go.Figure:
    """Return the compliance with every principle, all categories that have it pooled by row.

    Args:
        table: as from ``evaluation.statistics.compliance``.
    """
    figure = go.Figure()
    rows = table[(table["principle"] != "all") | table["category"].isin(["overall"])]
    for colour, (model, part) in zip(
        cycle(COLOURS), rows.groupby("model", sort=False), strict=False
    ):
        figure.add_bar(
            name=model,
            y=[f"{label(r.category)}: {label(r.principle)}" for r in part.itertuples()],
            x=100 * part["compliance"],
            error_x=_error_bars(part, "compliance", "ci_low", "ci_high"),
            marker_color=colour,
            orientation="h",
        )
    figure.update_layout(
        **{**_LAYOUT, "margin": {"l": 220, "r": 30, "t": 90, "b": 60}},
        title={
            "text": "Compliance with each principle<br><sup>share of answers under the desired "
            "and contrasting constitutions that follow it; 95 % intervals over questions</sup>"
        },
        xaxis={"title": "compliance, %", "range": [0, 100]},
        yaxis={"autorange": "reversed"},
        height=160 + 26 * len(rows),
    )
    return figure


def accuracy(table: pd.DataFrame, published: Sequence[PublishedDifference] = ()) -> go.Figure:
    """Return accuracy with one greedy and one sampled attempt by model, figure 2 of the paper.

    Args:
        table: as from ``evaluation.attempts.accuracy``.
        published: gains drawn as a layer of their own; those for one attempt are.
    """
    figure = go.Figure()
    one = table[table["k"] == 1]
    kinds = (("greedy", "one greedy attempt"), ("pass_at_k", "one sampled attempt, mean"))
    for colour, (metric, name) in zip(cycle(COLOURS), kinds, strict=False):
        rows = one[one["metric"] == metric]
        figure.add_bar(
            name=name,
            x=[label(model) for model in rows["model"]],
            y=100 * rows["value"],
            error_y=_error_bars(rows, "value", "ci_low", "ci_high"),
            marker_color=colour,
        )
    for_one = [gain for gain in published if gain.k == 1]
    _add_published(figure, table, for_one, lambda gain: label(gain.model))
    figure.update_layout(
        **_LAYOUT,
        title={"text": "Math problems solved<br><sup>95 % bootstrap intervals over problems</sup>"},
        yaxis={"title": "accuracy, %", "rangemode": "tozero"},
    )
    return figure


def _add_published(
    figure: go.Figure,
    table: pd.DataFrame,
    published: Sequence[PublishedDifference],
    place: Callable[[PublishedDifference], Any],
) -> None:
    """Add published gains, each on top of what was measured here for the model it is over."""
    sampled = table[table["metric"] == "pass_at_k"].set_index(["model", "k"])["value"]
    drawn = [gain for gain in published if (gain.over, gain.k) in sampled.index]
    if not drawn:
        return
    figure.add_scatter(
        name=f"published gain ({', '.join(dict.fromkeys(gain.source for gain in drawn))})",
        x=[place(gain) for gain in drawn],
        y=[100 * sampled[gain.over, gain.k] + gain.points for gain in drawn],
        customdata=[(gain.model, gain.points, gain.over) for gain in drawn],
        hovertemplate="%{customdata[0]}: published %{customdata[1]:+.1f} points over "
        "%{customdata[2]}, here on top of its measured accuracy<extra></extra>",
        text=[label(gain.model) for gain in drawn],
        mode="markers+text",
        textposition="top center",
        marker={"symbol": "diamond-open", "size": 11, "color": "#000000", "line": {"width": 2}},
    )


def accuracy_by_attempts(
    table: pd.DataFrame, published: Sequence[PublishedDifference] = ()
) -> go.Figure:
    """Return accuracy against the number of attempts by model, with bands of 95 %.

    Solid lines are the chance that one of k attempts is right (pass@k), dotted ones that their
    majority is (maj@k).

    Args:
        table: as from ``evaluation.attempts.accuracy``.
        published: gains drawn as a layer of their own.
    """
    figure = go.Figure()
    for colour, (model, rows) in zip(
        cycle(COLOURS), table.groupby("model", sort=False), strict=False
    ):
        for metric, name, dash in (("pass_at_k", "any of k", "solid"), ("maj_at_k", "vote", "dot")):
            line = rows[rows["metric"] == metric].sort_values("k")
            if metric == "pass_at_k":
                band = pd.concat([line["ci_high"], line["ci_low"][::-1]])
                figure.add_scatter(
                    x=pd.concat([line["k"], line["k"][::-1]]), y=100 * band, mode="lines",
                    fill="toself", fillcolor=colour, opacity=0.12, line={"width": 0},
                    hoverinfo="skip",
                    showlegend=False,
                )  # fmt: skip
            figure.add_scatter(
                x=line["k"], y=100 * line["value"], name=f"{label(model)}: {name}",
                mode="lines+markers", line={"color": colour, "dash": dash},
            )  # fmt: skip
    _add_published(figure, table, published, lambda gain: gain.k)
    figure.update_layout(
        **{**_LAYOUT, "legend": {"orientation": "h", "y": -0.2, "x": 0}},
        title={
            "text": "Math problems solved by number of attempts<br>"
            "<sup>bands: 95 % bootstrap intervals over problems</sup>"
        },
        xaxis={"title": "attempts k", "dtick": 1},
        yaxis={"title": "accuracy, %", "rangemode": "tozero"},
    )
    return figure


def learning_curve(history: pd.DataFrame) -> go.Figure:
    """Return loss, accuracies and MI lower bound by optimiser step.

    Args:
        history: as from ``training_data.history_table``, of all models.
    """
    titles = ("loss, nats", "accuracy", "MI lower bound, nats")
    figure = make_subplots(rows=1, cols=3, subplot_titles=titles, horizontal_spacing=0.08)
    curves = (
        ("loss", 1, "loss", "solid"),
        ("row_accuracy", 2, "row: which response", "solid"),
        ("column_accuracy", 2, "column: which constitution", "dot"),
        ("preference_accuracy", 2, "preference", "dash"),
        ("mi_lower_bound", 3, "MI lower bound", "solid"),
    )
    for colour, (model, steps) in zip(
        cycle(COLOURS), history.groupby("model", sort=False), strict=False
    ):
        for column, panel, name, dash in curves:
            if steps[column].isna().all():
                continue
            figure.add_scatter(
                x=steps["step"], y=steps[column], name=f"{model}: {name}", row=1, col=panel,
                mode="lines+markers", line={"color": colour, "dash": dash},
            )  # fmt: skip
    figure.update_xaxes(title="optimiser step")
    figure.update_yaxes(range=[0, 1.02], col=2)
    figure.update_layout(
        **{**_LAYOUT, "legend": {"orientation": "h", "y": -0.25, "x": 0}},
        title="Training: means over each batch, before the step (each method has its own loss)",
    )
    return figure


def comparison(table: pd.DataFrame) -> go.Figure:
    """Return the headline figures of several runs, a panel each, with 95 % intervals.

    Args:
        table: as from ``comparison.compare_runs``.
    """
    panels = list(table.groupby(["experiment", "metric"], sort=False))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = make_subplots(
        rows=rows, cols=columns, horizontal_spacing=0.1, vertical_spacing=0.35 / rows,
        subplot_titles=[f"{label(name)}: {label(metric)}" for (name, metric), _ in panels],
    )  # fmt: skip
    colours = dict(zip(table["run"].unique(), cycle(COLOURS), strict=False))
    shown = set()
    for number, (_, panel) in enumerate(panels):
        for run, points in panel.groupby("run", sort=False):
            figure.add_scatter(
                name=run,
                legendgroup=run,
                showlegend=run not in shown,
                x=[label(model) for model in points["model"]],
                y=100 * points["value"],
                error_y=_error_bars(points, "value", "ci_low", "ci_high"),
                mode="markers",
                marker={"color": colours[run], "size": 9},
                offsetgroup=run,
                row=number // columns + 1,
                col=number % columns + 1,
            )
            shown.add(run)
    figure.update_yaxes(rangemode="tozero", ticksuffix=" %")
    figure.update_layout(
        **{**_LAYOUT, "legend": {"orientation": "h", "y": -0.1, "x": 0}},
        title={
            "text": "Runs compared<br><sup>95 % bootstrap intervals over questions or problems; "
            "win rates: a tie counts half</sup>"
        },
        scattermode="group",
        height=180 + 260 * rows,
        showlegend=True,
    )
    return figure


def checkpoint(
    name: str, parameters: Mapping[str, int], size_bytes: int, history: pd.DataFrame | None
) -> go.Figure:
    """Return a model at a glance: its size, and the loss that it was trained with, if it was.

    A model without a history shows where its parameters are.

    Args:
        name: of the model.
        parameters: their number by kind of module.
        size_bytes: of the weights on disk.
        history: one row per optimiser step of its training, with ``step`` and ``loss`` in nats.
    """
    figure = go.Figure()
    if history is None:
        figure.add_bar(
            x=[count / 1e6 for count in parameters.values()],
            y=list(parameters),
            orientation="h",
            marker_color=COLOURS[0],
        )
        figure.update_xaxes(title="parameters, million")
        figure.update_yaxes(autorange="reversed", automargin=True, tickmode="linear")
    else:
        figure.add_scatter(
            x=history["step"].tolist(),
            y=history["loss"].tolist(),
            mode="lines+markers",
            line_color=COLOURS[0],
        )
        figure.update_xaxes(title="optimiser step")
        figure.update_yaxes(title="loss, nats")
    size = f"{sum(parameters.values()) / 1e6:,.1f} million parameters, {size_bytes / 1e6:,.1f} MB"
    figure.update_layout(**_LAYOUT, title=f"{name}<br><sup>{size}</sup>")
    return figure


def standalone_html(figure: go.Figure) -> str:
    """Return a page with the figure and plotly itself inside, to be opened without a network."""
    # Without a name of its own plotly draws one, and the same figure gives another file each time.
    return figure.to_html(include_plotlyjs=True, full_html=True, div_id="figure")
