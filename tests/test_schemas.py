"""Rows become a table that keeps its contract."""

import pandas as pd
import pytest

from sami_pipeline.schemas import Attempts, Checked, HeldOut

ROW = {
    "passed": True,
    "degenerate": False,
    "model": "base",
    "question_id": "q",
    "category": "math",
    "turn": 1,
    "constitution": "desired",
    "principle": "brief",
    "stance": "principle",
    "check": "maximum_words",
    "asked": "at most 30 words",
    "evidence": "12 words",
    "more": 1.5,
}


def test_rows_have_the_columns_of_the_contract_those_that_name_a_row_first():
    table = Checked.validate(Checked.tabulate([ROW]))
    assert table.columns.tolist()[:5] == [
        "model", "question_id", "turn", "constitution", "principle",
    ]  # fmt: skip
    assert "more" not in table
    assert next(iter(Attempts.empty())) == "model"


@pytest.mark.parametrize("seeds", [[], [0, 1]])
def test_training_seeds_stay_where_there_are_some_and_keep_their_type(seeds):
    rows = pd.DataFrame([ROW | {"seed": seed} for seed in seeds], columns=[*ROW, "seed"])
    table = Checked.validate(Checked.tabulate(rows))
    assert table["seed"].dtype == int
    assert len(Checked.validate(pd.concat([table, table.assign(question_id="other")]))) == 2 * len(
        seeds
    )


def test_no_rows_have_the_types_of_some():
    empty, table = HeldOut.tabulate([]), Checked.tabulate([ROW])
    assert HeldOut.validate(empty).empty
    assert Checked.tabulate(table[:0]).dtypes.equals(table.dtypes)


def test_a_missing_column_is_never_filled():
    # A missing boolean would otherwise be true.
    with pytest.raises(KeyError, match="passed"):
        Checked.tabulate([{name: value for name, value in ROW.items() if name != "passed"}])
