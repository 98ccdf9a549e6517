"""Encodings of files that people write: one remedy for all, and a byte order mark is no text."""

import json

import pytest
from kedro.io import DatasetError

from sami_pipeline.datasets.query_files import PrinciplesSource, QueryTableFile
from sami_pipeline.errors import InputError
from sami_pipeline.inputs import answer_files, text_files, yaml_files

TEXT = "query,note\nGrüße?,„so“\n"


@pytest.mark.parametrize(
    ("encoding", "named"),
    [
        ("cp1252", ["line 2", "Windows-1252"]),
        ("cp1250", ["line 2", "Windows-1252"]),
        ("utf-16", ["UTF-16"]),
        ("utf-16-le", ["UTF-16"]),
        ("utf-16-be", ["UTF-16"]),
    ],
)
def test_another_encoding_is_named_with_the_remedy(encoding, named, tmp_path):
    path = tmp_path / "queries.csv"
    path.write_bytes(TEXT.encode(encoding))
    with pytest.raises(DatasetError) as caught:
        QueryTableFile(str(path), "align.queries", tmp_path).load()
    message = str(caught.value.__cause__)
    for part in [*named, str(path), "save the file as UTF-8 (Excel: CSV UTF-8)"]:
        assert part in message
    assert "Grü" not in message


def test_a_byte_order_mark_is_read_in_every_kind_of_file(tmp_path):
    def file(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_bytes(text.encode("utf-8-sig"))
        return str(path)

    for name, text in {
        "a.csv": "query\nWhy?\n", "a.tsv": "query\nWhy?\n", "a.jsonl": '{"query": "Why?"}\n'
    }.items():  # fmt: skip
        table = QueryTableFile(file(name, text), "align.queries", tmp_path).load()
        assert table.to_dict("list") == {"query": ["Why?"]}, name
    read = PrinciplesSource(file("a.yml", "principles: []\n"), "align.principles", tmp_path).load()
    assert read == {"principles": []}
    folder = tmp_path / "constitutions"
    folder.mkdir()
    file("constitutions/a.json", "{}")
    read = PrinciplesSource(str(folder), "align.principles", tmp_path).load()
    assert read == {"a.json": {}}
    assert yaml_files.parse("a: 1\n".encode("utf-8-sig"), "a.yml") == {"a": 1}
    published = tmp_path / "published.json"
    published.write_bytes("[]".encode("utf-8-sig"))
    assert answer_files._json(published) == []


def test_lines_of_json_end_at_line_feeds_alone_and_a_mark_within_is_passed_over():
    lines = [json.dumps({"a": text}, ensure_ascii=False) for text in ("x\u2028y", "x\x85y")]
    content = f"{lines[0]}\r\n\ufeff{lines[1]}\n\n".encode()
    read = list(text_files.json_lines(content, "f"))
    assert read == [("f: line 1", {"a": "x\u2028y"}), ("f: line 2", {"a": "x\x85y"})]


@pytest.mark.parametrize("line", ['{"a": 1, "a": 2}', '{"b": [{"a": 1, "a": 1}]}'])
def test_a_key_that_stands_twice_is_named_at_any_depth(line):
    with pytest.raises(InputError, match=r"f: line 2: .*the key 'a' stands twice"):
        list(text_files.json_lines(f"{{}}\n{line}\n".encode(), "f"))
