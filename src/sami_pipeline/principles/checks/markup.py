"""Markup and data: headings, bold text, tables, JSON; and prose, which has none of them."""

from __future__ import annotations

import itertools
import json
import re
from typing import ClassVar, Literal

from sami_pipeline.principles.checks.base import Check, Count, Found, times
from sami_pipeline.principles.checks.code import formulas, unfenced_code
from sami_pipeline.principles.checks.lists import is_list
from sami_pipeline.principles.checks.text import (
    paragraphs,
    parts,
    quoted,
    says_something,
    without_marker,
    wording,
)

_HEADING = re.compile(r" {0,3}#{1,6}\s+\S")
_UNDERLINE = re.compile(r" {0,3}(?:=+|-{2,})\s*")
_TABLE_SEPARATOR = re.compile(r"\s*\|?(?:\s*:?-+:?\s*\|)*\s*(?::?-+:?)?\s*")
_BOLD = re.compile(
    r"(?<![\w*])\*{2,3}(?=[^\s*])[^\n]*?(?<=[^\s*])\*\*|(?<!\w)__(?=\S)[^\n]*?\S__(?!\w)"
)


def count_table_rows(text: str) -> int | None:
    """Count body rows (without the header) of the longest table; None where there is no table."""
    lines = parts(text).lines
    sizes = [
        sum(1 for _ in itertools.takewhile(lambda row: "|" in row, lines[index + 1 :]))
        for index, line in enumerate(lines)
        if index and {"|", "-"} <= set(line) and "|" in lines[index - 1]
        if _TABLE_SEPARATOR.fullmatch(line)
    ]
    return max(sizes, default=None)


def first_heading(text: str) -> str:
    """Return the first heading, nothing where there is none; a bold line is none."""
    lines = parts(text).lines
    for line, below in itertools.zip_longest(lines, lines[1:], fillvalue=""):
        underlined = _UNDERLINE.fullmatch(below) and without_marker(line) == line
        if _HEADING.match(line) or (underlined and says_something(line)):
            return line
    return ""


def _json_members(text: str) -> int:
    """Count the members of the JSON object that the first brace opens."""
    start = text.find("{")
    try:
        return len(json.JSONDecoder().raw_decode(text, start)[0]) if start >= 0 else 0
    except (ValueError, RecursionError):
        return 0


class Markup(Check):
    """Markup or data is there or, with `no_`, is nowhere there.

    * `markdown_heading`: "# Title", or a line underlined with === or ---; a bold line is none.
    * `bold_text`: a span of **bold** or __bold__; one that the token limit cut open counts.
    * `json_object`: the first brace, of the text or of a fenced block, opens a whole JSON object
      with at least one member.
    """

    name: Literal[
        "markdown_heading", "no_markdown_heading", "bold_text", "no_bold_text", "json_object"
    ]
    asks: ClassVar = {
        "markdown_heading": "a heading",
        "no_markdown_heading": "no heading",
        "bold_text": "bold text",
        "no_bold_text": "no bold text",
        "json_object": "a whole JSON object",
    }

    def _found(self, text: str, truncated: bool) -> Found:
        if "heading" in self.name:
            heading = first_heading(text)
            return Found(bool(heading), f"the heading {quoted(heading)}" if heading else "none")
        if "bold" in self.name:
            span = _BOLD.search(wording(text) + "**" * truncated)
            return Found(bool(span), f"bold {quoted(span[0])}" if span else "none")
        found = parts(text)
        members = max(map(_json_members, [text, *found.code, *found.other]))
        return Found(members > 0, f"{times(members, 'member')} of a JSON object")


class MarkdownTable(Check):
    """A Markdown table of at least `minimum_rows` rows below its header and separator."""

    name: Literal["markdown_table"] = "markdown_table"
    minimum_rows: Count = 2
    asks: ClassVar = {"markdown_table": "a table of at least {minimum_rows} rows"}

    def _found(self, text: str, truncated: bool) -> Found:
        rows = count_table_rows(text)
        evidence = "no table" if rows is None else f"a table of {times(rows, 'row')}"
        return Found((rows or 0) >= self.minimum_rows, evidence)


class FlowingProse(Check):
    """No list, heading, table, code or line that is only an equation.

    At most `maximum_paragraphs`, where given; blank lines separate them. With `numbers: false` no
    digit either (numbers in words are allowed). One line that begins with an asterisk or a long
    dash is no list, two are. A truncated text is judged by what is there so far.
    """

    name: Literal["flowing_prose"] = "flowing_prose"
    maximum_paragraphs: Count | None = None
    numbers: bool = True
    asks: ClassVar = {"flowing_prose": "prose without lists, headings, tables or code"}

    @property
    def asked(self) -> str:
        """What is asked, with the parameters that are given."""
        most = self.maximum_paragraphs
        return (
            super().asked
            + ("" if self.numbers else ", without digits")
            + ("" if most is None else f", of at most {times(most, 'paragraph')}")
        )

    def _found(self, text: str, truncated: bool) -> Found:
        found = parts(text)
        outside = "\n".join(found.lines)
        digit = next(filter(str.isdigit, text), None)
        count = len(paragraphs(outside))
        if found.code or found.other or found.unclosed is not None:
            return Found(False, "a fence")
        if items := is_list(text):
            return Found(False, items)
        if heading := first_heading(text):
            return Found(False, f"the heading {quoted(heading)}")
        if count_table_rows(text) is not None:
            return Found(False, "a table")
        if lines := [*unfenced_code(text), *formulas(text)]:
            return Found(False, f"the line {quoted(lines[0])}")
        if digit and not self.numbers:
            return Found(False, f"the digit {digit}")
        enough = self.maximum_paragraphs is None or count <= self.maximum_paragraphs
        return Found(enough, f"prose, {times(count, 'paragraph')}")
