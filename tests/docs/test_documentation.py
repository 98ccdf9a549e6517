"""The docs name what is there: links, parameters and modules."""

import re
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "_extensions"))
import parameter_reference

PROJECT = Path(__file__).parents[2]
PAGES = [*sorted(PROJECT.glob("*.md")), *sorted((PROJECT / "docs").glob("*.md"))]
PAGES += sorted((PROJECT / "notebooks").glob("*.ipynb"))
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)\s]+)\)")


def anchors(path: Path) -> set[str]:
    """Return what a git host makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_of_a_page_work_on_a_plain_git_host(page):
    for link in LINK.findall(page.read_text("utf-8")):
        place, _, anchor = unquote(link).partition("#")
        target = page.parent / place if place else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.fixture(scope="module")
def reference() -> dict[str, parameter_reference.Group]:
    return {group.name: group for group in parameter_reference.groups()}


def test_every_parameter_has_a_type_a_default_and_a_description(reference):
    rows = [(group.name, row) for group in reference.values() for row in group.parameters]
    assert len(rows) > 90
    for group, row in rows:
        assert row.type and row.default, f"{group}.{row.name}"
        assert len(row.description) > 5, f"{group}.{row.name} is not described"
    for group in reference.values():
        assert group.description, group.name


@pytest.mark.parametrize(
    ("group", "name", "type_", "default"),
    [
        ("mt_bench.generation", "top_p", "number &gt; 0, ≤ 1", "`1.0`"),
        ("mt_bench.training.sami", "optimiser", "`adamw` or `rmsprop`", '`"adamw"`'),
        ("mt_bench.training.sami.lora", "rank", "integer &gt; 0", "`16`"),
        ("mt_bench.queries.tables.<name>", "query", "string", "required"),
        ("math.problems", "test", "integer &gt; 0, ≤ 1000000 or `null`", "`50`"),
    ],
)
def test_rows_say_what_the_models_say(reference, group, name, type_, default):
    (row,) = [row for row in reference[group].parameters if row.name == name]
    assert (row.type, row.default) == (type_, default)


def test_every_group_in_conf_is_in_the_reference(reference):
    files = (PROJECT / "conf" / "base" / "parameters").glob("*.yml")
    configured = {name for path in files for name in yaml.safe_load(path.read_text("utf-8"))}
    assert configured
    top = reference[parameter_reference.TOP_LEVEL]
    assert configured - {parameter.name for parameter in top.parameters} <= set(reference)


def test_every_link_between_groups_has_its_heading(reference):
    page = parameter_reference.to_markdown(list(reference.values()))
    headings = {f"#{parameter_reference._anchor(name)}" for name in reference} | {"#model-sources"}
    linked = set(re.findall(r"\]\((#[^)]+)\)", page))
    assert linked
    assert linked <= headings


def test_every_module_has_its_place_in_the_api_reference():
    page = (PROJECT / "docs" / "api.md").read_text("utf-8")
    listed = set(re.findall(r"^   sami_pipeline\.(\w+)$", page, re.MULTILINE))
    source = PROJECT / "src" / "sami_pipeline"
    modules = {path.stem for path in source.glob("*.py")}
    packages = {path.parent.name for path in source.glob("*/__init__.py")}
    # What Kedro reads, and the pipelines, which are described by their graph.
    kedros = {"__init__", "__main__", "cli", "settings", "pipeline_registry", "pipelines"}
    assert listed == (modules | packages) - kedros
