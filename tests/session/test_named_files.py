"""Files that a parameter names count by what they hold, not by their name alone."""

import os

import pytest

from sami_pipeline.session import provenance

WAYS = {
    "a folder of a model": lambda place: {"sources": {"base": f"folder:{place / 'model'}"}},
    "a file of weights": lambda place: {"sources": {"base": f"gguf:{place / 'model' / 'w'}"}},
    "problems by split": lambda place: {"source": f"gsm8k:{place}/{{split}}.jsonl"},
    "a bare path": lambda place: {"folder": str(place / "model")},
    "a path in a list": lambda place: [{"file": str(place / "train.jsonl")}],
}


@pytest.fixture
def place(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "w").write_text("weights")
    (tmp_path / "train.jsonl").write_text("problems")
    return tmp_path


@pytest.mark.parametrize("way", WAYS)
def test_other_content_under_the_same_name_is_another_input(place, way):
    parameter = WAYS[way](place)
    before = provenance._of(parameter)
    assert provenance._of(parameter) == before
    for file in (place / "model" / "w", place / "train.jsonl"):
        status = file.stat()
        file.write_text(file.read_text()[::-1])
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert provenance._of(parameter) != before


def test_a_large_file_counts_by_its_last_change(place):
    weights = place / "model" / "w"
    with weights.open("wb") as file:
        file.truncate(provenance._LARGEST_HASHED + 1)
    parameter = WAYS["a folder of a model"](place)
    before = provenance._of(parameter)
    os.utime(weights, ns=(0, 0))
    assert provenance._of(parameter) != before


@pytest.mark.parametrize(
    "text", ["random:0", "hub:owner/name", "https://a.b/c", "and/or", "a/" * 3000, "x/\0", ""]
)
def test_what_names_no_file_counts_as_its_text(text):
    assert provenance._of({"a": text}) == provenance._digest({"a": text})
