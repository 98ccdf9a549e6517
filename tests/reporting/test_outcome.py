import pandas as pd
import pytest

from sami_pipeline.reporting.outcome import NO_DIFFERENCE, caveats, outcome


def differences(**bounds: tuple[float, float, float]) -> dict[str, pd.DataFrame]:
    rows = [
        {
            "model": model, "baseline": "base", "constitution": "desired", "stance": "principle",
            "turn": "1", "category": "overall", "n": 10, "p_holm": 0.01,
            "difference": value, "ci_low": low, "ci_high": high,
        }
        for model, (value, low, high) in bounds.items()
    ]  # fmt: skip
    return {"compliance_difference": pd.DataFrame(rows)}


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ((0.1, 0.02, 0.2), "better than base: sami (+10.0 points [+2.0, +20.0])"),
        ((-0.1, -0.2, -0.02), "worse than base: sami (−10.0 points [−20.0, −2.0])"),
        ((0.1, -0.01, 0.2), f"{NO_DIFFERENCE} from base for sami (+10.0 points [−1.0, +20.0])"),
        ((0.1, 0.0, 0.2), f"{NO_DIFFERENCE} from base for sami"),
        ((0.0, 0.0, 0.0), f"{NO_DIFFERENCE} from base for sami"),
    ],
)
def test_a_difference_is_named_only_where_its_interval_leaves_out_zero(bounds, words):
    said = outcome(differences(sami=bounds))
    assert words in said
    verdicts = ("better than", "worse than", f"{NO_DIFFERENCE} from base")
    assert sum(verdict in said for verdict in verdicts) == 1


def test_without_an_interval_nothing_is_concluded():
    nan = float("nan")
    said = outcome(differences(sami=(0.3, nan, nan)))
    assert "too little was asked to tell sami and base apart" in said
    assert "better" not in said


def win_rates(rate: float, low: float, high: float, **changes) -> dict[str, pd.DataFrame]:
    row = {
        "judge": "pairwise", "constitution": "desired", "turn": "1", "model": "sami",
        "opponent": "base", "category": "overall", "n": 40, "rows": 40, "invalid": 0, "wins": 1,
        "ties": 1, "losses": 1, "win_rate": 0.0, "ci_low": 0.0, "ci_high": 0.0, "p_holm": 0.01,
        "detectable": 0.1,
        "adjusted_win_rate": rate, "adjusted_ci_low": low, "adjusted_ci_high": high, **changes,
    }  # fmt: skip
    second = {**row, "turn": "2", "adjusted_win_rate": 0.99, "adjusted_ci_low": 0.98}
    return {"win_rates": pd.DataFrame([row, second, {**row, "turn": "both"}])}


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ((0.6, 0.52, 0.7), "sami beats base (60.0 % [52.0, 70.0] of 40 questions, p = 0.010)"),
        ((0.4, 0.3, 0.48), "sami loses to base (40.0 % [30.0, 48.0] of 40 questions, p = 0.010)"),
        ((0.6, 0.5, 0.7), f"between sami and base {NO_DIFFERENCE} (60.0 % [50.0, 70.0] of 40"),
    ],
)
def test_headline_is_the_first_turn_under_the_desired_constitution(bounds, words):
    said = outcome(win_rates(*bounds))
    assert "Asked under the desired constitution, at the first turn, judged by the pairwise" in said
    assert words in said
    assert "99.0" not in said, "the second turn alone is no headline"
    assert f"On both turns: {words}" in said


def test_an_interval_without_its_test_or_with_few_questions_names_no_winner():
    assert "beats" not in outcome(win_rates(0.6, 0.52, 0.7, p_holm=0.06))
    said = outcome(win_rates(0.9, 0.7, 1.0, n=5))
    assert "beats" not in said and "too little was asked to tell sami and base apart" in said


def test_what_is_said_of_one_constitution_is_not_said_of_the_other():
    both = [
        win_rates(0.53, 0.47, 0.59, p_holm=0.4)["win_rates"],
        win_rates(0.82, 0.75, 0.9)["win_rates"].assign(constitution="contrasting"),
    ]
    said = outcome({"win_rates": pd.concat(both, ignore_index=True)})
    desired, _, contrasting = said.partition("Asked under the contrasting constitution")
    assert f"between sami and base {NO_DIFFERENCE} (53.0 %" in desired and "beats" not in desired
    assert "sami beats base (82.0 %" in contrasting


def length_controlled(value: float, low: float, high: float) -> pd.DataFrame:
    row = {
        "judge": "pairwise", "constitution": "desired", "turn": "1", "model": "sami",
        "opponent": "base", "method": "stratified", "n": 40,
    }  # fmt: skip
    row |= {"win_rate": value, "ci_low": low, "ci_high": high}
    other = {**row, "method": "glm", "win_rate": 0.1, "ci_low": 0.05, "ci_high": 0.15}
    return pd.DataFrame([row, other])


@pytest.mark.parametrize(
    ("controlled", "words"),
    [
        ((0.55, 0.51, 0.6), "sami beats base"),
        (
            (0.5, 0.4, 0.6),
            "sami is preferred to base (60.0 % [52.0, 70.0] of 40 questions, p = 0.010), which is "
            f"no win: with length held equal {NO_DIFFERENCE} (50.0 % [40.0, 60.0])",
        ),
        ((float("nan"),) * 3, "no win: one of the two always writes the longer answer"),
    ],
)
def test_a_win_of_length_is_not_called_one(controlled, words):
    tables = win_rates(0.6, 0.52, 0.7)
    tables["win_rates"] = tables["win_rates"].iloc[:1]
    said = outcome({**tables, "length_controlled": length_controlled(*controlled)})
    assert words in said
    assert ("beats" in said) == (controlled[0] == 0.55)


def test_a_category_is_named_only_if_it_survives_the_correction():
    tables = win_rates(0.6, 0.52, 0.7)
    overall = tables["win_rates"].iloc[:1]
    single = [
        overall.assign(category="math", p_holm=0.01),
        overall.assign(category="stem", p_holm=0.2),
        overall.assign(category="writing", p_holm=0.01, n=5),
    ]
    said = outcome({"win_rates": pd.concat([overall, *single], ignore_index=True)})
    assert "sami is preferred to base in math." in said
    assert "stem" not in said and "writing" not in said


def test_verdicts_that_could_not_be_read_are_counted():
    assert "Left out are 3 of 43 verdicts" in outcome(win_rates(0.6, 0.5, 0.7, invalid=3))
    assert "Left out" not in outcome(win_rates(0.6, 0.5, 0.7))


def test_verdicts_of_which_none_could_be_read_tell_nothing():
    nan = float("nan")
    changes = {"n": 0, "rows": 0, "invalid": 40, "p_holm": nan, "detectable": nan}
    said = outcome(win_rates(nan, nan, nan, **changes))
    assert "no verdict on sami and base could be read" in said
    assert "Left out are 40 of 40 verdicts" in said
    assert "too little was asked" not in said and "nan" not in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n": 1, "detectable": float("nan")}, "with 1 question no win rate of the pairwise judge"),
        ({"n": 8, "detectable": 0.7}, "with 8 questions even a model that always wins would be"),
        ({"n": 40, "detectable": 0.1}, "with 40 questions a win rate of 60 % would be found"),
    ],
)
def test_no_win_rate_above_all_wins_is_said_to_be_found(changes, words):
    said = outcome(win_rates(0.6, 0.2, 1.0, **changes))
    assert words in said
    assert "nan %" not in said


def test_categories_with_too_few_questions_are_not_said_to_show_nothing():
    overall = win_rates(0.6, 0.52, 0.7)["win_rates"].iloc[:1]
    few = [overall.assign(category=name, n=2, p_holm=1.0) for name in ("math", "stem")]
    said = outcome({"win_rates": pd.concat([overall, *few])})
    assert "In no category by itself was enough asked" in said
    lost = overall.assign(category="writing", p_holm=0.01, adjusted_win_rate=0.1,
                          adjusted_ci_low=0.0, adjusted_ci_high=0.3)  # fmt: skip
    said = outcome({"win_rates": pd.concat([overall, *few, lost])})
    assert "Enough was asked in 1 of 3 categories by themselves" in said
    assert "base is preferred to sami in writing" in said


def test_a_model_that_says_the_same_to_everything_is_named_where_nothing_is_won():
    tables = win_rates(0.5, 0.4, 0.6, p_holm=0.9)
    row = {"control": "distinct_answers", "constitution": "desired", "model": "sami", "value": 0.01}
    tables["controls"] = pd.DataFrame([row | {"opponent": ""}])
    assert "sami says much the same whatever it is asked (1 % of its answers" in outcome(tables)


def test_caveats_are_named_where_they_apply_and_only_there():
    plain = outcome(win_rates(0.6, 0.52, 0.7))
    assert "tie" not in plain.partition("To be kept in mind")[2]
    assert "a win rate of 60 % would be found in four of five cases" in plain
    tables = win_rates(0.6, 0.52, 0.7, ties=18)
    tables["degeneration"] = pd.DataFrame(
        [{"model": "sami", "constitution": "desired", "turn": "both", "category": "overall",
          "n": 40, "degeneration_rate": 0.0, "ci_low": 0.0, "ci_high": 0.1,
          "truncated_rate": 0.73, "truncated_ci_low": 0.6, "truncated_ci_high": 0.8}]
    )  # fmt: skip
    tables["response_counts"] = pd.DataFrame(
        {
            "category": ["math", "math", "stem"],
            "split": "train",
            "status": ["usable", "degenerate", "degenerate"],
            "queries": [9, 2, 1],
        }
    )
    said = outcome(tables)
    for words in (
        "cut off at the limit of tokens; asked under the desired constitution: sami 73 % [60, 80]",
        "45 % of the pairwise judge's comparisons tie",
        "3 of 12 training queries were not trained on",
        "only 9 grids are left to train on",
        "none is left to train on of stem",
    ):
        assert words in said
    assert "mostly repetition" not in said


def test_repetition_is_named_under_the_constitution_where_it_is_and_not_only_the_first():
    rows = [("sft", "desired", 0.02), ("sami", "desired", 0.03),
            ("sft", "contrasting", 0.08), ("sami", "contrasting", 0.26)]  # fmt: skip
    table = pd.DataFrame(
        [{"model": model, "constitution": constitution, "turn": "both", "category": "overall",
          "n": 80, "degeneration_rate": rate, "ci_low": 0.01, "ci_high": 0.4,
          "truncated_rate": 0.0, "truncated_ci_low": 0.0, "truncated_ci_high": 0.1}
         for model, constitution, rate in rows]
    )  # fmt: skip
    assert caveats({"degeneration": table}) == [
        "many answers are mostly repetition; asked under the contrasting constitution: sft 8 % "
        "[1, 40], sami 26 % [1, 40]"
    ]


def test_results_of_a_run_are_all_in_the_paragraph(mt_bench_tables):
    said = outcome(mt_bench_tables)
    for judge in ("checklist", "pairwise"):
        assert f"judged by the {judge} judge" in said
    assert "intervals over questions" in said
    assert "nan" not in said.lower()


def test_math_says_the_baselines_accuracy_and_the_differences_from_it(math_tables):
    said = outcome(math_tables)
    assert "With one greedy attempt, base solves 0.0 % [0.0, " in said and "of 3 problems" in said
    assert "too little was asked to tell sft and base apart" in said, "three problems"
    assert "any of 2 sampled attempts" in said and "intervals over problems" in said


def test_without_results_it_says_so(mt_bench_tables):
    empty = {name: table.iloc[:0] for name, table in mt_bench_tables.items()}
    assert outcome(empty) == outcome({}) == "There are no results: the tables of results are empty."
