"""How often intervals over questions and training seeds hold the truth, in crossed designs.

Short here; `make stress` takes more draws and every combination.
"""

import itertools

import numpy as np
import pytest
from scipy.special import ndtr

from sami_pipeline.evaluation.intervals import DIFFERENCE, SHARE, mean_interval, paired_p

COVERED = 0.93
SEEDS = 3


def chances(
    generator: np.random.Generator, rate: float, deviation: float, shape: tuple[int, ...]
) -> np.ndarray:
    """Rates of seeds around their mean, with this standard deviation between them."""
    if deviation == 0:
        return np.full(shape, rate)
    size = rate * (1 - rate) / deviation**2 - 1
    return generator.beta(rate * size, (1 - rate) * size, shape)


def crossed(
    generator: np.random.Generator, questions: int, rate: float, deviation: float, alike: float
) -> np.ndarray:
    """(questions, seeds) of 0 and 1; ``alike`` is the correlation that a question's rows have."""
    chance = chances(generator, rate, deviation, (1, SEEDS))
    shared = np.sqrt(alike) * generator.standard_normal((questions, 1))
    own = np.sqrt(1 - alike) * generator.standard_normal((questions, SEEDS))
    return (ndtr(shared + own) < chance).astype(float)


def coverage(questions: int, rate: float, deviation: float, alike: float, draws: int) -> float:
    generator = np.random.default_rng(questions)
    clusters = np.repeat(np.arange(questions), SEEDS)
    seeds = [np.tile(np.arange(SEEDS), questions)]
    held = 0
    for _ in range(draws):
        values = crossed(generator, questions, rate, deviation, alike).ravel()
        interval = mean_interval(values, clusters, limits=SHARE, seeds=seeds)
        held += interval.low <= rate <= interval.high
    return held / draws


def below(share: float, draws: int) -> float:
    """A share less what chance alone takes from it in so many draws, three standard errors."""
    return share - 3 * (share * (1 - share) / draws) ** 0.5


@pytest.mark.parametrize(
    ("questions", "rate", "deviation", "alike"),
    [(8, 0.5, 0.0, 0.0), (8, 0.3, 0.15, 0.5), (80, 0.5, 0.2, 0.5), (80, 0.1, 0.0, 0.9),
     (20, 0.8, 0.05, 0.9)],
)  # fmt: skip
def test_intervals_hold_the_truth_over_questions_and_seeds(questions, rate, deviation, alike):
    assert coverage(questions, rate, deviation, alike, 1000) >= below(COVERED, 1000)


def test_an_interval_over_questions_alone_would_not():
    generator, held = np.random.default_rng(0), 0
    clusters = np.repeat(np.arange(80), SEEDS)
    for _ in range(300):
        interval = mean_interval(crossed(generator, 80, 0.5, 0.2, 0.5).ravel(), clusters)
        held += interval.low <= 0.5 <= interval.high
    assert held / 300 < 0.7


@pytest.mark.stress
@pytest.mark.parametrize("questions", [8, 12, 20, 40, 80])
def test_intervals_hold_the_truth_at_every_size_and_spread(questions, tell):
    cases = [
        case
        for case in itertools.product(
            (0.05, 0.1, 0.3, 0.5, 0.8, 0.95), (0.0, 0.01, 0.02, 0.05, 0.1, 0.2), (0.0, 0.5, 0.9)
        )
        # Seeds two standard deviations off stay between 0 and 1.
        if case[1] <= min(case[0], 1 - case[0]) / 2
    ]
    found = {case: coverage(questions, *case, 4000) for case in cases}
    worst = min(found, key=found.get)
    tell(f"{questions} questions and seeds: least coverage {found[worst]:.3f} at {worst}")
    assert found[worst] >= below(COVERED, 4000), worst


@pytest.mark.parametrize("deviation", [0.0, pytest.param(0.1, marks=pytest.mark.stress), 0.2])
@pytest.mark.parametrize("questions", [8, pytest.param(80, marks=pytest.mark.stress)])
def test_equal_methods_are_seldom_told_apart_where_every_replicate_meets_every_other(
    questions, deviation
):
    """Two methods of the same quality, trained apart, whose seeds differ."""
    generator, draws, claimed = np.random.default_rng(7), 500, 0
    clusters = np.repeat(np.arange(questions), SEEDS**2)
    ours, theirs = np.tile(np.indices((SEEDS, SEEDS)).reshape(2, -1), questions)
    for _ in range(draws):
        one, other = (crossed(generator, questions, 0.5, deviation, 0.3) for _ in range(2))
        lead = (one[:, :, None] - other[:, None, :]).ravel()
        options = {"limits": DIFFERENCE, "seeds": [ours, theirs]}
        interval = mean_interval(lead, clusters, **options)
        outside = interval.low > 0 or interval.high < 0
        assert outside == (paired_p(lead, clusters, **options) < 0.05)
        claimed += outside
    assert claimed / draws <= 0.07 + 3 * (0.07 * 0.93 / draws) ** 0.5
