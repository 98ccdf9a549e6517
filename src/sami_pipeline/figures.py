"""Plotly figures from tidy tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sami_pipeline.evaluation.checklist import JUDGE_NAME as CHECKLIST
from sami_pipeline.evaluation.seeds import labelled, seed_columns
from sami_pipeline.evaluation.statistics import BOTH_TURNS, DESIRED, FIRST_TURN
from sami_pipeline.parameters import PublishedDifference, PublishedRate
from sami_pipeline.training.baselines.registry import trained_models

# Okabe & Ito's palette, told apart with colour-blind eyes too; grey for black, for dark pages.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
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


def measure(metric: str) -> str:
    """Return how a headline figure of a run is written for readers, models by their names."""
    name, against, rest = metric.partition(" against ")
    return label(name) + against + rest


def _error_bars(table: pd.DataFrame, value: str, low: str, high: str, scale: float = 100) -> dict:
    return {
        "type": "data",
        "symmetric": False,
        "array": (scale * (table[high] - table[value])).clip(lower=0).tolist(),
        "arrayminus": (scale * (table[value] - table[low])).clip(lower=0).tolist(),
        "color": "#444444",
        "thickness": 1.5,
    }


_SYMBOLS = ("circle", "diamond-open", "square-open", "triangle-up-open")
_DODGE = 0.6  # of the distance between two rows: what the points of one row share


def model_colours(*names: Iterable[str], models: Sequence[str] = ()) -> dict[str, str]:
    """Return one colour a model, the same in all figures of an experiment.

    What is trained here has the colour of its place in the registry of baselines, so that it is the
    same in all experiments. Of the others the first is grey, and the rest take the colours that are
    left.

    Args:
        names: columns of models that are drawn; the order and how often each occurs change nothing.
        models: all that the experiment draws in any figure, its student first, as
            ``ExperimentParameters.drawn_models`` has them; without them, those of ``names``.
    """
    drawn = list(dict.fromkeys([*models, *sorted(set().union(*names) - {""})]))
    *bright, grey = COLOURS
    trained = trained_models()
    chosen = {name: colour for name, colour in zip(trained, bright, strict=False) if name in drawn}
    plain = [name for name in drawn if name not in trained][:1]
    chosen |= dict.fromkeys(plain, grey)
    free = [colour for colour in bright if colour not in chosen.values()] or bright
    others = [name for name in drawn if name not in chosen]
    return chosen | dict(zip(others, cycle(free), strict=False))


def _forest(
    table: pd.DataFrame,
    *,
    panels: Sequence[str],
    row: str,
    series: Sequence[str],
    value: str,
    low: str = "ci_low",
    high: str = "ci_high",
    parity: float | None,
    scale: float = 100,
    hover: Sequence[str] = (),
    stacked: str | None = None,
    models: Sequence[str] = (),
) -> go.Figure:
    """Return a forest plot: a dot and its interval for each row, a panel for each question asked.

    Args:
        table: one row per (stacked, panels, row, series); summaries over categories are drawn
            first.
        panels: columns whose combinations each get a panel, in the order of the table.
        row: column that names what stands on one line.
        series: column of the model, and that of whom it is compared with, if any.
        value: column of the number.
        low: column of its interval's lower end.
        high: column of its upper end.
        parity: where no side is ahead, drawn as a line; None draws none.
        scale: what numbers are multiplied by.
        hover: further columns that are shown at a dot.
        stacked: column whose values each get a line of panels; None draws one line.
        models: see `model_colours`.
    """
    table = table.assign(stack="" if stacked is None else table[stacked])
    stacks = table["stack"].unique().tolist()
    keys = list(table[list(panels)].drop_duplicates().itertuples(index=False, name=None))
    names = sorted(table[row].unique(), key=lambda name: name not in _FIRST)
    places = {name: len(names) - 1 - i for i, name in enumerate(names)}
    matches = list(table[list(series)].drop_duplicates().itertuples(index=False, name=None))
    height = (14 + 12 * len(matches)) * len(names) + 60
    figure = make_subplots(
        rows=max(1, len(stacks)), cols=max(1, len(keys)), shared_yaxes=True,
        horizontal_spacing=0.05, vertical_spacing=70 / (height * max(1, len(stacks)) + 200),
        subplot_titles=[
            _panel_title(panels, key) + (f", {stack} {stacked}" if len(stacks) > 1 else "")
            for stack in stacks for key in keys
        ],
    )  # fmt: skip
    colours = model_colours(*(table[column] for column in series), models=models)
    opponents = list(dict.fromkeys(match[1:] for match in matches))
    join = " against " if "opponent" in series else " \N{MINUS SIGN} "
    shown = set()
    for key, points in table.groupby(["stack", *panels, *series], sort=False):
        line, column = stacks.index(key[0]), keys.index(key[1 : 1 + len(panels)])
        match = key[1 + len(panels) :]
        offset = _DODGE * ((len(matches) - 1) / 2 - matches.index(match)) / len(matches)
        offset *= row not in series  # a line for each model needs no room for others
        figure.add_scatter(
            row=line + 1,
            col=column + 1,
            name=join.join(match),
            legendgroup=join.join(match),
            showlegend=match not in shown,
            x=(scale * points[value]).tolist(),
            y=[places[each] + offset for each in points[row]],
            error_x=_error_bars(points, value, low, high, scale),
            mode="markers",
            cliponaxis=False,
            marker={
                "color": colours[match[0]],
                "symbol": _SYMBOLS[opponents.index(match[1:]) % len(_SYMBOLS)],
                "size": 8,
            },
            text=[_details(record, row, hover) for record in points.to_dict("records")],
            hovertemplate="%{x:.1f}<br>%{text}<extra>%{fullData.name}</extra>",
        )
        shown.add(match)
    if parity is not None:
        figure.add_vline(x=scale * parity, line_dash="dash", line_color="#666666")
    figure.update_yaxes(
        tickvals=list(places.values()),
        ticktext=[label(name) for name in places],
        range=[-0.6, len(names) - 0.4],
        showgrid=False,
        zeroline=False,
    )
    total = height * max(1, len(stacks)) + 190
    figure.update_layout(
        **{
            **_LAYOUT,
            "margin": {"l": 160, "r": 40, "t": 120, "b": 90},
            "legend": {"orientation": "h", "x": 0, "y": -60 / (total - 210), "yanchor": "top"},
        },
        height=total,
        showlegend=True,
    )
    return figure


def outcome(table: pd.DataFrame, models: Sequence[str] = ()) -> go.Figure:
    """Return the differences from the baseline, what was asked as a whole and by principle.

    Args:
        table: as from ``reporting.headlines.forest_rows``.
        models: see `model_colours`.
    """
    figure = _forest(
        table.assign(against="points more than the baseline"), panels=["against"],
        row="measure", series=["model", "baseline"], value="difference", parity=0.0,
        models=models,
    )  # fmt: skip
    figure.update_xaxes(zeroline=False)
    figure.update_layout(title={"text": f"Against the baseline<br><sup>{_over(table)}</sup>"})
    return figure


def _details(record: Mapping[str, Any], row: str, hover: Sequence[str]) -> str:
    shown = {name: record[name] for name in ("n", *hover) if name in record}
    lines = [
        f"{label(name)}: {value:.3g}" if isinstance(value, float) else f"{label(name)}: {value}"
        for name, value in shown.items()
    ]
    return "<br>".join([label(record[row]), *lines])


_FIRST = ("overall", "overall_paper", "all")
_PANEL_NAMES = {
    "turn": {"1": "first turn", "2": "second turn", BOTH_TURNS: "both turns"},
    "stance": {"principle": "principles", "antithesis": "antitheses"},
}


def _panel_title(columns: Sequence[str], key: Sequence[str]) -> str:
    named = zip(columns, key, strict=True)
    return ", ".join(_PANEL_NAMES.get(column, {}).get(name, label(name)) for column, name in named)


def first_and_both_turns(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows on the first turn and on both, those on both where there is a second."""
    asked_twice = table.loc[table["turn"] == "2", "constitution"].unique()
    both = (table["turn"] == BOTH_TURNS) & table["constitution"].isin(asked_twice)
    return table[(table["turn"] == FIRST_TURN) | both]


def _headline_first(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table's rows on the first turn before those on both, under each constitution."""
    place = {name: number for number, name in enumerate(table["constitution"].unique())}
    key = table["constitution"].map(place) * 10 + (table["turn"] != FIRST_TURN)
    return table.loc[key.sort_values(kind="stable").index]


def _over(table: pd.DataFrame, what: str = "questions") -> str:
    """Return in words what the intervals of a table are over."""
    seeds = int(table["seeds"].max()) if "seeds" in table and len(table) else 0
    return f"95 % intervals over {what}" + (f" and {seeds} training seeds" if seeds > 1 else "")


def win_rates(
    table: pd.DataFrame,
    published: Sequence[PublishedRate] = (),
    source: str = "",
    models: Sequence[str] = (),
) -> go.Figure:
    """Return win rates by category, a panel a constitution, the figure of experiment 1.

    Dots are the adjusted win rate (a tie counts half) in percent; 50 % is parity. The desired
    constitution has a panel for the first turn and one for both. A line of panels is a judge.

    Args:
        table: as from ``evaluation.statistics.win_rates``.
        published: rates that a publication names, drawn as a separate layer.
        source: what they are called.
        models: see `model_colours`.
    """
    figure = _forest(
        _headline_first(first_and_both_turns(table)),
        panels=["constitution", "turn"],
        row="category",
        series=["model", "opponent"],
        value="adjusted_win_rate",
        low="adjusted_ci_low",
        high="adjusted_ci_high",
        parity=0.5,
        hover=("wins", "ties", "losses", "p_holm"),
        stacked="judge",
        models=models,
    )
    _add_published_rates(figure, published, source)
    figure.update_xaxes(range=[0, 100], ticksuffix=" %")
    judges = ", ".join(table["judge"].unique())
    figure.update_layout(
        title={
            "text": f"Win rate by category, judged by: {judges}<br><sup>a tie counts half; "
            f"{_over(table)}; dashed: parity</sup>"
        }
    )
    return figure


def _add_published_rates(
    figure: go.Figure, published: Sequence[PublishedRate], source: str
) -> None:
    """Add published rates to the first panel, each on the line of the match that it is of."""
    places: dict[tuple[str, str], tuple[float, str]] = {}
    lines = dict(zip(figure.layout.yaxis.ticktext, figure.layout.yaxis.tickvals, strict=True))
    for trace in figure.data:
        if trace.xaxis in (None, "x") and trace.y:
            offset = trace.y[0] - round(trace.y[0])
            places[trace.name] = (offset, trace.marker.color)
    drawn = [
        rate
        for rate in published
        if f"{rate.model} against {rate.opponent}" in places and label(rate.category) in lines
    ]
    if not drawn:
        return
    matches = [places[f"{rate.model} against {rate.opponent}"] for rate in drawn]
    figure.add_scatter(
        name=f"as published ({source})",
        x=[rate.percent for rate in drawn],
        y=[
            lines[label(rate.category)] + offset
            for rate, (offset, _) in zip(drawn, matches, strict=True)
        ],
        customdata=[(rate.model, rate.opponent) for rate in drawn],
        hovertemplate="%{customdata[0]} against %{customdata[1]}: published %{x:.1f} %"
        "<extra></extra>",
        mode="markers",
        marker={
            "symbol": "diamond-open",
            "size": 10,
            "color": [colour for _, colour in matches],
            "line": {"width": 1.5},
        },
        row=1,
        col=1,
    )


def compliance(table: pd.DataFrame, models: Sequence[str] = ()) -> go.Figure:
    """Return the compliance with every principle, a panel a constitution and stance.

    Args:
        table: as from ``evaluation.statistics.compliance``.
        models: see `model_colours`.
    """
    rows = table[(table["category"] == "overall") & (table["turn"] == FIRST_TURN)]
    figure = _forest(
        rows, panels=["constitution", "stance"], row="principle", series=["model"],
        value="compliance", parity=None, hover=("rows", "p_holm"), models=models,
    )  # fmt: skip
    figure.update_xaxes(range=[0, 100], ticksuffix=" %")
    figure.update_layout(
        title={
            "text": "Statements followed, by principle<br><sup>first turn; share of the answers "
            f"that were asked for it; {_over(table)}</sup>"
        }
    )
    return figure


def lengths(table: pd.DataFrame, models: Sequence[str] = ()) -> go.Figure:
    """Return the mean length of each model's answers, a panel a constitution.

    Args:
        table: as from ``evaluation.statistics.degeneration``.
        models: see `model_colours`.
    """
    rows = _headline_first(first_and_both_turns(table[table["category"] == "overall"]))
    figure = _forest(
        rows, panels=["constitution", "turn"], row="model",
        series=["model"], value="mean_tokens", low="mean_tokens_ci_low",
        high="mean_tokens_ci_high", parity=None, scale=1,
        hover=("truncated_rate", "degeneration_rate"), models=models,
    )  # fmt: skip
    longest = rows[["mean_tokens", "mean_tokens_ci_high"]].max(axis=None)
    figure.update_xaxes(title="tokens", range=[0, 1.05 * longest])
    figure.update_layout(
        showlegend=False,
        title={"text": f"Length of answers<br><sup>mean; {_over(table)}</sup>"},
    )
    return figure


def paired_questions(verdicts: pd.DataFrame, models: Sequence[str] = ()) -> go.Figure:
    """Return the checklist's scores of two models on the same questions, a panel a match.

    The area of a dot is the number of questions; on the dashed line both follow as many statements.
    A row of panels is a constitution, on the first turn.

    Args:
        verdicts: of any judges; those of the checklist are drawn.
        models: see `model_colours`.
    """
    rows = verdicts[(verdicts["turn"] == 1) & (verdicts["judge"] == CHECKLIST)]
    what = "comparisons of replicates" if seed_columns(verdicts) else "questions"
    matches = list(rows[["model", "opponent"]].drop_duplicates().itertuples(index=False, name=None))
    constitutions = rows["constitution"].unique().tolist()
    constitutions.sort(key=lambda name: name != DESIRED)
    colours = model_colours(rows["model"], rows["opponent"], models=models)
    figure = make_subplots(
        rows=max(1, len(constitutions)), cols=max(1, len(matches)),
        horizontal_spacing=0.08, vertical_spacing=0.42 / max(1, len(constitutions)),
        subplot_titles=[f"{name}" for name in constitutions for _ in matches],
    )  # fmt: skip
    most = rows[["model_score", "opponent_score"]].max(axis=None) if len(rows) else 1
    key = ["opponent_score", "model_score"]
    for line, constitution in enumerate(constitutions, start=1):
        for place, (model, opponent) in enumerate(matches, start=1):
            met = rows[(rows["model"] == model) & (rows["opponent"] == opponent)]
            met = met[met["constitution"] == constitution]
            counts = met.groupby(key).size().rename("questions").reset_index()
            figure.add_scatter(
                row=line, col=place, showlegend=False, mode="lines", hoverinfo="skip",
                x=[-0.5, most + 0.5], y=[-0.5, most + 0.5],
                line={"dash": "dash", "color": "#666666", "width": 1},
            )  # fmt: skip
            figure.add_scatter(
                row=line,
                col=place,
                showlegend=False,
                mode="markers+text",
                x=counts["opponent_score"].tolist(),
                y=counts["model_score"].tolist(),
                text=counts["questions"].tolist(),
                textfont={"color": "#ffffff", "size": 11},
                marker={
                    "color": colours[model],
                    "size": (9 + 4 * counts["questions"] ** 0.5).tolist(),
                },
                hovertemplate=f"{opponent} %{{x}}, {model} %{{y}}: %{{text}} {what}<extra></extra>",
            )
            figure.update_xaxes(
                title=opponent, row=line, col=place,
                range=[-0.5, most + 0.5], dtick=1,
            )  # fmt: skip
            figure.update_yaxes(title=model, row=line, col=place, range=[-0.5, most + 0.5], dtick=1)
    figure.update_layout(
        **_LAYOUT,
        height=160 + 260 * max(1, len(constitutions)),
        title={
            "text": "The same questions, answered by two models<br><sup>statements followed at the "
            f"first turn; numbers count {what}; above the dashed line "
            "the model at the left follows more</sup>"
        },
    )
    return figure


def accuracy(
    table: pd.DataFrame,
    published: Sequence[PublishedDifference] = (),
    models: Sequence[str] = (),
) -> go.Figure:
    """Return accuracy with one greedy and one sampled attempt by model, a panel for each.

    Args:
        table: as from ``evaluation.attempts.accuracy``.
        published: gains drawn as a separate layer; those for one attempt are.
        models: see `model_colours`.
    """
    kinds = {"greedy": "one greedy attempt", "pass_at_k": "one sampled attempt, mean"}
    one = table[(table["k"] == 1) & table["metric"].isin(kinds)]
    figure = _forest(
        one.assign(attempts=one["metric"].map(kinds)), panels=["attempts"], row="model",
        series=["model"], value="value", parity=None, models=models,
    )  # fmt: skip
    lines = dict(zip(figure.layout.yaxis.ticktext, figure.layout.yaxis.tickvals, strict=True))
    for_one = [gain for gain in published if gain.k == 1 and label(gain.model) in lines]
    if kinds["pass_at_k"] in [each.text for each in figure.layout.annotations]:
        column = len(figure.layout.annotations)
        _add_published(
            figure, table, for_one, lambda gain: lines[label(gain.model)], across=True,
            row=1, col=column,
        )  # fmt: skip
    figure.update_xaxes(matches="x", rangemode="tozero", ticksuffix=" %", title="problems solved")
    figure.update_layout(
        title={"text": f"Math problems solved<br><sup>{_over(table, 'problems')}</sup>"}
    )
    return figure


def _add_published(
    figure: go.Figure,
    table: pd.DataFrame,
    published: Sequence[PublishedDifference],
    place: Callable[[PublishedDifference], Any],
    *,
    across: bool = False,
    **cell: int,
) -> None:
    """Add published gains, each on top of what was measured here for the model it is over.

    Args:
        figure: what they are added to.
        table: as from ``evaluation.attempts.accuracy``.
        published: the gains.
        place: where one stands on the other axis.
        across: accuracy is on the x-axis, and the models' names on the other.
        cell: ``row`` and ``col`` of a panel.
    """
    sampled = table[table["metric"] == "pass_at_k"].set_index(["model", "k"])["value"]
    drawn = [gain for gain in published if (gain.over, gain.k) in sampled.index]
    if not drawn:
        return
    places = [place(gain) for gain in drawn]
    levels = [100 * sampled[gain.over, gain.k] + gain.points for gain in drawn]
    figure.add_scatter(
        **cell,
        name=f"published gain ({', '.join(dict.fromkeys(gain.source for gain in drawn))})",
        x=levels if across else places,
        y=places if across else levels,
        customdata=[(gain.model, gain.points, gain.over) for gain in drawn],
        hovertemplate="%{customdata[0]}: published %{customdata[1]:+.1f} points over "
        "%{customdata[2]}, here on top of its measured accuracy<extra></extra>",
        text=[label(gain.model) for gain in drawn],
        mode="markers" if across else "markers+text",
        textposition="top center",
        marker={"symbol": "diamond-open", "size": 11, "color": "#000000", "line": {"width": 2}},
    )


def accuracy_by_attempts(
    table: pd.DataFrame,
    published: Sequence[PublishedDifference] = (),
    models: Sequence[str] = (),
) -> go.Figure:
    """Return accuracy against the number of attempts by model, with bands of 95 %.

    Solid lines are the chance that one of k attempts is right (pass@k), dotted ones that their
    majority is (maj@k).

    Args:
        table: as from ``evaluation.attempts.accuracy``.
        published: gains drawn as a separate layer.
        models: see `model_colours`.
    """
    figure = go.Figure()
    colours = model_colours(table["model"], models=models)
    for model, rows in table.groupby("model", sort=False):
        colour = colours[model]
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
            f"<sup>bands: {_over(table, 'problems')}</sup>"
        },
        xaxis={
            "title": "attempts k",
            "tickvals": table["k"].drop_duplicates().sort_values().tolist(),
        },
        yaxis={"title": "accuracy, %", "rangemode": "tozero"},
    )
    return figure


def learning_curve(history: pd.DataFrame, models: Sequence[str] = ()) -> go.Figure:
    """Return loss, accuracies and MI lower bound by optimiser step.

    Args:
        history: as from ``training_data.history_table``, of all models.
        models: see `model_colours`.
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
    colours = model_colours(history["model"], models=models)
    named = labelled(history, ", seed ").assign(colour=history["model"].map(colours))
    for model, steps in named.groupby("model", sort=False):
        colour = steps["colour"].iloc[0]
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
    prefix = "{}: " if table["experiment"].nunique() > 1 else ""
    figure = make_subplots(
        rows=rows, cols=columns, horizontal_spacing=0.1, vertical_spacing=0.35 / rows,
        subplot_titles=[prefix.format(name) + measure(metric).replace(", ", ",<br>")
                        for (name, metric), _ in panels],
    )  # fmt: skip
    colours = dict(zip(table["run"].unique(), cycle(COLOURS), strict=False))
    shown = set()
    for number, (_, panel) in enumerate(panels):
        for run, points in panel.groupby("run", sort=False):
            figure.add_scatter(
                name=run,
                legendgroup=run,
                showlegend=run not in shown,
                x=points["model"],
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
            "text": "Runs compared<br><sup>95 % intervals over questions or problems; "
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
    # Without a name plotly draws one, and the same figure gives another file each time.
    return figure.to_html(include_plotlyjs=True, full_html=True, div_id="figure")
