"""Several runs of the experiments in one table and one figure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pandera.errors import SchemaError
from pandera.pandas import DataFrameModel

from sami_pipeline.errors import InputError
from sami_pipeline.evaluation.checklist import JUDGE_NAME as CHECKLIST
from sami_pipeline.evaluation.statistics import ALL_PRINCIPLES, FIRST_TURN, OVERALL
from sami_pipeline.reporting.run import flattened


@dataclass(frozen=True)
class Headline:
    """A table with headline figures, and how they are read from it.

    Attributes:
        schema: the table's contract; a run of another version may have kept another.
        read: gives ``model, metric, n, value, ci_low, ci_high``, one row a figure.
    """

    schema: type[DataFrameModel]
    read: Callable[[pd.DataFrame], pd.DataFrame]


# Tables by RUN/EXPERIMENT/TABLE, each as a function that loads it.
Results = Mapping[str, Callable[[], pd.DataFrame]]


def compare_runs(
    results: Results, headlines: Mapping[str, Headline], runs: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return the headline figures of several runs, one row each.

    Args:
        results: tables by ``RUN/EXPERIMENT/TABLE``, each as a function that loads it; those that
            hold no headline figures are not loaded.
        headlines: by ``EXPERIMENT/TABLE``.
        runs: names of the runs to compare, in their order; None takes all there are.

    Returns:
        ``run, experiment, model, metric, n, value, ci_low, ci_high`` as in ``schemas.Comparison``.

    Raises:
        InputError: a run has no results, or was made by a version with other tables.
    """
    found: dict[str, dict[str, Callable[[], pd.DataFrame]]] = {}
    for place, load in sorted(results.items()):
        run, _, table = place.partition("/")
        if table in headlines:
            found.setdefault(run, {})[table] = load
    known = ", ".join(found) or "none yet; make one with kedro run --pipelines mt_bench"
    parts = []
    for run in runs if runs is not None else found:
        if run not in found:
            raise InputError(f"compare_runs.runs: {run!r} has no results; known: {known}")
        for table, headline in headlines.items():
            if table in found[run]:
                checked = _checked(found[run][table], headline.schema, f"{run}/{table}")
                parts.append(headline.read(checked).assign(run=run, experiment=table.split("/")[0]))
    if not parts:
        raise InputError(f"compare_runs.runs: no run has results; known: {known}")
    columns = ["run", "experiment", "model", "metric", "n", "value", "ci_low", "ci_high"]
    return pd.concat(parts, ignore_index=True)[columns]


Records = Mapping[str, Callable[[], Mapping[str, Any]]]
"""Records of runs by RUN/EXPERIMENT/, each as a function that loads it."""


def parameter_differences(records: Records, runs: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the parameters in which the compared runs of an experiment differ.

    Args:
        records: as a report writes them, with ``parameters``, by ``RUN/EXPERIMENT/``.
        runs: names of the compared runs, in their order; None takes all.

    Returns:
        ``experiment, parameter, run, value``, the values as JSON; "" where a run, made by another
        version, has no such parameter. No rows for an experiment with one run.
    """
    found: dict[str, dict[str, dict[str, str]]] = {}
    for place, load in sorted(records.items()):
        run, _, experiment = place.strip("/").partition("/")
        if runs is None or run in runs:
            values = flattened(load()["parameters"])
            found.setdefault(experiment, {})[run] = {
                name: json.dumps(value, sort_keys=True) for name, value in values.items()
            }
    rows = []
    for experiment, by_run in found.items():
        order = [run for run in runs or by_run if run in by_run]
        names = dict.fromkeys(name for run in order for name in by_run[run])
        for name in names:
            values = [by_run[run].get(name, "") for run in order]
            if len(set(values)) > 1:
                rows += [(experiment, name, *each) for each in zip(order, values, strict=True)]
    columns = ["experiment", "parameter", "run", "value"]
    return pd.DataFrame(rows, columns=columns).astype("str")


def _checked(
    load: Callable[[], pd.DataFrame], schema: type[DataFrameModel], place: str
) -> pd.DataFrame:
    try:
        return schema.validate(load())
    except SchemaError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"data/08_reporting/{place}.parquet: was made by another version ({reason}); repeat "
            "the run, or leave it out with compare_runs.runs"
        ) from error


def _headline(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["category"] == OVERALL) & (table["turn"] == FIRST_TURN)]


def overall_compliance(table: pd.DataFrame) -> pd.DataFrame:
    """Return the share of statements followed at the first turn, by constitution."""
    rows = _headline(table[table["principle"] == ALL_PRINCIPLES])
    names = "compliance, " + rows["constitution"]
    mixed = rows.duplicated(["model", "constitution"], keep=False)
    names = names.where(~mixed, names + " " + rows["stance"])
    return rows.rename(columns={"compliance": "value"}).assign(metric=names)


def overall_win_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Return each pair's win rate at the first turn, by constitution and judge."""
    rows = _headline(table[table["adjusted_win_rate"].notna()])
    judged = rows["judge"].map(lambda judge: "" if judge == CHECKLIST else f" ({judge} judge)")
    return pd.DataFrame(
        {
            "model": rows["model"],
            "metric": "win_rate against " + rows["opponent"] + ", " + rows["constitution"] + judged,
            "n": rows["n"],
            "value": rows["adjusted_win_rate"],
            "ci_low": rows["adjusted_ci_low"],
            "ci_high": rows["adjusted_ci_high"],
        }
    )


def headline_accuracy(table: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy of one greedy attempt, one sample and any of the samples."""
    pass_at = table["metric"] == "pass_at_k"
    attempts = table.loc[pass_at, "k"].max()
    rows = table[(table["metric"] == "greedy") | (pass_at & table["k"].isin([1, attempts]))]
    names = rows["metric"].where(rows["metric"] == "greedy", "pass_at_" + rows["k"].astype(str))
    return rows.assign(metric=names)
