import pandas as pd
import pytest

from sami_pipeline.reporting import headlines
from sami_pipeline.training.baselines import registry
from sami_pipeline.training.baselines.record import Baseline


def differences(**rows: tuple[float, float, float, float]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "model": model, "baseline": "sft", "constitution": "desired", "stance": "principle",
                "turn": "1", "category": "overall", "n": 40, "difference": value, "ci_low": low,
                "ci_high": high, "p_holm": p,
            }
            for model, (value, low, high, p) in rows.items()
        ]
    )  # fmt: skip


def steerability(**principles: float) -> pd.DataFrame:
    rows = {"all": sum(principles.values()) / len(principles), **principles}
    return pd.DataFrame(
        [
            {
                "model": "sft_sami", "baseline": baseline, "constitution": "desired",
                "stance": stance, "principle": principle, "category": "overall", "n": 10,
                "steerability": value, "ci_low": value - 0.1, "ci_high": value + 0.1,
                "p_holm": 0.01,
            }
            for stance in ("principle", "antithesis")
            for baseline in ("", "sft")
            for principle, value in rows.items()
        ]
    )  # fmt: skip


def test_sami_stands_first_and_a_difference_is_only_named_where_it_is_decided():
    table = differences(
        base=(-0.2, -0.3, -0.1, 0.001),
        sft_sami=(0.12, 0.003, 0.23, 0.06),
        sft_dpo=(0.1, 0.05, 0.2, 0.01),
    )  # fmt: skip
    (card,) = headlines.cards({"compliance_difference": table})
    assert [each.model for each in card.findings] == ["sft_sami", "base", "sft_dpo"]
    assert [each.verdict for each in card.findings] == [
        "no difference seen", "worse", "better",
    ]  # fmt: skip
    assert [each.side for each in card.findings] == ["", "below", "above"]
    assert (card.first.value, card.first.interval) == ("+12.0 points", "[+0.3, +23.0]")


def test_who_sami_trained_is_told_by_the_registry_and_not_by_a_name(monkeypatch):
    after = {
        "part": Baseline("part", "m:f"),
        "after_part": Baseline("after_part", starts_from="part"),
    }
    monkeypatch.setattr(registry, "_BASELINES", registry.baselines() | after)
    names = ["base", "from_sami_lab", "part", "after_part", "sami"]
    assert headlines.sami_first(names) == ["after_part", "base", "from_sami_lab", "part", "sami"]
    assert headlines.sami_first(["base", "from_sami_lab"]) == ["base", "from_sami_lab"]


@pytest.mark.parametrize("n", [5])
def test_too_few_questions_say_so_on_the_card(n):
    table = differences(sami=(0.5, 0.4, 0.6, 0.01)).assign(n=n)
    (card,) = headlines.cards({"compliance_difference": table})
    assert card.first.verdict == "too little was asked to say"


def test_card_of_steerability_says_in_how_many_principles_the_estimate_rises_and_falls():
    tables = {"steerability": steerability(numbered_steps=0.5, begins_hello=-0.3, letter=0.0)}
    (card,) = headlines.cards(tables)
    assert card.split == (
        "The estimate rises in 1 of 3 principles (numbered steps), and falls in 1 of 3 principles "
        "(begins hello), and is as it was in 1."
    )
    (caution, *_) = headlines.before_you_believe(tables)
    assert caution.startswith("The mean of sft_sami's steerability hides that principles differ")
    assert "rises in 1 of 3 and falls in 1" in caution and "numbered steps" in caution
    tables = {"steerability": steerability(steps=0.3, code=0.2, begins_hello=-0.1)}
    (caution, *_) = headlines.before_you_believe(tables)
    assert "60 % of the rises are those of steps" in caution, "no part is called most of it"


def test_principles_that_agree_give_no_such_caution():
    tables = {"steerability": steerability(numbered_steps=0.5, letter=0.3)}
    assert not [each for each in headlines.before_you_believe(tables) if "hides" in each]


def test_a_text_that_is_always_the_same_is_named_where_it_surely_wins():
    controls = pd.DataFrame(
        [
            {"control": "constant_text", "constitution": constitution, "opponent": "sami",
             "value": low + 0.1, "ci_low": low, "ci_high": low + 0.2}
            for constitution, low in (("desired", 0.4), ("contrasting", 0.6))
        ]
    )  # fmt: skip
    said = headlines.before_you_believe({"controls": controls})
    assert said == [
        "Under the contrasting constitution a text that is always the same wins against sami "
        "(70.0 [60.0, 80.0])"
    ]


def test_plot_of_the_outcome_has_what_the_tables_have_and_the_split_by_principle():
    tables = {
        "compliance_difference": differences(sft_sami=(0.12, 0.003, 0.23, 0.06)),
        "steerability": steerability(numbered_steps=0.5, letter=0.1),
    }
    rows = headlines.forest_rows(tables).set_index("measure")["difference"]
    assert rows.to_dict() == {
        "principles followed": 0.12, "steerability": 0.3, "steerability to the opposites": 0.3,
        "… numbered steps": 0.5, "… letter": 0.1,
    }  # fmt: skip


def test_outcome_of_a_run_fits_its_lines_and_counts_what_it_leaves_out(
    mt_bench_tables, math_tables
):
    for tables in (mt_bench_tables, math_tables):
        found, limits = headlines.cards(tables), headlines.before_you_believe(tables)
        assert len(found) == 3 or tables is math_tables
        lines = headlines.as_lines(found, limits, 8)
        assert len(lines) <= 8
        shown = sum(line.startswith("Caution: ") for line in lines)
        if shown < len(limits):
            assert lines[-1].startswith(f"{len(limits) - shown} more")
    assert headlines.cards({}) == [] == headlines.before_you_believe({})
