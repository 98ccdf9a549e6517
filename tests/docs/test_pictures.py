"""Pictures of the docs show the run whose numbers stand on the pages."""

import re
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT / "benchmarks"))
import pictures  # noqa: E402

SHOWN = sorted((PROJECT / "docs" / "images").glob("*.png"))


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.stem)
def test_numbers_that_a_picture_shows_stand_on_the_page_of_results(path):
    record = pictures.stamp(path.read_bytes())
    how = f"make it again: python benchmarks/pictures.py {path.stem}"
    assert record, f"{path.name} doesn't say which run it shows; {how}"
    page = (PROJECT / "docs" / "results.md").read_text("utf-8")
    page = page.replace("\N{MINUS SIGN}", "-").replace("+0.0", "0.0")
    assert record["shows"]
    for number in record["shows"]:
        assert number.replace("\N{MINUS SIGN}", "-").replace("+0.0", "0.0") in page, how


def test_every_picture_is_shown_and_made_by_the_command():
    pages = [PROJECT / "README.md", *(PROJECT / "docs").glob("*.md")]
    shown = {
        name for page in pages for name in re.findall(r"images/(\w+)\.png", page.read_text("utf-8"))
    }
    assert shown == {path.stem for path in SHOWN} == set(pictures.PICTURES)


def test_a_picture_says_of_itself_what_it_shows():
    png = SHOWN[0].read_bytes()
    record = {"run": "other", "shows": ["+1.0 [\N{MINUS SIGN}0.1, +2.0]"]}
    plain = png[:33] + png[33 + 12 + int.from_bytes(png[33:37], "big") :]
    assert pictures.stamp(plain) is None
    assert pictures.stamp(pictures.stamped(plain, record)) == record
