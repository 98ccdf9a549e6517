import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.inter_rater import cohens_kappa

from sami_pipeline import schemas
from sami_pipeline.evaluation.judge_quality import METRICS, cohen_kappa, judge_quality

CLASSES = ["model", "tie", "opponent"]
# Length of sami's and base's answer by question.
LENGTHS = {1: (9, 5), 2: (5, 9), 3: (9, 5), 4: (7, 7), 5: (2, 8), 6: (8, 2)}


def verdicts(judge: str, winners: str) -> pd.DataFrame:
    """One letter a question: sami (m) or base (o) won, tie (t), invalid (i)."""
    names = {"m": "model", "o": "opponent", "t": "tie", "i": "invalid"}
    return pd.DataFrame(
        [
            {"judge": judge, "model": "sami", "opponent": "base", "question_id": question,
             "turn": 1, "constitution": "desired", "category": category(question),
             "winner": names[letter]}
            for question, letter in enumerate(winners, start=1)
        ]
    )  # fmt: skip


def category(question: int) -> str:
    return "math" if question <= 3 else "writing"


ANSWERS = pd.DataFrame(
    [
        {"model": model, "question_id": question, "turn": 1, "constitution": "desired",
         "answer": "x" * length}
        for question, pair in LENGTHS.items()
        for model, length in zip(("sami", "base"), pair, strict=True)
    ]
)  # fmt: skip


def calls(judge: str, texts: dict[str, str]) -> pd.DataFrame:
    """Verdicts of single calls by order; one letter a question, "x" for one without verdict."""
    return pd.DataFrame(
        [
            {"judge": judge, "judge_model": "large", "model": "sami", "opponent": "base",
             "question_id": question, "turn": 1, "constitution": "desired",
             "category": category(question), "order": order, "sample": 0,
             "verdict": "invalid" if letter == "x" else letter}
            for order, letters in texts.items()
            for question, letter in enumerate(letters, start=1)
            if letter != " "
        ]
    )  # fmt: skip


def overall(table: pd.DataFrame, judge: str) -> pd.DataFrame:
    rows = table[(table["judge"] == judge) & (table["category"] == "overall")]
    return rows.set_index("metric")


# cohen_kappa


def test_kappa_is_that_of_statsmodels():
    generator = np.random.default_rng(0)
    first = generator.choice(CLASSES, size=200)
    second = np.where(generator.random(200) < 0.5, first, generator.choice(CLASSES, size=200))
    expected = cohens_kappa(pd.crosstab(first, second))
    result = cohen_kappa(first, second, np.arange(200))
    assert result.estimate == pytest.approx(expected.kappa)
    assert result.high - result.low == pytest.approx(2 * 1.96 * expected.std_kappa, rel=0.05)
    assert result.n == 200


def test_kappa_of_dependent_rows_is_less_sure():
    generator = np.random.default_rng(1)
    first = generator.choice(CLASSES, size=40)
    second = np.where(generator.random(40) < 0.5, first, generator.choice(CLASSES, size=40))
    once = cohen_kappa(first, second, np.arange(40))
    rows = np.repeat(np.arange(40), 5)
    often = cohen_kappa(first[rows], second[rows], rows)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    naive = cohen_kappa(first[rows], second[rows], np.arange(200))
    assert naive.high - naive.low < 0.6 * (often.high - often.low)


def test_kappa_knows_full_and_no_agreement_and_chance():
    outcomes = ["model", "opponent"] * 5
    swapped = outcomes[::-1]
    questions = np.arange(10)
    assert cohen_kappa(outcomes, outcomes, questions).estimate == 1
    assert cohen_kappa(outcomes, swapped, questions).estimate == -1
    constant = cohen_kappa(outcomes, ["model"] * 10, questions)
    assert constant.estimate == 0, "half agree, as chance would"


def test_kappa_of_two_constant_judges_is_undefined():
    result = cohen_kappa(["tie"] * 4, ["tie"] * 4, range(4))
    assert np.isnan([result.estimate, result.low, result.high]).all()


def test_full_agreement_of_few_questions_is_no_certainty():
    few, many = (
        cohen_kappa(["tie", "model"] * half, ["tie", "model"] * half, range(2 * half))
        for half in (5, 50)
    )
    assert few.estimate == few.high == many.high == 1
    assert few.low < 0.6 < 0.85 < many.low < 1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(*[st.sampled_from(CLASSES)] * 2), min_size=1, max_size=20))
def test_kappa_is_symmetric_and_blind_to_which_side_is_the_model(pairs):
    first, second = zip(*pairs, strict=True)
    mirror = dict(zip(CLASSES, CLASSES[::-1], strict=True))
    one = cohen_kappa(first, second, range(len(pairs)))
    other = cohen_kappa(second, first, range(len(pairs)))
    turned = cohen_kappa([mirror[w] for w in first], [mirror[w] for w in second], range(len(pairs)))
    for result in (other, turned):
        assert (result.estimate, result.low, result.high) == pytest.approx(
            (one.estimate, one.low, one.high), nan_ok=True
        )


# judge_quality


def test_the_checklist_alone_has_the_measures_that_need_no_other():
    table = judge_quality(verdicts("checklist", "mmotoi"), ANSWERS)
    schemas.JudgeQuality.validate(table)
    assert set(table["metric"]) == {"invalid_rate", "longer_preferred"}
    assert set(table["category"]) == {"math", "writing", "overall", "overall_paper"}
    cells = overall(table, "checklist")
    assert cells.loc["invalid_rate", ["rows", "value"]].tolist() == [6, pytest.approx(1 / 6)]
    # Decided on unequal lengths: 1 to the longer, 2 and 3 to the shorter, 5 to the longer.
    assert cells.loc["longer_preferred", ["rows", "value"]].tolist() == [4, 0.5]
    assert (cells["reference"] == "").all()


def test_agreement_is_on_what_both_decide_and_kappa_on_what_is_valid():
    both = pd.concat([verdicts("checklist", "mmotmo"), verdicts("pairwise", "mootti")])
    cells = overall(judge_quality(both, ANSWERS), "pairwise")
    assert cells.loc["agreement", ["rows", "value"]].tolist() == [3, pytest.approx(2 / 3)]
    names = {"m": "model", "o": "opponent", "t": "tie"}
    table = pd.crosstab(*[[names[w] for w in winners] for winners in ("mmotm", "moott")])
    expected = cohens_kappa(table.reindex(index=CLASSES, columns=CLASSES, fill_value=0))
    assert cells.loc["kappa", ["rows", "value"]].tolist() == [5, pytest.approx(expected.kappa)]
    assert (cells.loc[["agreement", "kappa"], "reference"] == "checklist").all()
    assert cells.loc["invalid_rate", "value"] == pytest.approx(1 / 6)


def test_second_judge_is_compared_with_the_first_too():
    three = [("checklist", "mmmooo"), ("pairwise", "mmmoot"), ("second_pairwise", "mmmmot")]
    table = judge_quality(pd.concat([verdicts(*each) for each in three]), ANSWERS)
    schemas.JudgeQuality.validate(table)
    cells = table[(table["judge"] == "second_pairwise") & (table["category"] == "overall")]
    cells = cells.set_index(["reference", "metric"])
    assert cells.loc[("checklist", "agreement"), ["rows", "value"]].tolist() == [5, 0.8]
    assert cells.loc[("pairwise", "agreement"), ["rows", "value"]].tolist() == [5, 0.8]
    expected = cohens_kappa(pd.crosstab([*"mmmoot"], [*"mmmmot"]))
    assert cells.loc[("pairwise", "kappa"), "value"] == pytest.approx(expected.kappa)
    assert cells.loc[("pairwise", "kappa"), "rows"] == 6, "ties count"


def test_comparisons_that_the_checklist_does_not_judge_are_left_out_of_the_agreement():
    rows = pd.concat([verdicts("checklist", "mmo"), verdicts("pairwise", "mmommm")])
    cells = overall(judge_quality(rows, ANSWERS), "pairwise")
    assert cells.loc["agreement", ["rows", "value"]].tolist() == [3, 1]
    assert cells.loc["invalid_rate", "rows"] == 6


@pytest.mark.parametrize(
    ("texts", "flips", "first"),
    [
        # Always the answer shown first, always the second, and what is in them alone.
        ({"model_first": "AAAAAA", "opponent_first": "AAAAAA"}, 1, 1),
        ({"model_first": "BBBBBB", "opponent_first": "BBBBBB"}, 1, 0),
        ({"model_first": "AABBAB", "opponent_first": "BBAABA"}, 0, 0.5),
    ],
)
def test_judges_of_known_character_get_their_measures(texts, flips, first):
    rows = pd.concat([verdicts("checklist", "mmmooo"), verdicts("pairwise", "tttttt")])
    table = judge_quality(rows, ANSWERS, calls("pairwise", texts))
    cells = overall(table, "pairwise")
    assert set(cells.index) == set(METRICS) - {"self_agreement"}
    assert cells.loc["flip_rate", ["rows", "value"]].tolist() == [6, flips]
    assert cells.loc["first_preferred", ["rows", "value"]].tolist() == [12, first]
    assert set(overall(table, "checklist").index) == {"invalid_rate", "longer_preferred"}


def test_calls_are_counted_one_by_one():
    #       no flip, flip, tie flips, both tie, unread, asked in one order only
    texts = {"model_first": "AACCxA", "opponent_first": "BAACB "}
    rows = pd.concat([verdicts("checklist", "mmmooo"), verdicts("pairwise", "mtttii")])
    cells = overall(judge_quality(rows, ANSWERS, calls("pairwise", texts)), "pairwise")
    assert cells.loc["flip_rate", ["rows", "value"]].tolist() == [4, 0.5]
    # A, A of model_first and B, A, A, B of opponent_first.
    assert cells.loc["first_preferred", ["rows", "value"]].tolist() == [6, pytest.approx(4 / 6)]
    assert cells.loc["invalid_call_rate", ["rows", "value"]].tolist() == [11, pytest.approx(1 / 11)]


def test_a_drawn_order_shows_which_answer_was_shown_first_but_no_flips():
    drawn = {"model_first": "AA  AC", "opponent_first": "  AB  "}
    rows = pd.concat([verdicts("checklist", "mmmooo"), verdicts("pairwise", "mmomot")])
    cells = overall(judge_quality(rows, ANSWERS, calls("pairwise", drawn)), "pairwise")
    assert "flip_rate" not in cells.index
    assert cells.loc["first_preferred", ["rows", "value"]].tolist() == [5, 0.8]


def test_repeats_agree_as_often_as_two_of_a_call_do():
    repeats = [{"model_first": "AAAAAx"}, {"model_first": "AAABxx"}, {"model_first": "AABCxA"}]
    said = pd.concat(
        [calls("pairwise", one).assign(sample=number) for number, one in enumerate(repeats)]
    )
    rows = pd.concat([verdicts("checklist", "mmmooo"), verdicts("pairwise", "mmmooo")])
    cells = overall(judge_quality(rows, ANSWERS, said), "pairwise")
    # 3 of 3 pairs twice, 1 of 3, 0 of 3; of the last two calls only one repeat can be read.
    shares = cells.loc["self_agreement", ["n", "rows", "value"]].tolist()
    assert shares == [4, 4, pytest.approx((1 + 1 + 1 / 3 + 0) / 4)]
    assert cells.loc["self_agreement", "ci_low"] < 0.5 < cells.loc["self_agreement", "ci_high"]


def test_single_grading_has_no_order():
    graded = calls("single", {"single": "777777"}).assign(opponent="", verdict="7")
    graded.loc[0, "verdict"] = "invalid"
    rows = pd.concat([verdicts("checklist", "mmmooo"), verdicts("single", "mmmooo")])
    cells = overall(judge_quality(rows, ANSWERS, graded), "single")
    needs_more = {"flip_rate", "first_preferred", "self_agreement"}
    assert set(cells.index) == set(METRICS) - needs_more
    assert cells.loc["invalid_call_rate", "value"] == pytest.approx(1 / 6)
    assert cells.loc["agreement", "value"] == cells.loc["kappa", "value"] == 1


def test_measure_without_a_comparison_to_rest_on_is_shown_as_such():
    rows = pd.concat([verdicts("checklist", "tttmmm"), verdicts("pairwise", "mmmttt")])
    table = judge_quality(rows, ANSWERS)
    cell = overall(table, "pairwise").loc["agreement"]
    assert cell["n"] == 0
    assert cell[["value", "ci_low", "ci_high"]].isna().all()


def test_intervals_are_over_questions():
    rows = verdicts("checklist", "ii" + "m" * 4)
    both = pd.concat([rows, rows.assign(turn=2)])
    answers = pd.concat([ANSWERS, ANSWERS.assign(turn=2)])
    one, two = (
        overall(judge_quality(*tables), "checklist").loc["invalid_rate"]
        for tables in ((rows, ANSWERS), (both, answers))
    )
    assert (two["rows"], one["rows"], two["n"], one["n"]) == (12, 6, 6, 6)
    bounds = ["value", "ci_low", "ci_high"]
    assert two[bounds].tolist() == pytest.approx(one[bounds].tolist())


def test_the_same_call_twice_is_refused():
    texts = {"model_first": "AAAAAA", "opponent_first": "AAAAAA"}
    twice = pd.concat([calls("pairwise", texts)] * 2)
    rows = pd.concat([verdicts("checklist", "mmmooo"), verdicts("pairwise", "mmmooo")])
    with pytest.raises(ValueError, match=r"more than one row for .*question_id=1"):
        judge_quality(rows, ANSWERS, twice)
