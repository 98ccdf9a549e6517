import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sami_pipeline import schemas
from sami_pipeline.evaluation.intervals import mean_interval, sign_flip_p
from sami_pipeline.evaluation.statistics import (
    MT_BENCH_CATEGORIES,
    PAPER_CATEGORIES,
    by_category,
    compliance,
    compliance_difference,
    complies,
    degeneration,
    pair_statements,
    response_lengths,
    win_rates,
)

# by_category


def test_categories_come_in_order_with_both_summaries_last():
    frame = pd.DataFrame({"category": ["zoo", "math", "writing", "humanities", "math"]})
    parts = {name: len(rows) for name, rows in by_category(frame)}
    assert list(parts.items()) == [
        ("writing", 1),
        ("humanities", 1),
        ("math", 2),
        ("zoo", 1),
        ("overall", 5),
        ("overall_paper", 3),
    ]


def test_paper_summary_is_left_out_where_none_of_its_categories_is_present():
    frame = pd.DataFrame({"category": ["writing"]})
    assert [name for name, _ in by_category(frame)] == ["writing", "overall"]


def test_the_paper_has_seven_of_the_eight_categories():
    assert len(PAPER_CATEGORIES) == 7
    assert set(MT_BENCH_CATEGORIES) - set(PAPER_CATEGORIES) == {"writing"}


def test_summary_name_is_no_category():
    with pytest.raises(ValueError, match="overall"):
        list(by_category(pd.DataFrame({"category": ["overall"]})))


# win_rates


def verdicts(winners_by_question: dict[int, str], category: str = "math") -> pd.DataFrame:
    """Rows of model "sami" against "dpo"; each letter of a value is one turn's winner."""
    names = {"w": "model", "l": "opponent", "t": "tie", "i": "invalid"}
    return pd.DataFrame(
        [
            {
                "judge": "checklist",
                "model": "sami",
                "opponent": "dpo",
                "question_id": question,
                "turn": turn,
                "constitution": "desired",
                "category": category,
                "winner": names[letter],
            }
            for question, letters in winners_by_question.items()
            for turn, letter in enumerate(letters, start=1)
        ]
    )


def random_verdicts() -> pd.DataFrame:
    generator = np.random.default_rng(4)
    parts = [
        verdicts(
            {
                q: "".join(generator.choice(list("wlti"), size=2))
                for q in range(10 * i, 10 * i + 10)
            },
            category,
        )
        for i, category in enumerate(MT_BENCH_CATEGORIES)
    ]
    return pd.concat(parts, ignore_index=True)


def test_win_rate_table_counts_and_divides():
    table = win_rates(verdicts({1: "ww", 2: "wl", 3: "tt", 4: "il"}))
    schemas.WinRates.validate(table)
    cells = ["math", "overall", "overall_paper"]
    assert list(table["category"]) == 3 * cells
    assert list(table["turn"]) == [turn for turn in ("both", "1", "2") for _ in cells]
    row = table.iloc[0]
    assert (row["model"], row["opponent"]) == ("sami", "dpo")
    assert (row["n"], row["rows"]) == (4, 7), "n counts questions"
    assert (row["wins"], row["ties"], row["losses"], row["invalid"]) == (3, 2, 2, 1)
    assert row["win_rate"] == pytest.approx(3 / 7)
    assert row["adjusted_win_rate"] == pytest.approx(4 / 7)
    assert row["if_invalid_lost"] == pytest.approx(4 / 8)
    assert row["if_invalid_won"] == pytest.approx(5 / 8)
    assert row["ci_low"] <= row["win_rate"] <= row["ci_high"]


def test_each_turn_is_counted_apart_and_in_both():
    table = win_rates(verdicts({1: "ww", 2: "wl", 3: "tt", 4: "il"}))
    counts = table[table["category"] == "overall"].set_index("turn")
    columns = ["rows", "wins", "ties", "losses", "invalid"]
    assert counts.loc["both", columns].tolist() == [7, 3, 2, 2, 1]
    assert counts.loc["1", columns].tolist() == [3, 2, 1, 0, 1]
    assert counts.loc["2", columns].tolist() == [4, 1, 1, 2, 0]


def test_each_judge_has_its_own_rows():
    rows = verdicts({1: "ww", 2: "wl"})
    judges = pd.concat([rows, rows.assign(judge="pairwise", winner="tie")])
    table = win_rates(judges)
    assert table["judge"].drop_duplicates().tolist() == ["checklist", "pairwise"]
    alone = win_rates(rows)
    pd.testing.assert_frame_equal(table[table["judge"] == "checklist"], alone, check_exact=True)
    other = table[table["judge"] == "pairwise"]
    assert (other["ties"] == other["rows"]).all()


@settings(deadline=None, max_examples=30)
@given(st.dictionaries(st.integers(0, 30), st.text("wlti", min_size=1, max_size=2), min_size=1))
def test_turns_add_up_and_swapping_the_sides_mirrors_whatever_the_verdicts(winners):
    rows = verdicts(winners)
    mirror = {"model": "opponent", "opponent": "model"}
    swapped = rows.assign(winner=rows["winner"].replace(mirror))
    table, other = (win_rates(frame) for frame in (rows, swapped))
    counts = ["rows", "wins", "ties", "losses", "invalid"]
    overall = table[table["category"] == "overall"].set_index("turn")[counts]
    assert (overall.drop("both").sum() == overall.loc["both"]).all()
    assert (overall["rows"] == overall[["wins", "ties", "losses"]].sum(axis=1)).all()
    np.testing.assert_allclose(table["adjusted_win_rate"], 1 - other["adjusted_win_rate"])
    np.testing.assert_allclose(table["adjusted_ci_low"], 1 - other["adjusted_ci_high"])
    np.testing.assert_allclose(table["if_invalid_lost"], 1 - other["if_invalid_won"])
    whole = table["invalid"] == 0
    for bound in ("if_invalid_lost", "if_invalid_won"):
        np.testing.assert_allclose(table.loc[whole, bound], table.loc[whole, "adjusted_win_rate"])


def test_win_rate_intervals_resample_questions():
    rows = random_verdicts()
    table = win_rates(rows)
    cell = table[table["turn"] == "both"].set_index("category").loc["overall"]
    valid = rows[rows["winner"] != "invalid"]
    expected = mean_interval(valid["winner"] == "model", valid["question_id"])
    assert (cell["n"], cell["win_rate"]) == (expected.n, expected.estimate)
    assert (cell["ci_low"], cell["ci_high"]) == (expected.low, expected.high)


def test_swapping_the_sides_mirrors_the_table():
    rows = random_verdicts()
    swapped = rows.assign(
        model=rows["opponent"],
        opponent=rows["model"],
        winner=rows["winner"].replace({"model": "opponent", "opponent": "model"}),
    )
    table, mirrored = (win_rates(frame) for frame in (rows, swapped))
    pd.testing.assert_series_equal(table["wins"], mirrored["losses"], check_names=False)
    pd.testing.assert_series_equal(table["losses"], mirrored["wins"], check_names=False)
    for column in ("ties", "invalid", "n", "category"):
        pd.testing.assert_series_equal(table[column], mirrored[column])
    np.testing.assert_allclose(table["adjusted_win_rate"], 1 - mirrored["adjusted_win_rate"])
    np.testing.assert_allclose(table["adjusted_ci_low"], 1 - mirrored["adjusted_ci_high"])
    assert not np.allclose(table["win_rate"], mirrored["win_rate"])


def test_row_order_changes_no_table():
    rows = random_verdicts()
    pd.testing.assert_frame_equal(win_rates(rows), win_rates(rows.sample(frac=1, random_state=1)))


def test_each_pair_of_models_has_its_own_rows():
    rows = verdicts({1: "w", 2: "w"})
    both = pd.concat([rows, rows.assign(opponent="base", winner="opponent")])
    table = win_rates(both).set_index(["turn", "opponent", "category"])["win_rate"]
    assert table["both", "dpo", "overall"] == 1
    assert table["both", "base", "overall"] == 0


def test_cell_of_invalid_verdicts_is_shown_without_a_rate():
    row = win_rates(verdicts({1: "i", 2: "i"})).iloc[0]
    assert (row["n"], row["invalid"]) == (0, 2)
    assert row[["win_rate", "ci_low", "ci_high", "adjusted_win_rate"]].isna().all()
    assert row[["if_invalid_lost", "if_invalid_won"]].tolist() == [0, 1], "nothing is known"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.assign(winner="sami"), "unknown winners .*sami"),
        (lambda rows: rows.assign(category=None), "missing values in columns .*category"),
        (lambda rows: rows.drop(columns="turn"), "columns missing: .*turn"),
        (lambda rows: rows.drop(columns="judge"), "columns missing: .*judge"),
        (lambda rows: rows.iloc[:0], "no rows"),
        (lambda rows: pd.concat([rows, rows.iloc[1:]]), "more than one row for .*question_id"),
    ],
)
def test_incomplete_verdicts_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        win_rates(change(verdicts({1: "w", 2: "l"})))


# compliance


def statements(passed: dict[str, dict[int, str]], category: str = "math") -> pd.DataFrame:
    """Rows per model and question; letters: y passed, n failed, d passed but degenerate."""
    return pd.DataFrame(
        [
            {
                "model": model,
                "question_id": question,
                "category": category,
                "turn": 1,
                "constitution": "desired",
                "principle": f"p{index}",
                "stance": "principle",
                "passed": letter in "yd",
                "degenerate": letter == "d",
            }
            for model, questions in passed.items()
            for question, letters in questions.items()
            for index, letter in enumerate(letters)
        ]
    )


CHECKED = statements(
    {
        "base": {1: "yn", 2: "nn", 3: "yy"},
        "sami": {1: "yy", 2: "yn", 3: "dd"},
        "dpo": {1: "yn", 2: "nn", 3: "yy"},
    }
)


def test_passing_while_degenerate_is_no_compliance():
    rows = pd.DataFrame(
        {"passed": [True, True, False, False], "degenerate": [False, True, False, True]}
    )
    assert list(complies(rows)) == [True, False, False, False]


def test_compliance_has_each_principle_and_all_of_them():
    table = compliance(CHECKED)
    schemas.Compliance.validate(table)
    table = table[table["turn"] == "both"]
    cells = table.set_index(["model", "principle", "category"])
    assert len(cells) == 3 * 3 * 3
    assert cells.loc[("base", "all", "math"), "compliance"] == pytest.approx(3 / 6)
    assert cells.loc[("base", "p0", "overall"), "compliance"] == pytest.approx(2 / 3)
    assert cells.loc[("sami", "all", "overall_paper"), "compliance"] == pytest.approx(3 / 6)
    assert cells.loc[("sami", "p1", "math"), "compliance"] == pytest.approx(1 / 3)
    assert cells.loc[("sami", "p1", "math"), "rows"] == 3
    assert cells.loc[("sami", "all", "math"), ["n", "rows"]].tolist() == [3, 6]


def test_compliance_interval_resamples_questions_not_statements():
    passed = {
        "base": {question: "yyyyyyyy" if question % 2 else "nnnnnnnn" for question in range(8)}
    }
    cell = compliance(statements(passed)).iloc[0]
    expected = mean_interval([0, 1] * 4, range(8))
    assert (cell["ci_low"], cell["ci_high"]) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("column", ["passed", "degenerate"])
def test_verdict_of_a_check_must_be_boolean(column):
    for value in ("False", 1):
        with pytest.raises(ValueError, match=f"{column}.*boolean"):
            compliance(CHECKED.assign(**{column: value}))


def test_name_for_all_principles_is_reserved():
    with pytest.raises(ValueError, match="reserved"):
        compliance(CHECKED.assign(principle="all").drop_duplicates("model"))


def test_difference_is_paired_and_has_the_right_sign():
    table = compliance_difference(CHECKED, "base")
    schemas.ComplianceDifference.validate(table)
    cells = table[table["turn"] == "1"].set_index(["model", "category"])
    # sami against base: +1 on question 1, +1 on question 2, -2 on the degenerate question 3.
    assert cells.loc[("sami", "math"), "difference"] == 0
    assert cells.loc[("sami", "math"), ["n", "rows"]].tolist() == [3, 6]
    assert cells.loc[("sami", "math"), "p_value"] == 1
    assert (cells.loc["dpo", "difference"] == 0).all()
    assert (cells.loc["dpo", "ci_low"] < 0).all(), "no difference in three questions proves none"
    better = statements({"base": {1: "n", 2: "n"}, "sami": {1: "y", 2: "y"}})
    assert (compliance_difference(better, "base")["difference"] == 1).all()
    assert (compliance_difference(better, "sami")["difference"] == -1).all()


def test_pairing_is_surer_than_two_separate_intervals():
    generator = np.random.default_rng(8)
    hard = {question: bool(generator.integers(2)) for question in range(60)}
    passed = {
        "base": {question: "nnnn" if hard[question] else "yyyy" for question in hard},
        "sami": {question: "nnny" if hard[question] else "yyyy" for question in hard},
    }
    rows = statements(passed)
    paired = compliance_difference(rows, "base").iloc[0]
    single = compliance(rows).iloc[0]
    assert paired["ci_low"] > 0
    assert paired["ci_high"] - paired["ci_low"] < (single["ci_high"] - single["ci_low"]) / 2


def test_row_without_a_counterpart_is_named():
    for absent in ("sami", "base"):
        lost = (CHECKED["model"] == absent) & (CHECKED["question_id"] >= 2)
        lost &= CHECKED["principle"] == "p1"
        with pytest.raises(ValueError) as error:
            compliance_difference(CHECKED[~lost & (CHECKED["model"] != "dpo")], "base")
        message = str(error.value)
        assert "2 statements without a counterpart" in message
        for fragment in (f"model='{absent}'", "question_id=2", "turn=1", "principle='p1'"):
            assert fragment in message


def test_different_stances_are_not_compared():
    rows = CHECKED.copy()
    rows.loc[(rows["model"] == "sami") & (rows["question_id"] == 2), "stance"] = "antithesis"
    with pytest.raises(
        ValueError, match=r"stance differs between 'sami' and 'base'.*question_id=2"
    ):
        pair_statements(rows, "sami", "base")


def test_unknown_baseline_is_an_error_and_a_lone_baseline_has_no_rows():
    with pytest.raises(ValueError, match="sft"):
        compliance_difference(CHECKED, "sft")
    alone = compliance_difference(CHECKED[CHECKED["model"] == "base"], "base")
    assert alone.empty
    assert "difference" in alone


# response_lengths


def responses_of(model: str, tokens: dict[str, list[int]], limit: int = 96) -> pd.DataFrame:
    """One number of tokens a query, by constitution."""
    return pd.DataFrame(
        [
            {"model": model, "query_id": f"q{query}", "constitution_index": index,
             "constitution": constitution, "completion_tokens": number,
             "finish_reason": "length" if number == limit else "stop"}
            for index, (constitution, numbers) in enumerate(tokens.items())
            for query, number in enumerate(numbers)
        ]
    )  # fmt: skip


def test_lengths_are_means_of_each_model_under_each_constitution():
    rows = pd.concat(
        [
            responses_of("base", {"desired": [96, 40], "contrasting": [20, 20]}),
            responses_of("sami", {"desired": [10, 20], "contrasting": [96, 96]}),
        ]
    )
    table = response_lengths(rows)
    schemas.HeldOutLengths.validate(table)
    cells = table.set_index(["model", "constitution"])
    assert cells["n"].tolist() == cells["rows"].tolist() == [2] * 4
    assert cells["mean_tokens"].tolist() == [68, 20, 15, 96]
    assert cells["truncated_rate"].tolist() == [0.5, 0, 0, 1]
    first = cells.loc[("base", "desired")]
    assert first["mean_tokens_ci_low"] < 40 and first["mean_tokens_ci_high"] > 96
    assert 0 <= first["truncated_ci_low"] < first["truncated_ci_high"] <= 1


def test_no_responses_have_no_lengths_and_the_table_is_still_one():
    table = response_lengths(responses_of("base", {"desired": [5]}).iloc[:0])
    assert table.empty
    schemas.HeldOutLengths.validate(table)


# degeneration


def test_degeneration_table_reports_rate_length_and_truncation():
    answers = pd.DataFrame(
        {
            "model": ["base"] * 4 + ["sami"] * 2,
            "question_id": [1, 1, 2, 3, 1, 2],
            "category": ["writing", "writing", "writing", "math", "math", "math"],
            "turn": [1, 2, 1, 1, 1, 1],
            "constitution": "contrasting",
            "degenerate": [True, False, True, False, False, False],
            "completion_tokens": [10, 20, 30, 100, 5, 7],
            "finish_reason": ["length", "stop", "stop", "length", "stop", "stop"],
        }
    )
    table = degeneration(answers)
    schemas.Degeneration.validate(table)
    assert set(table["constitution"]) == {"contrasting"}
    cells = table[table["turn"] == "both"].set_index(["model", "category"])
    writing = cells.loc[("base", "writing")]
    assert list(writing[["n", "rows", "degeneration_rate", "mean_tokens", "truncated_rate"]]) == [
        2, 3, pytest.approx(2 / 3), 20, pytest.approx(1 / 3),
    ]  # fmt: skip
    assert writing["ci_low"] < 2 / 3 < writing["ci_high"] <= 1
    assert cells.loc[("base", "overall"), "degeneration_rate"] == 0.5
    assert cells.loc[("base", "overall_paper"), "n"] == 1
    assert cells.loc[("sami", "overall"), "degeneration_rate"] == 0
    first = table[(table["turn"] == "1") & (table["model"] == "base")].set_index("category")
    assert first.loc["writing", "degeneration_rate"] == 1


# constitutions


def under_both(letters: dict[str, dict[int, str]]) -> pd.DataFrame:
    """Verdicts of one turn by constitution."""
    return pd.concat(
        [verdicts(questions).assign(constitution=name) for name, questions in letters.items()],
        ignore_index=True,
    )


def test_what_is_won_under_the_opposite_constitution_is_no_win_under_the_desired_one():
    """As a run once reported: 53 % under the desired constitution, 82 % under its opposite."""
    desired = {q: "w" if q % 2 else "l" for q in range(20)}
    contrasting = {q: "w" if q % 10 else "l" for q in range(20)}
    table = win_rates(under_both({"contrasting": contrasting, "desired": desired}))
    overall = table[(table["category"] == "overall") & (table["turn"] == "1")]
    assert overall["constitution"].tolist() == ["desired", "contrasting"], "the headline first"
    assert overall["adjusted_win_rate"].tolist() == [0.5, 0.9]
    assert overall["p_value"].iloc[0] == 1 and overall["p_value"].iloc[1] < 0.01


def test_a_principle_is_never_averaged_with_its_antithesis():
    rows = statements({"base": {1: "y", 2: "y"}, "sami": {1: "n", 2: "n"}})
    opposite = rows.assign(constitution="contrasting", stance="antithesis", passed=~rows["passed"])
    table = compliance(pd.concat([rows, opposite], ignore_index=True), "base")
    cells = table[(table["category"] == "overall") & (table["turn"] == "1")]
    cells = cells[cells["principle"] == "all"].set_index(["model", "stance"])["compliance"]
    assert cells["base", "principle"] == cells["sami", "antithesis"] == 1
    assert cells["base", "antithesis"] == cells["sami", "principle"] == 0
    differences = compliance_difference(pd.concat([rows, opposite], ignore_index=True), "base")
    assert set(differences["difference"]) == {-1, 1}


def test_sampled_contrasts_keep_principles_and_antitheses_of_one_constitution_apart():
    rows = statements({"base": {1: "yn", 2: "yn"}}).assign(constitution="contrasting")
    rows.loc[rows["principle"] == "p1", "stance"] = "antithesis"
    table = compliance(rows)
    cells = table[(table["category"] == "overall") & (table["principle"] == "all")]
    assert set(zip(cells["stance"], cells["compliance"], strict=True)) == {
        ("principle", 1.0), ("antithesis", 0.0)
    }  # fmt: skip


# tests of many categories


def test_p_values_are_corrected_for_the_categories_of_a_comparison_and_overall_for_the_matches():
    parts = []
    for number, category in enumerate(MT_BENCH_CATEGORIES):
        questions = range(10 * number, 10 * number + 10)
        letters = "wwwwwwwwwl" if category == "math" else "wlwlwlwltt"
        parts.append(verdicts(dict(zip(questions, letters, strict=True)), category))
    rows = pd.concat(parts, ignore_index=True)
    both = pd.concat([rows, rows.assign(opponent="base")], ignore_index=True)
    table = win_rates(both)
    table = table[table["turn"] == "1"].set_index(["opponent", "category"])
    math = table.loc[("dpo", "math")]
    assert math["p_value"] == pytest.approx(sign_flip_p([1] * 9 + [-1], range(10)))
    assert math["p_holm"] == pytest.approx(8 * math["p_value"])
    overall = table.xs("overall", level="category")
    assert (overall["p_holm"] == (2 * overall["p_value"]).clip(upper=1)).all()
