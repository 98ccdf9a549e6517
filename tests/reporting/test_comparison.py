"""Runs side by side: the headline figures of each, and nothing of another version."""

import json
import re

import pandas as pd
import pytest
from kedro.config import OmegaConfigLoader
from kedro.io import DataCatalog

from sami_pipeline import PROJECT_FOLDER, figures
from sami_pipeline.errors import InputError
from sami_pipeline.experiments.registry import headlines
from sami_pipeline.parameters import CompareRunsParameters
from sami_pipeline.reporting.comparison import (
    compare_runs,
    parameter_differences,
    pooled_results,
    run_differences,
)
from sami_pipeline.reporting.run_pages import write_comparison, write_index
from sami_pipeline.schemas import Comparison, ParameterDifferences, RunDifferences
from sami_pipeline.session.configuration import CONFIG_LOADER_ARGS

INTERVAL = {"ci_low": 0.1, "ci_high": 0.9}


def accuracy(value: float) -> pd.DataFrame:
    cells = [("greedy", 1, 0.25), ("pass_at_k", 1, value), ("pass_at_k", 2, 0.6)]
    cells += [("pass_at_k", 3, 0.75), ("maj_at_k", 3, 0.7), ("mean_tokens", 1, 90.0)]
    rows = [
        {"model": model, "metric": metric, "k": k, "n": 8, "value": each, **INTERVAL}
        for model in ("base", "sft")
        for metric, k, each in cells
    ]
    return pd.DataFrame(rows)


def compliance() -> pd.DataFrame:
    rows = [
        {
            "model": "sami", "constitution": constitution, "stance": stance, "turn": turn,
            "principle": principle, "category": category, "n": 9, "rows": 18, "compliance": value,
            "p_value": 0.5, "p_holm": 1.0, **INTERVAL,
        }
        for constitution, stance, turn, principle, category, value in (
            ("desired", "principle", "1", "all", "math", 0.2),
            ("desired", "principle", "1", "all", "overall", 0.5),
            ("desired", "principle", "both", "all", "overall", 0.6),
            ("contrasting", "antithesis", "1", "all", "overall", 0.9),
            ("desired", "principle", "1", "shows_steps", "overall", 0.3),
        )
    ]  # fmt: skip
    return pd.DataFrame(rows)


def win_rates() -> pd.DataFrame:
    adjusted = {"adjusted_ci_low": 0.3, "adjusted_ci_high": 0.8}
    adjusted |= {"if_invalid_lost": 0.5, "if_invalid_won": 0.5}
    counts = {"wins": 2, "ties": 1, "losses": 1, "invalid": 0, "n": 4, "rows": 4}
    tested = {"p_value": 0.5, "p_holm": 1.0, "detectable": 0.2}
    rows = [
        {
            "model": "sami", "opponent": "base", "category": category, "win_rate": 0.5,
            "adjusted_win_rate": value, "judge": judge, "turn": turn, "constitution": constitution,
            **INTERVAL, **adjusted, **counts, **tested,
        }
        for category, judge, constitution, turn, value in (
            ("overall", "checklist", "desired", "1", 0.625),
            ("overall", "checklist", "desired", "both", 0.1),
            ("overall", "checklist", "contrasting", "1", 0.9),
            ("overall", "pairwise", "desired", "1", 0.4),
            ("math", "checklist", "desired", "1", 0.2),
        )
    ]  # fmt: skip
    return pd.DataFrame(rows)


def unreadable() -> pd.DataFrame:
    raise AssertionError("a table without headline figures is not loaded")


def steerability() -> pd.DataFrame:
    rows = [
        {
            "model": "sami", "baseline": baseline, "constitution": "desired", "n": 9, "rows": 9,
            "stance": "principle", "principle": principle, "category": category, "detectable": 0.3,
            "steerability": value, "ci_low": -0.5, "ci_high": 0.3, "p_value": 0.5, "p_holm": 1.0,
        }
        for baseline, principle, category, value in (
            ("", "all", "overall", -0.25),
            ("", "all", "math", 0.1),
            ("", "shows_steps", "overall", 0.2),
            ("base", "all", "overall", 1.5),
        )
    ]  # fmt: skip
    return pd.DataFrame(rows)


RESULTS = {
    "one/math/accuracy": lambda: accuracy(0.5),
    "one/math/accuracy_difference": unreadable,
    "two/math/accuracy": lambda: accuracy(0.4),
    "two/mt_bench/compliance": compliance,
    "two/mt_bench/steerability": steerability,
    "two/mt_bench/win_rates": win_rates,
    "two/mt_bench/held_out": unreadable,
}

HEADLINES = headlines()


def values(table: pd.DataFrame) -> dict[tuple[str, str, str], float]:
    return table.set_index(["run", "model", "metric"])["value"].to_dict()


def test_table_holds_the_headline_figures_of_every_run():
    table = Comparison.validate(compare_runs(RESULTS, HEADLINES))
    assert values(table) == {
        **{("one", m, "greedy"): 0.25 for m in ("base", "sft")},
        **{("two", m, "greedy"): 0.25 for m in ("base", "sft")},
        **{("one", m, "pass_at_1"): 0.5 for m in ("base", "sft")},
        **{("two", m, "pass_at_1"): 0.4 for m in ("base", "sft")},
        **{(run, m, "pass_at_3"): 0.75 for run in ("one", "two") for m in ("base", "sft")},
        ("two", "sami", "compliance, desired"): 0.5,
        ("two", "sami", "compliance, contrasting"): 0.9,
        # The model's own, which can be below 0.
        ("two", "sami", "steerability, desired principle"): -0.25,
        ("two", "sami", "win_rate against base, desired"): 0.625,
        ("two", "sami", "win_rate against base, contrasting"): 0.9,
        ("two", "sami", "win_rate against base, desired (pairwise judge)"): 0.4,
    }
    # The rate that counts a tie half, with its own interval.
    row = table[table["metric"] == "win_rate against base, desired"].iloc[0]
    assert (row["ci_low"], row["ci_high"]) == (0.3, 0.8)


def test_chosen_runs_come_in_the_order_they_were_named():
    assert compare_runs(RESULTS, HEADLINES, ["two", "one"])["run"].unique().tolist() == [
        "two",
        "one",
    ]
    assert compare_runs(RESULTS, HEADLINES, ["one"])["run"].unique().tolist() == ["one"]
    assert CompareRunsParameters(runs="two one").runs == ("two", "one")


def test_run_without_results_is_named_with_those_that_have_some():
    with pytest.raises(InputError, match=r"compare_runs.runs: 'three' .* known: one, two"):
        compare_runs(RESULTS, HEADLINES, ["one", "three"])
    with pytest.raises(InputError, match="none yet; make one with kedro run"):
        compare_runs({"one/math/attempts": unreadable}, HEADLINES)


def test_table_of_another_version_is_named_with_the_remedy():
    old = {"one/mt_bench/win_rates": lambda: win_rates().drop(columns="judge")}
    with pytest.raises(InputError, match=r"one/mt_bench/win_rates.parquet: .*version .*'judge'"):
        compare_runs(RESULTS | old, HEADLINES)


def test_figure_has_a_panel_for_each_metric_and_one_colour_for_each_run():
    table = compare_runs(RESULTS, HEADLINES)
    figure = figures.comparison(table)
    assert len(figure.layout.annotations) == table.groupby(["experiment", "metric"]).ngroups
    colours = {trace.name: trace.marker.color for trace in figure.data}
    assert len(set(colours.values())) == len(colours) == 2
    assert [trace.name for trace in figure.data if trace.showlegend] == ["one", "two"]
    drawn = sorted(y for trace in figure.data for y in trace.y)
    assert drawn == sorted(100 * table["value"])


def record(**parameters):
    return lambda: {"run": "not read", "parameters": {"models": {"student": "base"}, **parameters}}


def test_what_differs_between_the_parameters_of_runs_is_told_and_nothing_else():
    records = {
        "b/math": record(training={"sami": {"learning_rate": 1e-5, "seed": 0}}, seeds=1),
        "a/math": record(training={"sami": {"learning_rate": 2e-5, "seed": 0}}),
        "c/math": record(training={"sami": {"learning_rate": 9.0, "seed": 0}}, seeds=1),
        "a/mt_bench": record(seeds=3),
    }
    table = parameter_differences(records, ["b", "a"])
    ParameterDifferences.validate(table)
    assert table.to_numpy().tolist() == [
        ["math", "training.sami.learning_rate", "b", "1e-05"],
        ["math", "training.sami.learning_rate", "a", "2e-05"],
        ["math", "seeds", "b", "1"],
        ["math", "seeds", "a", ""],
    ]
    assert set(parameter_differences(records)["run"]) == {"a", "b", "c"}
    alone = parameter_differences(records, ["c"])
    ParameterDifferences.validate(alone)
    assert alone.empty


def test_a_run_of_before_the_bounds_of_invalid_verdicts_ends_in_one_line():
    before = win_rates().drop(columns=["if_invalid_lost", "if_invalid_won"])
    with pytest.raises(InputError) as found:
        compare_runs({"old/mt_bench/win_rates": lambda: before}, headlines())
    message = str(found.value)
    assert "\n" not in message
    assert message.startswith("data/08_reporting/old/mt_bench/win_rates.parquet: was made by")
    assert "if_invalid_lost" in message
    assert "repeat the run, or leave it out with compare_runs.runs" in message


def test_a_run_with_several_seeds_is_compared_like_any_other():
    table = win_rates().assign(seeds=3)
    made = compare_runs({"three/mt_bench/win_rates": lambda: table}, headlines())
    Comparison.validate(made)
    assert len(made) == len(compare_runs({"one/mt_bench/win_rates": win_rates}, headlines()))


def checked(followed: str, model: str = "sami", questions: int = 0) -> pd.DataFrame:
    """Statements of one model; each letter says of a question whether it was followed (x)."""
    rows = [
        {
            "model": model, "question_id": str(questions + number), "category": "math", "turn": 1,
            "constitution": "desired", "principle": "short", "stance": "principle",
            "check": "c", "asked": "a", "evidence": "e", "passed": mark == "x",
            "degenerate": False,
        }
        for number, mark in enumerate(followed)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def attempts(right: str, model: str) -> pd.DataFrame:
    answers = ["7" if mark == "x" else "8" for mark in right]
    rows = {
        "model": model, "problem_id": [f"p{n}" for n in range(len(right))], "attempt": 0,
        "answer": answers, "correct": [answer == "7" for answer in answers], "text": "",
        "prompt": "{}", "completion_tokens": 3,
    }  # fmt: skip
    return pd.DataFrame(rows)


def of(**tables):
    return {name.replace("__", "/"): (lambda table=table: table) for name, table in tables.items()}


def test_runs_are_paired_on_the_questions_that_they_share():
    base = checked("x.x.x.x.", "base")
    outputs = of(
        a__mt_bench__checked=pd.concat([base, checked("x.......")]),
        b__mt_bench__checked=pd.concat([base, checked("xxxx....")]),
        # Six of eight questions are the same.
        c__mt_bench__checked=checked("xxxxxxxx", questions=2),
        a__math__attempts=attempts("x...", "sft"),
        b__math__attempts=attempts("xxx.", "sft"),
    )
    table = run_differences(outputs, ["a", "b", "c"])
    RunDifferences.validate(table)
    rows = table.set_index(["experiment", "run", "model", "metric"])
    assert (table["other_run"] == "a").all()
    judged = "compliance, desired principle"
    assert rows.loc[("mt_bench", "b", "sami", judged), "difference"] == pytest.approx(3 / 8)
    assert rows.loc[("mt_bench", "b", "base", judged), "difference"] == 0
    assert rows.loc[("mt_bench", "c", "sami", judged), "n"] == 6
    assert rows.loc[("mt_bench", "c", "sami", judged), "difference"] == 1
    assert ("mt_bench", "c", "base", judged) not in rows.index
    greedy = rows.loc[("math", "b", "sft", "greedy")]
    assert (greedy["n"], greedy["difference"]) == (4, pytest.approx(0.5))
    assert run_differences(outputs, ["a"]).empty


def verdicts(letters: str, judge: str = "checklist", questions: int = 0, **seeds) -> pd.DataFrame:
    """One letter a question: sami (m) or base (o) won, tie (t), invalid (i)."""
    names = {"m": "model", "o": "opponent", "t": "tie", "i": "invalid"}
    rows = [
        {
            "judge": judge, "model": "sami", "opponent": "base", "question_id": str(questions + n),
            "category": "math", "turn": 1, "constitution": "desired", "winner": names[letter],
            **seeds,
        }
        for n, letter in enumerate(letters)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_win_rates_of_every_judge_are_paired_verdict_by_verdict():
    outputs = of(
        a__mt_bench__verdicts=pd.concat(
            [verdicts("ooootttt"), verdicts("oooooooo", "pairwise"), verdicts("ti", "single")]
        ),
        # Two questions are asked here alone, two there alone; two verdicts are invalid.
        b__mt_bench__verdicts=pd.concat(
            [verdicts("mmmmmmmi", questions=2), verdicts("mmmmmmmm", "pairwise"),
             verdicts("it", "single")]
        ),
        a__mt_bench__checked=checked("........"),
        b__mt_bench__checked=checked("xxxxxxxx"),
    )  # fmt: skip
    table = RunDifferences.validate(run_differences(outputs, ["a", "b"]))
    rows = table.set_index("metric")
    own = rows.loc["win_rate against base, desired"]
    # Questions 2 and 3 go from a loss to a win, 4 to 7 from a tie to a win.
    assert own["difference"] == pytest.approx((2 * 1 + 4 * 0.5) / 6)
    assert own[["n", "rows", "left_out"]].tolist() == [6, 6, 4]
    by_model = rows.loc["win_rate against base, desired (pairwise judge)"]
    assert by_model[["n", "left_out", "difference"]].tolist() == [8, 0, 1]
    assert by_model["p_value"] == pytest.approx(2 / 2**8)
    assert "win_rate against base, desired (single judge)" not in rows.index, "no pair is valid"
    # Three rows are looked at: 1/128 twice, 1/32.
    assert rows["p_holm"].tolist() == pytest.approx([3 / 128, 1 / 32, 3 / 128])
    assert (table["detectable"] > 0).all()


def test_win_rates_of_trained_replicates_all_meet_and_seeds_count():
    """Two seeds that differ by much: with one of each the difference would seem certain."""
    several = [verdicts("m" * 20, seed=0, opponent_seed=-1),
               verdicts("m" * 5 + "o" * 15, seed=1, opponent_seed=-1)]  # fmt: skip
    outputs = of(a__mt_bench__verdicts=verdicts("o" * 20), b__mt_bench__verdicts=pd.concat(several))
    (row,) = run_differences(outputs, ["a", "b"]).to_dict("records")
    assert (row["n"], row["rows"], row["difference"]) == (20, 40, pytest.approx(25 / 40))
    assert row["ci_low"] < 0 and row["p_value"] > 0.05
    (row,) = run_differences(outputs, ["b", "a"]).to_dict("records")
    assert row["difference"] == pytest.approx(-25 / 40) and row["ci_high"] > 0


def test_statements_are_paired_where_the_same_is_checked():
    other = checked("xxxxxxxx").assign(asked="at most 9 words")
    outputs = of(a__mt_bench__checked=checked("........"), b__mt_bench__checked=other)
    assert run_differences(outputs, ["a", "b"]).empty


def test_verdicts_of_another_version_are_named_with_the_remedy():
    old = verdicts("mm").drop(columns="constitution")
    outputs = of(a__mt_bench__verdicts=verdicts("mm"), b__mt_bench__verdicts=old)
    with pytest.raises(
        InputError, match=r"07_model_output/b/mt_bench/verdicts.parquet: .*'constit"
    ):
        run_differences(outputs, ["a", "b"])


def of_seed(seed: int, **more):
    training = {"sami": {"seed": seed, "learning_rate": 1e-5}}
    models = {"sources": {"base": "random:0"}, "baseline": "base"}
    return lambda: {"parameters": {"training": training, "models": models, "seeds": 1, **more}}


def test_runs_that_differ_in_their_seed_alone_are_one_with_several_seeds():
    base = checked("x.x.x.x.", "base")
    outputs = of(
        a__mt_bench__checked=pd.concat([base, checked("xx......")]),
        b__mt_bench__checked=pd.concat([base, checked("xxxx....")]),
        c__mt_bench__checked=pd.concat([base, checked("xxxxxx..")]),
        a__math__attempts=pd.concat([attempts("x...", "base"), attempts("x...", "sft")]),
    )
    records = {f"{run}/mt_bench": of_seed(seed) for seed, run in enumerate("abc")}
    results, made = pooled_results(outputs, records, ["a", "b", "c"])
    table = results["pooled/mt_bench/compliance"]()
    table = table[(table["category"] == "overall") & (table["principle"] == "all")]
    own = table[(table["model"] == "sami") & (table["turn"] == "1")].iloc[0]
    assert (own["n"], own["rows"], own["seeds"]) == (8, 24, 3)
    assert own["compliance"] == pytest.approx(0.5)
    untrained = table[(table["model"] == "base") & (table["turn"] == "1")].iloc[0]
    assert (untrained["rows"], untrained["seeds"]) == (8, 0)
    compared = compare_runs(results, headlines())
    assert set(compared["run"]) == {"pooled"}
    paired = run_differences(outputs | made, ["a", "pooled"])
    assert paired.set_index("model")["difference"]["sami"] == pytest.approx(0.25)
    assert paired.set_index("model")["rows"]["sami"] == 24


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generation": {"temperature": 1.0}}, "a, b differ in generation.temperature, not in"),
        ({"seeds": 3}, "a, b differ in seeds"),
        ({"training": {"sami": {"seed": 0, "learning_rate": 1e-5}}}, "'b' has several seeds, or"),
    ],
)
def test_runs_that_differ_in_more_are_not_taken_together(changes, message):
    records = {"a/mt_bench": of_seed(0), "b/mt_bench": of_seed(1, **changes)}
    with pytest.raises(InputError, match=message):
        pooled_results({}, records, ["a", "b"])


def test_records_of_runs_are_found_among_everything_that_runs_leave(tmp_path):
    """What a record itself was made from lies in a file whose name ends like the record's."""
    loader = OmegaConfigLoader(str(PROJECT_FOLDER / "conf"), env="base", **CONFIG_LOADER_ARGS)
    entry = loader["catalog"]["compare_runs.records"] | {"path": str(tmp_path)}
    made = tmp_path / "a" / "math"
    (made / ".state" / "provenance").mkdir(parents=True)
    (made / "run_record.json").write_text('{"parameters": {"seeds": 1}}')
    (made / ".state" / "provenance" / "math.run_record.json").write_text('{"origin": {}}')
    records = DataCatalog.from_config({"records": entry}).load("records")
    assert list(records) == ["a/math"]
    assert parameter_differences(records).empty


def compared() -> tuple:
    table = compare_runs(RESULTS, HEADLINES)
    columns = ["experiment", "parameter", "run", "value"]
    parameters = pd.DataFrame(
        [("math", "training.sami.seed", "one", "0"), ("math", "training.sami.seed", "two", "1")],
        columns=columns,
    )
    differences = pd.DataFrame(
        [("math", "two", "one", "sft", "greedy", 40, 40, 7, 0.1, 0.05, 0.2, 0.12, 0.01, 0.03),
         ("math", "two", "one", "sami", "greedy", 40, 40, 7, 0.1, 0.05, 0.2, 0.12, 0.01, 0.08)],
        columns=["experiment", "run", "other_run", "model", "metric", "n", "rows", "left_out",
                 "difference", "ci_low", "ci_high", "detectable", "p_value", "p_holm"],
    )  # fmt: skip
    return table, differences, parameters, figures.comparison(table)


def test_page_of_compared_runs_has_their_figures_their_differences_and_what_differs():
    page = write_comparison(*compared())
    for words in ("training.sami.seed", "math: two − one", "+10.0",
                  "win rate against base, desired",
                  'href="../../two/mt_bench/report.html"'):  # fmt: skip
        assert words in page
    assert page.count("Save as CSV") == 3
    plain = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    # Above parity only where the corrected p says so; then p, what would be found, n, left out.
    assert "sft greedy ▲ above parity: +10.0 [+5.0, +20.0] p = 0.030 12 40 7" in plain
    assert "sami greedy +10.0 [+5.0, +20.0] p = 0.080 12 40 7" in plain
    same = write_comparison(*(part.iloc[:0] if i in (1, 2) else part
                              for i, part in enumerate(compared())))  # fmt: skip
    assert "the runs have the same parameters" in same
    assert "nothing that two runs asked alike" in same


PHONE = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}
# Whether the longest word of each cell fits into it.
_UNBROKEN = """cells => cells.every(cell => {
    const word = document.createElement("span");
    word.style = "position: absolute; white-space: nowrap";
    word.textContent = cell.textContent.split(/\\s+/).sort((a, b) => b.length - a.length)[0];
    cell.append(word);
    const fits = word.getBoundingClientRect().width <= cell.getBoundingClientRect().width;
    word.remove();
    return fits;
})"""


def test_page_of_compared_runs_in_a_browser(open_page, tmp_path):
    (tmp_path / "report.html").write_text(write_comparison(*compared()), "utf-8")
    watched = open_page((tmp_path / "report.html").as_uri(), **PHONE)
    page = watched.page
    page.locator(".plot path.point").first.wait_for(state="attached")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    words = page.locator("#differences tbody th, #figures tbody th")
    assert words.count() > 10 and words.evaluate_all(_UNBROKEN), "no word is broken"
    columns = page.get_by_text("What the columns say")
    columns.focus()
    page.keyboard.press("Enter")
    assert page.locator("#differences dl").is_visible()
    names = page.locator("#differences thead th").all_text_contents()
    explained = page.locator("#differences dt").all_text_contents()
    assert set(names[3:]) == set(explained), "every column that needs it is explained"
    page.emulate_media(media="print")
    assert not page.locator(".save").first.is_visible()
    assert page.locator("#differences table").is_visible()
    assert watched.errors == [] and watched.outside == set()


def test_index_of_runs_leads_to_a_report_by_keyboard_on_a_phone(open_page, tmp_path):
    folder = tmp_path / "only" / "mt_bench"
    folder.mkdir(parents=True)
    (folder / "run_record.json").write_text(json.dumps({"nodes": [], "outcome": []}))
    (folder / "report.html").write_text("<title>The report</title>")
    page = open_page(write_index(tmp_path).as_uri(), **PHONE).page
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    link = page.locator("a[href='only/mt_bench/report.html']").first
    link.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/only/mt_bench/report.html")
    assert page.title() == "The report"


def test_index_lists_every_run_with_its_outcome_the_last_first_and_survives_a_broken_record(
    tmp_path,
):
    def record(run: str, started: str, outcome: list) -> None:
        folder = tmp_path / run / "mt_bench"
        folder.mkdir(parents=True)
        attempt = {"started": started, "seconds": 60.0, "command": {"runtime_params": {"seeds": 3}}}
        made = {"nodes": [{"node": "a", "attempts": [attempt]}], "outcome": outcome}
        (folder / "run_record.json").write_text(json.dumps(made))
        (folder / "report.html").write_text("")

    finding = {"model": "sami", "other": "base", "value": "+1.0 points", "interval": "[0, 2]",
               "verdict": "no difference seen"}  # fmt: skip
    card = {"title": "Principles <followed>", "split": "", "findings": [finding]}
    record("old", "2026-01-01T10:00:00Z", [])
    record("new", "2026-01-02T10:00:00Z", [card])
    (tmp_path / "broken" / "math").mkdir(parents=True)
    (tmp_path / "broken" / "math" / "run_record.json").write_text("{")
    page = write_index(tmp_path).read_text("utf-8")
    assert page.index("new/mt_bench/report.html") < page.index("old/mt_bench/report.html")
    assert "sami against base +1.0 points" in page and "no difference seen" in page
    assert "Principles &lt;followed&gt;" in page, "escaped"
    assert "given: seeds = 3" in page and "1 min 0 s in its nodes" in page
    assert "written by an earlier version" in page
    assert "broken, math" in page and "can&#39;t be read" in page
    assert "<script" not in page
