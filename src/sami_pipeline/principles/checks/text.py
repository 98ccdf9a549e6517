"""A text taken apart for the checks: lines outside of code, wording, words, sentences."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

# A fence may stand behind a list marker, and models write one behind the sentence before it.
_FENCE = re.compile(r"[\s>]*(?:(?:[-*+•]|\d{1,3}[.)])\s+)?(`{3,}|~{3,})([^`]*)$")
_FENCE_BEHIND = re.compile(r"[^`]*[^`\s](`{3,})([\w+#{}.-]*)\s*$")
_NOT_WORDING = re.compile(r"`[^`\n]+`|https?://\S+")
_LIST_TAG = re.compile(r"<(ol|ul)\b[^>]*>|</(?:ol|ul|li)>|<li\b[^>]*>", re.IGNORECASE)
_ITEM_MARKER = re.compile(r"^[\s>]*(?:#{1,6}\s+|[-*+]\s+|•\s*|\(?\d{1,3}[.)]\s+)", re.MULTILINE)
_SENTENCE_END = re.compile(
    r"\n+|(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bvs)(?<!\be\.g)(?<!\bi\.e)(?<!\b[A-HJ-Z])"
    r"[.!?…]+[\"'”’»)\]*_]*\s+"
)
_ADDRESS = re.compile(r"https?://\S+")
# Points and commas hold numbers together ("3.5", "1,000"), points also letters ("e.g", "U.S.A").
_WORD = re.compile(
    r"[^\W_]+(?:['’-][^\W_]+|(?<=\d)[.,](?=\d)[^\W_]+|(?<=\b[^\W\d_])\.(?=[^\W\d_]\b)[^\W_])*"
)
# Scripts without spaces between words, by how many letters a word has on average.
_UNSPACED = (
    (re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"), 2),
    (re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]+"), 5),
)
_STRAIGHT_QUOTES = str.maketrans("‘’“”", "''\"\"")
_EMPHASIS = re.compile(r"\*\*|__|`")
_TAG = re.compile(r"</?[A-Za-z][^<>\n]*>")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")


class Parts(NamedTuple):
    """A text taken apart at its code fences.

    Attributes:
        lines: what stands outside of fences.
        code: what closed fences of backticks hold, a block each.
        other: what closed fences of tildes hold.
        unclosed: what stands behind a fence that never closes.
    """

    lines: list[str]
    code: list[str]
    other: list[str]
    unclosed: str | None


@lru_cache(maxsize=32)
def parts(text: str) -> Parts:
    """Split a text into the lines outside of fences and what each fence holds."""
    lines: list[str] = []
    blocks: dict[str, list[str]] = {"`": [], "~": []}
    inside: list[str] = []
    fence: str | None = None
    for line in text.splitlines():
        marker = _FENCE.match(line)
        if fence is None and (marker or (behind := _FENCE_BEHIND.match(line))):
            if not marker:
                marker = behind
                lines.append(line[: marker.start(1)])
            fence, inside = marker[1], []
        elif fence is None:
            lines.append(line)
        elif marker and marker[1].startswith(fence) and not marker[2].strip():
            blocks[fence[0]].append("\n".join(inside))
            fence = None
        else:
            inside.append(line)
    unclosed = None if fence is None else "\n".join(inside)
    return Parts(lines, blocks["`"], blocks["~"], unclosed)


@lru_cache(maxsize=32)
def list_lines(text: str) -> tuple[str, ...]:
    """Return the lines outside of fences, with items of HTML lists written as Markdown's."""
    whole = "\n".join(parts(text).lines)
    if "<li" in whole.lower():
        marker = "- "

        def written(tag: re.Match[str]) -> str:
            nonlocal marker
            if tag[1]:
                marker = "1. " if tag[1].lower() == "ol" else "- "
            return f"\n{marker}" if tag[0].lower().startswith("<li") else "\n"

        whole = _LIST_TAG.sub(written, whole)
    return tuple(whole.splitlines())


def says_something(text: str) -> bool:
    """Tell whether there is a letter or a digit."""
    return any(character.isalnum() for character in text)


def wording(text: str) -> str:
    """Drop fenced code; put one neutral sign for each inline code span and web address."""
    return _NOT_WORDING.sub("\ufffc", "\n".join(parts(text).lines)).rstrip()


def count_words(text: str) -> int:
    """Count the words of a text.

    "well-known", "don't", "3.5", "e.g." and a web address are one word, "a/b" and "a,b" are two.
    Where a script puts no spaces, two letters of Chinese and Japanese and five of Thai, Lao, Khmer
    and Burmese count as a word, about as long as theirs are.
    """
    text = _ADDRESS.sub("address", text)
    count = 0
    for letters, size in _UNSPACED:
        runs = letters.findall(text)
        count += sum(math.ceil(len(run) / size) for run in runs)
        text = letters.sub(" ", text) if runs else text
    return count + len(_WORD.findall(text))


def sentences(text: str) -> list[str]:
    """Split wording into sentences; a line break ends one too, so that list items stay apart."""
    return list(filter(says_something, _SENTENCE_END.split(_ITEM_MARKER.sub("", text))))


def without_marker(line: str) -> str:
    """Return a line without its bullet, number or heading sign."""
    return _ITEM_MARKER.sub("", line)


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs that say something; blank lines separate them."""
    return list(filter(says_something, re.split(r"\n\s*\n", "\n".join(text.splitlines()))))


def without_emphasis(text: str) -> str:
    """Drop the signs of bold text and inline code."""
    return _EMPHASIS.sub("", text)


def normalised(text: str) -> str:
    """Return a text in small letters, with straight quotes and single spaces."""
    return " ".join(text.translate(_STRAIGHT_QUOTES).casefold().split())


@lru_cache(maxsize=256)
def phrase_pattern(phrase: str) -> re.Pattern[str]:
    """Compile a pattern that finds the phrase as whole words in a normalised text."""
    phrase = normalised(phrase)
    before = r"(?<!\w)" if phrase[0].isalnum() else ""
    after = r"(?!\w)" if phrase[-1].isalnum() else ""
    return re.compile(before + re.escape(phrase) + after)


def after(text: str, start: str) -> str | None:
    """Return what follows `start` at the text's beginning, None if it begins otherwise.

    Quotes, emoji, markup, HTML tags and invisible characters before the first word are no part of
    it; a number is.
    """
    plain = normalised(_EMPHASIS.sub("", _TAG.sub("", _INVISIBLE.sub("", text))))
    letters = next((at for at, sign in enumerate(plain) if sign.isalnum()), len(plain))
    for candidate in (normalised(text), plain[letters:]):
        if match := phrase_pattern(start).match(candidate):
            return candidate[match.end() :]
    return None


def first_line(text: str, is_one: Callable[[str], object] = says_something) -> str:
    """Return the first line of that kind."""
    return next(filter(is_one, text.splitlines()))


def last_line(text: str) -> str:
    """Return the last line that says something."""
    return next(line for line in reversed(text.splitlines()) if says_something(line))


def quoted(text: str, length: int = 40) -> str:
    """Return a piece of a text for a person to read: one line, shortened, in quotation marks."""
    line = " ".join(text.split())
    return f"“{line[: length - 1]}…”" if len(line) > length else f"“{line}”"
