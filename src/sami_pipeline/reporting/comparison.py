"""Several runs of the experiments in one table and one figure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pandera.errors import SchemaError
from pandera.pandas import DataFrameModel

from sami_pipeline import schemas
from sami_pipeline.errors import InputError
from sami_pipeline.evaluation.checklist import JUDGE_NAME as CHECKLIST
from sami_pipeline.evaluation.intervals import DIFFERENCE, holm, mean_interval, paired_p
from sami_pipeline.evaluation.math_accuracy import accuracy, accuracy_difference
from sami_pipeline.evaluation.seeds import (
    NO_SEED,
    OPPONENT_SEED,
    SEED,
    SEED_COLUMNS,
    different,
    seed_columns,
)
from sami_pipeline.evaluation.statistics import (
    ALL_PRINCIPLES,
    FIRST_TURN,
    OVERALL,
    POINTS,
    STATEMENT_KEY,
    compliance,
    compliance_difference,
    win_rates,
)
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
"""Records of runs by RUN/EXPERIMENT, each as a function that loads it."""


def parameter_differences(records: Records, runs: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the parameters in which the compared runs of an experiment differ.

    Args:
        records: as a report writes them, with ``parameters``, by ``RUN/EXPERIMENT``.
        runs: names of the compared runs, in their order; None takes all.

    Returns:
        ``experiment, parameter, run, value``, the values as JSON; "" where a run, made by another
        version, has no such parameter. No rows for an experiment with one run.
    """
    found: dict[str, dict[str, dict[str, str]]] = {}
    for place, load in sorted(records.items()):
        run, _, experiment = place.partition("/")
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


POOLED = "pooled"
"""The name of several runs that are taken together as trainings with different seeds."""

# What may differ between runs that are taken together: the seed that each was trained with.
_SEED_PARAMETER = "training.sami.seed"


def pooled_results(
    outputs: Results, records: Records, runs: Sequence[str]
) -> tuple[dict[str, Callable[[], pd.DataFrame]], dict[str, Callable[[], pd.DataFrame]]]:
    """Return runs that differ in nothing but their training seed as one run with several seeds.

    Args:
        outputs: tables of texts and verdicts by ``RUN/EXPERIMENT/TABLE``: ``checked``,
            ``verdicts`` and ``attempts`` are read.
        records: see `parameter_differences`.
        runs: names of the runs.

    Returns:
        Its tables of results as `compare_runs` takes them, and its outputs, both under `POOLED`.

    Raises:
        InputError: a run is unknown, has several seeds itself, or differs in something else; or two
            have the same seed.
    """
    differing = parameter_differences(records, runs)
    if other := sorted(set(differing["parameter"]) - {_SEED_PARAMETER}):
        raise InputError(
            f"compare_runs.pooled: {', '.join(runs)} differ in {other[0]}, not in the training "
            "seed alone; leave out those that do"
        )
    made: dict[str, Callable[[], pd.DataFrame]] = {}
    tables: dict[str, Callable[[], pd.DataFrame]] = {}
    experiments = {place.partition("/")[2] for place in records
                   if place.partition("/")[0] in runs}  # fmt: skip
    for experiment in sorted(experiments):
        parts: dict[str, list[pd.DataFrame]] = {}
        seen: dict[int, str] = {}
        for run in runs:
            if f"{run}/{experiment}" not in records:
                raise InputError(f"compare_runs.pooled: {run!r} has no results of {experiment}")
            parameters = records[f"{run}/{experiment}"]()["parameters"]
            seed = parameters["training"]["sami"]["seed"]
            if parameters.get("seeds", 1) > 1 or seed in seen:
                raise InputError(
                    f"compare_runs.pooled: {run!r} has several seeds, or that of "
                    f"{seen.get(seed, run)!r}; name runs with one seed each, another in each"
                )
            seen[seed] = run
            for name in ("checked", "verdicts", "attempts"):
                if (load := outputs.get(f"{run}/{experiment}/{name}")) is not None:
                    untrained = set(parameters["models"]["sources"])
                    parts.setdefault(name, []).append(_of_seed(load(), seed, untrained))
        for name, tables_of_runs in parts.items():
            whole = pd.concat(tables_of_runs, ignore_index=True)
            key = [column for column in whole if column not in ("text", "prompt", "evidence")]
            # A model that is not trained has said the same in every run.
            tables[f"{POOLED}/{experiment}/{name}"] = lambda w=whole, k=key: w.drop_duplicates(k)
        made |= _summaries(experiment, tables, records[f"{runs[0]}/{experiment}"]()["parameters"])
    return made, tables


def _of_seed(table: pd.DataFrame, seed: int, untrained: set[str]) -> pd.DataFrame:
    columns = {}
    for name, column in (("model", SEED), ("opponent", OPPONENT_SEED)):
        if name in table:
            columns[column] = [NO_SEED if each in untrained else seed for each in table[name]]
    return table.assign(**columns)


def _summaries(
    experiment: str, tables: Results, parameters: Mapping[str, Any]
) -> dict[str, Callable[[], pd.DataFrame]]:
    baseline, place = parameters["models"]["baseline"], f"{POOLED}/{experiment}"
    made: dict[str, Callable[[], pd.DataFrame]] = {}
    if f"{place}/checked" in tables:
        rows = tables[f"{place}/checked"]()
        made[f"{place}/compliance"] = lambda: compliance(rows, baseline)
    if f"{place}/verdicts" in tables:
        verdicts = tables[f"{place}/verdicts"]()
        made[f"{place}/win_rates"] = lambda: win_rates(verdicts)
    if f"{place}/attempts" in tables:
        attempts = tables[f"{place}/attempts"]()
        made[f"{place}/accuracy"] = lambda: accuracy(attempts, extraction="answer")
    return made


def run_differences(outputs: Results, runs: Sequence[str]) -> pd.DataFrame:
    """Return what each model does more in later runs than in the first, on what all were asked.

    At the first turn compliance is paired statement by statement, and the win rate of every judge
    verdict by verdict: what a model's answer won against the same opponent's, a tie being half a
    win. An opponent that is trained is another one in each run. Accuracy is paired problem by
    problem. Runs are trained apart: where they have several seeds, every replicate meets every
    other.

    Args:
        outputs: as `pooled_results` takes them.
        runs: names of the runs; the first is the one that the others are compared with.

    Returns:
        The rows of `schemas.RunDifferences`. A model or experiment without a shared question has
        none.

    Raises:
        InputError: a table was made by a version that lacks a column.
    """
    found = []
    experiments = sorted({place.split("/")[1] for place in outputs if place.count("/") == 2})
    for experiment in experiments:
        for kind, (columns, compare) in _PAIRED.items():
            there = [run for run in runs if f"{run}/{experiment}/{kind}" in outputs]
            if len(there) < 2:
                continue
            first, *others = (_output(outputs, f"{r}/{experiment}/{kind}", columns) for r in there)
            for run, table in zip(there[1:], others, strict=True):
                for model in first["model"].drop_duplicates():
                    sides = [side[side["model"] == model] for side in (first, table)]
                    rows = compare(*_with_seeds_alike(sides), there[0], run)
                    found.append(rows.assign(experiment=experiment, run=run, other_run=there[0],
                                             model=model))  # fmt: skip
    found = [rows for rows in found if len(rows)]
    if not found:
        return schemas.RunDifferences.tabulate([])
    table = pd.concat(found, ignore_index=True)
    # Whoever reads a comparison of two runs looks at all of its rows.
    for _, family in table.groupby("run"):
        table.loc[family.index, "p_holm"] = holm(family["p_value"].tolist())
    return schemas.RunDifferences.tabulate(table)


def _output(outputs: Results, place: str, columns: Sequence[str]) -> pd.DataFrame:
    table = outputs[place]()
    if missing := [name for name in columns if name not in table]:
        raise InputError(
            f"data/07_model_output/{place}.parquet: was made by another version (it has no column "
            f"{missing[0]!r}); repeat the run, or leave it out with compare_runs.runs"
        )
    return table


def _with_seeds_alike(sides: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """Return the rows of two runs with training seeds in both or in none."""
    seeds = [name for name in SEED_COLUMNS if any(name in side for side in sides)]
    return [side.assign(**{n: 0 for n in seeds if n not in side}) for side in sides]


def _on_shared(sides: Sequence[pd.DataFrame], key: Sequence[str]) -> list[pd.DataFrame]:
    """Return the rows of two runs that both have by this key."""
    shared = sides[0][key].merge(sides[1][key]).drop_duplicates()
    return [side.merge(shared, on=key) for side in sides]


_STATEMENT = [*STATEMENT_KEY, "stance", "check", "asked"]


def _compliance_between(
    ours: pd.DataFrame, theirs: pd.DataFrame, first: str, run: str
) -> pd.DataFrame:
    sides = [
        side[side["turn"] == 1] for side in (theirs.assign(model=run), ours.assign(model=first))
    ]
    both = pd.concat(_on_shared(sides, _STATEMENT), ignore_index=True)
    if both.empty:
        return pd.DataFrame()
    table = _headline(compliance_difference(both, first))
    asked = pd.concat(sides).groupby(["constitution", "stance"])["question_id"].nunique()
    under = zip(table["constitution"], table["stance"], strict=True)
    return table.assign(
        metric="compliance, " + table["constitution"] + " " + table["stance"],
        left_out=[asked[key] for key in under] - table["n"],
    )


_MATCH = ["judge", "opponent", "constitution"]


def _win_rates_between(
    ours: pd.DataFrame, theirs: pd.DataFrame, first: str, run: str
) -> pd.DataFrame:
    sides = [side[side["turn"] == 1] for side in (theirs, ours)]
    sides = [side.assign(points=side["winner"].map(POINTS)) for side in sides]
    key = [*_MATCH, "question_id"]
    kept = [side[[*key, "points", *seed_columns(side)]].dropna() for side in sides]
    pairs = kept[0].merge(kept[1], on=key, suffixes=("", "_first"))
    asked = pd.concat(sides).groupby(_MATCH)["question_id"].nunique()
    names = [name + suffix for suffix in ("", "_first") for name in seed_columns(ours)]
    rows = []
    for match, met in pairs.groupby(_MATCH, sort=False):
        gain, questions = met["points"] - met["points_first"], met["question_id"]
        options = {"limits": DIFFERENCE, "seeds": different([met[name] for name in names])}
        result = mean_interval(gain, questions, **options, step=0.5)
        rows.append(
            {
                "metric": _win_rate_name(*match),
                "n": result.n,
                "rows": result.rows,
                "left_out": asked[match] - result.n,
                "difference": result.estimate,
                "ci_low": result.low,
                "ci_high": result.high,
                "detectable": result.detectable,
                "p_value": paired_p(gain, questions, **options),
            }
        )
    return pd.DataFrame(rows)


def _accuracy_between(
    ours: pd.DataFrame, theirs: pd.DataFrame, first: str, run: str
) -> pd.DataFrame:
    sides = [theirs.assign(model=run), ours.assign(model=first)]
    both = pd.concat(_on_shared(sides, ["problem_id", "attempt"]), ignore_index=True)
    if both.empty:
        return pd.DataFrame()
    table = accuracy_difference(both, first, extraction="answer", ks=[1])
    table = table[table["metric"].isin(["greedy", "pass_at_k"])]
    return table.assign(
        rows=table["n"],
        left_out=pd.concat(sides)["problem_id"].nunique() - table["n"],
        metric=table["metric"].replace("pass_at_k", "pass_at_1"),
    )


# What runs are paired on: by table its columns and the function that compares two runs.
_PAIRED: Mapping[str, tuple[Sequence[str], Callable[..., pd.DataFrame]]] = {
    "checked": ([*_STATEMENT, "category", "passed", "degenerate"], _compliance_between),
    "verdicts": ([*_MATCH, "model", "question_id", "turn", "winner"], _win_rates_between),
    "attempts": (["problem_id", "attempt", "answer", "correct"], _accuracy_between),
}


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


def overall_steerability(table: pd.DataFrame) -> pd.DataFrame:
    """Return each model's own steerability over all categories, of principles and of opposites."""
    rows = table[(table["baseline"] == "") & (table["category"] == OVERALL)]
    rows = rows[rows["principle"] == ALL_PRINCIPLES]
    names = "steerability, " + rows["constitution"] + " " + rows["stance"]
    return rows.rename(columns={"steerability": "value"}).assign(metric=names)


def overall_win_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Return each pair's win rate at the first turn, by constitution and judge."""
    rows = _headline(table[table["adjusted_win_rate"].notna()])
    matches = rows[_MATCH].itertuples(index=False, name=None)
    return pd.DataFrame(
        {
            "model": rows["model"],
            "metric": [_win_rate_name(*match) for match in matches],
            "n": rows["n"],
            "value": rows["adjusted_win_rate"],
            "ci_low": rows["adjusted_ci_low"],
            "ci_high": rows["adjusted_ci_high"],
        }
    )


def _win_rate_name(judge: str, opponent: str, constitution: str) -> str:
    judged = "" if judge == CHECKLIST else f" ({judge} judge)"
    return f"win_rate against {opponent}, {constitution}{judged}"


def headline_accuracy(table: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy of one greedy attempt, one sample and any of the samples."""
    pass_at = table["metric"] == "pass_at_k"
    attempts = table.loc[pass_at, "k"].max()
    rows = table[(table["metric"] == "greedy") | (pass_at & table["k"].isin([1, attempts]))]
    names = rows["metric"].where(rows["metric"] == "greedy", "pass_at_" + rows["k"].astype(str))
    return rows.assign(metric=names)
