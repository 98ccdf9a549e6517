import math
from unittest.mock import patch

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

import sami_pipeline.evaluation.intervals as subject
from sami_pipeline.evaluation.intervals import (
    DIFFERENCE,
    SHARE,
    bootstrap_statistic,
    holm,
    mean_interval,
    sign_flip_p,
)

# mean_interval


def test_width_is_that_of_clustered_errors_in_statsmodels_where_clusters_differ_in_size():
    generator = np.random.default_rng(10)
    questions = np.repeat(np.arange(150), generator.integers(1, 6, size=150))
    values = generator.normal(size=150)[questions] + generator.normal(size=questions.size)
    interval = mean_interval(values, questions, limits=None)
    fitted = sm.OLS(values, np.ones(values.size)).fit(
        cov_type="cluster", cov_kwds={"groups": questions, "df_correction": True}, use_t=True
    )
    assert interval.estimate == pytest.approx(fitted.params[0])
    assert (interval.n, interval.rows) == (150, values.size)
    # statsmodels corrects the variance by one more factor, (rows - 1) / (rows - parameters) = 1.
    assert (interval.low, interval.high) == pytest.approx(tuple(fitted.conf_int()[0]), rel=1e-6)


@pytest.mark.parametrize("successes", [9, 40, 71])
def test_many_shares_of_one_row_a_cluster_have_the_interval_of_agresti_and_coull(successes):
    interval = mean_interval(np.arange(80) < successes, np.arange(80))
    low, high = proportion_confint(successes, 80, method="agresti_coull")
    assert interval.estimate == successes / 80
    assert (interval.low, interval.high) == pytest.approx((max(0, low), min(1, high)), abs=0.01)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_clusters_that_are_all_alike_prove_nothing(value):
    few, many = (mean_interval([value] * n, range(n)) for n in (8, 80))
    assert few.low <= value <= few.high
    assert few.high - few.low > 4 * (many.high - many.low) > 0.1


def test_treating_dependent_rows_as_independent_would_be_too_sure():
    per_question = np.random.default_rng(2).random(30)
    values = np.repeat(per_question, 8)
    clustered = mean_interval(values, np.repeat(np.arange(30), 8))
    alone = mean_interval(per_question, np.arange(30))
    assert clustered.bounds == pytest.approx(alone.bounds)
    assert (clustered.n, clustered.rows) == (30, 240)


def test_order_of_rows_does_not_change_the_last_bit():
    generator = np.random.default_rng(6)
    values = generator.normal(size=500) * 10.0 ** generator.integers(-6, 6, size=500)
    clusters = generator.integers(0, 12, size=500)
    first = mean_interval(values, clusters, limits=None)
    for _ in range(5):
        order = generator.permutation(500)
        assert mean_interval(values[order], clusters[order], limits=None) == first


def test_one_cluster_has_an_estimate_but_no_interval():
    interval = mean_interval([0.0, 1.0, 1.0], ["q", "q", "q"])
    assert interval.estimate == pytest.approx(2 / 3)
    assert interval.counts == (1, 3)
    assert math.isnan(interval.low) and math.isnan(interval.high)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([-1, -0.5, 0, 0.5, 1])), min_size=2))
def test_interval_holds_the_estimate_within_the_limits_and_mirrors(rows):
    clusters, values = zip(*rows, strict=True)
    interval = mean_interval(values, clusters, limits=DIFFERENCE)
    mirrored = mean_interval(np.negative(values), clusters, limits=DIFFERENCE)
    if interval.n > 1:
        assert -1 <= interval.low <= interval.estimate <= interval.high <= 1
        assert (interval.low, interval.high) == pytest.approx((-mirrored.high, -mirrored.low))


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [
        ([], [], "no rows"),
        ([1.0, math.nan], [1, 2], "1 of 2 values are NaN"),
        ([1.0, 2.0], [1], "equally long"),
        ([1.0, 1.5], [1, 2], "leave"),
    ],
)
def test_what_has_no_meaning_is_refused(values, clusters, message):
    with pytest.raises(ValueError, match=message):
        mean_interval(values, clusters)


def test_detectable_difference_is_found_in_four_of_five_cases():
    generator = np.random.default_rng(3)
    noise = generator.choice([-1, 0, 1], p=[0.25, 0.5, 0.25], size=80)
    size = mean_interval(noise, range(80), limits=DIFFERENCE).detectable
    found = 0
    for _ in range(400):
        values = generator.choice([-1, 0, 1], p=[0.25 - size / 2, 0.5, 0.25 + size / 2], size=80)
        found += mean_interval(values, range(80), limits=DIFFERENCE).low > 0
    assert 0.7 <= found / 400 <= 0.9


@pytest.mark.parametrize("clusters", [6, 10, 80])
def test_what_is_detectable_where_all_are_alike_is_what_the_exact_test_finds(clusters):
    """Sides that always tie: a model that would win now and then needs six wins to be told."""
    ties = np.full(clusters, 0.5)
    assert mean_interval(ties, range(clusters)).detectable < 3 / clusters, "of no use"
    size = mean_interval(ties, range(clusters), step=0.5).detectable
    generator, found = np.random.default_rng(1), 0
    for _ in range(1000):
        wins = generator.random(clusters) < 2 * size
        found += sign_flip_p(wins.astype(float), range(clusters)) <= 0.05
    assert found / 1000 == pytest.approx(0.8, abs=0.04)
    # As different as they are here, more is needed anyway.
    mixed = np.arange(clusters) % 2
    assert mean_interval(mixed, range(clusters), step=0.5).detectable >= size


def test_nothing_is_detectable_with_fewer_clusters_than_can_show_anything():
    assert math.isnan(mean_interval([1, 0, 1, 0, 1], range(5), step=0.5).detectable)


# sign_flip_p


@pytest.mark.parametrize(
    ("better", "worse", "same"), [(5, 0, 3), (6, 0, 0), (8, 2, 9), (30, 12, 7)]
)
def test_one_row_a_cluster_gives_mcnemars_exact_test(better, worse, same):
    differences = [1] * better + [-1] * worse + [0] * same
    expected = mcnemar([[0, better], [worse, same]], exact=True).pvalue
    assert sign_flip_p(differences, range(len(differences))) == pytest.approx(expected)
    halved = np.array(differences) / 2
    assert sign_flip_p(halved, range(len(halved))) == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_p_value_counts_all_ways_to_set_the_signs(scale):
    generator = np.random.default_rng(4)
    clusters = np.repeat(np.arange(10), 3)
    values = scale * generator.integers(-1, 2, size=30)
    sums = np.bincount(clusters, weights=values)
    signs = 1 - 2 * ((np.arange(2**10)[:, None] >> np.arange(10)) & 1)
    expected = (np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9).mean()
    assert sign_flip_p(values, clusters) == pytest.approx(expected)


def test_drawn_signs_and_the_normal_approximation_come_near_the_count(monkeypatch):
    generator = np.random.default_rng(5)
    values = generator.integers(-1, 2, size=60) + (np.arange(60) % 4 == 0)
    exact = sign_flip_p(values, range(60))
    assert 0.001 < exact < 0.5
    assert sign_flip_p(values * 0.37, range(60)) == pytest.approx(exact, abs=0.02)
    monkeypatch.setattr(subject, "_EXACT_SUM", 1)
    assert sign_flip_p(values, range(60)) == pytest.approx(exact, abs=0.01)


def test_without_any_difference_the_p_value_is_one():
    assert sign_flip_p([0, 0, 0], [1, 2, 3]) == 1
    assert sign_flip_p([1, -1], [1, 1]) == 1


def test_five_clusters_can_never_show_a_difference_and_six_can():
    assert sign_flip_p([1] * 5, range(5)) > subject.LARGEST_P
    assert sign_flip_p([1] * subject.FEWEST_CLUSTERS, range(6)) < subject.LARGEST_P


# holm


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0.0001, 1), min_size=1, max_size=12))
def test_corrected_p_values_are_those_of_statsmodels(p_values):
    with patch("gc.collect"):  # it would collect garbage at every call
        expected = multipletests(p_values, method="holm")[1]
    assert holm(p_values) == pytest.approx(expected.tolist())


def test_what_was_not_tested_is_no_member_of_the_family():
    corrected = holm([0.01, math.nan, 0.04])
    assert corrected[::2] == [0.02, 0.04] and math.isnan(corrected[1])


# bootstrap_statistic


def test_a_mean_is_resampled_to_about_its_interval(monkeypatch):
    generator = np.random.default_rng(12)
    questions = generator.integers(0, 60, size=240)
    values = generator.random(size=240)
    _, cluster = np.unique(questions, return_inverse=True)
    sums, counts = np.bincount(cluster, weights=values), np.bincount(cluster)
    expected = mean_interval(values, questions)
    seen = set()
    for at_once in (2**20, 1, 100):
        monkeypatch.setattr(subject, "_DRAWS_AT_ONCE", at_once)
        interval = bootstrap_statistic(
            lambda weights: (weights @ sums) / (weights @ counts),
            questions, limits=SHARE, resamples=2000, seed=3,
        )  # fmt: skip
        assert interval.counts == expected.counts
        assert interval.bounds == pytest.approx(expected.bounds, abs=0.01)
        seen.add(round(interval.low, 9))
    assert len(seen) == 1, "memory limits change nothing"


def test_undefined_resample_counts_as_the_worst_on_either_side():
    # Undefined unless both clusters are drawn, which half of the resamples do.
    interval = bootstrap_statistic(
        lambda weights: np.where(weights.min(axis=1) > 0, 0.5, np.nan),
        ["a", "b"], limits=(-2.0, 3.0), resamples=200, seed=1,
    )  # fmt: skip
    assert (interval.low, interval.estimate, interval.high) == (-2, 0.5, 3)


@pytest.mark.parametrize(
    ("changes", "message"), [({"level": 95}, "level"), ({"resamples": 0}, "resamples")]
)
def test_bootstrap_refuses_settings_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_statistic(lambda w: w.sum(axis=1), [1, 2], limits=SHARE, seed=1, **changes)
