import itertools
import math
import time
from collections import Counter
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sami_pipeline.errors import InputError
from sami_pipeline.evaluation.intervals import LENGTH, mean_interval, sign_flip_p
from sami_pipeline.evaluation.math_accuracy import (
    METRICS,
    accuracy,
    accuracy_difference,
    majority_at_k,
    pass_at_k,
)
from sami_pipeline.evaluation.math_answers import same_number

few = settings(deadline=None, max_examples=100)
COLUMNS = ["model", "metric", "k", "n", "value", "ci_low", "ci_high"]


def attempts(
    answers: dict[str, dict[str, str]],
    reference: str = "18",
    first_attempt: int = 0,
    tokens: int = 10,
) -> pd.DataFrame:
    """Rows per model and problem from answers apart by spaces; "_" is none."""
    rows = [
        {
            "model": model,
            "problem_id": problem,
            "attempt": attempt,
            "text": f"#### {answer}",
            "strict": answer.replace("_", ""),
            "flexible": "7",
            "correct": same_number(answer, reference),
            "completion_tokens": tokens + attempt,
        }
        for model, problems in answers.items()
        for problem, given in problems.items()
        for attempt, answer in enumerate(given.split(), first_attempt)
    ]
    return pd.DataFrame(rows)


def random_attempts(models: int, problems: int, samples: int, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    shape = (models, problems, samples + 1)
    skill = generator.random((1, problems, 1)) * generator.uniform(0.6, 1, size=(models, 1, 1))
    other = generator.choice(["", "1", "2", "3.0", "3", "-4", "1/2"], size=shape)
    answers = np.where(generator.random(shape) < skill, "18", other).ravel()
    model, problem, attempt = np.indices(shape)
    return pd.DataFrame(
        {
            "model": np.char.add("model ", model.ravel().astype(str)),
            "problem_id": np.char.add("problem ", problem.ravel().astype(str)),
            "attempt": attempt.ravel(),
            "text": answers,
            "strict": answers,
            "flexible": answers,
            "correct": answers == "18",
            "completion_tokens": generator.integers(1, 300, size=answers.size),
        }
    )


def cells(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_index(["model", "metric", "k"]).sort_index()


# pass_at_k


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(n):
    for c in range(n + 1):
        samples = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            passed = [any(subset) for subset in itertools.combinations(samples, k)]
            assert pass_at_k(n, c, k) == float(Fraction(sum(passed), len(passed)))


@few
@given(st.data())
def test_pass_at_k_is_the_formula_of_the_paper(data):
    n = data.draw(st.integers(1, 400))
    c = data.draw(st.integers(0, n))
    k = data.draw(st.integers(1, n))
    assert pass_at_k(n, c, k) == float(1 - Fraction(math.comb(n - c, k), math.comb(n, k)))
    # The product by which the paper's own code computes it, in floats.
    rates = 1 - k / np.arange(n - c + 1, n + 1)
    assert pass_at_k(n, c, k) == pytest.approx(1 if n - c < k else 1 - np.prod(rates), abs=1e-9)


def test_pass_at_k_is_exact_for_large_n():
    assert pass_at_k(10**9, 1, 10**8) == 0.1
    assert pass_at_k(10**9, 10**8, 1) == 0.1
    assert pass_at_k(10**6, 2, 1) == 2e-6
    assert pass_at_k(2000, 1000, 1000) == 1.0


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 6), (5, 2, 0), (5, 6, 1), (5, -1, 1), (0, 0, 1)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(ValueError, match=f"n={n}, c={c}, k={k}"):
        pass_at_k(n, c, k)


# majority_at_k


def slow_majority(answers: list[str], correct_answer: str, k: int) -> Fraction:
    """Go through every subset and compare every answer with every other."""
    total = Fraction(0)
    subsets = list(itertools.combinations(answers, k))
    for subset in subsets:
        valid = [answer for answer in subset if answer]
        votes = [sum(same_number(a, b) for b in valid) for a in valid]
        best = [a for a, count in zip(valid, votes, strict=True) if count == max(votes)]
        tied: list[str] = []
        for answer in best:
            if not any(same_number(answer, other) for other in tied):
                tied.append(answer)
        if any(same_number(answer, correct_answer) for answer in tied):
            total += Fraction(1, len(tied))
    return total / len(subsets)


WRITTEN = ["18", "18.0", "$18", "1/2", "0.5", "3", "-3", "7", "9", ""]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from(WRITTEN), min_size=1, max_size=8), st.data())
def test_majority_is_the_mean_over_all_subsets(answers, data):
    k = data.draw(st.integers(1, len(answers)))
    for correct in ("18", "0.50", "1000"):
        expected = float(slow_majority(answers, correct, k))
        assert majority_at_k(answers, correct, k) == expected


def test_majority_stays_exact_where_subsets_are_too_many_to_list():
    # C(60, 30) is about 10^17. Two answers, and 30 voters: by symmetry each wins half the time.
    assert majority_at_k(["18"] * 30 + ["7"] * 30, "18", 30) == 0.5
    # One against many that all differ: any subset with both of the pair is won, one tie otherwise.
    answers = ["18"] * 2 + [str(number) for number in range(100, 138)]
    both = Fraction(math.comb(38, 18), math.comb(40, 20))
    one = Fraction(2 * math.comb(38, 19), math.comb(40, 20))
    assert majority_at_k(answers, "18", 20) == float(both + one / 20)


def test_majority_agrees_with_drawn_subsets_of_many_samples():
    generator = np.random.default_rng(4)
    answers = generator.choice(["18", "7", "9", "", "3"], p=[0.3, 0.3, 0.1, 0.2, 0.1], size=50)
    won = []
    for _ in range(4000):
        votes = Counter(a for a in generator.choice(answers, size=9, replace=False) if a)
        tied = [answer for answer, count in votes.items() if count == max(votes.values())]
        won.append(("18" in tied) / len(tied))
    standard_error = np.std(won) / math.sqrt(len(won))
    expected = majority_at_k(list(answers), "18", 9)
    assert np.mean(won) == pytest.approx(expected, abs=4 * standard_error)


@pytest.mark.parametrize(
    ("answers", "k", "expected"),
    [
        (["18", "7", "7"], 1, 1 / 3),
        (["18", "7", "7"], 3, 0),
        (["18", "18.0", "7"], 3, 1),
        (["18", "$18.00", "7", "7.0", "9"], 5, 1 / 2),
        (["18", "7", "9"], 3, 1 / 3),
        (["18", "", ""], 3, 1),
        (["18", "", ""], 1, 1 / 3),
        (["", "", ""], 2, 0),
        (["18", "7", "", ""], 4, 1 / 2),
        (["..", "..", "18"], 3, 1),
    ],
)
def test_vote_drops_invalid_answers_and_shares_ties(answers, k, expected):
    assert majority_at_k(answers, "18", k) == pytest.approx(expected)


def test_majority_is_not_any_of_k():
    answers = ["18"] * 2 + ["7"] * 8
    assert majority_at_k(answers, "18", 10) == 0
    assert pass_at_k(10, 2, 10) == 1


@few
@given(st.lists(st.sampled_from(WRITTEN), min_size=1, max_size=12))
def test_one_vote_is_the_share_of_correct_samples_and_order_is_irrelevant(answers):
    share = sum(same_number(answer, "18") for answer in answers) / len(answers)
    assert majority_at_k(answers, "18", 1) == pytest.approx(share)
    for k in range(1, len(answers) + 1):
        value = majority_at_k(answers, "18", k)
        assert value == majority_at_k(answers[::-1], "18", k)
        correct = sum(same_number(answer, "18") for answer in answers)
        assert 0 <= value <= pass_at_k(len(answers), correct, k)


@pytest.mark.parametrize(
    ("answers", "correct", "k", "message"),
    [
        (["18"], "18", 2, "k=2 of 1"),
        (["18"], "18", 0, "k=0"),
        ([], "18", 1, "k=1 of 0"),
        (["18"], "many", 1, "'many' is no number"),
        (["18"], "", 1, "no number"),
    ],
)
def test_majority_refuses_impossible_votes(answers, correct, k, message):
    with pytest.raises(ValueError, match=message):
        majority_at_k(answers, correct, k)


# accuracy

TWO_PROBLEMS = attempts({"base": {"p1": "18 18.0 7 _", "p2": "7 7 18 7"}})


def test_accuracy_table_has_every_metric_and_k_in_order():
    table = accuracy(TWO_PROBLEMS)
    assert list(table.columns) == COLUMNS
    assert list(zip(table["metric"], table["k"], strict=True)) == [
        ("greedy", 1),
        ("pass_at_k", 1),
        ("pass_at_k", 2),
        ("pass_at_k", 3),
        ("maj_at_k", 1),
        ("maj_at_k", 2),
        ("maj_at_k", 3),
        ("invalid_rate", 1),
        ("mean_tokens", 1),
    ]
    assert list(table["metric"].unique()) == list(METRICS)
    assert (table["n"] == 2).all()


def test_accuracy_values_are_means_over_problems():
    values = cells(accuracy(TWO_PROBLEMS)).loc["base", "value"]
    assert values["greedy", 1] == 1 / 2
    assert values["pass_at_k", 1] == pytest.approx(1 / 3)
    assert values["pass_at_k", 2] == pytest.approx(2 / 3)
    assert values["pass_at_k", 3] == 1
    assert values["maj_at_k", 1] == pytest.approx(1 / 3)
    # p1: {18, 7} is a tie, {18, none} is won, {7, none} lost; p2: a tie twice, {7, 7} lost.
    assert values["maj_at_k", 2] == pytest.approx((1.5 / 3 + 1 / 3) / 2)
    assert values["maj_at_k", 3] == pytest.approx((1 / 2 + 0) / 2)
    assert values["invalid_rate", 1] == pytest.approx(1 / 6)
    # The greedy attempt of 10 tokens does not count.
    assert values["mean_tokens", 1] == 12


def test_accuracy_agrees_with_the_functions_problem_by_problem():
    rows = random_attempts(models=2, problems=40, samples=6)
    table = cells(accuracy(rows))
    for model, of_model in rows[rows["attempt"] > 0].groupby("model"):
        problems = [group for _, group in of_model.groupby("problem_id")]
        for k in range(1, 7):
            passed = [pass_at_k(6, int(problem["correct"].sum()), k) for problem in problems]
            votes = [majority_at_k(list(problem["strict"]), "18", k) for problem in problems]
            assert table.loc[(model, "pass_at_k", k), "value"] == pytest.approx(np.mean(passed))
            assert table.loc[(model, "maj_at_k", k), "value"] == pytest.approx(np.mean(votes))
        assert table.loc[(model, "invalid_rate", 1), "value"] == pytest.approx(
            (of_model["strict"] == "").mean()
        )


def test_accuracy_intervals_are_over_problems_as_in_the_other_tables():
    rows = random_attempts(models=1, problems=30, samples=4)
    samples, greedy = rows[rows["attempt"] > 0], rows[rows["attempt"] == 0]
    tokens = samples["completion_tokens"]
    expected = {
        "greedy": mean_interval(greedy["correct"], greedy["problem_id"]),
        "pass_at_k": mean_interval(samples["correct"], samples["problem_id"]),
        "mean_tokens": mean_interval(tokens, samples["problem_id"], limits=LENGTH),
    }
    table = accuracy(rows).set_index(["metric", "k"])
    for metric, interval in expected.items():
        cell = table.loc[(metric, 1), ["value", "ci_low", "ci_high"]].astype(float)
        assert list(cell) == pytest.approx(list(interval.bounds))


def test_accuracy_intervals_cover_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(5)
    rows = random_attempts(models=1, problems=60, samples=3)
    answers = rows.sort_values(["problem_id", "attempt"])
    covered = 0
    for _ in range(200):
        # Problems differ in difficulty, so attempts at one problem are alike.
        solved = generator.random((60, 4)) < generator.beta(1, 1, size=(60, 1))
        texts = np.where(solved, "18", "7").ravel()
        given_answers = answers.assign(strict=texts, correct=solved.ravel())
        table = accuracy(given_answers).set_index(["metric", "k"])
        low, high = table.loc[("pass_at_k", 1), ["ci_low", "ci_high"]]
        covered += low <= 0.5 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_row_order_changes_no_number():
    rows = random_attempts(models=1, problems=25, samples=3)
    shuffled = rows.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(accuracy(rows), accuracy(shuffled), check_exact=True)


def test_a_model_has_the_same_numbers_alone_and_among_others():
    rows = random_attempts(models=3, problems=25, samples=3)
    together = accuracy(rows)
    alone = accuracy(rows[rows["model"] == "model 1"])
    of_model = together[together["model"] == "model 1"].reset_index(drop=True)
    pd.testing.assert_frame_equal(of_model, alone, check_exact=True)


def test_shares_stay_between_zero_and_one_and_grow_with_k():
    table = accuracy(random_attempts(models=2, problems=50, samples=5))
    shares = table[table["metric"] != "mean_tokens"]
    assert shares[["value", "ci_low", "ci_high"]].stack().between(0, 1).all()
    assert (shares["ci_low"] <= shares["value"]).all()
    assert (shares["value"] <= shares["ci_high"]).all()
    passed = table[table["metric"] == "pass_at_k"].groupby("model")["value"]
    assert passed.apply(lambda values: values.is_monotonic_increasing).all()


def test_one_problem_has_values_but_no_interval():
    table = accuracy(attempts({"base": {"p1": "18 18"}}))
    assert (table["n"] == 1).all()
    assert table["value"].notna().all()
    assert table[["ci_low", "ci_high"]].isna().all(axis=None)


def test_greedy_attempts_alone_have_their_own_invalid_rate_and_length():
    rows = attempts({"base": {"p1": "18", "p2": "_"}})
    table = accuracy(rows).set_index("metric")["value"]
    assert dict(table) == {"greedy": 1 / 2, "invalid_rate": 1 / 2, "mean_tokens": 10}


def test_only_the_numbers_of_attempts_that_are_asked_for_are_reported():
    rows = pd.concat([attempts({m: {"p1": "18 18 7 18 7", "p2": "7 18 7 7 7"}}) for m in "ab"])
    whole, part = accuracy(rows), accuracy(rows, ks=(1, 4))
    sampled = part[part["metric"].isin(["pass_at_k", "maj_at_k"])]
    assert set(sampled["k"]) == {1, 4}
    kept = whole[~whole["metric"].isin(["pass_at_k", "maj_at_k"]) | whole["k"].isin([1, 4])]
    pd.testing.assert_frame_equal(part, kept.reset_index(drop=True))
    differences = accuracy_difference(rows, "a", ks=(1, 4))
    sampled = differences[differences["metric"].isin(["pass_at_k", "maj_at_k"])]
    assert set(sampled["k"]) == {1, 4}


def test_samples_alone_have_no_greedy_row():
    rows = attempts({"base": {"p1": "18 7", "p2": "18 18"}}, first_attempt=1)
    table = accuracy(rows)
    assert set(table["metric"]) == set(METRICS) - {"greedy"}
    assert table["k"].max() == 2


def test_votes_are_of_the_chosen_extraction():
    rows = attempts({"base": {"p1": "_ _ 18"}})
    flexible = rows.assign(flexible=["18", "18", "7"], correct=[True, True, False])
    table = cells(accuracy(flexible, extraction="flexible")).loc["base", "value"]
    assert table["invalid_rate", 1] == 0
    assert table["maj_at_k", 2] == 1 / 2
    with pytest.raises(ValueError, match="extraction must be"):
        accuracy(flexible, extraction="text")


def change(problem: str, attempt: int, **values) -> pd.DataFrame:
    rows = TWO_PROBLEMS.copy()
    place = (rows["problem_id"] == problem) & (rows["attempt"] == attempt)
    for column, value in values.items():
        rows.loc[place, column] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (TWO_PROBLEMS.iloc[:-1], "problem 'p2' of model 'base' has 3 of its 4 attempts"),
        (TWO_PROBLEMS[TWO_PROBLEMS["attempt"] != 2], r"numbered \[0, 1, 3\]"),
        (change("p1", 3, correct=True), "'base', problem 'p1', attempt 3 contradicts"),
        (change("p1", 1, correct=False), "'p1', attempt 1 contradicts"),
        (change("p2", 1, correct=True), "'p2', attempt . contradicts"),
    ],
    ids=["unequal", "gap", "correct without an answer", "same number judged twice", "two truths"],
)
def test_attempts_that_do_not_fit_together_are_refused_in_one_line(rows, message):
    with pytest.raises(InputError, match=message) as error:
        accuracy(rows)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (TWO_PROBLEMS.drop(columns="correct"), "columns missing: .*correct"),
        (TWO_PROBLEMS.assign(strict=None), "missing values in columns .*strict"),
        (TWO_PROBLEMS.assign(correct=1), "'correct' must be boolean"),
        (TWO_PROBLEMS.assign(attempt=0.5), "more than one row"),
        (TWO_PROBLEMS.astype({"attempt": float}), "'attempt' must be integer"),
        (TWO_PROBLEMS.iloc[:0], "no rows"),
        (pd.concat([TWO_PROBLEMS, TWO_PROBLEMS.iloc[:1]]), "more than one row for .*problem_id"),
    ],
)
def test_incomplete_attempts_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        accuracy(rows)


# accuracy_difference


def test_difference_is_paired_by_problem_and_has_the_right_sign():
    rows = attempts(
        {
            "base": {"p1": "18 18 18", "p2": "7 7 7", "p3": "18 7 _"},
            "sami": {"p2": "18 18 18", "p3": "18 18 7", "p1": "18 18 18"},
        }
    )
    table = accuracy_difference(rows, "base")
    assert list(table.columns) == [
        "model",
        "baseline",
        "metric",
        "k",
        "n",
        "difference",
        "ci_low",
        "ci_high",
        "detectable",
        "p_value",
        "p_holm",
    ]
    assert set(table["model"]) == {"sami"}
    assert set(table["baseline"]) == {"base"}
    assert (table["n"] == 3).all()
    gains = cells(table).loc["sami", "difference"]
    assert gains["greedy", 1] == pytest.approx(1 / 3)
    assert gains["pass_at_k", 1] == pytest.approx((0 + 1 + 1 / 2) / 3)
    assert gains["maj_at_k", 2] == pytest.approx((0 + 1 + 1 / 2) / 3)
    assert gains["invalid_rate", 1] == pytest.approx(-1 / 6)
    assert gains["mean_tokens", 1] == 0
    p_values = cells(table).loc["sami", "p_value"]
    assert p_values["greedy", 1] == 1, "one problem of three can't tell two models apart"
    assert p_values["pass_at_k", 1] == sign_flip_p([0, 1, 0.5], range(3))
    opposite = cells(accuracy_difference(rows, "sami")).loc["base"]
    np.testing.assert_allclose(opposite["difference"], -gains)


def test_difference_is_that_of_the_two_accuracies():
    rows = random_attempts(models=3, problems=30, samples=4)
    values = cells(accuracy(rows))["value"]
    gains = cells(accuracy_difference(rows, "model 1"))["difference"]
    for model in ("model 0", "model 2"):
        np.testing.assert_allclose(gains[model], values[model] - values["model 1"], atol=1e-12)


def test_difference_is_surer_than_two_separate_intervals():
    generator = np.random.default_rng(8)
    easy = {f"p{i}": bool(generator.integers(2)) for i in range(80)}
    rows = attempts(
        {
            "base": {problem: "18 18" if solved else "7 7" for problem, solved in easy.items()},
            "sami": {
                problem: "18 18" if solved or generator.random() < 0.1 else "7 7"
                for problem, solved in easy.items()
            },
        }
    )
    paired = accuracy_difference(rows, "base").iloc[0]
    single = accuracy(rows).iloc[0]
    assert paired["ci_high"] - paired["ci_low"] < (single["ci_high"] - single["ci_low"]) / 2


def test_metrics_that_only_one_model_has_are_not_compared():
    rows = pd.concat(
        [
            attempts({"base": {"p1": "18 7 7", "p2": "7 18 18"}}),
            attempts({"more": {"p1": "18 7 7 7", "p2": "7 18 18 7"}}),
            attempts({"greedy": {"p1": "18", "p2": "18"}}, tokens=30),
        ]
    )
    table = cells(accuracy_difference(rows, "base"))["difference"]
    assert table["more", "pass_at_k"].index.tolist() == [1, 2]
    # Greedy attempts are compared with greedy attempts, in every metric.
    assert dict(table["greedy"]) == {
        ("greedy", 1): 1 / 2,
        ("invalid_rate", 1): 0,
        ("mean_tokens", 1): 20,
    }


@pytest.mark.parametrize("missing", ["base", "sami"])
def test_models_with_different_problems_are_not_compared(missing):
    answers = {"base": {"p1": "18", "p2": "7"}, "sami": {"p1": "18", "p2": "7"}}
    del answers[missing]["p2"]
    with pytest.raises(InputError, match=f"no attempt of '{missing}', the first is 'p2'"):
        accuracy_difference(attempts(answers), "base")


def test_greedy_attempts_are_not_compared_with_samples():
    rows = pd.concat(
        [
            attempts({"base": {"p1": "18 7"}}, first_attempt=1),
            attempts({"sami": {"p1": "18"}}),
        ]
    )
    with pytest.raises(InputError, match=r"add greedy attempts .* of 'base'"):
        accuracy_difference(rows, "base")


def test_unknown_baseline_is_an_error_and_a_lone_baseline_has_no_rows():
    with pytest.raises(InputError, match="'sft'; models there are: 'base'"):
        accuracy_difference(TWO_PROBLEMS, "sft")
    alone = accuracy_difference(TWO_PROBLEMS, "base")
    assert alone.empty
    assert "difference" in alone


def test_tables_of_the_whole_test_set_take_a_few_seconds():
    rows = random_attempts(models=4, problems=1319, samples=10)
    started = time.process_time()
    accuracy(rows)
    accuracy_difference(rows, "model 0")
    assert time.process_time() - started < 10
