"""Tables of results with intervals: win rates, compliance, differences and degeneration.

Win rates with length controlled are in `length_control`, how good a judge is in `judge_quality`.

Every interval is a percentile bootstrap over *questions*: the answers to one question (its turns
and constitutions) are not independent, so whole questions are drawn with replacement. A cell with
fewer than two questions has no interval (NaN). Where every question gave the same value, the
interval has no width; that is a limit of the bootstrap, no proof of certainty.

Each cell uses the seed afresh, so that a number does not depend on which other cells there are.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sami_pipeline.tables import StoredTable, columns_of

PAPER_CATEGORIES = (
    "humanities",
    "stem",
    "extraction",
    "coding",
    "math",
    "reasoning",
    "roleplay",
)
"""The seven categories that arXiv 2410.01704 reports."""

MT_BENCH_CATEGORIES = ("writing", *PAPER_CATEGORIES)
"""All eight categories of MT-Bench, arXiv 2306.05685."""

OVERALL = "overall"
OVERALL_PAPER = "overall_paper"
ALL_PRINCIPLES = "all"

BOTH_TURNS = "both"

ANSWER_KEY = ["question_id", "turn", "constitution"]
COMPARISON_KEY = ["model", "opponent", *ANSWER_KEY]
OUTCOMES = ("model", "tie", "opponent", "invalid")
POINTS = {"model": 1.0, "tie": 0.5, "opponent": 0.0}
"""What a valid verdict adds to the adjusted win rate."""
STATEMENT_KEY = [*ANSWER_KEY, "principle"]

_DRAWS_AT_ONCE = 2**20


@dataclass(frozen=True)
class Interval:
    """An estimate with its uncertainty.

    Attributes:
        estimate: The mean of the rows, in their unit.
        low: Lower bound, NaN with fewer than two clusters.
        high: Upper bound, NaN with fewer than two clusters.
        n: Number of rows (not of clusters).
    """

    estimate: float
    low: float
    high: float
    n: int


def bootstrap_mean(
    values: ArrayLike,
    clusters: ArrayLike,
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int,
) -> Interval:
    """Percentile interval of the mean of rows that come in clusters.

    Percentile bootstrap (Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13)
    over whole clusters (Cameron, Gelbach & Miller 2008, "Bootstrap-Based Improvements for Inference
    with Clustered Errors", "pairs cluster bootstrap"). A resample draws as many clusters as there
    are, with replacement; its mean is the sum over the number of rows it happens to hold. The order
    of the rows changes nothing, not even in the last bit.

    Args:
        values: (rows,) numbers or booleans.
        clusters: (rows,) sortable label of each row's cluster.
        resamples: Number of bootstrap samples.
        level: Coverage of the interval, between 0 and 1.
        seed: Seed of `numpy.random.default_rng`.

    Returns:
        The mean of all rows and its interval. Memory is bounded by about 2^20 draws at a time, or
        by one resample where that is more.

    Raises:
        ValueError: If there are no rows, values are NaN, lengths differ, or a setting is out of
            range.
    """
    values = np.asarray(values, dtype=np.float64)
    clusters = np.asarray(clusters)
    if values.ndim != 1 or values.shape != clusters.shape:
        raise ValueError(
            f"values {values.shape} and clusters {clusters.shape} must be equally long"
        )
    if values.size == 0:
        raise ValueError("the mean of no rows is undefined")
    if np.isnan(values).any():
        raise ValueError(f"{np.isnan(values).sum()} of {values.size} values are NaN")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"need resamples >= 1 and 0 < level < 1, got {resamples} and {level}")

    labels, cluster = np.unique(clusters, return_inverse=True)
    order = np.lexsort((values, cluster))
    sums = np.bincount(cluster[order], weights=values[order])
    counts = np.bincount(cluster)
    estimate = float(sums.sum() / values.size)
    if labels.size < 2:
        return Interval(estimate, math.nan, math.nan, values.size)

    means = np.concatenate(
        [
            sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
            for draws in _cluster_draws(labels.size, resamples, labels.size, seed)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), values.size)


def _cluster_draws(
    clusters: int, resamples: int, width: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Yield (part, clusters) indices drawn with replacement; part · width stays near 2^20."""
    generator = np.random.default_rng(seed)
    step = max(1, _DRAWS_AT_ONCE // width)
    for start in range(0, resamples, step):
        yield generator.integers(0, clusters, size=(min(step, resamples - start), clusters))


def bootstrap_statistic(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    clusters: ArrayLike,
    *,
    limits: tuple[float, float],
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int,
) -> Interval:
    """Percentile interval of any statistic of rows that come in clusters.

    The same resamples as `bootstrap_mean` draws, for what is no mean of rows.

    Args:
        statistic: Takes (part, clusters) numbers, how often each cluster (in sorted order of its
            label) is in each of `part` samples; gives (part,) values, NaN where it is undefined.
        clusters: (rows,) sortable label of each row's cluster.
        limits: The smallest and the largest value possible. A resample in which the statistic is
            undefined counts as the first for the lower bound and as the second for the upper.
        resamples: Number of bootstrap samples.
        level: Coverage of the interval, between 0 and 1.
        seed: Seed of `numpy.random.default_rng`.

    Returns:
        The statistic of all rows and its interval; no interval where the statistic is undefined.
        A statistic that needs an array of all rows for each sample gets about 2^20 numbers at once.

    Raises:
        ValueError: If there are no rows.
    """
    clusters = np.asarray(clusters)
    if clusters.size == 0:
        raise ValueError("a statistic of no rows is undefined")
    number = np.unique(clusters).size
    estimate = float(statistic(np.ones((1, number)))[0])
    if number < 2 or math.isnan(estimate):
        return Interval(estimate, math.nan, math.nan, clusters.size)
    values = []
    for draws in _cluster_draws(number, resamples, clusters.size, seed):
        cells = draws + number * np.arange(len(draws))[:, None]
        weights = np.bincount(cells.ravel(), minlength=draws.size).reshape(draws.shape)
        values.append(statistic(weights.astype(np.float64)))
    drawn = np.concatenate(values)
    low, high = (
        float(np.quantile(np.nan_to_num(drawn, nan=limit), share))
        for limit, share in zip(limits, ((1 - level) / 2, (1 + level) / 2), strict=True)
    )
    return Interval(estimate, low, high, clusters.size)


NO_ROWS = Interval(math.nan, math.nan, math.nan, 0)


def in_order(categories: Iterable[str]) -> list[str]:
    """Return the different categories: MT-Bench's first and in its order, others alphabetically."""
    present = set(categories)
    known = [category for category in MT_BENCH_CATEGORIES if category in present]
    return known + sorted(present.difference(known))


def by_category(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Split rows by category, then take them together.

    Args:
        frame: Rows with a `category`.

    Yields:
        `(category, its rows)` for each category present, MT-Bench's first and in its order, others
        alphabetically; then `overall` with all rows, and `overall_paper` with the rows of
        `PAPER_CATEGORIES` if there are any.

    Raises:
        ValueError: If a category is called like one of the two summaries.
    """
    present = set(frame["category"])
    if taken := present & {OVERALL, OVERALL_PAPER}:
        raise ValueError(f"reserved for summaries, no category: {sorted(taken)}")
    for category in in_order(present):
        yield category, frame[frame["category"] == category]
    if present:
        yield OVERALL, frame
    if present.intersection(PAPER_CATEGORIES):
        yield OVERALL_PAPER, frame[frame["category"].isin(PAPER_CATEGORIES)]


def require_rows(
    frame: pd.DataFrame, key: Sequence[str], columns: Sequence[str], booleans: Sequence[str] = ()
) -> None:
    """Check that a table can be summarised without dropping anything silently.

    Args:
        frame: The table.
        key: Columns that together name a row.
        columns: Further columns that must be there.
        booleans: Further columns that must be there and hold booleans.

    Raises:
        ValueError: If a column or all rows are missing, a value is missing, a boolean column holds
            something else, or a key occurs twice.
    """
    needed = [*key, *columns, *booleans]
    if missing := [column for column in needed if column not in frame]:
        raise ValueError(f"columns missing: {missing}")
    if frame.empty:
        raise ValueError("no rows to summarise")
    if empty := [column for column in needed if frame[column].isna().any()]:
        raise ValueError(f"missing values in columns {empty}")
    for column in booleans:
        if not pd.api.types.is_bool_dtype(frame[column]):
            raise ValueError(f"column {column!r} must be boolean, is {frame[column].dtype}")
    if (repeated := frame.duplicated(list(key))).any():
        raise ValueError(f"more than one row for {describe(frame[repeated].iloc[0], key)}")


def describe(row: pd.Series, key: Sequence[str]) -> str:
    """Return a row's key in words, for messages."""
    values = {column: row[column] for column in key}
    # Not repr throughout: numpy's numbers would read "np.int64(81)".
    return ", ".join(
        f"{column}={value!r}" if isinstance(value, str) else f"{column}={value}"
        for column, value in values.items()
    )


def require_verdicts(verdicts: pd.DataFrame) -> None:
    """Check a table of verdicts.

    Args:
        verdicts: One row per (judge, model, opponent, question_id, turn, constitution), with
            `category` and `winner`, one of `OUTCOMES`.

    Raises:
        ValueError: If the table is incomplete (`require_rows`) or a winner is none of the four.
    """
    require_rows(verdicts, ["judge", *COMPARISON_KEY], ["category", "winner"])
    if unknown := set(verdicts["winner"]).difference(OUTCOMES):
        raise ValueError(f"unknown winners {sorted(map(str, unknown))}; known: {OUTCOMES}")


def with_clusters(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return columns of a table, and each row's question as its place among all, sorted by id.

    Intervals over questions need their order alone; numbers are sorted in a tenth of the time of
    texts, and that in every cell.
    """
    question = pd.factorize(frame["question_id"], sort=True)[0]
    return frame[list(columns)].assign(question_id=question)


def by_turn(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield `both` with all rows, then each turn present ("1", "2") with its own."""
    yield BOTH_TURNS, frame
    for turn, rows in frame.groupby("turn", sort=True):
        yield str(turn), rows


def win_rates(
    verdicts: pd.DataFrame, *, resamples: int = 10_000, level: float = 0.95, seed: int
) -> pd.DataFrame:
    """Win rates of each model against each opponent it met, per judge, turn and category.

    `win_rate` is w / (w + l + t) and `adjusted_win_rate` (w + t/2) / (w + l + t), as FastChat's
    `show_result.py` defines them.

    Args:
        verdicts: Rows as `require_verdicts` wants them.
        resamples: Bootstrap samples per interval.
        level: Coverage of the intervals.
        seed: Seed of each interval.

    Returns:
        One row per (judge, turn of `by_turn`, model, opponent, category of `by_category`), in this
        order. Invalid verdicts are counted in `invalid` and are in neither `n` nor the rates; a
        cell without any valid one has NaN rates.

    Raises:
        ValueError: As `require_verdicts`.
    """
    require_verdicts(verdicts)

    def interval(rows: pd.DataFrame, points: dict[str, float]) -> Interval:
        if rows.empty:
            return NO_ROWS
        scores = rows["winner"].map(points).to_numpy(dtype=np.float64)
        return bootstrap_mean(
            scores, rows["question_id"], resamples=resamples, level=level, seed=seed
        )

    records = []
    for judge, turn, model, opponent, category, rows in _win_rate_cells(verdicts):
        valid = rows[rows["winner"] != "invalid"]
        strict = interval(valid, {"model": 1.0, "tie": 0.0, "opponent": 0.0})
        adjusted = interval(valid, POINTS)
        wins, ties, losses, invalid = (int((rows["winner"] == name).sum()) for name in OUTCOMES)
        records.append(
            {
                "model": model,
                "opponent": opponent,
                "category": category,
                "n": strict.n,
                "win_rate": strict.estimate,
                "ci_low": strict.low,
                "ci_high": strict.high,
                "wins": wins,
                "ties": ties,
                "losses": losses,
                "invalid": invalid,
                "adjusted_win_rate": adjusted.estimate,
                "adjusted_ci_low": adjusted.low,
                "adjusted_ci_high": adjusted.high,
                "judge": judge,
                "turn": turn,
            }
        )
    return pd.DataFrame(records)


def _win_rate_cells(
    verdicts: pd.DataFrame,
) -> Iterator[tuple[str, str, str, str, str, pd.DataFrame]]:
    verdicts = with_clusters(verdicts, ["judge", "model", "opponent", "turn", "category", "winner"])
    for judge, judged in verdicts.groupby("judge", sort=False):
        for turn, at_turn in by_turn(judged):
            for (model, opponent), met in at_turn.groupby(["model", "opponent"], sort=False):
                for category, rows in by_category(met):
                    yield judge, turn, model, opponent, category, rows


def complies(checked: pd.DataFrame) -> pd.Series:
    """Tell which statements were followed: the check passed and the answer is not degenerate.

    Args:
        checked: Rows with booleans `passed` and `degenerate`.

    Returns:
        (rows,) booleans with the rows' index.
    """
    return (checked["passed"] & ~checked["degenerate"]).rename("complies")


def _require_checked(checked: pd.DataFrame) -> None:
    require_rows(
        checked, ["model", *STATEMENT_KEY], ["category", "stance"], ["passed", "degenerate"]
    )


def compliance(
    checked: pd.DataFrame, *, resamples: int = 10_000, level: float = 0.95, seed: int
) -> pd.DataFrame:
    """Share of the statements that each model's answers follow, per principle and category.

    Args:
        checked: One row per (model, question_id, turn, constitution, principle), that is per answer
            and statement of its constitution, with `category`, `stance`, `passed` and
            `degenerate`.
        resamples: Bootstrap samples per interval.
        level: Coverage of the intervals.
        seed: Seed of each interval.

    Returns:
        One row per (model, principle, category of `by_category`); principle "all" comes first and
        takes all statements together. `n` counts statements.

    Raises:
        ValueError: If the table is incomplete (`require_rows`) or a principle is called "all".
    """
    _require_checked(checked)
    if (checked["principle"] == ALL_PRINCIPLES).any():
        raise ValueError(f"{ALL_PRINCIPLES!r} is reserved for all principles together")
    records = []
    checked = with_clusters(checked, ["model", "principle", "category"]).assign(
        complies=complies(checked)
    )
    for model, answered in checked.groupby("model", sort=False):
        principles = list(answered.groupby("principle", sort=False))
        for principle, statements in [(ALL_PRINCIPLES, answered), *principles]:
            for category, rows in by_category(statements):
                result = bootstrap_mean(
                    rows["complies"],
                    rows["question_id"],
                    resamples=resamples,
                    level=level,
                    seed=seed,
                )
                records.append((model, principle, category, result.n, *_bounds(result)))
    columns = ["model", "principle", "category", "n", "compliance", "ci_low", "ci_high"]
    return pd.DataFrame(records, columns=columns)


def _bounds(interval: Interval) -> tuple[float, float, float]:
    return interval.estimate, interval.low, interval.high


def pair_statements(checked: pd.DataFrame, model: str, other: str) -> pd.DataFrame:
    """Put two models' results on the same statements side by side.

    Args:
        checked: Rows as `compliance` takes them.
        model: Name of the first model.
        other: Name of the second model.

    Returns:
        One row per statement, sorted by `STATEMENT_KEY`, with `STATEMENT_KEY`, `category`,
        `stance`, and the booleans `model_complies` and `other_complies`.

    Raises:
        ValueError: If the table is incomplete, a model has no rows, the names are the same, a
            statement is there for one model only, or its category or stance differs.
    """
    _require_checked(checked)
    if model == other:
        raise ValueError(f"cannot pair {model!r} with itself")
    sides = []
    for name, column in ((model, "model_complies"), (other, "other_complies")):
        rows = checked[checked["model"] == name]
        if rows.empty:
            raise ValueError(f"no rows for model {name!r}")
        columns = [*STATEMENT_KEY, "category", "stance"]
        sides.append(rows[columns].assign(**{column: complies(rows)}))
    pairs = sides[0].merge(
        sides[1], on=STATEMENT_KEY, how="outer", indicator="found", suffixes=("", "_other")
    )
    if (alone := pairs["found"] != "both").any():
        row = pairs[alone].iloc[0]
        absent = other if row["found"] == "left_only" else model
        raise ValueError(
            f"{alone.sum()} statements without a counterpart; the first missing one is "
            f"model={absent!r}, {describe(row, STATEMENT_KEY)}"
        )
    for column in ("category", "stance"):
        if (differs := pairs[column] != pairs[f"{column}_other"]).any():
            where = describe(pairs[differs].iloc[0], STATEMENT_KEY)
            raise ValueError(f"{column} differs between {model!r} and {other!r} at {where}")
    return pairs[[*STATEMENT_KEY, "category", "stance", "model_complies", "other_complies"]]


def compliance_difference(
    checked: pd.DataFrame,
    baseline: str,
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int,
) -> pd.DataFrame:
    """How much more of the same statements each model follows than a baseline model.

    Args:
        checked: Rows as `compliance` takes them.
        baseline: Name of the model to compare with.
        resamples: Bootstrap samples per interval.
        level: Coverage of the intervals.
        seed: Seed of each interval.

    Returns:
        One row per (other model, category of `by_category`): the mean over statements of the
        paired difference, in [-1, 1], with its interval. No rows if the baseline is alone.

    Raises:
        ValueError: As `pair_statements`.
    """
    _require_checked(checked)
    if not (checked["model"] == baseline).any():
        raise ValueError(f"no rows for the baseline {baseline!r}")
    records = []
    for model in checked["model"].drop_duplicates():
        if model == baseline:
            continue
        pairs = pair_statements(checked, model, baseline)
        gain = pairs["model_complies"].astype(int) - pairs["other_complies"].astype(int)
        for category, rows in by_category(with_clusters(pairs, ["category"]).assign(gain=gain)):
            result = bootstrap_mean(
                rows["gain"], rows["question_id"], resamples=resamples, level=level, seed=seed
            )
            records.append((model, baseline, category, result.n, *_bounds(result)))
    columns = ["model", "baseline", "category", "n", "difference", "ci_low", "ci_high"]
    return pd.DataFrame(records, columns=columns)


def response_lengths(
    responses: pd.DataFrame, *, resamples: int = 10_000, level: float = 0.95, seed: int
) -> pd.DataFrame:
    """Mean length of each model's responses under each constitution.

    Args:
        responses: One row per (model, query_id, constitution_index), with `constitution`,
            `completion_tokens` and `finish_reason` ("length" means truncated).
        resamples: Bootstrap samples per interval, over queries.
        level: Coverage of the intervals.
        seed: Seed of each interval.

    Returns:
        One row per (model, constitution): the mean length in tokens of the model's own tokenizer
        and the share of truncated responses, each with its interval. No rows for no responses.

    Raises:
        ValueError: If the table is incomplete (`require_rows`).
    """
    records = []
    if not responses.empty:
        key = ["model", "query_id", "constitution_index"]
        require_rows(responses, key, ["constitution", "completion_tokens", "finish_reason"])
    for (model, constitution), rows in responses.groupby(["model", "constitution"], sort=False):
        tokens, truncated = (
            bootstrap_mean(values, rows["query_id"], resamples=resamples, level=level, seed=seed)
            for values in (rows["completion_tokens"], rows["finish_reason"] == "length")
        )
        records.append((model, constitution, tokens.n, *_bounds(tokens), *_bounds(truncated)))
    dtypes = {"model": "str", "constitution": "str", "n": int}
    for column in ("mean_tokens", "truncated_rate"):
        prefix = column.removesuffix("_rate")
        dtypes |= dict.fromkeys((column, f"{prefix}_ci_low", f"{prefix}_ci_high"), float)
    return pd.DataFrame(records, columns=list(dtypes)).astype(dtypes)


def degeneration(
    answers: pd.DataFrame | StoredTable,
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int,
) -> pd.DataFrame:
    """How often each model's answers mostly repeat themselves, and how long they are.

    Args:
        answers: One row per (model, question_id, turn, constitution), with `category`,
            `degenerate`, `completion_tokens` and `finish_reason` ("length" means truncated).
        resamples: Bootstrap samples per interval.
        level: Coverage of the intervals.
        seed: Seed of each interval.

    Returns:
        One row per (model, category of `by_category`): the share of degenerate answers, the mean
        length in tokens and the share of truncated answers, each with its interval.

    Raises:
        ValueError: If the table is incomplete (`require_rows`).
    """
    columns = ["category", "completion_tokens", "finish_reason"]
    key = ["model", *ANSWER_KEY]
    answers = columns_of(answers, [*key, *columns, "degenerate"])
    require_rows(answers, key, columns, ["degenerate"])
    answers = with_clusters(answers, ["model", *columns, "degenerate"])

    def interval(rows: pd.DataFrame, values: pd.Series) -> Interval:
        return bootstrap_mean(
            values, rows["question_id"], resamples=resamples, level=level, seed=seed
        )

    records = []
    for model, given in answers.groupby("model", sort=False):
        for category, rows in by_category(given):
            rate = interval(rows, rows["degenerate"])
            tokens = interval(rows, rows["completion_tokens"])
            truncated = interval(rows, rows["finish_reason"] == "length")
            records.append(
                {
                    "model": model,
                    "category": category,
                    "n": rate.n,
                    "degeneration_rate": rate.estimate,
                    "ci_low": rate.low,
                    "ci_high": rate.high,
                    "mean_tokens": tokens.estimate,
                    "mean_tokens_ci_low": tokens.low,
                    "mean_tokens_ci_high": tokens.high,
                    "truncated_rate": truncated.estimate,
                    "truncated_ci_low": truncated.low,
                    "truncated_ci_high": truncated.high,
                }
            )
    return pd.DataFrame(records)
