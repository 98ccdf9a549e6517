"""Notebooks run from a clean kernel and are in git without what they showed."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_the_three_notebooks_are_there():
    assert {path.stem for path in NOTEBOOKS} == {
        "training_prompts",
        "sami_in_twenty_lines",
        "reading_results",
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs"), f"{path.name}: clear all outputs before committing"
        assert cell.get("execution_count") is None, path.name


@pytest.fixture(scope="module")
def executed(worked_example):
    """Return a function that runs a notebook on a run of the test environment.

    It is the run of the page on categories, which is a whole one, so that none is made twice.
    """
    project = worked_example("add_category")

    def execute(name: str) -> nbformat.NotebookNode:
        notebook = nbformat.read(project.folder / "notebooks" / f"{name}.ipynb", 4)
        client = NotebookClient(
            notebook, timeout=300, kernel_name="python3",
            resources={"metadata": {"path": str(project.folder / "notebooks")}},
        )  # fmt: skip
        client.execute(env=project.environment | {"KEDRO_ENV": "test"})
        noise = [
            output["text"]
            for cell in notebook.cells
            for output in cell.get("outputs", [])
            if output.get("name") == "stderr"
            and re.search(r"\d%\||it/s\]|IProgress|INFO", output["text"])
        ]
        assert not noise, "bars and messages of libraries are no part of a notebook"
        return notebook

    return execute


def shown(notebook: nbformat.NotebookNode) -> str:
    """Return all text that the cells have printed or returned."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(
        output.get("text") or output.get("data", {}).get("text/plain", "")
        for output in outputs
        if output.get("name") != "stderr"
    )


def figures(notebook: nbformat.NotebookNode) -> list[dict]:
    """Return the plotly figures that the cells have shown."""
    kind = "application/vnd.plotly.v1+json"
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output["data"][kind] for output in outputs if kind in output.get("data", {})]


def test_training_prompts_shows_every_category_and_no_overlap(executed):
    notebook = executed("training_prompts")
    text = shown(notebook)
    assert "environment test" in text
    for category in ("writing", "stem", "roleplay", "cooking"):
        assert f"[{category}, template " in text
    assert "hf://datasets" in text
    assert "query_table_coding: column 'prompt' is missing" in text
    (lengths,) = figures(notebook)
    assert lengths["data"]


def test_sami_in_twenty_lines_ends_with_better_answers_than_it_begins_with(executed):
    notebook = executed("sami_in_twenty_lines")
    lines = [line for line in shown(notebook).splitlines() if line]
    pattern = r"(\d+) of (\d+) answers follow their rule; the first two: (.+)"
    first, last = (re.fullmatch(pattern, line) for line in (lines[0], lines[-1]))
    assert first and last, "a quiet start, and nothing after the outcome"
    assert first[2] == last[2]
    # One and the same text under both rules follows half of them.
    assert int(first[1]) <= int(first[2]) // 4
    assert int(last[1]) >= 3 * int(last[2]) // 4


def test_sami_in_twenty_lines_is_about_that_long():
    notebook = nbformat.read(FOLDER / "sami_in_twenty_lines.ipynb", 4)
    _, *cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    statements = [node for node in ast.walk(ast.parse("\n".join(cells)))
                  if isinstance(node, ast.stmt)]  # fmt: skip
    assert len(statements) <= 30, "the first cell, which loads the model, aside"


def test_reading_results_shows_tables_and_figures_of_the_run(executed):
    notebook = executed("reading_results")
    text = shown(notebook)
    for name in ("mt_bench.win_rates", "mt_bench.held_out", "mt_bench.verdicts"):
        assert name in text
    assert "overall_paper" in text
    assert "Principles followed: sami against base" in text, "the outcome in a sentence"
    for notebook_cell in notebook.cells[:3]:
        for output in notebook_cell.get("outputs", []):
            assert "INFO" not in str(output), "a quiet start"
    html = [
        output["data"]["text/html"]
        for notebook_cell in notebook.cells
        for output in notebook_cell.get("outputs", [])
        if "application/vnd.plotly.v1+json" in output.get("data", {})
    ]
    assert html and all("Plotly.newPlot" in each for each in html), "an export keeps the figures"
    titles = [figure["layout"]["title"]["text"] for figure in figures(notebook)]
    assert len(titles) == 2
    assert "win rate" in titles[1].lower()
