"""Intervals and tests for rows that come in clusters, such as answers to the same question.

What was resampled is the *cluster*: the answers to one question (its turns, its statements) are not
independent, so one question counts once, however many rows it has. ``n`` is the number of clusters
throughout, ``rows`` the number of rows.

How the interval was chosen: by a simulation (`tests/evaluation/test_coverage.py`) over 5 to 80
clusters, rates from 0.02 to 0.98 and 1 to 3 rows a cluster, independent, alike and in between. At
nominal 95 % the percentile bootstrap and the plain t-interval cover less than 10 % of the time in
the worst case (few clusters, a rate near 0, where they have no width), Wilson's interval with an
effective sample size 84 %, that of `mean_interval` at least 93 %.

**Training seeds.** Where models were trained with several seeds, the rows are crossed: every
replicate answers every question, and both are samples. Two sources of error add up (crossed random
effects, as Searle, Casella & McCulloch 1992, "Variance Components", chapter 4): V_q between
questions with n - 1 degrees of freedom, and V_s between the means of the k seeds, S^2 / k, with
k - 1. The half width is sqrt(t^2(n-1) V_q + t^2(k-1) V_s), Howe's approximate limits for a mean of
sums (Howe 1974, "Approximate Confidence Limits on the Mean of X + Y", Journal of the American
Statistical Association 69, 789-794). With three seeds t(2) is 4.3: few seeds are paid for in width.
Simulated at three seeds, 8 to 80 questions, standard deviations between seeds of 0 to 20 points
(`tests/evaluation/test_seed_coverage.py`), this holds the truth in at least 94 % of draws; with
Satterthwaite's degrees of freedom (1946) in their place 91 %, with V_s less what questions
contribute to it 91 %, without V_s 39 %. Since V_s holds what seeds and questions have together, the
interval is wider than it need be where seeds do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sami_pipeline.evaluation.seeds import NO_SEED

LEVEL = 0.95
"""Coverage of all intervals."""

FEWEST_CLUSTERS = 6
"""With fewer no exact paired test can reach p < 0.05: five signs agree by chance in 1 of 16."""

LARGEST_P = 0.05
"""Up to this p-value, corrected for the number of comparisons, a difference is called one."""

POWER = 0.8
"""How often a difference of the size `Interval.detectable` would be found."""

SHARE = (0.0, 1.0)
"""The limits of a share, such as a win rate."""

DIFFERENCE = (-1.0, 1.0)
"""The limits of a difference of two shares."""

LENGTH = (0.0, math.inf)
"""The limits of a length, such as a number of tokens."""

_DRAWS_AT_ONCE = 2**20
_EXACT_SUM = 2000
_FLIPS = 20_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its uncertainty.

    Attributes:
        estimate: The mean of the rows (or another statistic), in their unit.
        low: Lower bound, NaN with fewer than two clusters.
        high: Upper bound, NaN with fewer than two clusters.
        n: Number of clusters, which is what was resampled.
        rows: Number of rows.
        detectable: The smallest true difference that so many clusters, as different as these are,
            would show in 80 % of cases (`POWER`) at the 5 % level; NaN where it is not known, and
            with fewer clusters than `FEWEST_CLUSTERS`, which show none.
        seeds: Number of training seeds, over which it is too; 0 where nothing was trained, or with
            one seed that is not told.
    """

    estimate: float
    low: float
    high: float
    n: int
    rows: int
    detectable: float = math.nan
    seeds: int = 0

    @property
    def bounds(self) -> tuple[float, float, float]:
        """The estimate and its two bounds."""
        return self.estimate, self.low, self.high

    @property
    def counts(self) -> tuple[int, int]:
        """The numbers of clusters and of rows."""
        return self.n, self.rows


NO_ROWS = Interval(math.nan, math.nan, math.nan, 0, 0)


def mean_interval(
    values: ArrayLike,
    clusters: ArrayLike,
    *,
    limits: tuple[float, float] | None = SHARE,
    seeds: Sequence[ArrayLike] = (),
    step: float = 0.0,
) -> Interval:
    """Interval of the mean of rows that come in clusters.

    A t-interval with the variance of a ratio between clusters (Cochran 1977, "Sampling Techniques",
    section 9.2; what `cov_type="cluster"` of statsmodels computes), to which values with limits add
    one imagined cluster at each limit, each of mean size. For one row a cluster and shares that is
    the interval of Agresti & Coull 1998 ("Approximate is Better than 'Exact'", The American
    Statistician 52), for differences it adds what Agresti & Caffo 2000 add. Without these, an
    interval has no width where all clusters are alike, which proves nothing with few of them.

    Args:
        values: (rows,) numbers or booleans.
        clusters: (rows,) sortable label of each row's cluster.
        limits: The least and the greatest value that a row can have; None for values without. The
            interval of values with an infinite limit, such as `LENGTH`, is the plain one.
        seeds: (rows,) labels of the training seed of each row, once for every model that the rows
            are of: two where replicates of two models are compared. `NO_SEED` is that of a model
            that was not trained.
        step: By how much a row differs from "no difference" where it does, such as 1/2 for a win
            after ties. What is detectable is then no less than what `sign_flip_p` can show, however
            alike the rows are: where all tie, six clusters must differ, all in one way.

    Returns:
        The mean of all rows and its interval, within the limits. The order of the rows changes
        nothing, not even in the last bit.

    Raises:
        ValueError: If there are no rows, values are NaN or beyond the limits, or lengths differ.
    """
    from scipy.special import stdtrit

    sums, sizes = cluster_sums(values, clusters)
    if limits is not None:
        given = np.asarray(values, dtype=np.float64)
        if given.min() < limits[0] or given.max() > limits[1]:
            raise ValueError(f"values from {given.min()} to {given.max()} leave {limits}")
    n, rows = len(sums), int(sizes.sum())
    estimate, number = float(sums.sum() / rows), max(map(_number_of_seeds, seeds), default=0)
    if n < 2:
        return Interval(estimate, math.nan, math.nan, n, rows, seeds=number)
    centre, variance = _centre_and_variance(sums, sizes, limits)
    quantile, power = (float(stdtrit(n - 1, share)) for share in ((1 + LEVEL) / 2, POWER))
    error = math.sqrt(variance)
    half, detectable = quantile * error, (quantile + power) * error
    if between := _between_seeds(values, seeds):
        squares = [half**2, detectable**2]
        for variance, freedom in between:
            quantile, power = (float(stdtrit(freedom, share)) for share in ((1 + LEVEL) / 2, POWER))
            squares[0] += quantile**2 * variance
            squares[1] += (quantile + power) ** 2 * variance
        half, detectable = map(math.sqrt, squares)
    if n < FEWEST_CLUSTERS:
        detectable = math.nan
    elif step and not between:
        detectable = max(detectable, step * _share_that_must_differ(n) * n / rows)
    low, high = centre - half, centre + half
    if limits is not None:
        low, high = max(low, limits[0]), min(high, limits[1])
    # Where all rows are at a limit, rounding must not put the estimate outside.
    low, high = min(low, estimate), max(high, estimate)
    return Interval(estimate, float(low), float(high), n, rows, detectable, number)


def _share_that_must_differ(n: int) -> float:
    """Return the chance of each cluster to differ with which six of n do in 80 % of cases."""
    from scipy.special import betaincinv

    return float(betaincinv(FEWEST_CLUSTERS, n - FEWEST_CLUSTERS + 1, POWER))


def _centre_and_variance(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], limits: tuple[float, float] | None
) -> tuple[float, float]:
    """Return the centre of an interval over clusters and the variance of the mean."""
    n, rows = len(sums), sizes.sum()
    if limits is not None and np.isfinite(limits).all():
        size = rows / n
        sums = np.append(sums, [size * limit for limit in limits])
        sizes = np.append(sizes, [size, size])
    total, k = sizes.sum(), len(sums)
    centre = sums.sum() / total
    return centre, k / (k - 1) * ((sums - centre * sizes) ** 2).sum() / total**2


def _number_of_seeds(seeds: ArrayLike) -> int:
    return len(np.setdiff1d(np.asarray(seeds), [NO_SEED]))


def _between_seeds(values: ArrayLike, seeds: Sequence[ArrayLike]) -> list[tuple[float, int]]:
    """Return the variance of the mean between seeds, and its degrees of freedom, of each model.

    Of one with a single seed nothing can be said, and it has none.
    """
    found = []
    for labels in seeds:
        sums, sizes = cluster_sums(values, labels)
        if (k := len(sums)) > 1:
            total = sizes.sum()
            deviations = sums - sums.sum() / total * sizes
            found.append((float(k / (k - 1) * (deviations**2).sum() / total**2), k - 1))
    return found


def cluster_sums(
    values: ArrayLike, clusters: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (clusters,) sums and numbers of rows, by label.

    Raises:
        ValueError: If there are no rows, values are NaN, or lengths differ.
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
    _, cluster = np.unique(clusters, return_inverse=True)
    order = np.lexsort((values, cluster))
    sums = np.bincount(cluster[order], weights=values[order])
    return sums, np.bincount(cluster).astype(np.float64)


def widened(
    interval: Interval, by_seed: Sequence[Sequence[float]], limits: tuple[float, float]
) -> Interval:
    """Return an interval over clusters with a component for the training seed added.

    For what is no mean of rows: half widths to both sides are squared and added to those of the
    seeds, as in `mean_interval`.

    Args:
        interval: Over clusters alone, all seeds taken together.
        by_seed: The estimate of each seed alone, once for every model that was trained. Where one
            is not defined (NaN) nothing is known of that seed, and there is no interval.
        limits: The least and the greatest value that is possible.
    """
    from scipy.special import stdtrit

    square = 0.0
    for values in by_seed:
        if (k := len(values)) > 1:
            quantile = float(stdtrit(k - 1, (1 + LEVEL) / 2))
            square += quantile**2 * float(np.var(values, ddof=1)) / k
    if not square or math.isnan(interval.low):
        return interval
    low = interval.estimate - math.sqrt((interval.estimate - interval.low) ** 2 + square)
    high = interval.estimate + math.sqrt((interval.high - interval.estimate) ** 2 + square)
    return replace(interval, low=max(low, limits[0]), high=min(high, limits[1]))


def paired_p(
    differences: ArrayLike,
    clusters: ArrayLike,
    *,
    limits: tuple[float, float] | None = DIFFERENCE,
    seeds: Sequence[ArrayLike] = (),
) -> float:
    """P-value of paired differences, over the training seeds too where there are several.

    With one training of each model it is the exact one of `sign_flip_p`. That one asks about these
    trainings alone, so with several seeds it is the greatest level at which the interval of
    `mean_interval` still holds 0.

    Args:
        differences: (rows,) what one side has more than the other.
        clusters: (rows,) sortable label of each row's cluster.
        limits: As `mean_interval` takes them.
        seeds: As `mean_interval` takes them.

    Returns:
        The p-value, in (0, 1]; 1 with fewer than two clusters.

    Raises:
        ValueError: As `cluster_sums`.
    """
    from scipy.special import stdtrit

    between = _between_seeds(differences, seeds)
    if not between:
        return sign_flip_p(differences, clusters)
    sums, sizes = cluster_sums(differences, clusters)
    if len(sums) < 2:
        return 1.0
    centre, variance = _centre_and_variance(sums, sizes, limits)
    parts = [(variance, len(sums) - 1), *between]

    def holds_zero(p_value: float) -> bool:
        squares = (stdtrit(freedom, p_value / 2) ** 2 * part for part, freedom in parts)
        return abs(centre) <= math.sqrt(sum(squares))

    low, high = -40.0, 0.0  # logarithms of p-values
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if holds_zero(math.exp(middle)) else (low, middle)
    return math.exp(high)


def sign_flip_p(differences: ArrayLike, clusters: ArrayLike, *, seed: int = 0) -> float:
    """Exact two-sided p-value of paired differences that come in clusters.

    Without any difference between two sides, either side might as well have been the other: the
    sign of each cluster's sum is a coin's. The p-value is the share of all 2^n ways to set the
    signs that sum to at least as much as was seen (Fisher 1935, "The Design of Experiments", 21).
    With one row of -1, 0 or 1 a cluster this is McNemar's exact test.

    Args:
        differences: (rows,) what one side has more than the other.
        clusters: (rows,) sortable label of each row's cluster.
        seed: Of the drawn signs, where there are too many to count.

    Returns:
        The p-value, in (0, 1]. Whole multiples of 1/2 are counted exactly; with a sum of absolute
        values over 2000 (as of 1000 clusters) the normal approximation is taken; other values are
        counted for up to 14 clusters, and else 20,000 signs are drawn.

    Raises:
        ValueError: As `cluster_sums`.
    """
    sums, _ = cluster_sums(differences, clusters)
    magnitudes, seen = np.abs(sums[sums != 0]), abs(float(sums.sum()))
    if not magnitudes.size:
        return 1.0
    halves = np.rint(2 * magnitudes)
    if np.allclose(halves, 2 * magnitudes, atol=1e-9, rtol=0):
        return _counted_sign_flip_p(halves.astype(np.int64), round(2 * seen))
    if magnitudes.size <= 14:
        signs = 1 - 2 * ((np.arange(2**magnitudes.size)[:, None] >> np.arange(magnitudes.size)) & 1)
        return float((np.abs(signs @ magnitudes) >= seen * (1 - 1e-12)).mean())
    generator = np.random.default_rng(seed)
    magnitudes = np.sort(magnitudes)
    beyond = 0
    step = max(1, _DRAWS_AT_ONCE // magnitudes.size)
    for start in range(0, _FLIPS, step):
        size = (min(step, _FLIPS - start), magnitudes.size)
        signs = 1 - 2 * generator.integers(0, 2, size=size)
        beyond += int((np.abs(signs @ magnitudes) >= seen * (1 - 1e-12)).sum())
    return (beyond + 1) / (_FLIPS + 1)


def _counted_sign_flip_p(magnitudes: NDArray[np.int64], seen: int) -> float:
    """Return the p-value of a sum, by the exact distribution of the signed sum."""
    # Without their common divisor the distribution is as short as it can be.
    divisor = int(np.gcd.reduce(magnitudes))
    magnitudes, seen = magnitudes // divisor, seen // divisor
    total = int(magnitudes.sum())
    if seen == 0:
        return 1.0
    if total > _EXACT_SUM:
        deviation = math.sqrt(float((magnitudes.astype(np.float64) ** 2).sum()))
        # Half a step less: flipping a sign changes the sum by two.
        return math.erfc((seen - 1) / deviation / math.sqrt(2))
    # chances[s + total]: that the signs so far sum to s. Nothing wraps around: |s| <= total.
    chances = np.zeros(2 * total + 1)
    chances[total] = 1
    for magnitude in magnitudes:
        chances = (np.roll(chances, magnitude) + np.roll(chances, -magnitude)) / 2
    return min(1.0, float(chances[: total - seen + 1].sum() + chances[total + seen :].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for being the smallest of many, in the same order.

    Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure": the chance of any false
    finding among them stays at the level, whatever depends on what. NaN is no member of the family.
    """
    order = sorted(
        (place for place, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i]
    )
    corrected, least = [math.nan] * len(p_values), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p_values[place]))
        corrected[place] = least
    return corrected


def bootstrap_statistic(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    clusters: ArrayLike,
    *,
    limits: tuple[float, float],
    resamples: int = 10_000,
    level: float = LEVEL,
    seed: int,
) -> Interval:
    """Percentile bootstrap interval of a statistic of rows that come in clusters.

    For what is no mean of rows (Efron & Tibshirani 1993, "An Introduction to the Bootstrap",
    chapter 13; Cameron, Gelbach & Miller 2008, "pairs cluster bootstrap"). A resample draws as many
    clusters as there are, with replacement. For a mean take `mean_interval`.

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
        ValueError: If there are no rows, or a setting is out of range.
    """
    clusters = np.asarray(clusters)
    if clusters.size == 0:
        raise ValueError("a statistic of no rows is undefined")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"need resamples >= 1 and 0 < level < 1, got {resamples} and {level}")
    number = np.unique(clusters).size
    estimate = float(statistic(np.ones((1, number)))[0])
    if number < 2 or math.isnan(estimate):
        return Interval(estimate, math.nan, math.nan, number, clusters.size)
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
    return Interval(estimate, low, high, number, clusters.size)


def _cluster_draws(
    clusters: int, resamples: int, width: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Yield (part, clusters) indices drawn with replacement; part · width stays near 2^20."""
    generator = np.random.default_rng(seed)
    step = max(1, _DRAWS_AT_ONCE // width)
    for start in range(0, resamples, step):
        yield generator.integers(0, clusters, size=(min(step, resamples - start), clusters))
