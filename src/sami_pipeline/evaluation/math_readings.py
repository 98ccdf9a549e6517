r"""The number that a careful reader takes from a solution, and where it stands.

Four places are looked at in this order, since what a solution says of its answer counts more than
where a number happens to stand:

1. **marked**: after the last ``####`` that a number follows (GSM8K's own format);
2. **boxed**: in the last ``\boxed{}``;
3. **stated**: after the last "the answer is", "Answer:" and the like;
4. **last**: the last number of the text, where brackets behind a number ("18 (or 0.5 dozen)") and
   numbers that are labels ("day 2", "step 4") count only if there is no other in their sentence.

Units, currencies, emphasis and LaTeX around the number are no hindrance. "1 3/4" is one number, a
comma before one or two digits is a decimal comma, "1.5 million" and "1.5e6" are what they say,
numbers in words count where there are no digits. What a model writes after its answer as a next
question is not read.

The readings of `math_answers` are kept too, those that lm-evaluation-harness takes among them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from sami_pipeline.evaluation.math_answers import MAXIMUM_CHARACTERS, has_sign

MARKED, BOXED, STATED, LAST, NONE = "marked", "boxed", "stated", "last", "none"
READINGS = (MARKED, BOXED, STATED, LAST, NONE)
"""Where an answer was found."""


class Reading(NamedTuple):
    """An answer, as `math_answers.parse_number` reads it ("" for none), and where it stood."""

    answer: str
    place: str


class _Number(NamedTuple):
    value: Fraction
    start: int
    end: int
    percent: bool


_MINUS_SIGNS = str.maketrans(dict.fromkeys("\u2212\uff0d\u2796\ufe63", "\u2212"))
# What a model goes on with once it has answered.
_NEXT_QUESTION = re.compile(
    r"<\|?(?:endoftext|im_end|eot_id|end_of_turn|/s)\|?>|</s>"
    r"|(?<=\S)\s*\n\s*(?:Q|Question|Problem(?: \d+)?|Human|User)\s*:"
)
_CLEANED = [
    (re.compile(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}"), r" \1/\2"),
    (re.compile(r"\\(?:text|mathbf|mathrm|textbf|mbox|mathit)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\{,\}|\\,(?=\d)"), ","),
    (re.compile(r"\\(?:left|right|quad|;|!)"), " "),
    (re.compile(r"\\([$%#])"), r"\1"),
    (re.compile(r"\\(?:times|cdot)"), "x"),
    # Exponents of units, but not of ten.
    (re.compile(r"(?<=[^\W\d_])\s*\^\s*\{?-?\d+\}?"), ""),
    (re.compile(r"[²³]"), ""),
    (re.compile(r"(?<![\d)%]\s)(?<!\w)(?:minus|negative)\s+(?=[$€£]?\d)", re.IGNORECASE), "\u2212"),
    # Accountants write a loss in brackets, behind the currency's sign.
    (re.compile(r"([$€£])\s?\((\d[\d,.]*)\)"), "\u2212\\1\\2"),
    # A minus that is no hyphen is a sign also at a distance.
    (re.compile(r"(^|[=≈:]\s*)\u2212\s+(?=\d)", re.MULTILINE), "\\1\u2212"),
    (re.compile(r"\b(\d{1,2}):00\b"), r"\1"),
    (re.compile(r"\b0?0:(\d\d)\b"), r"\1"),
]
_DECIMAL = (
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?"
    r"|\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?(?!\d)|\d{1,3}(?:\.\d{3})+,\d{1,2}(?!\d)"
    r"|\d{1,3}(?:['’\u00a0\u202f\u2009]\d{3})+(?!\d)(?:[.,]\d+)?"
    r"|(?<![\d,(])\d+,\d{1,2}(?![\d,])"
    r"|\d+(?:\.\d+)?|(?<![\w.])\.\d+)"
)
_NUMBER = re.compile(
    rf"(?P<whole>(?<![\d.,/])\d+\s+(?:and\s+)?(?=\d+/\d))?(?P<number>{_DECIMAL}(?:/{_DECIMAL})*)"
    r"(?:[eE](?P<exponent>[-+]?\d{1,3})(?!\w)|\s*[x×*·]\s*10\s*\^\s*\{?(?P<power>[-\u2212]?\d{1,3})\}?)?"
    r"(?:\s*(?P<scale>thousand|million|billion|trillion)\b)?(?P<percent>\s*(?:%|per\s?cent))?",
    re.IGNORECASE,
)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_GROUPED = re.compile(r"[$€£]?\s*\d{1,3}(?:,?\s\d{3})+")

_MARK = re.compile(r"####[ \t]*([^\n#]*)")
_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
_STATEMENT = re.compile(
    r"\banswer\b[\"'*_]*(?:\s+(?:to|for)\b[^.\n:=]{0,60}?)?\s*(?:is|are|was|would be|equals|=|:)"
    r"[\s:*_]*(?P<span>[^\n]*)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<!\bapprox)(?<!\bRs)[.!?;](?=\s|$)|\n")
# What may stand between "the answer is" and its number.
_LEAD = re.compile(
    r"[\s$€£¥*_`\"'“(\[{~≈=:\\+\u2212-]*"
    r"(?:(?:\w{1,2}\s*=|approx(?:imately)?\.?|about|roughly|around|exactly|only|a total of|answer"
    r"|final|is|[A-Z]{3}|Rs\.?)[\s$€£:*_\u2212-]*){0,3}"
)
_HEADING_NUMBER = re.compile(r"\d+[.)]\s+\W{0,2}[^\W\d_]")
_OPERATOR = re.compile(r"\s*[-+*/×÷x\u2212]\s*[$€£]?\d")
_RESULT = re.compile(r"=|\b(?:is|gives|makes|equals)\b")
_LONGEST_SPAN, _LONGEST_END = 300, 2000
_LABEL = re.compile(
    r"\b(?:day|step|problem|question|part|page|figure|table|chapter|option|note|confidence)\b"
    r"\s*(?:no\.?|number|:)?\s*$",
    re.IGNORECASE,
)
_EQUATION = re.compile(r"\s*([^=\n]*?\d[^=\n]*?)\s*=\s*[^=\n]*[-+*/×÷x][^=\n]*")


def read_answer(text: str) -> Reading:
    """Read the answer of a solution.

    Args:
        text: A solution as generated.

    Returns:
        The number, as an exact decimal or fraction without separators, signs of currency and of
        percent, and where it was found.
    """
    text = _cleaned(text)
    for place, read in ((MARKED, _marked), (BOXED, _boxed), (STATED, _stated), (LAST, _last)):
        value = read(text)
        if value is not None:
            written = _written(value)
            return Reading(written, place) if written else Reading("", NONE)
    return Reading("", NONE)


def _cleaned(text: str) -> str:
    text = _NEXT_QUESTION.split(text, maxsplit=1)[0].translate(_MINUS_SIGNS)
    pieces = []
    for sign in text:
        fraction = unicodedata.numeric(sign, None) if unicodedata.category(sign) == "No" else None
        if fraction is not None and fraction != int(fraction):
            exact = Fraction(fraction).limit_denominator(12)
            pieces.append(f" {exact.numerator}/{exact.denominator}")
        else:
            pieces.append(sign)
    text = "".join(pieces)
    for pattern, replacement in _CLEANED:
        text = pattern.sub(replacement, text)
    return text


def _marked(text: str) -> Fraction | None:
    for mark in reversed(list(_MARK.finditer(text))):
        span = mark[1][:_LONGEST_SPAN].strip().strip("*_`")
        span = re.sub(r"^[-\u2212]\s+(?=[$€£]?\d)", "-", span)  # no bullet stands behind a mark
        if box := _boxed(span):
            return box
        if not _HEADING_NUMBER.match(span) and (value := _of_span(span, at_once=True)) is not None:
            return value
    return None


def _boxed(text: str) -> Fraction | None:
    for box in reversed(list(_BOX.finditer(text))):
        depth, end = 1, box.end()
        while end < min(len(text), box.end() + _LONGEST_SPAN) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if (value := _of_span(text[box.end() : end - 1], at_once=False)) is not None:
            return value
    return None


def _stated(text: str) -> Fraction | None:
    for statement in reversed(list(_STATEMENT.finditer(text))):
        span = _SENTENCE_END.split(statement["span"][:_LONGEST_SPAN], maxsplit=1)[0]
        if (value := _of_span(span, at_once=False)) is not None:
            return value
    return None


def _of_span(span: str, *, at_once: bool) -> Fraction | None:
    """Read the number of a short text that says an answer.

    Args:
        span: what follows the mark, or stands in the box.
        at_once: nothing but signs and words such as "about" may stand before the number.
    """
    if _GROUPED.fullmatch(span.strip(" .$*")):
        span = re.sub(r",?\s(?=\d{3})", "", span.strip())
    numbers = list(_numbers(span))
    if not numbers:
        return _in_words(span)
    first, last = numbers[0], numbers[-1]
    directly = bool(_LEAD.fullmatch(span[: first.start]))
    if directly and not (_OPERATOR.match(span, first.end) and _RESULT.search(span)):
        # A comma or a word goes on to say more; only a sum that is worked out is not yet it.
        return first.value
    return last.value if directly or not at_once else None


def _last(text: str) -> Fraction | None:
    text = text[-_LONGEST_END:]
    whole = text.strip().strip("*_`.$")
    if _GROUPED.fullmatch(whole):
        return Fraction(re.sub(r"[^\d]", "", whole))
    numbers = list(_numbers(text))
    if not numbers:
        return _in_words(text)
    sentence = _sentence_start(text, numbers[-1].start)
    line = text[text.rfind("\n", 0, numbers[-1].start) + 1 :]
    equation = _EQUATION.fullmatch(line.strip().rstrip("."))
    if (
        equation
        and len(left := list(_numbers(equation[1]))) == 1
        and equation[1].strip("$ \u2212-")[-1:].isdigit()
    ):
        return left[0].value
    plain = [one for one in numbers if not _is_label(text, one)]
    while plain and numbers[-1] not in plain:
        # A label counts where its sentence says no other number.
        if plain[-1].start >= sentence or "confidence" in text[sentence:].lower():
            numbers = plain
        else:
            break
    return _before_brackets(text, numbers).value


def _sentence_start(text: str, place: int) -> int:
    ends = [found.end() for found in _SENTENCE_END.finditer(text, 0, place)]
    return ends[-1] if ends else 0


def _is_label(text: str, number: _Number) -> bool:
    return bool(_LABEL.search(text, max(0, number.start - 30), number.start))


def _before_brackets(text: str, numbers: list[_Number]) -> _Number:
    """Return the last number, or the one before the brackets that it stands in."""
    last = numbers[-1]
    opening = text.rfind("(", 0, last.start)
    inside = opening >= 0 and ")" not in text[opening : last.start]
    before = [one for one in numbers if one.end <= opening] if inside else []
    if before:
        between = text[before[-1].end : opening]
        if re.fullmatch(r"\s+(?:[^\W\d_]+\.?\s+){0,3}", between):
            return before[-1]
    same = [one for one in numbers[:-1] if one.percent and one.value == 100 * last.value]
    if same and re.fullmatch(r"\s*\(?(?:or|i\.e\.|that is),?\s*", text[same[-1].end : last.start]):
        return same[-1]
    return last


def _numbers(text: str) -> Iterator[_Number]:
    for found in _NUMBER.finditer(text):
        power = int((found["exponent"] or found["power"] or "0").replace("\u2212", "-"))
        if len(found[0]) > MAXIMUM_CHARACTERS or abs(power) > MAXIMUM_CHARACTERS:
            continue
        parts = found["number"].split("/")
        start = found.start()
        if len(parts) > 2 or (len(parts) == 2 and not parts[1].strip("0.,")):
            parts, start = parts[-1:], found.start("number") + found["number"].rindex("/") + 1
        value = _decimal(parts[0])
        if len(parts) == 2:
            value /= _decimal(parts[1])
            if found["whole"] and value < 1:
                value += Fraction(int(re.match(r"\d+", found["whole"])[0]))
            elif found["whole"]:
                start = found.start("number")
        value *= Fraction(10) ** power * _SCALES.get((found["scale"] or "").lower(), 1)
        negative = has_sign(text, start)
        yield _Number(-value if negative else value, start, found.end(), bool(found["percent"]))


def _decimal(written: str) -> Fraction:
    """Read digits with separators; before one or two last digits a comma is a decimal one."""
    written = re.sub(r"['’\u00a0\u202f\u2009]", "", written)
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", written):
        written = written.replace(",", "")
    elif re.fullmatch(r"\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}", written):
        written = written.replace(".", "").replace(",", ".")
    return Fraction(written[:MAXIMUM_CHARACTERS].replace(",", "."))


def _written(value: Fraction) -> str:
    """Write a number exactly: whole, as a decimal where that ends, else as a fraction."""
    denominator, digits = value.denominator, 0
    for prime in (2, 5):
        count = 0
        while denominator % prime == 0:
            denominator, count = denominator // prime, count + 1
        digits = max(digits, count)
    if denominator == 1 and digits:
        shifted = str(abs(value.numerator) * 10**digits // value.denominator).zfill(digits + 1)
        text = f"{'-' * (value < 0)}{shifted[:-digits]}.{shifted[-digits:]}"
    else:
        text = str(value)
    return text if len(text) <= MAXIMUM_CHARACTERS else ""


_UNITS = dict(
    zip(
        (
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
        ),
        range(20),
        strict=True,
    )
)
_TENS = dict(
    zip(
        ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"),
        range(20, 100, 10),
        strict=True,
    )
)
_ORDINALS = dict(
    zip(
        (
            "first",
            "second",
            "third",
            "fourth",
            "fifth",
            "sixth",
            "seventh",
            "eighth",
            "ninth",
            "tenth",
        ),
        range(1, 11),
        strict=True,
    )
)
_PARTS = {"half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "tenth": 10}
_LARGE = {"hundred": 100, **_SCALES, "dozen": 12}


def _in_words(text: str) -> Fraction | None:
    """Read the last number in words: "eighteen", "two and a half", "three quarters", "a dozen"."""
    words = re.findall(r"[a-z]+", text.lower())
    if len(words) == 1 and words[0] in _ORDINALS:
        return Fraction(_ORDINALS[words[0]])
    found: Fraction | None = None
    at = 0
    while at < len(words):
        value, length = _number_at(words, at)
        if length:
            found = value
        at += max(1, length)
    return found


def _number_at(words: list[str], start: int) -> tuple[Fraction, int]:
    """Return the number in words that begins at a place, and how many words it takes."""
    total, current, at, seen = Fraction(0), Fraction(0), start, False
    while at < len(words):
        word = words[at]
        following = words[at + 1] if at + 1 < len(words) else ""
        part = _PARTS.get(word) or _PARTS.get(word.removesuffix("s"))
        if word in _UNITS or word in _TENS:
            current += _UNITS.get(word, 0) + _TENS.get(word, 0)
        elif word in _LARGE and (seen or (at > start and words[at - 1] == "a")):
            current = max(current, Fraction(1)) * _LARGE[word]
            if _LARGE[word] >= 1000:
                total, current = total + current, Fraction(0)
        elif _joins(word, following, seen=seen):
            pass
        elif part and seen and at > start:
            if words[at - 1] == "a":  # "and a half": of a dozen, where that is what is counted
                dozen = "dozen" in words[start:at]
                current += Fraction(12 if dozen else 1, part)
            else:
                current = current / part
        else:
            break
        seen = seen or word in _UNITS or word in _TENS or word in _LARGE
        at += 1
    while at > start and words[at - 1] in ("and", "a"):
        at -= 1
    return total + current, (at - start) if seen else 0


def _joins(word: str, following: str, *, seen: bool) -> bool:
    """Tell whether a word only joins numbers: "a dozen", "and a half", "hundred and two"."""
    if word == "a":
        return following in _LARGE or (seen and following in _PARTS)
    return word == "and" and seen and (following in (*_UNITS, *_TENS, "a"))
