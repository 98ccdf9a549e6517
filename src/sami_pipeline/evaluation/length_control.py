"""Win rates with the length of the answers controlled.

A judge may prefer an answer for being longer. Two corrections of the adjusted win rate (a tie
counts half), each for one judge and one pair of models, over the comparisons under one constitution
(and at one turn) with a verdict:

- **stratified**, as arXiv 2404.14313 (section 4.1) does: the comparisons are split into those where
  the model's answer is longer than the opponent's and those where it is shorter or as long, and the
  win rates of the two halves are averaged.
- **glm**, the length-controlled win rate of arXiv 2404.04475 (AlpacaEval 2) with its model and
  length terms: logistic regression of the points (1, 1/2, 0) on an intercept and the tanh of the
  difference in length over its standard deviation; the win rate is the logistic of the intercept,
  which is that at equal length. AlpacaEval's third term, the difficulty of each instruction, needs
  the verdicts on many models and is left out. AlpacaEval penalises all its weights with an L1 norm
  chosen by cross-validation and adds weighted verdicts on prompts made to game the length; here
  only the slope is penalised, by `SLOPE_PENALTY`, so that a length without effect leaves the plain
  win rate as it is.

Length is counted in characters, as AlpacaEval does. Tokens would mean something else for each
tokeniser, and answers cut off at the same number of tokens would count as equally long.

Where brevity is itself a principle, length is part of what is judged (arXiv 2404.14313 leaves the
correction out there): read these figures together with the plain win rates, not instead of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sami_pipeline.evaluation.intervals import (
    NO_ROWS,
    SHARE,
    Interval,
    bootstrap_statistic,
    mean_interval,
    widened,
)
from sami_pipeline.evaluation.seeds import NO_SEED, OPPONENT_SEED, SEED, seeds_in, with_seeds
from sami_pipeline.evaluation.statistics import (
    ANSWER_KEY,
    COMPARISON_KEY,
    POINTS,
    by_constitution_and_turn,
    describe,
    require_rows,
    require_verdicts,
    with_clusters,
)
from sami_pipeline.tables import StoredTable, columns_of, parts_of

SLOPE_PENALTY = 0.1
"""Weight of slope² / 2 added to the log-likelihood: a normal prior of 3.2 log-odds on the slope.

It keeps the slope finite where length alone tells wins from losses, as happens in a resample of few
questions. A hundred comparisons at even odds hold a hundred times as much information.
"""

_MAXIMUM_STEPS = 100
_TOLERANCE = 1e-9


def with_lengths(verdicts: pd.DataFrame, answers: pd.DataFrame | StoredTable) -> pd.DataFrame:
    """Return verdicts with the lengths of the two answers they are on.

    Args:
        verdicts: Rows with `statistics.COMPARISON_KEY`.
        answers: One row per (model, question_id, turn, constitution), with `answer`.

    Returns:
        The verdicts in their order, with the integers `model_length` and `opponent_length`, in
        characters (Unicode code points).

    Raises:
        ValueError: If an answer is missing or there twice.
    """
    key = ["model", *ANSWER_KEY, *([SEED] if SEED in answers.columns else [])]
    parts = [
        part.assign(answer=part["answer"].str.len()) if "answer" in part else part
        for part in parts_of(answers, [*key, "answer"])
    ]
    known = pd.concat(parts, ignore_index=True) if parts else columns_of(answers, key)
    require_rows(known, key, ["answer"])
    lengths = known.set_index(key)["answer"]
    names, columns = key, {}
    for side, seed in (("model", SEED), ("opponent", OPPONENT_SEED)):
        key = verdicts[["model", *ANSWER_KEY]].assign(model=verdicts[side])
        if SEED in names:
            key = key.assign(**{SEED: verdicts[seed]})
        found = lengths.reindex(pd.MultiIndex.from_frame(key))
        if (missing := found.isna().to_numpy()).any():
            raise ValueError(
                f"{missing.sum()} verdicts on answers that are not there; the first missing one "
                f"is {describe(key[missing].iloc[0], key.columns)}"
            )
        columns[f"{side}_length"] = found.to_numpy(dtype=np.int64)
    return verdicts.assign(**columns)


def fit_logistic(
    points: ArrayLike, predictor: ArrayLike, weights: ArrayLike, *, penalty: float = SLOPE_PENALTY
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit many logistic regressions with an intercept and one slope at once.

    Each maximises sum(w · (y log p + (1 − y) log(1 − p))) − penalty · slope² / 2 with
    p = logistic(intercept + slope · x), by Newton's method. A step changes no log-odds by more than
    1, which makes every step go up: the logistic loss is self-concordant in the sense of Bach 2010
    (arXiv 0910.4627), and there its Proposition 1 bounds what a step can lose.

    Args:
        points: (rows,) y in [0, 1].
        predictor: (fits, rows) or (rows,) x in [-1, 1].
        weights: (fits, rows) w ≥ 0; in no fit may all weighted y be 0, or all 1.
        penalty: Of the slope; with 0 there may be no finite maximum.

    Returns:
        (fits,) intercepts and (fits,) slopes, in log-odds.

    Raises:
        ValueError: If there is no finite maximum.
    """
    points, weights = np.asarray(points, dtype=float), np.asarray(weights, dtype=float)
    predictor = np.broadcast_to(np.asarray(predictor, dtype=float), weights.shape)
    mean = (weights @ points) / weights.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        intercept, slope = np.log(mean / (1 - mean)), np.zeros_like(mean)
        for _ in range(_MAXIMUM_STEPS):
            fitted = _logistic(intercept[:, None] + slope[:, None] * predictor)
            residual, curvature = weights * (points - fitted), weights * fitted * (1 - fitted)
            by_intercept = residual.sum(axis=1)
            by_slope = (residual * predictor).sum(axis=1) - penalty * slope
            bent = curvature * predictor
            a, b = curvature.sum(axis=1), bent.sum(axis=1)
            c = (bent * predictor).sum(axis=1) + penalty
            determinant = a * c - b * b
            up = (c * by_intercept - b * by_slope) / determinant
            tilt = (a * by_slope - b * by_intercept) / determinant
            size = np.abs(up) + np.abs(tilt)
            shorten = 1 / np.maximum(1, size)
            intercept, slope = intercept + shorten * up, slope + shorten * tilt
            if (size < _TOLERANCE).all():
                return intercept, slope
    raise ValueError("the logistic regression has no finite maximum")


def _logistic(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    return (1 + np.tanh(log_odds / 2)) / 2


def _stratified(
    points: NDArray[np.float64], difference: NDArray[np.float64], cluster: NDArray[np.int64]
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    longer = (difference > 0).astype(float)
    terms = (longer * points, longer, (1 - longer) * points, 1 - longer)
    sums = np.stack([np.bincount(cluster, weights=term) for term in terms], axis=1)

    def rate(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        won_longer, n_longer, won_rest, n_rest = (weights @ sums).T
        with np.errstate(invalid="ignore"):
            return (won_longer / n_longer + won_rest / n_rest) / 2

    return rate


def _glm(
    points: NDArray[np.float64], difference: NDArray[np.float64], cluster: NDArray[np.int64]
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    def rate(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        weights = weights[:, cluster]
        n = weights.sum(axis=1)
        rates = (weights @ points) / n
        # Where all points are equal the intercept has no finite maximum; its limit is 0 or 1.
        mixed = (rates > 0) & (rates < 1)
        predictor = np.tanh(_standardised(difference, weights[mixed]))
        intercept, _ = fit_logistic(points, predictor, weights[mixed])
        rates[mixed] = _logistic(intercept)
        return rates

    return rate


def _standardised(
    difference: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (samples, rows) differences over their standard deviation in each sample.

    Not centred: 0 stays equal length. Where all differences are equal, length tells nothing, the
    penalty would put the slope at 0, and so does a predictor of 0.
    """
    n = weights.sum(axis=1, keepdims=True)
    mean = weights @ difference[:, None] / n
    squares = (weights * (difference - mean) ** 2).sum(axis=1, keepdims=True)
    # With n − 1, as pandas and so AlpacaEval have it.
    deviation = np.sqrt(squares / np.maximum(n - 1, 1))
    varies = deviation > 1e-9 * np.abs(difference).max(initial=1)
    return np.where(varies, difference / np.where(varies, deviation, 1), 0.0)


METHODS = {"stratified": _stratified, "glm": _glm}


def controlled_win_rate(
    method: str,
    points: ArrayLike,
    difference: ArrayLike,
    clusters: ArrayLike,
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int,
    seeds: Sequence[ArrayLike] = (),
) -> Interval:
    """Win rate with length controlled, and its bootstrap interval over whole clusters.

    Everything is done again in each resample: halves, standard deviation, regression.

    Args:
        method: One of `METHODS`.
        points: (rows,) 1 for a win, 1/2 for a tie, 0 for a loss.
        difference: (rows,) length of the model's answer less that of the opponent's.
        clusters: (rows,) sortable label of each row's cluster.
        resamples: Number of bootstrap samples.
        level: Coverage of the interval.
        seed: Seed of `numpy.random.default_rng`.
        seeds: (rows,) labels of training seeds, as `intervals.mean_interval` takes them. The rate
            is taken for each seed too, and what it varies between them is added to the interval
            (`intervals.widened`).

    Returns:
        The rate in [0, 1] with its interval. "stratified" is NaN where one half is empty, for then
        there is nothing to average; a *resample* in which one is empty counts as 0 for the lower
        bound and as 1 for the upper. Where all points are alike, the interval is at least as wide
        as that of the plain win rate (`intervals.mean_interval`); there is none where length alone
        decides, and so all resamples are the same.

    Raises:
        ValueError: If there are no rows.
    """
    labels, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    points, difference = (np.asarray(values, dtype=float) for values in (points, difference))
    result = bootstrap_statistic(
        METHODS[method](points, difference, cluster),
        labels[cluster],
        limits=(0.0, 1.0),
        resamples=resamples,
        level=level,
        seed=seed,
    )
    if np.ptp(points) == 0 and not np.isnan(result.low):
        # Every resample is the same, which says nothing about the questions that were not asked.
        plain = mean_interval(points, cluster)
        low, high = min(result.low, plain.low), max(result.high, plain.high)
        result = replace(result, low=low, high=high)
    elif result.low == result.high:
        # Where length alone decides, each half is the same in every resample: no certainty either.
        result = replace(result, low=np.nan, high=np.nan)
    by_seed = []
    for labels in map(np.asarray, seeds):
        parts = [labels == label for label in np.unique(labels)]
        rates = [
            METHODS[method](
                points[part], difference[part], np.unique(cluster[part], return_inverse=True)[1]
            )(np.ones((1, len(np.unique(cluster[part])))))[0]
            for part in parts
        ]
        by_seed.append(rates)
    return widened(result, by_seed, SHARE)


def length_controlled(
    verdicts: pd.DataFrame,
    answers: pd.DataFrame | StoredTable,
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int,
) -> pd.DataFrame:
    """Length-controlled win rates of each model against each opponent it met, by each judge.

    Args:
        verdicts: Rows as `statistics.require_verdicts` wants them.
        answers: One row per (model, question_id, turn, constitution), with `answer`.
        resamples: Bootstrap samples per interval.
        level: Coverage of the intervals.
        seed: Seed of each interval.

    Returns:
        One row per (judge, constitution, turn of `by_turn`, model, opponent, method): `n`
        questions, `rows` verdicts other than "invalid", `n_longer` of them on a longer answer of
        the model, the rate and its interval over questions. All categories are taken together. A
        judge who always prefers the longer (or the shorter) answer under a constitution is seen
        here: the stratified rate is then 1/2. Over both constitutions together it would not be.

    Raises:
        ValueError: If a table is incomplete or an answer is missing.
    """
    require_verdicts(verdicts)
    rows = with_lengths(verdicts, answers).sort_values(COMPARISON_KEY, kind="stable")
    columns = ["judge", "constitution", "turn", "model", "opponent", "winner"]
    rows = with_clusters(rows, columns).assign(
        difference=rows["model_length"] - rows["opponent_length"]
    )
    options = {"resamples": resamples, "level": level, "seed": seed}
    pairs = verdicts[["judge", "model", "opponent"]].drop_duplicates()
    records = []
    for judge, model, opponent in pairs.itertuples(index=False, name=None):
        met = rows[(rows["judge"] == judge) & (rows["model"] == model)]
        met = met[met["opponent"] == opponent]
        for constitution, turn, asked in by_constitution_and_turn(met):
            valid = asked[asked["winner"] != "invalid"]
            points, questions = valid["winner"].map(POINTS), valid["question_id"]
            seeds = seeds_in(valid)
            number = max((column[column != NO_SEED].nunique() for column in seeds), default=0)
            longer = int((valid["difference"] > 0).sum())
            for method in METHODS:
                result = NO_ROWS
                if len(valid):
                    result = controlled_win_rate(
                        method, points, valid["difference"], questions, seeds=seeds, **options
                    )
                key = (judge, constitution, turn, model, opponent, method)
                records.append((*key, *result.counts, number, longer, *result.bounds))
    columns = ["judge", "constitution", "turn", "model", "opponent", "method", "n", "rows", "seeds"]
    columns += ["n_longer", "win_rate", "ci_low", "ci_high"]
    return with_seeds(verdicts, pd.DataFrame(records, columns=columns))
