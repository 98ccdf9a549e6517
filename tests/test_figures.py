import pandas as pd
import pytest

from sami_pipeline import figures
from sami_pipeline.evaluation.statistics import win_rates
from sami_pipeline.parameters import PublishedDifference
from sami_pipeline.training.baselines import registry
from sami_pipeline.training.baselines.record import Baseline


def verdicts(judge: str, winners: dict[str, str]) -> pd.DataFrame:
    """By pair "model/opponent", one letter a question: won, lost or tied."""
    names = {"w": "model", "l": "opponent", "t": "tie"}
    return pd.DataFrame(
        [
            {"judge": judge, "model": pair.split("/")[0], "opponent": pair.split("/")[1],
             "question_id": question, "turn": 1 + question % 2, "constitution": "desired",
             "category": "math", "winner": names[letter]}
            for pair, letters in winners.items()
            for question, letter in enumerate(letters)
        ]
    )  # fmt: skip


def dots(figure) -> dict[tuple[str, str], object]:
    return {(trace.name, trace.yaxis): trace for trace in figure.data}


def test_win_rates_have_a_line_of_panels_a_judge_and_one_colour_a_model():
    table = win_rates(
        pd.concat(
            [
                verdicts("checklist", {"sami/base": "wwtl", "dpo/base": "wlll"}),
                verdicts("pairwise", {"sami/base": "wwww", "dpo/base": "tttt"}),
            ]
        )
    )
    figure = figures.win_rates(table)
    shown = dots(figure)
    # y and y2 are the first and both turns by the checklist, y3 and y4 by the other judge.
    overall = {key: trace.x[1] for key, trace in shown.items() if key[1] in ("y2", "y4")}
    assert overall == {
        ("sami against base", "y2"): pytest.approx(62.5),
        ("dpo against base", "y2"): pytest.approx(25),
        ("sami against base", "y4"): pytest.approx(100),
        ("dpo against base", "y4"): pytest.approx(50),
    }
    colours = {
        name: {t.marker.color for k, t in shown.items() if k[0] == name} for name, _ in shown
    }
    assert all(len(each) == 1 for each in colours.values())
    assert len(set.union(*colours.values())) == 2
    assert sum(trace.showlegend for trace in figure.data) == 2
    panels = {annotation.text for annotation in figure.layout.annotations}
    assert panels >= {"desired, first turn, checklist judge", "desired, both turns, pairwise judge"}


def test_summaries_over_categories_are_drawn_above_the_categories_with_their_intervals():
    table = win_rates(verdicts("checklist", {"sami/base": "wlll"}))
    figure = figures.win_rates(table)
    trace = figure.data[1]
    assert figure.layout.yaxis.ticktext == ("overall (8)", "overall (paper's 7)", "math")
    assert list(trace.x) == [25, 25, 25]
    assert sorted(trace.y) == [0, 1, 2]
    assert min(trace.error_x.array) > 10


def test_a_model_has_the_same_colour_in_every_figure():
    alone = figures.model_colours(pd.Series(["sami"]), pd.Series(["base"]))
    among = figures.model_colours(pd.Series(["other", "base", "sami", "dpo"]))
    assert {name: among[name] for name in alone} == alone
    assert len(set(among.values())) == 4


def test_models_that_the_project_does_not_know_keep_their_colour_in_figures_of_some_models():
    drawn = ("mine", "other", "sami", "sft")
    some = figures.model_colours(["other", "sft"], models=drawn)
    assert some == figures.model_colours(["mine", "sami"], models=drawn)
    assert len(set(some.values())) == 4
    assert some["mine"] == figures.COLOURS[-1], "the student is grey, whatever it is called"
    assert some["sami"] == figures.model_colours(["sami", "base"])["sami"]


def test_baselines_from_outside_have_colours_that_nobody_else_has(monkeypatch):
    known = registry.baselines() | {"a": Baseline("a", "m:f"), "b": Baseline("b", "m:f")}
    monkeypatch.setattr(registry, "_BASELINES", known)
    colours = figures.model_colours(["base", "sft", "a", "b", "sami"])
    assert len(set(colours.values())) == 5


def test_paired_questions_count_every_question_once():
    rows = verdicts("checklist", {"sami/base": "wwtltt"}).assign(turn=1)
    scores = {"model": (2.0, 1.0), "tie": (1.0, 1.0), "opponent": (0.0, 1.0)}
    rows["model_score"], rows["opponent_score"] = zip(*rows["winner"].map(scores), strict=True)
    figure = figures.paired_questions(rows)
    (trace,) = (trace for trace in figure.data if trace.mode == "markers+text")
    counted = dict(zip(zip(trace.x, trace.y, strict=True), trace.text, strict=True))
    assert {key: int(number) for key, number in counted.items()} == {
        (1.0, 2.0): 2, (1.0, 1.0): 3, (1.0, 0.0): 1
    }  # fmt: skip


def test_math_problems_solved_have_a_dot_an_interval_and_a_colour_a_model():
    table = pd.DataFrame(
        [(model, metric, 1, value, value - 0.1, value + 0.2, 40)
         for model, value in (("base", 0.3), ("sami", 0.5))
         for metric in ("greedy", "pass_at_k", "maj_at_k")],
        columns=["model", "metric", "k", "value", "ci_low", "ci_high", "n"],
    )  # fmt: skip
    gain = PublishedDifference(model="sami", over="base", k=1, points=1.1, source="a paper")
    figure = figures.accuracy(table, [gain])
    panels = [annotation.text for annotation in figure.layout.annotations]
    assert panels == ["one greedy attempt", "one sampled attempt, mean"]
    colours = figures.model_colours(table["model"])
    *measured, published = figure.data
    assert len(measured) == 4
    for trace in measured:
        assert trace.marker.color == colours[trace.name]
        assert list(trace.x) == [pytest.approx({"base": 30, "sami": 50}[trace.name])]
        assert list(trace.error_x.array) == [pytest.approx(20)]
    assert (published.x[0], published.y[0]) == (pytest.approx(31.1), measured[-1].y[0])
    assert published.xaxis == measured[-1].xaxis == "x2"
