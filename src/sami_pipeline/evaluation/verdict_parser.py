"""Read the verdict from a judge's text.

FastChat's ``llm_judge`` (arXiv 2306.05685) looks for ``[[A]]`` anywhere in the text, then for
``[[B]]``, then for ``[[C]]``, and takes the first rating. That is another verdict only where a text
holds several. Then the judge's own is told from those that it quotes:

1. one in quotation marks, or followed by a question mark, is quoted;
2. of the others, those count that are announced ("My final verdict is: [[A]]", "Rating: [[8]]");
3. without any, those that begin or end a line.

Where two different ones are left, the judge contradicts itself and there is no verdict. What stands
in ``<think>`` never counts. A text that was cut off may have gone on to say the opposite: its
verdict counts only where it stands last, in a sentence by itself, and there is no other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

INVALID = "invalid"
CONTRADICTORY = "contradictory"
NO_VERDICT = (INVALID, CONTRADICTORY)
"""What a call is given from which no verdict can be read."""
COMPARISONS = ("A", "B", "C")
TIE = "C"
LOWEST_RATING, HIGHEST_RATING = 1, 10

_THOUGHT = re.compile(
    r"<(think|thinking|thought|reasoning)>.*?(?:</\1>|$)|\[THINK\].*?(?:\[/THINK\]|$)"
    r"|^.*</(?:think|thinking|thought|reasoning)>",
    re.DOTALL | re.IGNORECASE,
)
_LETTER = r"\s*(?:assistant\s+)?([ABCＡＢＣ])\s*"
# FastChat's pattern, and what judges write for it: "7/10", "7,5", spaces.
_NUMBER = r"\s*(-?\d+(?:[.,]\d*)?)\s*(?:/\s*10\s*)?"
# Letters are capitals as asked for; only "assistant" may be written in any way.
_COMPARISONS = tuple(
    re.compile(pattern.replace("assistant", "[Aa]ssistant"))
    for pattern in (rf"\[\s*\[{_LETTER}\]\s*\]", rf"(?<!\[)\[{_LETTER}\](?!\])")
)
# FastChat's two patterns: one pair of brackets counts where there are no two.
_RATINGS = (re.compile(rf"\[\s*\[{_NUMBER}\]\s*\]"), re.compile(rf"\[{_NUMBER}\]"))
_ANNOUNCEMENT = (
    r"\b(?:verdict|rating|score|grade|decision|judge?ment|conclusion)\b[\s:=*_\"'“‘→–—-]*"
    r"(?:(?:is|of|as follows|would be)\b[\s:=*_\"'“‘]*)?"
)
_ANNOUNCED = re.compile(rf"{_ANNOUNCEMENT}$", re.IGNORECASE)
_PLAIN_RATING = re.compile(
    rf"{_ANNOUNCEMENT}(\d+(?:[.,]\d+)?)(?!\w)(?:\s*(?:/|out of)\s*10\b)?", re.IGNORECASE
)
# "Final Response: A", and where two are given as one, the second too.
_FINAL_RESPONSE = re.compile(
    r"\bfinal\s+response\b[\s:=*_\"'`\[<(–—-]*(?:[Aa]ssistant\s+)?([ABC])\b(?!['’]\w)"
    r"(?:[\s*_\"'`\]>)]*(?:/|,|\||or|and|&)[\s*_\"'`\[<(]*(?:[Aa]ssistant\s+)?([ABC])\b)?",
    re.IGNORECASE,
)
_MARKUP = " \t*_`.,;:!\"'”’»)"
_OPENING = " \t*_`#>-(\"'“‘«"
# Between two verdicts that are given as one: "[[A]]/[[B]]".
_JOINED = re.compile(r"\s*(?:/|,|\||or|and|&)?\s*", re.IGNORECASE)
_LONGEST_LEAD = 80


class _Candidate(NamedTuple):
    """A verdict somewhere in a text, and what speaks for its being the judge's own."""

    value: str
    start: int
    end: int
    announced: bool
    quoted: bool
    alone: bool  # it begins or ends a line
    sentence: bool  # it begins a sentence


def comparison_verdict(text: str, truncated: bool = False) -> str:
    """Return "A", "B" or "C" (a tie) as the text says in ``[[A]]``, ``[[B]]`` or ``[[C]]``.

    ``[[Assistant A]]`` and, where it is announced or stands alone, ``[A]`` count too.

    Args:
        text: what the judge wrote.
        truncated: it was cut off at its token limit.

    Returns:
        The verdict, "invalid" where there is none and "contradictory" where there are two.
    """
    text = without_thoughts(text)
    for pattern, doubled in zip(_COMPARISONS, (True, False), strict=True):
        found = list(_candidates(pattern, text, _letter))
        if not doubled:
            found = [one for one in found if one.announced or one.alone]
        if found:
            return _decided(found, text, truncated)
    return INVALID


def final_response_verdict(text: str, truncated: bool = False) -> str:
    """Return "A", "B" or "C" as the text says behind "Final Response:" (arXiv 2410.01704).

    The published reading takes what stands behind the first "Final Response:", and both letters or
    none as half a win. A text without these words is read by ``comparison_verdict``.

    Args:
        text: what the judge wrote.
        truncated: it was cut off at its token limit; then a verdict counts only where it stands
            last and there is no other.

    Returns:
        The verdict, "invalid" where there is none and "contradictory" where there are two.
    """
    text = without_thoughts(text)
    found = [match for match in _FINAL_RESPONSE.finditer(text) if match[1].isupper()]
    # One that names both letters repeats what was asked for, where another one decides.
    decided = [match for match in found if match[2] is None] or found
    values = {letter for match in decided for letter in match.groups() if letter}
    if not found:
        return comparison_verdict(text, truncated)
    if truncated and (text[found[-1].end() :].strip(_MARKUP + "]>\n") or len(values) > 1):
        return INVALID
    return values.pop() if len(values) == 1 else CONTRADICTORY


def rating_verdict(text: str, truncated: bool = False) -> str:
    """Return the number in the text's ``[[rating]]``, such as "7" or "7.5".

    A text without one is searched for an announced ``[rating]``, an announced rating without
    brackets ("Rating: 6/10") and then any ``[rating]``.

    Args:
        text: what the judge wrote.
        truncated: it was cut off at its token limit.

    Returns:
        The rating; "invalid" where there is none or where it is not from 1 to 10, and
        "contradictory" where there are two.
    """
    text = without_thoughts(text)
    doubled, single = (list(_candidates(pattern, text, _rating)) for pattern in _RATINGS)
    plain = [
        _Candidate(_rating(match[1]), match.start(1), match.end(), True, False, True, True)
        for match in _PLAIN_RATING.finditer(text)
    ]
    announced = [one for one in single if one.announced]
    for found in (doubled, announced, plain, single):
        if found:
            return _decided(found, text, truncated)
    return INVALID


def without_thoughts(text: str) -> str:
    """Return a text without what stands in ``<think>``, also where that was never closed."""
    return _THOUGHT.sub("", text)


def _letter(written: str) -> str:
    return "ABC"["ABCＡＢＣ".index(written) % 3]


def _rating(written: str) -> str:
    rating = float(written.replace(",", "."))
    if not LOWEST_RATING <= rating <= HIGHEST_RATING:
        return INVALID
    return str(int(rating)) if rating.is_integer() else str(rating)


def _candidates(
    pattern: re.Pattern[str], text: str, read: Callable[[str], str]
) -> Iterator[_Candidate]:
    before: _Candidate | None = None
    for match in pattern.finditer(text):
        start, end = match.span()
        line = text[max(0, start - _LONGEST_LEAD, text.rfind("\n", 0, start) + 1) : start]
        rest = text[end : end + _LONGEST_LEAD].split("\n")[0]
        joined = before is not None and _JOINED.fullmatch(text, before.end, start)
        candidate = _Candidate(
            read(match[1]),
            start,
            end,
            announced=bool(_ANNOUNCED.search(line)) or bool(joined and before.announced),
            quoted=bool(re.match(r"[.,]?[\"'”’»]|\s*\?", rest)),
            alone=not line.strip(_OPENING) or not rest.strip(_MARKUP),
            sentence=line.rstrip(_OPENING)[-1:] in ("", *".!?:") or not line.strip(_OPENING),
        )
        yield candidate
        before = candidate


def _decided(found: list[_Candidate], text: str, truncated: bool) -> str:
    if truncated:
        last = found[-1]
        is_last = not text[last.end :].strip(_MARKUP + "\n")
        is_own = last.announced or last.sentence
        is_alone = len({one.value for one in found}) == 1
        return last.value if is_last and is_own and is_alone else INVALID
    found = [one for one in found if not one.quoted] or found
    announced = [one for one in found if one.announced]
    found = announced or [one for one in found if one.alone] or found
    values = {one.value for one in found}
    if len(values) == 1:
        return values.pop()
    return INVALID if INVALID in values else CONTRADICTORY
