import pandas as pd
import pytest
from kedro.config import OmegaConfigLoader

from sami_pipeline import PROJECT_FOLDER
from sami_pipeline.experiments.registry import experiments
from sami_pipeline.parameters import JudgeParameters
from sami_pipeline.reporting.contents import CONTENTS, SECTIONS, SHOWN, overviews, whole
from sami_pipeline.result_tables.shown import Estimate, Table, decided, side
from sami_pipeline.session.experiments import experiment_parameters
from sami_pipeline.settings import CONFIG_LOADER_ARGS

TABLES = {part.name: part for part in CONTENTS if isinstance(part, Table) and part.whole}


@pytest.fixture(scope="module")
def made() -> set[str]:
    """Names of all that the two experiments make, without the experiment's."""
    parameters = experiment_parameters("mt_bench")
    evaluation = parameters.evaluation.model_copy(update={"trained_wording": True})
    judge = JudgeParameters(kind="single", model="base")
    rated = parameters.model_copy(update={"judge": judge, "evaluation": evaluation, "seeds": 2})
    math = experiment_parameters("math").model_copy(update={"seeds": 2})
    graphs = [experiments()["mt_bench"].pipeline(rated), experiments()["math"].pipeline(math)]
    return {name.partition(".")[2] for graph in graphs for name in graph.all_outputs()}


def test_whatever_a_report_shows_is_made(made):
    assert set(SHOWN) <= made


@pytest.mark.filterwarnings("ignore:register_new_resolver")
def test_every_result_in_the_reporting_layer_is_shown(made):
    loader = OmegaConfigLoader(str(PROJECT_FOLDER / "conf"), env="base", **CONFIG_LOADER_ARGS)
    results = {
        name.partition(".")[2]
        for name, entry in loader["catalog"].items()
        if "data/08_reporting" in entry.get("filepath", "") and entry["type"] != "text.TextDataset"
    }
    assert results & made - {"run_record", "report"} <= set(SHOWN)


def test_every_part_stands_in_a_section():
    assert {part.section for part in CONTENTS} <= set(SECTIONS)


def test_overview_has_a_row_a_category_a_column_a_match_and_a_grid_a_judge_and_setting(
    mt_bench_tables,
):
    data = mt_bench_tables["win_rates"]
    grids = overviews(TABLES["win_rates"], data)
    asked = [("desired", "1"), ("desired", "both"), ("desired", "2"), ("contrasting", "1")]
    assert [grid.caption for grid in grids] == [
        f"judge: {judge}, constitution: {constitution}, turn: {turn}"
        for judge in ("checklist", "pairwise")
        for constitution, turn in asked
    ], "the headline first; both turns only where there are two"
    assert [grid.folded for grid in grids[:4]] == [False, False, True, False]
    first = grids[0]
    assert first.header == ["category", "sami against base", "dpo against base", "sami against dpo"]
    row = data[(data["constitution"] == "desired") & (data["turn"] == "1")].iloc[0]
    cell = first.rows[0][1]
    assert cell.value == f"{100 * row['adjusted_win_rate']:.1f}"
    low, high = 100 * row["adjusted_ci_low"], 100 * row["adjusted_ci_high"]
    assert cell.interval in (f"[{low:.1f}, {high:.1f}]", "no interval")


def test_bounds_stand_under_win_rates_with_invalid_verdicts_and_nowhere_else(mt_bench_tables):
    data = mt_bench_tables["win_rates"].assign(invalid=0)
    table = TABLES["win_rates"]
    assert not any("could not be read" in grid.note for grid in overviews(table, data))
    row = (data["judge"] == "pairwise") & (data["constitution"] == "desired")
    row &= (data["turn"] == "1") & (data["category"] == "overall") & (data["model"] == "sami")
    row &= data["opponent"] == "base"
    assert row.sum() == 1
    changes = {"invalid": 3, "rows": 5, "if_invalid_lost": 0.25, "if_invalid_won": 0.625}
    data.loc[row, list(changes)] = list(changes.values())
    noted = [grid for grid in overviews(table, data) if "could not be read" in grid.note]
    assert [grid.caption for grid in noted] == ["judge: pairwise, constitution: desired, turn: 1"]
    assert noted[0].note.endswith("sami against base 25.0 to 62.5 (3 of 8 verdicts).")


def test_overviews_of_a_run_lose_no_number(mt_bench_tables, math_tables):
    for tables in (mt_bench_tables, math_tables):
        for name in TABLES.keys() & tables.keys():
            table, data = TABLES[name], tables[name]
            for column, values in (table.where or {}).items():
                data = data[data[column].isin(values)]
            if "turn" in data:  # without a second turn, both are the first
                twice = data.loc[data["turn"] == "2", "constitution"].unique()
                data = data[(data["turn"] != "both") | data["constitution"].isin(twice)]
            if table.ends:
                data = data[data[table.ends].isin([data[table.ends].min(), data[table.ends].max()])]
            grids = overviews(table, tables[name])
            cells = [
                cell
                for grid in grids
                for row in grid.rows
                for cell in row[grid.heads :]
                if cell.interval or cell.value == "–"
            ]
            written = data[table.estimate.value].notna().sum()
            assert sum(cell.value != "–" for cell in cells) == written, name


def test_two_numbers_for_one_cell_give_no_overview_rather_than_lose_one(mt_bench_tables):
    data = mt_bench_tables["degeneration"]
    assert overviews(TABLES["degeneration"], pd.concat([data, data])) == []


def test_whole_table_has_every_row_and_column_of_any_table(mt_bench_tables):
    data = mt_bench_tables["win_rates"].assign(new_column=1e-5)
    grid = whole(data)
    assert len(grid.rows) == len(data)
    assert grid.header[-1] == "new column"
    assert grid.rows[0][-1].value == "1e-05"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.5, 0.6, ""), (0.51, 0.6, "above"), (0.4, 0.49, "below"), (float("nan"), 0.6, "")],
)
def test_side_of_parity_needs_the_whole_interval(low, high, expected):
    assert side(low, high, 0.5) == expected
    assert side(low, high, None) == ""


def test_numbers_are_written_with_interval_sign_and_unit():
    row = {"value": -0.0001, "ci_low": -0.1, "ci_high": 0.1, "metric": "greedy"}
    signed = Estimate("value", signed=True, parity=0.0, other_units=("mean_tokens",))
    assert signed.cell(row).value == "+0.0", "no negative zero"
    assert signed.cell(row).interval == "[−10.0, +10.0]"
    tokens = {**row, "value": 12.34, "metric": "mean_tokens"}
    assert signed.cell(tokens).value == "+12.3", "a length is no percentage"
    missing = {**row, "value": float("nan")}
    assert signed.cell(missing).value == "–"


def win_rate(**changes) -> dict:
    return {"n": 40, "value": 0.6, "ci_low": 0.52, "ci_high": 0.68, "p_holm": 0.01, **changes}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (win_rate(), "above"),
        (win_rate(p_holm=0.06), ""),
        (win_rate(p_holm=float("nan")), ""),
        (win_rate(n=5), ""),
        (win_rate(ci_low=0.49), ""),
        (win_rate(ci_low=0.3, ci_high=0.4), "below"),
    ],
)
def test_a_difference_is_one_only_with_its_interval_its_test_and_enough_clusters(row, expected):
    assert decided(row, Estimate("value", parity=0.5)) == expected


def test_every_grid_of_a_comparison_says_how_small_a_difference_it_would_show(mt_bench_tables):
    for name in ("win_rates", "compliance_difference"):
        table = mt_bench_tables[name]
        for grid in overviews(TABLES[name], table):
            assert grid.note.endswith("With 4 questions no difference could be shown."), name
        size = table["category"].map({"overall": 0.1, "math": 0.2}).fillna(0.4)
        more = table.assign(detectable=size, n=table["category"].map({"overall": 30}).fillna(9))
        more.loc[more["category"] == "writing", "n"] = 3
        for grid in overviews(TABLES[name], more):
            assert "10 points over all categories (30 questions), 40 points in a" in grid.note, name
            assert "With 3 questions no difference could be shown." in grid.note
        for grid in overviews(TABLES[name], more.assign(detectable=3.0)):
            assert "none over all categories (30 questions)" in grid.note, "there is no such one"
