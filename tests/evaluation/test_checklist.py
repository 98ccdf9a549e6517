import pandas as pd
import pytest

from sami_pipeline.evaluation.checklist import judge_checklist
from sami_pipeline.evaluation.statistics import win_rates


def answer(model, question, passed, *, degenerate=False, constitution="desired", turn=1):
    return [
        {
            "model": model,
            "question_id": question,
            "category": "roleplay",
            "turn": turn,
            "constitution": constitution,
            "principle": f"p{index}",
            "stance": "principle",
            "passed": letter == "y",
            "degenerate": degenerate,
        }
        for index, letter in enumerate(passed)
    ]


CHECKED = pd.DataFrame(
    [
        *answer("sami", 1, "yyy"),
        *answer("sami", 2, "yyy", degenerate=True),
        *answer("sami", 3, "nyn"),
        *answer("sami", 3, "yyn", constitution="contrasting"),
        *answer("base", 1, "ynn"),
        *answer("base", 2, "nny"),
        *answer("base", 3, "ynn"),
        *answer("base", 3, "yyn", constitution="contrasting", degenerate=True),
    ]
)


def test_answer_that_follows_more_statements_wins():
    verdicts = judge_checklist(CHECKED, "sami", "base")
    assert list(verdicts.columns) == [
        "model",
        "opponent",
        "question_id",
        "category",
        "turn",
        "constitution",
        "model_score",
        "opponent_score",
        "winner",
        "judge",
    ]
    columns = ["question_id", "constitution", "model_score", "opponent_score", "winner"]
    assert verdicts[columns].to_records(index=False).tolist() == [
        (1, "desired", 3, 1, "model"),
        (2, "desired", 0, 1, "opponent"),
        (3, "contrasting", 2, 0, "model"),
        (3, "desired", 1, 1, "tie"),
    ]
    for column, value in {"model": "sami", "opponent": "base", "judge": "checklist"}.items():
        assert (verdicts[column] == value).all()
    assert (verdicts["category"] == "roleplay").all()
    assert verdicts[["model_score", "opponent_score"]].to_numpy().dtype == float


def test_swapping_the_sides_swaps_scores_and_winners():
    one = judge_checklist(CHECKED, "sami", "base")
    other = judge_checklist(CHECKED, "base", "sami")
    assert list(other["model_score"]) == list(one["opponent_score"])
    assert list(other["opponent_score"]) == list(one["model_score"])
    mirror = {"model": "opponent", "opponent": "model", "tie": "tie"}
    assert list(other["winner"]) == [mirror[winner] for winner in one["winner"]]
    assert list(other["winner"]) != list(one["winner"])


def test_two_degenerate_answers_tie_at_nothing():
    rows = [
        *answer("sami", 1, "yyy", degenerate=True),
        *answer("base", 1, "y" * 3, degenerate=True),
    ]
    verdict = judge_checklist(pd.DataFrame(rows), "sami", "base").iloc[0]
    assert (verdict["model_score"], verdict["opponent_score"], verdict["winner"]) == (0, 0, "tie")


def test_turns_and_constitutions_are_judged_apart():
    rows = [
        row
        for turn in (1, 2)
        for constitution in ("desired", "contrasting")
        for model in ("sami", "base")
        for row in answer(model, 1, "y", turn=turn, constitution=constitution)
    ]
    verdicts = judge_checklist(pd.DataFrame(rows), "sami", "base")
    assert len(verdicts) == 4
    assert not verdicts.duplicated(["turn", "constitution"]).any()


def test_order_of_rows_changes_nothing():
    pd.testing.assert_frame_equal(
        judge_checklist(CHECKED, "sami", "base"),
        judge_checklist(CHECKED.sample(frac=1, random_state=0), "sami", "base"),
    )


def test_other_models_in_the_table_are_ignored():
    more = pd.concat([CHECKED, pd.DataFrame(answer("dpo", 9, "yn"))])
    pd.testing.assert_frame_equal(
        judge_checklist(more, "sami", "base"), judge_checklist(CHECKED, "sami", "base")
    )


@pytest.mark.parametrize("absent", ["sami", "base"])
def test_missing_counterpart_is_an_error_that_names_it(absent):
    rows = CHECKED[(CHECKED["model"] != absent) | (CHECKED["question_id"] != 2)]
    with pytest.raises(ValueError, match=rf"model='{absent}', question_id=2, turn=1"):
        judge_checklist(rows, "sami", "base")


def test_model_without_any_answer_is_an_error():
    with pytest.raises(ValueError, match="no rows for model 'sft'"):
        judge_checklist(CHECKED, "sft", "base")
    with pytest.raises(ValueError, match="itself"):
        judge_checklist(CHECKED, "base", "base")


def test_answer_with_two_categories_is_refused():
    rows = CHECKED.assign(
        category=CHECKED["category"].where(CHECKED["principle"] == "p0", "writing")
    )
    with pytest.raises(ValueError, match="category"):
        judge_checklist(rows, "sami", "base")


def test_verdicts_are_what_the_win_rate_table_takes():
    table = win_rates(judge_checklist(CHECKED, "sami", "base"))
    overall = table[(table["turn"] == "both") & (table["category"] == "overall")]
    cells = overall.set_index("constitution")
    assert cells.loc["desired", ["wins", "ties", "losses"]].tolist() == [1, 1, 1]
    assert cells.loc["contrasting", ["wins", "ties", "losses"]].tolist() == [1, 0, 0]
    assert cells["adjusted_win_rate"].to_dict() == {"desired": 0.5, "contrasting": 1.0}
