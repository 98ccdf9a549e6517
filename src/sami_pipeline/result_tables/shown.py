"""How a report shows a table or a figure: its numbers, their intervals, and what they decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sami_pipeline.evaluation.intervals import FEWEST_CLUSTERS, LARGEST_P

OVER_QUESTIONS = "95 % intervals over questions."
OVER_PROBLEMS = "95 % intervals over problems."


@dataclass(frozen=True)
class Estimate:
    """Which columns of a table hold a number and its interval, and how they are written.

    Attributes:
        value: column of the number.
        low: column of the interval's lower end.
        high: column of its upper end.
        percent: write shares and differences of shares in percent, those of ``other_units`` aside.
        digits: after the point.
        signed: write a sign before positive numbers too, as of differences.
        parity: the value at which neither side is better; None if there is none.
        other_units: values of the column ``metric`` that are no shares.
    """

    value: str
    low: str = "ci_low"
    high: str = "ci_high"
    percent: bool = True
    digits: int = 1
    signed: bool = False
    parity: float | None = None
    other_units: tuple[str, ...] = ()

    def cell(self, row: Mapping[str, Any]) -> Cell:
        """Return how a row's number is written, with its interval."""
        value, low, high = row[self.value], row[self.low], row[self.high]
        if pd.isna(value):
            return Cell("–")
        percent = self.percent and row.get("metric") not in self.other_units
        sign = "+" if self.signed else ""
        scale = 100 if percent else 1
        text, *ends = (
            f"{scale * number:{sign}z.{self.digits}f}".replace("-", "\N{MINUS SIGN}")
            for number in (value, low, high)
        )
        if pd.isna(low):
            return Cell(text, "no interval")
        return Cell(text, f"[{ends[0]}, {ends[1]}]", decided(row, self))


@dataclass(frozen=True)
class Cell:
    """A number as it is written.

    Attributes:
        value: the number.
        interval: the interval behind it.
        side: "above" or "below" where it is on that side of parity (`decided`), else "".
    """

    value: str
    interval: str = ""
    side: str = ""


def side(low: float, high: float, parity: float | None) -> str:
    """Return on which side of parity an interval lies: "above", "below", or "" for neither."""
    if parity is None or pd.isna(low) or pd.isna(high):
        return ""
    return "above" if low > parity else "below" if high < parity else ""


def decided(row: Mapping[str, Any], estimate: Estimate) -> str:
    """Return on which side of parity a row is, or "" where that is not certain enough to say.

    Its interval leaves parity out, at least six clusters stand behind it, and its exact paired test
    has p <= 0.05 after correction for the number of comparisons, where it has one.
    """
    if "n" in row and row["n"] < FEWEST_CLUSTERS:
        return ""
    p_value = row.get("p_holm")
    if p_value is not None and not p_value <= LARGEST_P:
        return ""
    return side(row[estimate.low], row[estimate.high], estimate.parity)


@dataclass(frozen=True)
class Table:
    """A table of the catalog and how a report shows it.

    Attributes:
        name: of the dataset, without the experiment.
        section: where it stands.
        title: its heading.
        note: what a reader has to know.
        rows: columns that name a row of the overview; without any, only the whole table is shown.
        columns: columns that name a column of the overview.
        estimate: the number in the overview's cells.
        where: rows that the overview has; all are in the whole table.
        whole: show the whole table too; False for a further overview of the same one.
        ends: column of which the overview has only the least and the greatest value.
    """

    name: str
    section: str
    title: str
    note: str = ""
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    estimate: Estimate | None = None
    where: Mapping[str, tuple[Any, ...]] | None = None
    ends: str = ""
    whole: bool = True


@dataclass(frozen=True)
class Figure:
    """A figure of the catalog and how a report shows it."""

    name: str
    section: str
    title: str
    caption: str
