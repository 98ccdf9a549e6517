"""Queries and principles of any shape become the project's, or one line says what is wrong."""

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from kedro.io import AbstractDataset, DatasetError

from sami_pipeline import PROJECT_FOLDER
from sami_pipeline.datasets import PrinciplesSource, QueryTableFile
from sami_pipeline.errors import InputError
from sami_pipeline.inputs.own_queries import (
    ONE_CATEGORY,
    read_principles,
    read_queries,
    split_queries,
)
from sami_pipeline.parameters import QueryColumnsParameters, QuerySplitParameters
from sami_pipeline.schemas import Principles, Queries, Questions
from sami_pipeline.session.input_checks import plain_message

PAIR = {"principle": "Be brief.", "antithesis": "Ramble."}
TWO = pd.DataFrame({"query": ["One?", "Two?"], "kind": ["a", "b"], "n": [1, 2]})


def loaded(dataset: AbstractDataset) -> Any:
    """Load as a run does: what is wrong with a file is one line."""
    try:
        return dataset.load()
    except DatasetError as error:
        raise InputError(plain_message(error)) from error


def table_of(folder: Path, name: str, content: bytes) -> pd.DataFrame:
    (folder / name).write_bytes(content)
    return loaded(QueryTableFile(name, "align.queries", folder))


def principles_of(folder: Path, content: str):
    (folder / "mine.yml").write_text(content, "utf-8")
    return loaded(PrinciplesSource("mine.yml", "align.principles", folder))


def test_embedded_posts_are_many_different_in_length_and_split_in_three():
    table = QueryTableFile("data/01_raw/align/posts.csv", "align.queries", PROJECT_FOLDER).load()
    queries = read_queries(table, QueryColumnsParameters())
    assert len(queries) >= 60
    words = queries["query"].str.split().str.len()
    assert words.max() > 5 * words.min()
    trained, asked = split_queries(queries, QuerySplitParameters())
    Queries.validate(trained)
    Questions.validate(asked)
    assert len(trained) + len(asked) == len(queries)
    assert not set(trained["query_id"]) & set(asked["question_id"])
    assert set(trained["split"]) == {"train", "held_out"}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz"])
def test_every_kind_of_table_gives_the_same_queries(tmp_path, suffix):
    texts = ['A "quoted", long\nquery?', "Ünïcode?"]
    table = pd.DataFrame({"ask": texts})
    path = tmp_path / f"mine{suffix}"
    match suffix:
        case ".jsonl":
            path.write_text("\n".join(json.dumps({"ask": text}) for text in texts), "utf-8")
        case ".parquet":
            table.to_parquet(path)
        case ".csv.gz":
            path.write_bytes(gzip.compress(table.to_csv(index=False).encode()))
        case _:
            table.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    loaded = QueryTableFile(path.name, "align.queries", tmp_path).load()
    assert read_queries(loaded, QueryColumnsParameters(query="ask"))["query"].tolist() == texts


def test_columns_are_mapped_and_rows_are_chosen():
    table = pd.DataFrame(
        {
            "info": [{"post": "\n\nHuman: Hi.\n\nAssistant: Yes."}, {"post": "Human: Why?"}] * 2,
            "kind": ["a", "a", "b", "b"],
        }
    )
    columns = QueryColumnsParameters(
        query="info.post", category="kind", where={"kind": "b"}, starts_after="Human: ",
        ends_before="\n\nAssistant:", wording="Say: {query}",
    )  # fmt: skip
    queries = read_queries(table, columns)
    assert queries.values.tolist() == [["3", "b", "Say: Hi."], ["4", "b", "Say: Why?"]]


def test_the_split_is_the_same_again_and_in_every_category():
    queries = pd.DataFrame(
        [(f"{i:02d}", "many" if i < 20 else "few", f"q{i}") for i in range(23)],
        columns=["query_id", "category", "query"],
    )
    split = QuerySplitParameters(test=0.25, held_out=0.1, seed=3)
    trained, asked = split_queries(queries, split)
    assert asked["category"].value_counts().to_dict() == {"many": 5, "few": 1}
    held_out = trained[trained["split"] == "held_out"]
    assert held_out["category"].value_counts().to_dict() == {"many": 2}
    again = split_queries(queries.sample(frac=1, random_state=0).sort_index(), split)
    assert again[0].equals(trained)
    most = split_queries(queries, split.model_copy(update={"most": 4}))
    assert len(most[0]) + len(most[1]) == 4 + 3


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.csv", b"", ["a.csv", "no rows"]),
        ("a.csv", b"query\n", ["a.csv", "no rows"]),
        ("a.csv", b"query,kind\nOne?\n", ["a.csv", "line 2", "1 fields", "quotes"]),
        ("a.csv", b"query,query\na,b\n", ["a.csv", "'query' stands twice"]),
        ("a.csv", "query\nGrüße?\n".encode("latin-1"), ["a.csv", "line 2", "UTF-8"]),
        ("a.jsonl", b'{"query": "One?"}\n{"query": \n', ["a.jsonl", "line 2", "JSON"]),
        ("a.parquet", b"PAR1 no", ["a.parquet", "parquet"]),
        ("a.xlsx", b"PK", ["a.xlsx", ".xlsx", ".csv"]),
        ("a.csv.gz", gzip.compress(b"query\nOne?\n")[:-9], ["a.csv.gz", "can't be read"]),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_read_is_one_line_with_file_and_remedy(
    tmp_path, name, content, parts
):
    with pytest.raises(InputError) as error:
        table_of(tmp_path, name, content)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("align.queries: ")
    for part in parts:
        assert part in message


def test_a_table_that_is_not_there_is_named_with_its_parameter(tmp_path):
    with pytest.raises(InputError, match=r"align\.queries: .*mine\.csv: does not exist"):
        loaded(QueryTableFile("mine.csv", "align.queries", tmp_path))


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        (TWO, {"query": "text"}, r"columns\.query: .* no column 'text'; it has query, kind, n"),
        (TWO, {"category": "topic"}, r"columns\.category: .* no column 'topic'"),
        (TWO, {"where": {"kind": "c"}}, "no row of the table has this"),
        (TWO, {"query": "n"}, "row 1: n: holds 1, which is no text"),
        (TWO.assign(query=["a", " "]), {}, "row 2: query: is empty"),
        (TWO.assign(query=["a", "a "]), {}, "row 2: query: is the query of row 1 .* drop"),
        (TWO.assign(kind=["a", None]), {"category": "kind"}, "row 2: kind: is empty"),
        (TWO.assign(kind="overall"), {"category": "kind"}, "names a row of the results"),
        (TWO, {"starts_after": "Human: "}, "row 1: query: does not hold 'Human: '"),
        (TWO.assign(kind=[["a", "b"], ["c"]]), {"category": "kind"}, r"row 1: kind: holds \['a'"),
        (TWO.assign(kind=[b"a", b"b"]), {"category": "kind"}, "row 1: kind: holds b'a'"),
        (TWO.assign(kind=["a", pd.NA]), {"category": "kind"}, "row 2: kind: is empty"),
        (TWO.assign(kind=["a", "a\nb"]), {"category": "kind"}, "row 2: kind: .* in one line"),
        (TWO.assign(kind=["a", "b" * 201]), {"category": "kind"}, "row 2: kind: .* at most 200"),
        (TWO.assign(kind=[["a", "b"], pd.NA]), {"where": {"kind": "a"}}, "no row of the table has"),
        (TWO.assign(query=["a", "\u200b\u200e"]), {}, "row 2: query: is empty"),
    ],
)
def test_what_is_wrong_with_a_query_is_said_with_its_row_and_column(table, columns, message):
    with pytest.raises(InputError, match=message):
        read_queries(table, QueryColumnsParameters(**columns))


def test_duplicates_are_dropped_where_that_is_asked_for():
    table = TWO.assign(query=["a", "a"])
    assert len(read_queries(table, QueryColumnsParameters(duplicates="drop"))) == 1


def test_too_few_queries_to_split_are_refused():
    queries = read_queries(TWO, QueryColumnsParameters())
    with pytest.raises(InputError, match="2 queries are too few to split"):
        split_queries(queries, QuerySplitParameters())


def test_principles_without_ids_and_checks_are_taken_for_every_category():
    table = Principles.validate(read_principles({"principles": [PAIR, PAIR]}, ["b", "a", "b"]))
    assert table["category"].tolist() == ["a", "a", "b", "b"]
    assert table["principle"].tolist() == ["principle_1", "principle_2"] * 2
    assert (table["check"] == "").all()


def test_principles_by_category_are_taken_for_theirs():
    content = {"categories": {"a": [PAIR], "b": [PAIR | {"id": "terse"}]}}
    assert read_principles(content, ["b"])["principle"].tolist() == ["terse"]
    with pytest.raises(InputError, match="categories: none for c"):
        read_principles(content, ["a", "c"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no principles"),
        ("[]", "holds no principles"),
        ("principles: []", "holds no principles"),
        ("principles:\n- {principle: Be brief.}", r"principles\.0\.antithesis: is missing"),
        (
            "principles:\n- {principle: a, antithesis: b, check: {name: nothing}}",
            r"principles\.0\.check",
        ),
        ("rules: []", "rules: is no field that is known here"),
        ("principles: [", r"mine\.yml: line 1: is no valid YAML"),
    ],
)
def test_principles_that_cannot_be_used_are_one_line(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as error:
        read_principles(principles_of(tmp_path, content), [ONE_CATEGORY])
    assert str(error.value).count("\n") == 0
    assert "align.principles" in str(error.value)


def test_published_constitutions_give_a_principle_for_each_pair_of_identifiers(tmp_path):
    brief, long, full, partial = "Be brief.", "Be long.", "Say all.", "Say little."
    files = [
        ((brief, full), ("pos short", "pos full"), (long, full), ("neg short", "pos full")),
        ((full, brief), ("pos full", "pos short"), (partial, brief), ("neg full", "pos short")),
    ]
    for number, (positive, good, negative, bad) in enumerate(files):
        sides = {"positive": (positive, good), "negative": (negative, bad)}
        content = {
            side: " \n".join(f"{i}. {text}" for i, text in enumerate(texts, 1))
            for side, (texts, _) in sides.items()
        } | {"identifiers": {side: list(names) for side, (_, names) in sides.items()}}
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
    source = PrinciplesSource(str(tmp_path), "align.principles", tmp_path)
    table = read_principles(source.load(), [ONE_CATEGORY])
    assert table[["principle", "statement", "antithesis"]].values.tolist() == [
        ["full", full, partial],
        ["short", brief, long],
    ]
    (tmp_path / "1.json").write_text(json.dumps({"positive": "1. a"}))
    with pytest.raises(InputError, match=r"1\.json: positive: is no numbered list"):
        read_principles(source.load(), [ONE_CATEGORY])
