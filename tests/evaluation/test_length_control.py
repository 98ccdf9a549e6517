import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st

from sami_pipeline.evaluation.intervals import mean_interval
from sami_pipeline.evaluation.length_control import (
    METHODS,
    SLOPE_PENALTY,
    controlled_win_rate,
    fit_logistic,
    length_controlled,
    with_lengths,
)

SETTINGS = {"resamples": 300, "seed": 7}
POINTS = np.array([0.0, 0.5, 1.0])


def logistic(log_odds):
    return 1 / (1 + np.exp(-log_odds))


def judged(rows: int, *, skill: float, taste: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and length differences of a judge who likes skill, and length by taste."""
    generator = np.random.default_rng(seed)
    difference = generator.normal(120, 200, size=rows).round()
    log_odds = skill + taste * np.tanh(difference / difference.std(ddof=1))
    return (generator.random(rows) < logistic(log_odds)).astype(float), difference


def statsmodels_fit(points, predictor, weights):
    design = sm.add_constant(np.asarray(predictor), has_constant="add")
    family = sm.families.Binomial()
    return sm.GLM(points, design, family=family, freq_weights=weights).fit(tol=1e-12)


# fit_logistic


def test_coefficients_are_those_of_statsmodels_ties_and_weights_included():
    generator = np.random.default_rng(0)
    points = generator.choice(POINTS, size=90)
    predictor = np.tanh(generator.normal(size=(20, 90)))
    weights = generator.integers(0, 4, size=(20, 90)).astype(float)
    intercepts, slopes = fit_logistic(points, predictor, weights, penalty=0)
    for row in range(20):
        expected = statsmodels_fit(points, predictor[row], weights[row]).params
        assert (intercepts[row], slopes[row]) == pytest.approx(tuple(expected), abs=1e-7)


def test_penalised_fit_is_where_the_gradient_vanishes():
    generator = np.random.default_rng(1)
    points = generator.choice(POINTS, size=60)
    predictor = np.tanh(generator.normal(size=60) + points)
    weights = generator.integers(0, 3, size=(5, 60)).astype(float)
    for penalty in (0.1, 5.0):
        intercepts, slopes = fit_logistic(points, predictor, weights, penalty=penalty)
        fitted = logistic(intercepts[:, None] + slopes[:, None] * predictor)
        residual = weights * (points - fitted)
        np.testing.assert_allclose(residual.sum(axis=1), 0, atol=1e-8)
        np.testing.assert_allclose((residual * predictor).sum(axis=1), penalty * slopes, atol=1e-8)


def test_fit_is_finite_where_length_alone_tells_wins_from_losses():
    predictor = np.array([-0.9, -0.5, 0.5, 0.9])
    points = (predictor > 0).astype(float)
    weights = np.ones((1, 4))
    (intercept,), (slope,) = fit_logistic(points, predictor, weights)
    assert intercept == pytest.approx(0, abs=1e-9)
    assert 2 < slope < 20
    with pytest.raises(ValueError, match="no finite maximum"):
        fit_logistic(points, predictor, weights, penalty=0)


@settings(deadline=None, max_examples=60)
@given(
    points=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=12),
    data=st.data(),
)
def test_every_sample_that_is_not_all_won_or_all_lost_has_a_fit(points, data):
    size = {"min_size": len(points), "max_size": len(points)}
    predictor = data.draw(st.lists(st.floats(-1, 1), **size))
    weights = data.draw(st.lists(st.integers(0, 50), **size))
    won = np.dot(weights, points)
    if 0 < won < sum(weights):
        intercept, slope = fit_logistic(points, predictor, np.array([weights], dtype=float))
        assert np.isfinite([intercept, slope]).all()


# controlled_win_rate


def test_glm_is_the_win_rate_that_statsmodels_predicts_at_equal_length():
    points, difference = judged(4000, skill=0.4, taste=1.5, seed=2)
    predictor = np.tanh(difference / pd.Series(difference).std())
    fitted = statsmodels_fit(points, predictor, np.ones(4000))
    expected = fitted.predict([[1.0, 0.0]])[0]
    result = controlled_win_rate("glm", points, difference, np.arange(4000), resamples=2, seed=0)
    # The penalty is little beside 4000 comparisons.
    assert result.estimate == pytest.approx(expected, abs=2e-4)
    assert result.estimate == pytest.approx(logistic(0.4), abs=0.04)
    assert points.mean() > result.estimate + 0.05, "the plain rate is flattered by length"


def test_glm_interval_is_as_wide_as_the_cluster_robust_one_of_statsmodels():
    points, difference = judged(900, skill=0.3, taste=1.0, seed=3)
    questions = np.repeat(np.arange(300), 3)
    # Questions differ in how easy they are, so that their rows depend on each other.
    easy = np.random.default_rng(4).random(300)[questions] < 0.3
    points = np.where(easy, 1.0, points)
    result = controlled_win_rate("glm", points, difference, questions, resamples=4000, seed=0)
    design = sm.add_constant(np.tanh(difference / difference.std(ddof=1)))
    fitted = sm.GLM(points, design, family=sm.families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": questions}
    )
    # From log-odds to the rate by the delta method.
    error = fitted.bse[0] * result.estimate * (1 - result.estimate)
    assert result.high - result.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_each_resample_is_fitted_as_if_its_questions_were_written_out():
    points, difference = judged(30, skill=0.0, taste=1.0, seed=5)
    questions = np.repeat(np.arange(10), 3)
    draws = np.random.default_rng(11).integers(0, 10, size=(40, 10))
    rates = []
    for draw in draws:
        rows = np.concatenate([np.flatnonzero(questions == question) for question in draw])
        predictor = np.tanh(difference[rows] / difference[rows].std(ddof=1))
        (intercept,), _ = fit_logistic(points[rows], predictor, np.ones((1, 30)))
        rates.append(logistic(intercept))
    result = controlled_win_rate(
        "glm", points, difference, questions, resamples=40, level=0.9, seed=11
    )
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(rates, [0.05, 0.95])))


def test_stratified_is_the_mean_of_the_two_halves():
    # Longer: 1, 1, 1/2 won; shorter or as long: 0, 1/2.
    points, difference = [1, 1, 0.5, 0, 0.5], [3, 1, 9, -2, 0]
    result = controlled_win_rate("stratified", points, difference, range(5), **SETTINGS)
    assert result.estimate == pytest.approx((2.5 / 3 + 0.5 / 2) / 2)
    assert result.n == 5
    assert result.low < result.estimate < result.high


def test_stratified_interval_is_that_of_two_independent_means():
    points, difference = judged(2000, skill=0.0, taste=2.0, seed=6)
    result = controlled_win_rate("stratified", points, difference, np.arange(2000), seed=0)
    halves = [points[difference > 0], points[difference <= 0]]
    error = math.sqrt(sum(half.var() / half.size for half in halves)) / 2
    assert result.high - result.low == pytest.approx(2 * 1.96 * error, rel=0.04)


def test_an_empty_half_leaves_nothing_to_average():
    for difference in ([1, 2, 3], [0, 0, -1]):
        result = controlled_win_rate("stratified", [1, 0, 1], difference, range(3), **SETTINGS)
        assert math.isnan(result.estimate)
        assert math.isnan(result.low)
        assert math.isnan(result.high)


def test_a_resample_with_an_empty_half_widens_the_interval_to_the_worst():
    # Half of all resamples draw one question twice, and so have one half only.
    result = controlled_win_rate("stratified", [1, 1], [5, -5], ["a", "b"], **SETTINGS)
    assert (result.low, result.estimate, result.high) == (0, 1, 1)
    result = controlled_win_rate("stratified", [0, 0], [5, -5], ["a", "b"], **SETTINGS)
    assert (result.low, result.estimate, result.high) == (0, 0, 1)


@pytest.mark.parametrize("difference", [[0] * 4, [7] * 4])
def test_glm_without_any_variation_in_length_is_the_plain_rate(difference):
    result = controlled_win_rate("glm", [1, 1, 0.5, 0], difference, range(4), **SETTINGS)
    assert result.estimate == pytest.approx(0.625)


def test_wins_or_losses_alone_on_few_questions_are_not_certain():
    for points in (1.0, 0.0):
        result = controlled_win_rate("glm", [points] * 4, [3, -1, 0, 8], range(4), **SETTINGS)
        plain = mean_interval([points] * 4, range(4))
        assert (result.low, result.estimate, result.high) == (plain.low, points, plain.high)
        assert result.high - result.low > 0.5


def test_verdicts_that_length_alone_decides_have_no_certain_rate():
    lengths = [3, -1, 2, 8, -4, -2, 5, 7] * 4
    points = [float(length > 0) for length in lengths]
    result = controlled_win_rate("stratified", points, lengths, range(32), **SETTINGS)
    assert result.estimate == 0.5
    assert math.isnan(result.low) and math.isnan(result.high)


def test_glm_does_not_depend_on_the_unit_of_length():
    points, difference = judged(50, skill=0.2, taste=1.0, seed=8)
    one, thousand = (
        controlled_win_rate("glm", points, scale * difference, np.arange(50), **SETTINGS)
        for scale in (1, 1000)
    )
    assert thousand.estimate == pytest.approx(one.estimate)
    assert (thousand.low, thousand.high) == pytest.approx((one.low, one.high))


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.5, 1.0]),
            st.integers(-400, 400).filter(bool),
            st.integers(0, 5),
        ),
        min_size=2,
        max_size=25,
    ),
    method=st.sampled_from(list(METHODS)),
)
def test_swapping_the_sides_mirrors_the_rate_and_its_interval(rows, method):
    points, difference, questions = (np.array(column) for column in zip(*rows, strict=True))
    options = {"resamples": 50, "seed": 1}
    one = controlled_win_rate(method, points, difference, questions, **options)
    other = controlled_win_rate(method, 1 - points, -difference, questions, **options)
    assert other.estimate == pytest.approx(1 - one.estimate, abs=1e-7, nan_ok=True)
    assert other.low == pytest.approx(1 - one.high, abs=1e-7, nan_ok=True)
    assert other.high == pytest.approx(1 - one.low, abs=1e-7, nan_ok=True)


# with_lengths, length_controlled


def comparison(texts: dict[int, tuple[str, str, str]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Verdicts and answers by question: (winner, answer of sami, answer of base)."""
    common = {"turn": 1, "constitution": "desired"}
    verdicts = [
        {"judge": "checklist", "model": "sami", "opponent": "base", "question_id": question,
         "category": "math", "winner": winner, **common}
        for question, (winner, _, _) in texts.items()
    ]  # fmt: skip
    answers = [
        {"model": model, "question_id": question, "answer": answer, **common}
        for question, (_, *pair) in texts.items()
        for model, answer in zip(("sami", "base"), pair, strict=True)
    ]
    return pd.DataFrame(verdicts), pd.DataFrame(answers)


def test_length_is_counted_in_characters_of_each_side():
    verdicts, answers = comparison({1: ("model", "né\n", ""), 2: ("tie", "ab", "abc")})
    shuffled = answers.sample(frac=1, random_state=0)
    rows = with_lengths(verdicts.iloc[::-1], shuffled)
    assert rows["model_length"].tolist() == [2, 3]
    assert rows["opponent_length"].tolist() == [3, 0]


def test_verdict_on_an_answer_that_is_not_there_is_an_error():
    verdicts, answers = comparison({1: ("model", "a", "b"), 2: ("tie", "a", "b")})
    with pytest.raises(ValueError, match=r"1 verdicts .* model='base', question_id=2, turn=1"):
        length_controlled(verdicts, answers.iloc[:-1], **SETTINGS)


def test_table_has_both_methods_for_each_judge_and_pair():
    texts = {
        question: (winner, "x" * longer, "x" * 5)
        for question, (winner, longer) in enumerate(
            zip(["model", "opponent", "tie", "model", "invalid"], [9, 2, 7, 5, 1], strict=True)
        )
    }
    verdicts, answers = comparison(texts)
    both = pd.concat([verdicts, verdicts.assign(judge="pairwise", winner="invalid")])
    table = length_controlled(both, answers, **SETTINGS)
    both_turns = table[table["turn"] == "both"]
    columns = ["judge", "method", "n", "rows", "n_longer"]
    assert both_turns[columns].to_records(index=False).tolist() == [
        ("checklist", "stratified", 4, 4, 2),
        ("checklist", "glm", 4, 4, 2),
        ("pairwise", "stratified", 0, 0, 0),
        ("pairwise", "glm", 0, 0, 0),
    ]
    assert table["win_rate"][0] == pytest.approx((1.5 / 2 + 1 / 2) / 2)
    other = table[table["judge"] == "pairwise"]
    assert other[["win_rate", "ci_low", "ci_high"]].isna().all(axis=None)
    pd.testing.assert_frame_equal(
        table[table["judge"] == "checklist"],
        length_controlled(verdicts.iloc[::-1], answers.iloc[::-1], **SETTINGS),
        check_exact=True,
    )


def test_verdicts_of_length_alone_are_seen_though_brevity_is_asked_for_by_one_constitution():
    """Over both constitutions together such a judge passes as one who looks at something else."""
    generator = np.random.default_rng(0)
    parts = []
    for constitution, longer_wins in (("desired", True), ("contrasting", False)):
        texts = {}
        for question in range(40):
            # The model is longer where that is asked for, and shorter where not, mostly.
            longer = (generator.random() < 0.8) == longer_wins
            won = longer == longer_wins
            texts[question] = ("model" if won else "opponent", "x" * (9 if longer else 2), "x" * 5)
        parts.append([table.assign(constitution=constitution) for table in comparison(texts)])
    verdicts, answers = (
        pd.concat(tables, ignore_index=True) for tables in zip(*parts, strict=True)
    )
    table = length_controlled(verdicts, answers, **SETTINGS)
    rates = table[(table["turn"] == "1") & (table["method"] == "stratified")]
    assert rates.set_index("constitution")["win_rate"].to_dict() == {
        "desired": 0.5, "contrasting": 0.5
    }  # fmt: skip


def test_penalty_hardly_moves_a_whole_benchmark():
    points, difference = judged(240, skill=0.4, taste=1.0, seed=9)
    predictor, weights = np.tanh(difference / difference.std(ddof=1)), np.ones((1, 240))
    free, _ = fit_logistic(points, predictor, weights, penalty=0)
    held, _ = fit_logistic(points, predictor, weights, penalty=SLOPE_PENALTY)
    assert logistic(held) == pytest.approx(logistic(free), abs=0.003)
    assert held != free
