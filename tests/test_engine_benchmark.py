"""The benchmark compares ways of writing the same responses."""

import json
import os
import shutil
import sys
import time
import uuid
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import engines as benchmark


@pytest.fixture(scope="module")
def task(random_checkpoint):
    texts = ["One", "Two, and a little longer", "Three"]
    asked = [
        {"prompt": json.dumps({"text": text}), "sample": 0, "temperature": temperature, "stop": []}
        for text in texts
        for temperature in (0.0, 0.7)
    ]
    folder = random_checkpoint.folder
    requests = benchmark.with_texts([each | {"tokens": 6} for each in asked], folder)
    return {"folder": str(folder), "batch_size": 2, "requests": requests}


@pytest.mark.parametrize("way", ["transformers", "plain generate"])
def test_every_way_answers_all_requests(task, way):
    found = benchmark.in_own_process(way, task)
    assert 3 * 6 < found["tokens"] <= 6 * 6
    assert found["seconds"] > 0


@pytest.mark.vllm
@pytest.mark.parametrize("way", ["vllm", "LLM.generate"])
def test_every_way_with_vllm_answers_all_requests(task, way):
    assert 3 * 6 < benchmark.in_own_process(way, task)["tokens"] <= 6 * 6


def test_matrix_products_alone_take_less_than_the_engine(task):
    found = benchmark.in_own_process("transformers", task)
    ceiling = benchmark.in_own_process("ceiling", task | {"written": found["tokens"]})
    assert 0 < ceiling["seconds"] < found["seconds"]
    assert ceiling["tokens"] == found["tokens"]


def test_a_neighbour_keeps_a_core_busy_and_leaves():
    with benchmark.neighbour(True):
        started = os.times()
        time.sleep(0.3)
    used = os.times().children_user - started.children_user
    assert used > 0.05


def test_requests_are_those_of_a_run_with_the_settings_of_the_defaults():
    run = f"pytest_{uuid.uuid4().hex[:12]}"
    prompt = json.dumps({"text": "One"})
    tables = {
        "07_model_output/{}/mt_bench/answers.parquet": [
            {"model": model, "question_id": question, "category": category, "turn": 1,
             "prompt": prompt}
            for model in ("base", "sft")
            for question, category in (("81", "writing"), ("82", "math"), ("83", "math"))
        ],
        "04_feature/{}/mt_bench/generations.parquet": [{"query_id": "q1", "prompt": prompt}],
        "07_model_output/{}/math/attempts.parquet": [
            {"model": "base", "problem_id": "p1", "attempt": attempt, "prompt": prompt}
            for attempt in (0, 1)
        ],
    }  # fmt: skip
    data = benchmark.PROJECT / "data"
    try:
        for place, rows in tables.items():
            path = data / place.format(run)
            path.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows).to_parquet(path)
        asked = benchmark.requests_of(run, (2, 1, 1), None)
    finally:
        for layer in ("07_model_output", "04_feature"):
            shutil.rmtree(data / layer / run, ignore_errors=True)
    answers, responses, attempts = asked.values()
    assert [each["temperature"] for each in answers] == [0.7, 0.0]  # one of two questions
    assert [each["tokens"] for each in responses] == [192]
    assert [each["sample"] for each in attempts] == [0, 1]
    assert [each["temperature"] > 0 for each in attempts] == [False, True]


def test_measurements_become_a_table_and_their_section_of_the_page(tmp_path, monkeypatch):
    found = {
        "plain generate": [{"seconds": 2.0, "tokens": 100}, {"seconds": 4.0, "tokens": 100}],
        "transformers": [{"seconds": 1.5, "tokens": 100}],
    }
    text = benchmark.table(found, {"seconds": 1.0, "tokens": 100})
    assert "| 3.0 [2.0, 4.0] | 100 | 38 | 1.00 | 38% |" in text
    assert "| 1.5 [1.5, 1.5] | 100 | 67 | 1.78 | 67% |" in text
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- measured: begin -->\nold\n<!-- measured: end -->\nafter\n")
    monkeypatch.setattr(benchmark, "PAGE", page)
    benchmark.write_page(text)
    written = page.read_text()
    assert text in written
    assert "old" not in written
    assert written.startswith("before") and written.endswith("after\n")
