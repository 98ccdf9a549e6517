"""The outcome at a glance: up to three cards, the forest plot below them, and what speaks against.

The rules are those of ``outcome``: a difference is one only where `decided` says so, and a win is
none where there is a simpler reason for it. A card names SAMI's model first. A mean over principles
can hide that they differ, so a card says in how many of them its estimate rises and falls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sami_pipeline.evaluation.checklist import JUDGE_NAME as CHECKLIST
from sami_pipeline.evaluation.statistics import (
    ALL_PRINCIPLES,
    DESIRED,
    FIRST_TURN,
    OVERALL,
)
from sami_pipeline.figures import label
from sami_pipeline.reporting.outcome import (
    ESTIMATES,
    caveats,
    doubts,
    enough,
    seeds_of,
    written_p,
)
from sami_pipeline.result_tables.shown import decided
from sami_pipeline.training.baselines.registry import sami_models

NO_DIFFERENCE = "no difference seen"
_TOO_LITTLE = "too little was asked to say"
_WORDS = {"above": "better", "below": "worse", "": NO_DIFFERENCE}

Tables = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Finding:
    """What one model has more or less than another.

    Attributes:
        model: the one it is said of.
        other: the one it is compared with.
        value: the number with its unit.
        interval: its 95 % interval in brackets, or "no interval".
        p_value: of its test, as written; "" where there is none.
        side: "above" or "below" parity where that is certain enough to say, else "".
        verdict: the same in words.
    """

    model: str
    other: str
    value: str
    interval: str
    p_value: str
    side: str
    verdict: str


@dataclass(frozen=True)
class Card:
    """One of the questions that an experiment answers.

    Attributes:
        title: the question's name.
        measured: what the number is.
        findings: one a model, SAMI's first.
        split: in how many principles the first finding holds, or "".
    """

    title: str
    measured: str
    findings: tuple[Finding, ...]
    split: str = ""

    @property
    def first(self) -> Finding:
        """SAMI's finding."""
        return self.findings[0]


def cards(tables: Tables) -> list[Card]:
    """Return the outcome of an experiment as up to three cards.

    Args:
        tables: by name; those that are missing or empty are passed over.
    """
    present = {name: table for name, table in tables.items() if not table.empty}
    found = [*_judged_cards(present), *_math_cards(present)]
    return [card for card in found if card.findings][:3]


def before_you_believe(tables: Tables) -> list[str]:
    """Return what limits the results, as sentences, the heaviest first."""
    present = {name: table for name, table in tables.items() if not table.empty}
    found = [*_uneven(present), *_constant_texts(present), *caveats(present)]
    if seeds_of(present) < 2 and {"history", "compliance", "accuracy"} & present.keys():
        found.append(
            "each model was trained with one seed: intervals are over what was asked, and another "
            "training could differ by more"
        )
    return [each[0].upper() + each[1:] for each in found]


def of_principles(tables: Tables, model: str, baseline: str) -> pd.DataFrame:
    """Return the steerability that a model has more than its baseline, one row a principle."""
    table = tables.get("steerability", pd.DataFrame())
    if table.empty:
        return table
    table = table[(table["category"] == OVERALL) & (table["principle"] != ALL_PRINCIPLES)]
    table = table[table["stance"] == "principle"]
    return table[(table["model"] == model) & (table["baseline"] == baseline)]


def forest_rows(tables: Tables) -> pd.DataFrame:
    """Return the differences from the baseline that the plot of the outcome shows.

    Returns:
        ``measure, model, baseline, n, difference, ci_low, ci_high``, as shares; a measure is a row
        of the plot: what is followed where it is asked for, steerability to the opposites and to
        the principles, and the latter by principle, or problems solved.
    """
    present = {name: table for name, table in tables.items() if not table.empty}
    parts = []
    if "compliance_difference" in present:
        rows = _first_turn(present["compliance_difference"])
        names = rows["stance"].map({"principle": "principles", "antithesis": "their opposites"})
        asked = rows["constitution"].map(
            {DESIRED: "", "contrasting": "", "none": ", asked for nothing"}
        )
        asked = asked.fillna(", " + rows["constitution"].map(label))
        parts.append(rows.assign(measure=names + " followed" + asked))
    if "steerability" in present:
        rows = present["steerability"]
        rows = rows[(rows["baseline"] != "") & (rows["category"] == OVERALL)]
        opposites = (rows["stance"] == "antithesis") & (rows["principle"] == ALL_PRINCIPLES)
        of_opposites = rows[opposites].assign(measure="steerability to the opposites")
        rows = rows[rows["stance"] == "principle"]
        names = [
            "steerability" if name == ALL_PRINCIPLES else f"… {label(name)}"
            for name in rows["principle"]
        ]
        if rows["principle"].nunique() == 2:  # of one principle it would be the same row again
            keep = [name == "steerability" for name in names]
            rows, names = rows[keep], ["steerability"] * sum(keep)
        rows = pd.concat([of_opposites, rows.assign(measure=names)])
        parts.append(rows.rename(columns={"steerability": "difference"}))
    if "accuracy_difference" in present:
        rows = present["accuracy_difference"]
        rows = rows[rows["metric"] != "mean_tokens"]
        ends = rows.groupby("metric")["k"].transform("max")
        rows = rows[(rows["k"] == ends) | (rows["k"] == 1)]
        parts.append(rows.assign(measure=[_attempts(r.metric, r.k) for r in rows.itertuples()]))
    columns = ["measure", "model", "baseline", "n", "difference", "ci_low", "ci_high"]
    if not parts:
        return pd.DataFrame(columns=columns)
    table = pd.concat([part[columns] for part in parts], ignore_index=True)
    return table.drop_duplicates(["measure", "model", "baseline"])


def _attempts(metric: str, k: int) -> str:
    if metric == "greedy":
        return "one greedy attempt"
    if metric == "pass_at_k":
        return "one sampled attempt" if k == 1 else f"any of {k} attempts"
    return f"most frequent answer of {k}" if k > 1 else "one sampled attempt"


def sami_first(names: Sequence[str]) -> list[str]:
    """Return models with SAMI's last one first, then the others in their order."""
    models = list(dict.fromkeys(names))
    first = [name for name in sami_models() if name in models][-1:]
    return [*first, *(name for name in models if name not in first)]


def _judged_cards(tables: Tables) -> Iterator[Card]:
    if "compliance_difference" in tables:
        rows = _first_turn(tables["compliance_difference"])
        rows = rows[(rows["constitution"] == DESIRED) & (rows["stance"] == "principle")]
        yield Card(
            "Principles followed",
            "how much more often an answer follows a principle that it was asked to follow",
            _findings(rows, "compliance_difference"),
        )
    if "steerability" in tables:
        rows = tables["steerability"]
        rows = rows[(rows["category"] == OVERALL) & (rows["principle"] == ALL_PRINCIPLES)]
        rows = rows[(rows["baseline"] != "") & (rows["stance"] == "principle")]
        findings = _findings(rows, "steerability")
        split = _split(tables, findings[0]) if findings else ""
        yield Card(
            "Steerability",
            "how much more often it follows a principle when asked for it than when asked for the "
            "opposite",
            findings,
            split,
        )
    if "win_rates" in tables:
        table = _first_turn(tables["win_rates"])
        table = table[table["constitution"] == table["constitution"].iloc[0]]
        # A language model's verdict where there is one: the checklist says what the others say.
        judges = sorted(table["judge"].unique(), key=lambda judge: judge == CHECKLIST)
        rows = table[table["judge"] == judges[0]] if judges else table
        # SAMI's opponent is that of all: other pairs are in the tables.
        first = sami_first(list(rows["model"]))[:1]
        against = rows.loc[rows["model"].isin(first), "opponent"].iloc[:1]
        rows = rows[rows["opponent"].isin(against)]
        yield Card(
            "Preferred",
            f"share of the comparisons won by the {judges[0] if judges else ''} judge's verdict, a "
            "tie counting half",
            _findings(rows, "win_rates", tables),
        )


def _math_cards(tables: Tables) -> Iterator[Card]:
    if "accuracy_difference" not in tables:
        return
    table = tables["accuracy_difference"]
    most = table.loc[table["metric"] == "pass_at_k", "k"].max()
    for title, measured, metric, k in (
        ("One greedy attempt", "problems solved by the likeliest answer", "greedy", 1),
        (f"Any of {most} attempts", "problems that some attempt solves", "pass_at_k", most),
        (f"Majority of {most}", "problems that the most frequent answer solves", "maj_at_k", most),
    ):
        rows = table[(table["metric"] == metric) & (table["k"] == k)]
        yield Card(title, measured, _findings(rows, "accuracy_difference"))


def _first_turn(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["category"] == OVERALL) & (table["turn"] == FIRST_TURN)]


def _findings(rows: pd.DataFrame, name: str, tables: Tables | None = None) -> tuple[Finding, ...]:
    estimate, found = ESTIMATES[name], []
    other = "opponent" if "opponent" in rows else "baseline"
    order = {model: place for place, model in enumerate(sami_first(list(rows["model"])))}
    for row in sorted(rows.to_dict("records"), key=lambda row: order[row["model"]]):
        cell = estimate.cell(row)
        ahead, certain = decided(row, estimate), enough(row, estimate)
        verdict = _WORDS[ahead] if certain else _TOO_LITTLE
        if tables is not None and ahead:
            pair = (row["model"], row[other])
            winner, loser = pair if ahead == "above" else pair[::-1]
            if reasons := list(doubts(tables, row, winner, loser)):
                verdict, ahead = f"preferred, which is no win: {', '.join(reasons)}", ""
        p_value = row.get("p_holm")
        unit = " points" if estimate.signed else " %"
        found.append(
            Finding(
                row["model"], row[other], cell.value + unit, cell.interval,
                "" if p_value is None or pd.isna(p_value) else written_p(p_value),
                ahead, verdict,
            )
        )  # fmt: skip
    return tuple(found)


def _split(tables: Tables, finding: Finding) -> str:
    """Say in how many principles an estimate of steerability points the same way."""
    rows = of_principles(tables, finding.model, finding.other).sort_values(
        "steerability", ascending=False, kind="stable"
    )
    if len(rows) < 2:
        return ""
    up, down = rows[rows["steerability"] > 0], rows[rows["steerability"] < 0][::-1]
    parts = []
    for part, words in ((up, "rises"), (down, "falls")):
        if len(part):
            named = ", ".join(label(name) for name in part["principle"])
            parts.append(f"{words} in {len(part)} of {len(rows)} principles ({named})")
    if level := len(rows) - len(up) - len(down):
        parts.append(f"is as it was in {level}")
    return f"The estimate {', and '.join(parts)}."


def _uneven(tables: Tables) -> Iterator[str]:
    """Say where a mean over principles hides that they do not agree."""
    for card in cards(tables):
        if card.split and " rises " in card.split and " falls " in card.split:
            finding = card.first
            rows = of_principles(tables, finding.model, finding.other)
            up, down = ((rows["steerability"] * sign > 0).sum() for sign in (1, -1))
            rises = (rows["steerability"] * rows["n"]).clip(lower=0)
            best = rows.loc[rises.idxmax()]
            yield (
                f"the mean of {finding.model}'s steerability hides that principles differ: its "
                f"estimate rises in {up} of {len(rows)} and falls in {down}; "
                f"{100 * rises.max() / rises.sum():.0f} % of the rises are those of "
                f"{label(best['principle'])} ({best['n']} questions)"
            )


def _constant_texts(tables: Tables) -> Iterator[str]:
    """Say against whom a text that is always the same wins, under each constitution."""
    if "controls" not in tables:
        return
    table, estimate = tables["controls"], ESTIMATES["controls"]
    table = table[table["control"] == "constant_text"]
    for constitution, rows in table.groupby("constitution", sort=False):
        beaten = [
            f"{row['opponent']} ({estimate.cell(row).value} {estimate.cell(row).interval})"
            for row in rows.to_dict("records")
            if row[estimate.low] > 0.5
        ]
        if beaten:
            yield (
                f"under the {constitution} constitution a text that is always the same wins "
                f"against {', '.join(beaten)}"
            )


def as_lines(found: Sequence[Card], limits: Sequence[str], most: int) -> list[str]:
    """Return the outcome as at most so many lines of a terminal.

    Args:
        found: the cards.
        limits: what is to be known before the outcome is believed.
        most: lines, of which the cards come first.
    """
    lines = []
    for card in found:
        first, *others = card.findings
        said = [_said(first), *(_said(each) for each in others if first.model not in sami_models())]
        lines.append(f"{card.title}: {'; '.join(said)}")
    room = max(0, most - len(lines))
    shown = limits[: room - 1] if len(limits) > room else limits
    lines += [f"Caution: {each}" for each in shown]
    if hidden := len(limits) - len(shown):
        lines.append(f"{hidden} more cautions stand in the report.")
    return lines[:most]


def _said(finding: Finding) -> str:
    tested = f", {finding.p_value}" if finding.p_value else ""
    return (
        f"{finding.model} against {finding.other} {finding.value} {finding.interval}{tested}: "
        f"{finding.verdict}"
    )


def as_data(found: Sequence[Card]) -> list[dict[str, Any]]:
    """Return cards for other programs to read."""
    return [
        {"title": card.title, "split": card.split,
         "findings": [vars(finding) for finding in card.findings]}
        for card in found
    ]  # fmt: skip
