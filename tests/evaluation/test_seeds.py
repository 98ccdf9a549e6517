"""Training seeds: which replicates meet, and that one seed changes nothing."""

import numpy as np
import pandas as pd
import pytest

from sami_pipeline.evaluation.checklist import judge_checklist
from sami_pipeline.evaluation.intervals import (
    DIFFERENCE,
    mean_interval,
    paired_p,
    sign_flip_p,
    widened,
)
from sami_pipeline.evaluation.length_control import length_controlled
from sami_pipeline.evaluation.math_accuracy import accuracy, accuracy_by_seed, accuracy_difference
from sami_pipeline.evaluation.seeds import (
    NO_SEED,
    labelled,
    seed_pairs,
    share_training,
    unlabelled,
)
from sami_pipeline.evaluation.statistics import (
    compliance,
    compliance_difference,
    degeneration,
    win_rates,
)
from sami_pipeline.tables import StoredTable

LINEAGE = {"sft_sami": "sft", "sft_dpo": "sft"}


def checked(seeds: dict[str, list[int]], questions: int = 8) -> pd.DataFrame:
    """Statements of models with these seeds; which are followed depends on model and seed."""
    rows = []
    for place, (model, own) in enumerate(seeds.items()):
        for seed in own:
            generator = np.random.default_rng(100 * place + seed + 1)
            rows += [
                (model, seed, str(question), "writing", 1, "desired", principle, "principle",
                 bool(generator.random() < 0.4 + 0.2 * place), False)
                for question in range(questions) for principle in ("short", "list")
            ]  # fmt: skip
    names = ["model", "seed", "question_id", "category", "turn", "constitution", "principle",
             "stance", "passed", "degenerate"]  # fmt: skip
    return pd.DataFrame(rows, columns=names)


def row(table: pd.DataFrame, **values) -> pd.Series:
    table = table[(table["category"] == "overall") & (table["turn"] == "1")]
    for name, value in values.items():
        table = table[table[name] == value]
    (index,) = table.index
    return table.loc[index]


@pytest.mark.parametrize(
    ("model", "other", "together"),
    [("sami", "dpo", False), ("sami", "base", False), ("sft_sami", "sft", True),
     ("sft", "sft_dpo", True), ("sft_sami", "sft_dpo", True), ("sami", "sft_sami", False)],
)  # fmt: skip
def test_models_that_go_on_with_the_same_training_are_compared_seed_by_seed(model, other, together):
    assert share_training(model, other, LINEAGE) == together
    table = pd.DataFrame({"model": [model] * 3 + [other] * 3, "seed": [0, 1, 2] * 2})
    pairs = seed_pairs(table, model, other, LINEAGE)
    assert pairs == [(a, b) for a in range(3) for b in range(3) if not together or a == b]


def test_a_model_that_is_not_trained_meets_every_replicate():
    table = pd.DataFrame({"model": ["base", "sami", "sami"], "seed": [NO_SEED, 0, 1]})
    assert seed_pairs(table, "sami", "base", LINEAGE) == [(0, NO_SEED), (1, NO_SEED)]


def test_names_and_seeds_come_back_from_labels():
    table = pd.DataFrame(
        {"model": ["sami", "dpo"], "opponent": ["base", "sami"], "seed": [3, 0],
         "opponent_seed": [NO_SEED, 4]}
    )  # fmt: skip
    labels = labelled(table)
    assert labels["model"].nunique() == 2
    assert labels["opponent"].tolist()[0] == "base"
    assert "seed" not in labels
    pd.testing.assert_frame_equal(unlabelled(labels)[list(table)], table)


def test_one_seed_gives_the_numbers_of_a_table_without_seeds():
    with_seeds = checked({"base": [NO_SEED], "sami": [0]})
    without = with_seeds.drop(columns="seed")
    for make in (
        lambda table: compliance(table, "base"),
        lambda table: compliance_difference(table, "base"),
        lambda table: win_rates(judge_checklist(table, "sami", "base")),
    ):
        one, none = make(with_seeds), make(without)
        assert "seeds" not in none
        pd.testing.assert_frame_equal(one.drop(columns="seeds"), none, check_exact=True)


def test_tables_take_replicates_together_and_count_them():
    table = checked({"base": [NO_SEED], "sami": [0, 1, 2], "dpo": [0, 1, 2]})
    followed = table.groupby("model")["passed"].mean()
    of_sami = row(compliance(table, "base"), model="sami", principle="all")
    assert of_sami["compliance"] == pytest.approx(followed["sami"])
    assert (of_sami["n"], of_sami["rows"], of_sami["seeds"]) == (8, 48, 3)
    assert row(compliance(table, "base"), model="base", principle="all")["seeds"] == 0
    gain = row(compliance_difference(table, "base"), model="dpo")
    assert gain["difference"] == pytest.approx(followed["dpo"] - followed["base"])
    assert (gain["n"], gain["rows"], gain["seeds"]) == (8, 48, 3)
    # Trained apart: every replicate meets every other.
    rates = win_rates(judge_checklist(table, "sami", "dpo"))
    assert (row(rates)["n"], row(rates)["rows"], row(rates)["seeds"]) == (8, 72, 3)
    scores = table.groupby(["model", "seed", "question_id"])["passed"].sum()
    lead = np.subtract.outer(
        scores["sami"].unstack().to_numpy(), scores["dpo"].unstack().to_numpy()
    )[:, range(8), :, range(8)]
    assert row(rates)["adjusted_win_rate"] == pytest.approx(((np.sign(lead) + 1) / 2).mean())


def test_with_a_trained_baseline_no_statement_of_a_model_counts_twice():
    table = checked({"sft": [0, 1, 2], "sft_sami": [0, 1, 2], "sami": [0, 1, 2]})
    for model in ("sft_sami", "sami"):
        own = row(compliance(table, "sft", LINEAGE), model=model, principle="all")
        assert own["rows"] == 48
        assert own["compliance"] == pytest.approx(table[table["model"] == model]["passed"].mean())
    apart = row(compliance_difference(table, "sft", LINEAGE), model="sami")
    together = row(compliance_difference(table, "sft", LINEAGE), model="sft_sami")
    assert (apart["rows"], together["rows"]) == (144, 48)


def test_what_seeds_share_leaves_the_interval_of_models_compared_seed_by_seed():
    """A training that all that follow it go on with moves them all: their difference stays."""
    table = checked({"sft": [0, 1, 2], "sft_sami": [0, 1, 2]}, questions=40)
    moved = table["seed"] == 1
    table.loc[moved, "passed"] = True
    kept = row(compliance_difference(table, "sft", LINEAGE), model="sft_sami")
    apart = row(compliance_difference(table, "sft", {}), model="sft_sami")
    assert kept["difference"] == pytest.approx(apart["difference"])
    assert kept["ci_high"] - kept["ci_low"] < apart["ci_high"] - apart["ci_low"]


def test_an_interval_is_wider_where_seeds_differ_and_as_wide_where_they_do_not():
    questions = np.tile(np.arange(20), 3)
    seeds = [np.repeat([0, 1, 2], 20)]
    alike = np.tile(np.arange(20) % 2, 3).astype(float)
    apart = np.repeat([0.1, 0.5, 0.9], 20)
    same = mean_interval(alike, questions, seeds=seeds)
    assert same.bounds == pytest.approx(mean_interval(alike, questions).bounds)
    wide, narrow = mean_interval(apart, questions, seeds=seeds), mean_interval(apart, questions)
    # t(2) = 4.303 and the standard error of a mean of three
    assert wide.high - wide.estimate > 4.303 * 0.4 / 3**0.5 - 0.5 or wide.high == 1.0
    assert wide.high - wide.low > narrow.high - narrow.low
    assert wide.detectable > narrow.detectable


def test_p_value_and_interval_agree_with_several_seeds():
    generator = np.random.default_rng(3)
    questions, seeds = np.tile(np.arange(12), 3), [np.repeat([0, 1, 2], 12)]
    decided = 0
    for shift in np.linspace(0, 0.9, 30):
        values = np.clip(generator.normal(shift, 0.3, 36), -1, 1)
        found = mean_interval(values, questions, limits=DIFFERENCE, seeds=seeds)
        outside = found.low > 0 or found.high < 0
        assert outside == (paired_p(values, questions, seeds=seeds) < 0.05)
        decided += outside
    assert 5 < decided < 30
    assert paired_p(values, questions) == sign_flip_p(values, questions)


def test_length_control_has_a_component_for_the_seed():
    questions = [str(number) for number in range(10)]
    answers = pd.DataFrame(
        [("base", NO_SEED, q, "ab" * (1 + int(q) % 3)) for q in questions]
        + [("sami", seed, q, "ab" * (1 + int(q) % 4)) for seed in range(3) for q in questions],
        columns=["model", "seed", "question_id", "answer"],
    ).assign(turn=1, constitution="desired", category="writing")
    verdicts = answers[answers["model"] == "sami"].assign(
        opponent="base", opponent_seed=NO_SEED, judge="j"
    )
    # Seed 2 wins nearly everywhere, seed 0 nearly nowhere.
    wins = (verdicts["question_id"].astype(int) + 4 * verdicts["seed"]) >= 7
    verdicts = verdicts.assign(winner=np.where(wins, "model", "opponent"))
    apart = length_controlled(verdicts, answers, resamples=200, seed=0)
    assert (apart["seeds"] == 3).all()
    alone = widened(mean_interval([0.5, 0.6, 0.4], [0, 1, 2]), [[0.2, 0.5, 0.8]], (0.0, 1.0))
    plain = mean_interval([0.5, 0.6, 0.4], [0, 1, 2])
    assert alone.low <= plain.low
    assert alone.high >= plain.high
    both = apart[(apart["turn"] == "1") & (apart["method"] == "glm")].iloc[0]
    assert both["ci_high"] - both["ci_low"] > 0.6


def test_math_takes_replicates_together():
    def attempts(model: str, seed: int, right: str) -> pd.DataFrame:
        answers = ["7" if mark == "x" else "8" for mark in right]
        return pd.DataFrame(
            {"model": model, "seed": seed, "problem_id": [f"p{i}" for i in range(len(right))],
             "attempt": 0, "strict": answers, "correct": [a == "7" for a in answers],
             "completion_tokens": 5}
        )  # fmt: skip

    table = pd.concat(
        [attempts("base", NO_SEED, "x......."), attempts("sami", 0, "xxxx...."),
         attempts("sami", 1, "xx......"), attempts("sami", 2, "xxx.....")]
    )  # fmt: skip
    own = accuracy(table)
    greedy = own[(own["model"] == "sami") & (own["metric"] == "greedy")].iloc[0]
    assert (greedy["n"], greedy["seeds"], greedy["value"]) == (8, 3, pytest.approx(3 / 8))
    gain = accuracy_difference(table, "base")
    gain = gain[gain["metric"] == "greedy"].iloc[0]
    assert (gain["n"], gain["seeds"], gain["difference"]) == (8, 3, pytest.approx(2 / 8))
    alone = accuracy_by_seed(table)
    alone = alone[alone["metric"] == "greedy"]
    assert alone["value"].tolist() == [4 / 8, 2 / 8, 3 / 8]
    assert alone["mean"].tolist() == pytest.approx([3 / 8] * 3)
    assert alone["spread"].tolist() == pytest.approx([1 / 8] * 3)
    one = table[table["seed"] < 1]
    pd.testing.assert_frame_equal(
        accuracy_difference(one, "base").drop(columns="seeds"),
        accuracy_difference(one.drop(columns="seed"), "base"),
    )


def test_answers_of_replicates_are_one_stored_table_with_their_seeds(tmp_path):
    tables = []
    for name, seed in (("base", NO_SEED), ("sami", 0), ("sami_seed_1", 1)):
        path = tmp_path / f"{name}.parquet"
        table = pd.DataFrame(
            {"model": name, "question_id": ["1", "2"], "category": "writing", "turn": 1,
             "constitution": "desired", "completion_tokens": 5 + seed, "finish_reason": "stop",
             "degenerate": False}
        )  # fmt: skip
        table.to_parquet(path)
        own = {"model": name.partition("_seed")[0], "seed": seed}
        tables.append(StoredTable(path).with_constants(own))
    whole = tables[0] + tables[1] + tables[2]
    assert len(whole) == 6
    read = whole.read()
    assert read["model"].tolist() == ["base"] * 2 + ["sami"] * 4
    assert read["seed"].tolist() == [-1, -1, 0, 0, 1, 1]
    with (tmp_path / "whole.parquet").open("wb") as file:
        whole.write(file)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "whole.parquet"), read)
    pd.testing.assert_frame_equal(whole.read(["seed", "turn"]), read[["seed", "turn"]])
    lengths = degeneration(whole)
    assert set(lengths["seeds"]) == {0, 2}
