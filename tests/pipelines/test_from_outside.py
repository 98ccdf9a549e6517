"""What a module outside of the project registers runs like what the project has itself."""

import json
import re
import subprocess
import sys

import pandas as pd
import pytest
import yaml

from sami_pipeline.engines import registry as engines
from sami_pipeline.experiments import registry as experiments
from sami_pipeline.training.baselines import registry as baselines
from sami_pipeline.training.baselines.record import Baseline


def block(page: str, path: str) -> str:
    """Return the file that a page of the docs has its reader write."""
    found = re.search(
        rf"<!-- example: write {re.escape(path)} -->\n```\w+\n(.*?)^```$", page, re.M | re.S
    )
    return found[1]


@pytest.fixture
def examples(project_folder, tmp_path):
    """The examples of the docs as modules of a folder outside of the project."""
    folder = tmp_path / "outside"
    folder.mkdir()
    for page, package, module in (
        ("add_experiment", "experiments", "haiku"),
        ("add_baseline", "training/baselines", "sft_part"),
        ("add_engine", "engines", "echo_engine"),
    ):
        text = (project_folder / "docs" / f"{page}.md").read_text("utf-8")
        code = block(text, f"src/sami_pipeline/{package}/{module}.py")
        inside = f"sami_pipeline.{package.replace('/', '.')}.{module}"
        (folder / f"{module}.py").write_text(code.replace(inside, module), "utf-8")
    page = (project_folder / "docs" / "add_experiment.md").read_text("utf-8")
    principles = folder / "principles"
    principles.mkdir()
    (principles / "haiku.yml").write_text(block(page, "data/01_raw/haiku/haiku.yml"), "utf-8")
    parameters = yaml.safe_load(block(page, "conf/base/parameters/haiku.yml"))
    catalog = yaml.safe_load(block(page, "conf/base/catalog/haiku.yml"))
    catalog["haiku.principle_files"]["path"] = str(principles)
    return folder, parameters, catalog


def test_an_experiment_a_baseline_and_an_engine_registered_from_outside_run_to_its_report(
    examples, changed_conf, project_folder, run_name
):
    folder, parameters, catalog = examples
    changed_conf("parameters/haiku.yml", parameters)
    conf, run = changed_conf("catalog/haiku.yml", catalog), run_name()
    script = project_folder / "tests" / "outside" / "run_from_outside.py"
    finished = subprocess.run(
        [sys.executable, script, project_folder, conf, run, folder],
        cwd=project_folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    results = project_folder / "data" / "08_reporting" / run / "haiku"
    rates = pd.read_parquet(results / "win_rates.parquet")
    assert {*rates["model"], *rates["opponent"]} == {"base", "sami", "sft_part"}
    assert set(rates["category"]) == {"haiku", "overall"}
    held_out = pd.read_parquet(results / "held_out.parquet")
    assert set(held_out["model"]) == {"sami", "sft_part"}
    answers = pd.read_parquet(
        project_folder / "data/07_model_output" / run / "haiku" / "answers.parquet"
    )
    assert (answers["answer"].str.split().str.len() == 3).all(), "written by the echo engine"
    page = (results / "report.html").read_text("utf-8")
    assert "<title>SAMI on poems" in page
    assert "sft_part</dt><dd>trained on half of the queries" in page
    drawn = [
        json.loads((results / f"{name}.json").read_text())
        for name in ("win_rates", "learning_curve")
    ]
    colours = [
        {
            trace["marker"]["color"] if "marker" in trace else trace["line"]["color"]
            for trace in figure["data"]
            if trace.get("name", "").startswith("sft_part")
        }
        for figure in drawn
    ]
    assert colours[0] == colours[1], "one colour in all figures"
    assert len(colours[0]) == 1


def test_a_name_is_taken_once():
    taken = experiments.experiments()["math"]
    with pytest.raises(ValueError, match="'math' already"):
        experiments.register(taken)
    for name in ("sami", "dpo"):
        with pytest.raises(ValueError, match=f"'{name}' already"):
            baselines.register(Baseline(name=name, method="a:b"))
    with pytest.raises(ValueError, match="'vllm' already"):
        engines.register(engines.engine_kinds()["vllm"])
    with pytest.raises(ValueError, match="'nobody' is no baseline"):
        baselines.register(Baseline(name="other", starts_from="nobody"))
