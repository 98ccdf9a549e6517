import json
import shutil

import numpy as np
import pandas as pd
import pytest

from sami_pipeline.evaluation.intervals import mean_interval
from sami_pipeline.models.checkpoints import Checkpoint
from sami_pipeline.models.prompts import Prompt
from sami_pipeline.schemas import HeldOut
from sami_pipeline.training.data import (
    HELD_OUT_METRICS,
    held_out_table,
    mark_too_long,
    select_grids,
)


@pytest.fixture(scope="module")
def encoder(random_checkpoint):
    return random_checkpoint.load_encoder()


def response_rows(n_constitutions=3) -> pd.DataFrame:
    """Return responses whose texts say which query and constitution they belong to."""
    queries = {
        "a": ("train", "usable"),
        "b": ("held_out", "usable"),
        "c": ("train", "empty"),
        "d": ("train", "usable"),
        "e": ("held_out", "degenerate"),
    }
    return pd.DataFrame(
        [
            {
                "query_id": query_id,
                "grid": 0,
                "constitution_index": index,
                "split": split,
                "status": status,
                "prompt": Prompt(text=f"prompt {query_id}{index}").to_json(),
                "training_prompt": Prompt(text=f"prompt {query_id}{index}").to_json(),
                "response": f"response {query_id}{index}",
                "finish_reason": "stop" if index % 2 else "length",
                "end_token": "",
            }
            for query_id, (split, status) in queries.items()
            for index in range(n_constitutions)
        ]
    )


def texts(encoder, sequences) -> list[str]:
    return [encoder.tokenizer.decode(ids) for ids in sequences]


@pytest.mark.parametrize(("split", "queries"), [("train", "ad"), ("held_out", "b")])
def test_grids_are_those_of_the_usable_queries_of_the_split(encoder, split, queries):
    grids = select_grids(response_rows(), split, encoder)
    first = [texts(encoder, grid.prompt_ids)[0] for grid in grids]
    assert first == [f"prompt {query}0" for query in queries]


def test_a_grid_that_is_too_long_for_the_student_is_marked_and_the_rest_is_trained_on(
    encoder, random_checkpoint, tmp_path
):
    folder = shutil.copytree(random_checkpoint.folder, tmp_path / "short")
    config = json.loads((folder / "config.json").read_text())
    rows = response_rows()
    long = (rows["query_id"] == "d") & (rows["constitution_index"] == 1)
    rows.loc[long, "response"] = "response d1" * 2
    lengths = {
        key: max(map(len, grid.prompt_ids)) + max(map(len, grid.response_ids))
        for key, grid in zip("ad", select_grids(rows, "train", encoder), strict=True)
    }
    assert lengths["a"] < lengths["d"]
    for positions, marked in ((lengths["d"], ""), (lengths["d"] - 1, "d"), (lengths["a"], "d")):
        (folder / "config.json").write_text(
            json.dumps({**config, "max_position_embeddings": positions})
        )
        found = mark_too_long(rows, Checkpoint(folder))
        left_out = found["status"] == "too_long_for_student"
        assert set(found.loc[left_out, "query_id"]) == set(marked)
        assert left_out.sum() == 3 * len(marked), "the whole grid is left out"
        others = ~left_out
        assert found.loc[others, "status"].equals(rows.loc[others, "status"])
        assert len(select_grids(found, "train", encoder)) == 2 - len(marked)


def test_each_pair_of_a_query_is_a_grid(encoder):
    rows = response_rows(n_constitutions=4)
    rows["grid"] = rows["constitution_index"] // 2
    # One bad response spoils its own pair alone.
    rows.loc[(rows["query_id"] == "d") & (rows["grid"] == 0), "status"] = "empty"
    grids = select_grids(rows, "train", encoder)
    assert [texts(encoder, grid.prompt_ids) for grid in grids] == [
        [f"prompt {name}" for name in pair] for pair in (("a0", "a1"), ("a2", "a3"), ("d2", "d3"))
    ]


def test_response_and_prompt_of_one_constitution_stand_on_the_diagonal(encoder):
    for grid in select_grids(response_rows(), "train", encoder, train_on_eos=False):
        assert grid.shape == (3, 3)
        pairs = zip(*(texts(encoder, i) for i in (grid.prompt_ids, grid.response_ids)), strict=True)
        for index, (prompt, response) in enumerate(pairs):
            assert prompt.removeprefix("prompt ") == response.removeprefix("response ")
            assert prompt.endswith(str(index))


def test_order_of_the_rows_in_the_table_changes_nothing(encoder):
    rows = response_rows(n_constitutions=4)
    expected = select_grids(rows, "train", encoder)
    for seed in range(5):
        shuffled = rows.sample(frac=1, random_state=seed)
        assert not shuffled["query_id"].is_monotonic_increasing
        assert select_grids(shuffled, "train", encoder) == expected


def test_only_responses_that_ended_by_themselves_have_an_end_to_learn(encoder):
    end = encoder.tokenizer.eos_token_id
    for grid in select_grids(response_rows(), "train", encoder):
        assert [ids.count(end) for ids in grid.response_ids] == [0, 1, 0]
    for grid in select_grids(response_rows(), "train", encoder, train_on_eos=False):
        assert not any(end in ids for ids in grid.response_ids)


def test_chat_prompts_are_rendered_by_the_students_tokenizer(encoder):
    rows = response_rows(n_constitutions=2)
    prompt = Prompt(messages=(("user", "Hi"),))
    rows["training_prompt"] = prompt.to_json()
    (grid, _) = select_grids(rows, "train", encoder)
    expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert texts(encoder, grid.prompt_ids)[0] == expected


def test_split_without_usable_queries_has_no_grids(encoder):
    rows = response_rows()
    assert select_grids(rows[rows["status"] != "usable"], "train", encoder) == []


def measured(shift=0.0, n=6) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    values = {metric: generator.uniform(0.1, 0.5, n) + shift for metric in HELD_OUT_METRICS}
    return pd.DataFrame(values)


def test_held_out_table_has_every_metric_before_and_after_and_their_difference():
    table = held_out_table("sami", {"before": measured(), "after": measured(0.25)})
    HeldOut.validate(table)
    assert table[["stage", "metric"]].apply(tuple, axis=1).tolist() == [
        (stage, metric)
        for stage in ("before", "after", "difference")
        for metric in HELD_OUT_METRICS
    ]
    assert set(table["n"]) == {6}


def test_held_out_values_are_means_over_grids_with_intervals():
    before = measured()
    table = held_out_table("sami", {"before": before})
    for row in table.itertuples():
        values = before[row.metric]
        limits = (0, 1) if row.metric.endswith("accuracy") else None
        expected = mean_interval(values, range(6), limits=limits)
        assert row.value == pytest.approx(values.mean())
        assert (row.ci_low, row.ci_high) == (expected.low, expected.high)
        assert row.ci_low < row.value < row.ci_high


def test_difference_is_paired_by_grid():
    table = held_out_table("sami", {"before": measured(), "after": measured(0.25)})
    difference = table[table["stage"] == "difference"]
    # Every grid moved by the same amount, so there is no uncertainty although grids differ.
    assert difference["value"].tolist() == pytest.approx([0.25] * len(HELD_OUT_METRICS))
    nats = difference[~difference["metric"].str.endswith("accuracy")]
    for column in ("ci_low", "ci_high"):
        assert nats[column].tolist() == pytest.approx([0.25] * len(nats))


def test_nothing_held_out_gives_an_empty_table_that_the_catalog_accepts():
    table = held_out_table("sami", {})
    assert table.empty
    HeldOut.validate(table)


def test_one_held_out_query_has_a_value_and_no_interval():
    table = held_out_table("sami", {"before": measured(n=1)})
    HeldOut.validate(table)
    assert table["value"].notna().all()
    assert table[["ci_low", "ci_high"]].isna().all(axis=None)
