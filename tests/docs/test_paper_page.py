"""docs/paper.md says of every setting of conf/paper what is published, and why it differs."""

import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from kedro.config import OmegaConfigLoader

from sami_pipeline.experiments.registry import experiments
from sami_pipeline.settings import CONFIG_LOADER_ARGS

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs" / "paper.md").read_text("utf-8")
NAMES = ("mt_bench", "math")
# Which tables of the page hold an experiment's settings.
SECTIONS = {"mt_bench": ("Both", "Experiment 1"), "math": ("Both", "Experiment 2")}
pytestmark = pytest.mark.filterwarnings("ignore:register_new_resolver")


class Row(NamedTuple):
    """A row of a table of the page."""

    setting: str
    report: str
    code: str
    ours: str
    why: str


def rows(experiment: str) -> list[Row]:
    found = []
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        if section.startswith(SECTIONS[experiment]):
            lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
            found += [Row(*(cell.strip() for cell in line.split("|")[1:-1])) for line in lines]
    return found


def path(row: Row) -> str:
    return re.search(r"`([^`]+)`", row.setting)[1]


def literal(cell: str) -> Any:
    """Return the value that a cell begins with, or None where it is in words."""
    found = re.match(r"`([^`]+)`", cell)
    return None if found is None else (yaml.safe_load(found[1]),)


@cache
def parameters(experiment: str) -> Any:
    loader = OmegaConfigLoader(str(PROJECT / "conf"), env="paper", **CONFIG_LOADER_ARGS)
    written = loader["parameters"][experiment]
    return experiments()[experiment].parameters.model_validate(written)


def value(experiment: str, place: str) -> Any:
    found = parameters(experiment)
    for name in place.split("."):
        found = getattr(found, name)
    return list(found) if isinstance(found, tuple) else found


def leaves(content: Any, place: str = "") -> list[str]:
    if not isinstance(content, dict):
        return [place]
    return [
        leaf for name in content for leaf in leaves(content[name], f"{place}.{name}".strip("."))
    ]


@pytest.mark.parametrize("experiment", NAMES)
def test_ours_is_what_the_configuration_holds(experiment):
    for row in rows(experiment):
        if not row.setting.startswith("catalog") and (ours := literal(row.ours)) is not None:
            assert value(experiment, path(row)) == ours[0], row.setting


@pytest.mark.parametrize("experiment", NAMES)
def test_every_value_that_is_not_the_published_one_has_its_reason(experiment):
    for row in rows(experiment):
        if literal(row.code) is None or literal(row.code) != literal(row.ours):
            assert row.why or row.code == row.ours, f"{row.setting} differs without a reason"


@pytest.mark.parametrize("experiment", NAMES)
def test_every_setting_and_file_of_conf_paper_has_its_row(experiment):
    named = [path(row) for row in rows(experiment)]
    written = yaml.safe_load(
        (PROJECT / "conf" / "paper" / "parameters" / f"{experiment}.yml").read_text("utf-8")
    )
    for leaf in leaves(written[experiment]):
        assert any(leaf == name or leaf.startswith(f"{name}.") for name in named), leaf
    for file in (PROJECT / "conf" / "paper" / "catalog").glob("*.yml"):
        for entry in yaml.safe_load(file.read_text("utf-8")):
            if entry.startswith(f"{experiment}."):
                assert any(entry.startswith(name) for name in named), entry
