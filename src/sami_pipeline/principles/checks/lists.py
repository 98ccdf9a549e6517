"""Lists: which lines are bullets, numbered steps or lines of a key and a value."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, Literal, NamedTuple

from sami_pipeline.principles.checks.base import Check, Count, Found, times
from sami_pipeline.principles.checks.text import list_lines, says_something, without_marker

_CARDINALS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_EMOJI = r"[\u2190-\u21ff\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff]"
_SAYS = rf"(?=.*(?:[^\W_]|{_EMOJI}))"
_BOLD = r"(?:\*{1,3}|__?)?"
# One line of these makes a list; a letter may follow a sign that is nothing but a bullet.
_BULLET = re.compile(
    rf"[\s>]*{_BOLD}(?:-\s+|-(?=[^\W\d_])|[•‣◦●○▪▫■□◾▸►·∙⁃・✓✔✅☑]\ufe0f?\s*){_SAYS}"
)
# A single line of these may be a footnote, a speaker, a source or one emoji; two make a list.
_WEAK_BULLET = re.compile(rf"[\s>]*{_BOLD}(?:[*+]\s+|[–—]\s*|{_EMOJI}\ufe0f?\s+){_SAYS}")

_BEFORE = rf"[\s>]*(?:#{{1,6}}\s+)?(?:[-*+•]\s+)?{_BOLD}"
_NUMBER = re.compile(
    rf"{_BEFORE}\(?(?P<number>\d{{1,3}}){_BOLD}\\?[.)、．）]{_BOLD}"
    rf"(?:\s+{_SAYS}|(?=[^\W\d_]|[\"“*`$])|(?P<bare>\s*)$)"
)
# "1 - a", "1: a", "#1 a": a number behind them would be a sum, a time or a date.
_LOOSE_NUMBER = re.compile(
    rf"{_BEFORE}(?:#(\d{{1,3}})[.:)]?\s+{_SAYS}|(\d{{1,3}})\s*[-–—:]\s+(?=[^\W\d_]|[\"“*`]))"
)
_LABEL = re.compile(
    rf"{_BEFORE}([^\W\d_]+\.?)\s+(?:#|n°\s*)?(\d{{1,3}}|{'|'.join(_CARDINALS)}){_BOLD}"
    r"\s*(?:[.:)–—-]|$)",
    re.IGNORECASE,
)
_KEYCAP = re.compile(rf"{_BEFORE}(\d)\ufe0f?\u20e3")
_SIGN = re.compile(rf"{_BEFORE}([①-⒛❶-➓])\ufe0f?\s*{_SAYS}")
_ROMAN = re.compile(rf"{_BEFORE}\(?([ivx]{{1,5}}|[IVX]{{1,5}})[.)]\s+{_SAYS}")
_LETTER = re.compile(rf"{_BEFORE}\(?([a-h]|[A-H])[.)]\s+{_SAYS}")
_HAN = re.compile(rf"{_BEFORE}(?:第)?([一二三四五六七八九十])(?:步|、|[，,：:.])")
_ORDINAL = re.compile(
    rf"{_BEFORE}(first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth)(?:ly)?\b",
    re.IGNORECASE,
)
_ROMANS = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii")
_ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
)  # fmt: skip
_KEY_VALUE = re.compile(r"[\s>*_]*[^\W\d_][\w'’()/-]*(?: [\w'’()/-]+){0,2}[*_]*\s?:[*_]*\s+\S")


class Steps(NamedTuple):
    """The numbered lines of a text.

    Attributes:
        in_order: how many follow on each other from 1 (1, 2, 3; or 1, 1, 1, which Markdown counts).
        first: the first number, None where there is none.
        plain: how many lines begin with a number and a point or a bracket, whatever its order.
    """

    in_order: int
    first: int | None
    plain: int


def _in_order(numbers: Sequence[int]) -> int:
    """Count 1, 2, 3, … in this order, others between them left out: lists nest."""
    if not numbers or numbers[0] != 1:
        return 0
    if set(numbers) == {1}:
        return len(numbers)
    wanted = 1
    for number in numbers:
        wanted += number == wanted
    return wanted - 1


def _plain_numbers(lines: Sequence[str]) -> list[int]:
    numbers = []
    for at, line in enumerate(lines):
        match = _NUMBER.match(line)
        if match and match["bare"] is not None:
            # "1." alone: its step is the next line.
            below = next(filter(str.strip, lines[at + 1 :]), "")
            if _NUMBER.match(below) or not says_something(below):
                continue
        if match:
            numbers.append(int(match["number"]))
    return numbers


@lru_cache(maxsize=32)
def count_steps(text: str) -> Steps:
    """Count the numbered lines, each style by itself; the longest style counts."""
    lines = list_lines(text)
    plain = _plain_numbers(lines)
    styles = [plain]
    loose = filter(None, map(_LOOSE_NUMBER.match, lines))
    styles.append([int(match[1] or match[2]) for match in loose])
    labels: dict[str, list[int]] = {}
    for match in filter(None, map(_LABEL.match, lines)):
        labels.setdefault(match[1].casefold(), []).append(_number(match[2]))
    styles += labels.values()
    styles.append([int(match[1]) for match in filter(None, map(_KEYCAP.match, lines))])
    signs = filter(None, map(_SIGN.match, lines))
    styles.append([int(unicodedata.numeric(match[1])) for match in signs])
    styles.append(_places(_ROMAN, _ROMANS, lines))
    styles.append(_places(_HAN, "一二三四五六七八九十", lines))
    styles += _ordinals(lines)
    first = next((numbers[0] for numbers in styles if numbers), None)
    return Steps(max(map(_in_order, styles)), first, len(plain))


def _number(written: str) -> int:
    return int(written) if written.isdigit() else _CARDINALS.index(written.lower()) + 1


def _places(pattern: re.Pattern[str], names: Sequence[str], lines: Sequence[str]) -> list[int]:
    found = (match[1].lower() for match in filter(None, map(pattern.match, lines)))
    return [names.index(name) + 1 for name in found if name in names]


def _ordinals(lines: Sequence[str]) -> list[list[int]]:
    """Return runs of First, Second, …: of lines, for paragraphs that begin so are prose."""
    runs: list[list[int]] = [[]]
    for line in lines:
        if match := _ORDINAL.match(line):
            runs[-1].append(_ORDINALS.index(match[1].lower()) + 1)
        elif not line.strip():
            runs.append([])
    return [run for run in runs if len(run) > 1]


def count_bullets(text: str) -> tuple[int, int]:
    """Count the lines that begin with a bullet, and those of them whose sign is surely one."""
    lines = list_lines(text)
    sure = sum(bool(_BULLET.match(line)) for line in lines)
    return sure + sum(bool(_WEAK_BULLET.match(line)) for line in lines), sure


def count_letters(text: str) -> int:
    """Count the lines "a)", "b)", … in order."""
    return _in_order(_places(_LETTER, "abcdefgh", list_lines(text)))


def is_list(text: str) -> str:
    """Return what makes a text a list, in words; nothing where it is none."""
    bullets, sure = count_bullets(text)
    if sure or bullets > 1:
        return times(bullets, "bullet")
    steps = count_steps(text)
    if steps.plain or steps.in_order > 1:
        return times(max(steps.plain, steps.in_order), "numbered line")
    letters = count_letters(text)
    return times(letters, "lettered line") if letters > 1 else ""


class Items(Check):
    """At least `minimum_items` lines of a kind.

    * `bullet_list`: lines that start with a bullet (`- * + – — • ● ○ ▪ ◦ ‣ · ・ ✓ ✅` and their
      like), an arrow or an emoji; `<li>` in an HTML list without numbers.
    * `numbered_list`: lines that count 1, 2, 3, … from 1, as "1.", "1)", "(1)", "1 -", "#1",
      "Step 1:", "No. 1", "①", "i." or First, Second, … on lines that follow on each other. Only 1
      throughout counts too, since Markdown shows 1, 2, 3. Numbers of nested lists between them are
      no hindrance.
    * `any_list`: one of the two, or "a)", "b)", ….
    * `key_value_lines`: lines like "Name: value" with a key of one to three words; a bullet or a
      number before the key is no hindrance.

    Bold marks around the item or its marker, and quotation marks ">" before it, are ignored.
    """

    name: Literal["bullet_list", "numbered_list", "any_list", "key_value_lines"]
    minimum_items: Count = 2
    asks: ClassVar = {
        "bullet_list": "at least {minimum_items} bullets",
        "numbered_list": "at least {minimum_items} lines numbered from 1",
        "any_list": "at least {minimum_items} list items",
        "key_value_lines": "at least {minimum_items} lines of a key and a value",
    }

    def _found(self, text: str, truncated: bool) -> Found:
        match self.name:
            case "bullet_list":
                count, what = count_bullets(text)[0], "bullet"
            case "key_value_lines":
                count, what = _count_key_values(text), "line of a key and a value"
                return Found(count >= self.minimum_items, f"{count} such lines")
            case "numbered_list":
                steps = count_steps(text)
                if not steps.in_order and steps.first not in (None, 1):
                    return Found(False, f"the first number is {steps.first}")
                count, what = steps.in_order, "numbered line"
            case _:
                counts = (count_bullets(text)[0], count_steps(text).in_order, count_letters(text))
                count, what = max(counts), "list item"
        return Found(count >= self.minimum_items, times(count, what))


def _count_key_values(text: str) -> int:
    return sum(
        bool(_KEY_VALUE.match(without_marker(line)))
        and not _NUMBER.match(line)
        and not _LABEL.match(line)
        for line in list_lines(text)
    )
