"""How often intervals hold the truth, and how often a difference is claimed that is none.

Short here; `make stress` takes more draws and every combination.
"""

import itertools

import numpy as np
import pandas as pd
import pytest

from sami_pipeline.evaluation.intervals import DIFFERENCE, SHARE, mean_interval
from sami_pipeline.evaluation.judge_quality import cohen_kappa
from sami_pipeline.evaluation.statistics import MT_BENCH_CATEGORIES, win_rates
from sami_pipeline.reporting.contents import CONTENTS
from sami_pipeline.result_tables.shown import decided

CLUSTERS = (5, 6, 8, 10, 20, 32, 80)
RATES = (0.02, 0.05, 0.3, 0.5, 0.8, 0.98)
COVERED = 0.93


def draw(
    generator: np.random.Generator, clusters: int, rate: float, rows: int | str, alike: str
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 0 and 1 and their clusters: independent, alike within a cluster, or in between."""
    sizes = generator.integers(1, 4, clusters) if rows == "mixed" else np.full(clusters, rows)
    cluster = np.repeat(np.arange(clusters), sizes)
    if alike == "same":
        return (generator.random(clusters) < rate)[cluster].astype(float), cluster
    chance = np.full(clusters, rate)
    if alike == "between":
        chance = generator.beta(2 * rate, 2 * (1 - rate), clusters)
    return (generator.random(cluster.size) < chance[cluster]).astype(float), cluster


def coverage(clusters: int, rate: float, rows: int | str, alike: str, draws: int) -> float:
    generator = np.random.default_rng(hash((clusters, int(100 * rate))) % 2**32)
    held = 0
    for _ in range(draws):
        interval = mean_interval(*draw(generator, clusters, rate, rows, alike), limits=SHARE)
        held += interval.low <= rate <= interval.high
    return held / draws


def below(share: float, draws: int) -> float:
    """A share less what chance alone takes from it in so many draws, three standard errors."""
    return share - 3 * (share * (1 - share) / draws) ** 0.5


@pytest.mark.parametrize(
    ("clusters", "rate", "rows", "alike"),
    [(5, 0.02, 3, "same"), (8, 0.98, 1, "independent"), (32, 0.02, "mixed", "between"),
     (15, 0.8, 2, "same"), (80, 0.5, 1, "independent")],
)  # fmt: skip
def test_intervals_hold_the_truth_as_often_as_they_say(clusters, rate, rows, alike):
    assert coverage(clusters, rate, rows, alike, 1000) >= below(COVERED, 1000)


@pytest.mark.stress
@pytest.mark.parametrize("clusters", CLUSTERS)
def test_intervals_hold_the_truth_at_every_size_and_rate(clusters, tell):
    cases = itertools.product(RATES, (1, 2, 3, "mixed"), ("independent", "between", "same"))
    found = {case: coverage(clusters, *case, 4000) for case in cases}
    worst = min(found, key=found.get)
    tell(f"{clusters} clusters: least coverage {found[worst]:.3f} at {worst}")
    assert found[worst] >= below(COVERED, 4000), worst


@pytest.mark.parametrize("clusters", [5, 20, pytest.param(80, marks=pytest.mark.stress)])
@pytest.mark.parametrize(("better", "worse"), [(0.02, 0.0), (0.3, 0.1), (0.98, 0.0), (0.5, 0.5)])
def test_intervals_of_paired_differences_hold_the_truth(clusters, better, worse):
    generator = np.random.default_rng(clusters)
    draws, held = 1000, 0
    for _ in range(draws):
        chance = np.repeat(generator.random(clusters), 2)
        values = (chance < better).astype(float) - (chance > 1 - worse)
        interval = mean_interval(values, np.repeat(range(clusters), 2), limits=DIFFERENCE)
        held += interval.low <= better - worse <= interval.high
    assert held / draws >= below(COVERED, draws)


ESTIMATE = next(part.estimate for part in CONTENTS if part.name == "win_rates" and part.rows)


def claims(draws: int, questions: int, ties: float) -> tuple[float, float]:
    """How often equal models are told apart: over all categories, and in any category at all."""
    generator = np.random.default_rng(0)
    names = np.repeat(MT_BENCH_CATEGORIES, questions)
    overall = anywhere = 0
    for _ in range(draws):
        chance = (1 - ties) / 2
        winners = generator.choice(["model", "tie", "opponent"], p=[chance, ties, chance],
                                   size=len(names))  # fmt: skip
        verdicts = pd.DataFrame(
            {"judge": "j", "model": "sami", "opponent": "base", "turn": 1, "category": names,
             "constitution": "desired", "question_id": np.arange(len(names)), "winner": winners}
        )  # fmt: skip
        table = win_rates(verdicts)
        table = table[table["turn"] == "1"]
        found = {row["category"] for row in table.to_dict("records") if decided(row, ESTIMATE)}
        overall += "overall" in found
        anywhere += bool(found & set(MT_BENCH_CATEGORIES))
    return overall / draws, anywhere / draws


def test_equal_models_are_seldom_told_apart():
    overall, anywhere = claims(60, 10, 0.45)
    assert max(overall, anywhere) <= 0.05 + 3 * (0.05 * 0.95 / 60) ** 0.5


@pytest.mark.stress
@pytest.mark.parametrize(("questions", "ties"), [(5, 0.0), (6, 0.0), (10, 0.45), (10, 0.0)])
def test_equal_models_are_told_apart_in_at_most_one_case_of_twenty(questions, ties, tell):
    overall, anywhere = claims(1000, questions, ties)
    tell(
        f"equal models, {questions} questions a category, {ties} ties: told apart overall "
        f"{overall:.3f}, in any category {anywhere:.3f}"
    )
    assert max(overall, anywhere) <= 0.05 + 3 * (0.05 * 0.95 / 1000) ** 0.5


OUTCOMES = ("model", "tie", "opponent")
Shares = tuple[float, float, float]


def kappa_of(first: Shares, second: Shares, copied: float) -> float:
    """Kappa of two judges, the second of whom copies the first in this share of cases."""
    first, second = np.array(first), np.array(second)
    both = copied * np.diag(first) + (1 - copied) * np.outer(first, second)
    expected = both.sum(axis=1) @ both.sum(axis=0)
    return float((np.trace(both) - expected) / (1 - expected))


def kappa_coverage(
    clusters: int, copied: float, first: Shares, second: Shares, rows: int | str, draws: int
) -> float:
    """How often the interval holds kappa; half of the clusters with several rows are all alike."""
    generator = np.random.default_rng([clusters, int(100 * copied), int(100 * first[0])])
    kappa = kappa_of(first, second, copied)
    held = defined = 0
    for _ in range(draws):
        sizes = generator.integers(1, 4, clusters) if rows == "mixed" else np.full(clusters, rows)
        cluster = np.repeat(np.arange(clusters), sizes)
        # Which row's draw each row shows: its own, or that of its cluster's first.
        begins = np.repeat(np.cumsum(sizes) - sizes, sizes)
        alike = generator.random(clusters)[cluster] < 0.5
        shown = np.where(alike, begins, np.arange(cluster.size))
        one = generator.choice(3, cluster.size, p=first)
        other = generator.choice(3, cluster.size, p=second)
        other = np.where(generator.random(cluster.size) < copied, one, other)
        names = np.array(OUTCOMES)
        interval = cohen_kappa(names[one[shown]], names[other[shown]], cluster)
        defined += not np.isnan(interval.low)
        held += interval.low <= kappa <= interval.high
    return held / defined


EVEN, UNEVEN, RARE = (0.4, 0.2, 0.4), (0.8, 0.1, 0.1), (0.98, 0.01, 0.01)


@pytest.mark.parametrize(
    ("clusters", "copied", "first", "second", "rows"),
    [(5, 0.8, EVEN, EVEN, 1), (20, 0.9, UNEVEN, UNEVEN, 1), (80, 0.2, RARE, RARE, 1),
     (80, 0.4, (0.25, 0.5, 0.25), UNEVEN, "mixed")],
)  # fmt: skip
def test_intervals_of_kappa_hold_the_truth_as_often_as_they_say(
    clusters, copied, first, second, rows
):
    assert kappa_coverage(clusters, copied, first, second, rows, 500) >= below(COVERED, 500)


@pytest.mark.stress
@pytest.mark.parametrize("clusters", CLUSTERS)
def test_intervals_of_kappa_hold_the_truth_at_every_size(clusters, tell):
    outcomes = [
        (EVEN, EVEN), ((0.25, 0.5, 0.25),) * 2, (UNEVEN, UNEVEN), ((0.9, 0.05, 0.05),) * 2,
        (RARE, RARE), (UNEVEN, EVEN), ((0.9, 0.05, 0.05), (0.6, 0.1, 0.3)),
        ((0.1, 0.8, 0.1), (0.45, 0.1, 0.45)),
    ]  # fmt: skip
    found = {}
    for copied, (first, second) in itertools.product((0.0, 0.2, 0.4, 0.6, 0.8, 0.95), outcomes):
        for rows in (1, "mixed"):
            case = copied, first, second, rows
            found[case] = kappa_coverage(clusters, *case, 1000)
    worst = min(found, key=found.get)
    tell(f"{clusters} clusters: least coverage of kappa {found[worst]:.3f} at {worst}")
    assert found[worst] >= below(COVERED, 1000), worst
