"""Tables that stay on disk are read like those in memory."""

import pandas as pd
import pytest
from kedro.io import DatasetError
from pandera.errors import SchemaError, SchemaErrors

from sami_pipeline.datasets import StoredParquet
from sami_pipeline.evaluation.length_control import with_lengths
from sami_pipeline.evaluation.statistics import degeneration
from sami_pipeline.pipelines import combine_tables
from sami_pipeline.principles.constitutions import tabulate_principles
from sami_pipeline.principles.statements import check_answers
from sami_pipeline.schemas import Answers, Verdicts
from sami_pipeline.tables import StoredTable, columns_of, parts_of

PRINCIPLES = tabulate_principles(
    {
        "writing.yml": {
            "category": "writing",
            "principles": [
                {
                    "id": "letter", "principle": "Write a letter.", "antithesis": "Write none.",
                    "check": {"name": "letter", "greeting": "Dear"},
                    "antithesis_check": {"name": "no_letter", "greeting": "Dear"},
                },
                {
                    "id": "detailed", "principle": "Write a lot.", "antithesis": "Write little.",
                    "check": {"name": "minimum_words", "words": 41},
                    "antithesis_check": {"name": "maximum_words", "words": 30},
                },
            ],
        }
    }
)  # fmt: skip
STANCES = '[["letter", "principle"], ["detailed", "antithesis"]]'


def answers(model: str, count: int = 7) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": model,
            "question_id": [str(number) for number in range(count)],
            "category": "writing",
            "turn": 1,
            "constitution": "desired",
            "stances": STANCES,
            "prompt": "{}",
            "answer": [f"Dear {model}, here are {number} eggs." for number in range(count)],
            "finish_reason": "stop",
            "prompt_tokens": 5,
            "completion_tokens": range(count),
            "degenerate": [number == 3 for number in range(count)],
        }
    )


@pytest.fixture
def stored(tmp_path) -> StoredTable:
    """Two models' answers in two files."""
    paths = []
    for model in ("base", "sami"):
        paths.append(tmp_path / f"{model}.parquet")
        answers(model).to_parquet(paths[-1])
    return StoredTable(*paths)


@pytest.fixture
def whole() -> pd.DataFrame:
    return pd.concat([answers("base"), answers("sami")], ignore_index=True)


def test_all_parts_together_are_the_whole_table(stored, whole):
    assert len(stored) == len(whole) == 14
    assert stored.columns == list(whole)
    pd.testing.assert_frame_equal(stored.read(), whole)
    for rows in (1, 3, 100):
        parts = list(stored.parts(rows=rows))
        assert max(map(len, parts)) == min(rows, 7)
        pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), whole)


def test_columns_and_parts_are_the_same_of_a_table_in_memory_and_on_disk(stored, whole):
    wanted = ["answer", "turn", "nowhere"]
    read = columns_of(stored, wanted)
    assert list(read) == ["answer", "turn"]
    pd.testing.assert_frame_equal(read, columns_of(whole, wanted))
    for table in (stored, whole):
        parts = list(parts_of(table, wanted, rows=5))
        assert max(map(len, parts)) == 5
        pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), read)


def test_what_reads_answers_gives_the_same_for_a_stored_table(stored, whole):
    verdicts = whole[whole["model"] == "sami"].assign(opponent="base")
    for function in (
        lambda table: check_answers(table, PRINCIPLES),
        degeneration,
        lambda table: with_lengths(verdicts, table),
    ):
        pd.testing.assert_frame_equal(function(stored), function(whole))


def test_stored_tables_are_combined_without_being_read_and_saved_as_one_file(
    stored, whole, tmp_path
):
    combined = combine_tables(*(StoredTable(path) for path in stored.paths))
    assert combined.paths == stored.paths
    dataset = StoredParquet(filepath=str(tmp_path / "answers.parquet"))
    dataset.save(combined)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "answers.parquet"), whole)
    dataset.save(whole)
    pd.testing.assert_frame_equal(dataset.load().read(), whole)


def test_contract_is_kept_by_every_part_of_a_stored_table(stored, tmp_path):
    assert Answers.validate(stored) is stored
    answers("dpo").assign(turn=3).to_parquet(tmp_path / "odd.parquet")
    with pytest.raises((SchemaError, SchemaErrors), match="turn"):
        Answers.validate(StoredTable(*stored.paths, tmp_path / "odd.parquet"))


def test_rows_that_are_there_twice_are_found_across_parts(stored):
    with pytest.raises((SchemaError, SchemaErrors), match="question_id"):
        Answers.validate(StoredTable(*stored.paths, stored.paths[0]))


def test_damaged_file_is_an_error_of_its_dataset(tmp_path):
    path = tmp_path / "answers.parquet"
    answers("base").to_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=r"answers\.parquet"):
        StoredParquet(filepath=str(path)).load()


def test_a_table_without_rows_names_no_training_seeds():
    empty = Verdicts.empty()
    assert "seed" not in empty
    row = {"model": "a", "opponent": "b", "question_id": "1", "category": "c", "turn": 1}
    row |= {"constitution": "desired", "winner": "tie", "judge": "j"}
    judged = pd.DataFrame([row | {"model_score": 0.0, "opponent_score": 0.0}])
    assert Verdicts.validate(combine_tables(empty, judged)).to_dict("records")[0]["judge"] == "j"
