"""Programmatic checks of what a statement in a constitution asks an answer to do.

A check is plain data (`{"name": "bullet_list", "minimum_items": 3}`), so that principles can live
in YAML. A negative check (`no_…`, `does_not_…`, `contains_none`) holds exactly where its positive
does not, with three exceptions:

* A text without a letter or a digit says nothing and passes nothing, also no negative check.
* A *truncated* text (generation stopped at its token limit) has no ending: checks about the ending
  fail both ways, and so does `maximum_words`, for who knows how long the answer would have become.
  Checks about the beginning or the body judge what is there, and a fence, quotation or bold span
  that the limit cut open counts as closed.
* A fence that a finished text never closes is neither `fenced_code` nor `no_fenced_code`.

What is inside fenced code never counts as a list, heading, table, bold text or wording (a Python
comment is not a heading); inline code and web addresses do not count as wording either. Words are
runs of letters and digits, so the counts mean little in scripts that write without spaces.
"""

import itertools
import json
import re
from abc import ABC, abstractmethod
from bisect import bisect_left
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

_FENCE = re.compile(r"[\s>]*(?:(?:[-*+•]|\d{1,3}[.)])\s+)?(`{3,}|~{3,})([^`]*)$")
_NOT_WORDING = re.compile(r"`[^`\n]+`|https?://\S+")
_BULLET = re.compile(r"[\s>]*(?:\*\*|__)?(?:[-*+]\s+|•\s*)(?=.*[^\W_])")
_NUMBERED = re.compile(
    r"[\s>]*(?:#{1,6}\s+)?(?:\*\*|__)?"
    r"(?:step\s+(\d{1,3})(?:\*\*|__)?\s*(?:[.:)–—-]|$)"
    r"|\(?(\d{1,3})(?:\*\*|__)?[.)](?:\*\*|__)?(?:\s+(?=.*[^\W_])|(?=[^\W\d_]|[\"“*`$])))",
    re.IGNORECASE,
)
_ITEM_MARKER = re.compile(r"^[\s>]*(?:#{1,6}\s+|[-*+]\s+|•\s*|\(?\d{1,3}[.)]\s+)", re.MULTILINE)
_KEY_VALUE = re.compile(r"[\s>*_]*[^\W\d_][\w'’()/-]*(?: [\w'’()/-]+){0,2}[*_]*\s?:[*_]*\s+\S")
_HEADING = re.compile(r" {0,3}#{1,6}\s+\S")
_UNDERLINE = re.compile(r" {0,3}(?:=+|-{2,})\s*")
_TABLE_SEPARATOR = re.compile(r"\s*\|?(?:\s*:?-+:?\s*\|)*\s*(?::?-+:?)?\s*")
_BOLD = re.compile(
    r"(?<![\w*])\*{2,3}(?=[^\s*])[^\n]*?(?<=[^\s*])\*\*|(?<!\w)__(?=\S)[^\n]*?\S__(?!\w)"
)
_SPEECH = re.compile(r"\"([^\"\n]+)\"|[“„«]([^“”»\n]+)[”“»]")
_WORD = re.compile(r"[^\W_]+(?:['’.,-][^\W_]+)*")
_SENTENCE_END = re.compile(
    r"\n+|(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bvs)(?<!\be\.g)(?<!\bi\.e)(?<!\b[A-HJ-Z])"
    r"[.!?…]+[\"'”’»)\]*_]*\s+"
)
_QUESTION_MARK = re.compile(r"[?？]")
# Not the factorial "n!", the operator "!=" or the image "![".
_EXCLAMATION = re.compile(r"(?<!\b\w)[!！]++(?!\s*=|\[)")
_SECOND_PERSON = re.compile(r"\b(?:you|yours?|yourself|yourselves)\b", re.IGNORECASE)
_FIRST_PERSON = re.compile(
    r"\bI\b|\b(?i:me|my|mine|myself)\b|\bi(?:['’](?:m|ve|ll|d)|\s+(?:am|was|have|had|will|would|can"
    r"|could|should|do|did|don['’]t|think|feel|know|want|hope|love|need|like|believe))\b"
)
# Numerals ("I.", "(I)", "I and II", "World War I"), "I/O", "I =", "A.I." and a mine to dig in.
_NOT_A_PERSON = re.compile(
    r"^[\W_]*I[.):]\**\s|\(I\)|\bI(?=\s*(?:,|and|or|[-–])?\s*II)|\bI\s*(?:/\s*O\b|=)|\bA\.\s?I\b"
    r"|\b(?i:war|type|part|phase|stage|class|chapter|section|volume|book|act|article|level)\s+I\b"
    r"|\b(?i:a|an|the|coal|gold|land|data)\s+(?i:mine)\b",
    re.MULTILINE,
)
_STRAIGHT_QUOTES = str.maketrans("‘’“”", "''\"\"")
_EMPHASIS = re.compile(r"\*\*|__|`")
_LEADING_DECORATION = " \"'«*_#>~-+•"


class _Parts(NamedTuple):
    """A text taken apart at its code fences."""

    lines: list[str]
    code: list[str]
    unclosed: str | None


def _parts(text: str) -> _Parts:
    """Split into the lines outside of fences, the closed fences' code and an unclosed fence's."""
    lines: list[str] = []
    code: list[str] = []
    inside: list[str] = []
    fence: str | None = None
    for line in text.splitlines():
        marker = _FENCE.match(line)
        if fence is None and marker:
            fence, inside = marker[1], []
        elif fence is None:
            lines.append(line)
        elif marker and marker[1].startswith(fence) and not marker[2].strip():
            code.append("\n".join(inside))
            fence = None
        else:
            inside.append(line)
    return _Parts(lines, code, None if fence is None else "\n".join(inside))


def _says_something(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _wording(text: str) -> str:
    """Drop fenced code; put one neutral sign for each inline code span and web address."""
    return _NOT_WORDING.sub("\ufffc", "\n".join(_parts(text).lines)).rstrip()


def _persons(text: str) -> str:
    return _NOT_A_PERSON.sub(" ", _wording(text))


def _count_bullets(text: str) -> int:
    return sum(bool(_BULLET.match(line)) for line in _parts(text).lines)


def _count_numbers(text: str) -> int:
    """Count numbered lines whose numbers increase (the longest such subsequence: lists nest)."""
    tails: list[int] = []
    for match in filter(None, map(_NUMBERED.match, _parts(text).lines)):
        number = int(match[match.lastindex])
        position = bisect_left(tails, number)
        tails[position : position + 1] = [number]
    return len(tails)


def _count_key_values(text: str) -> int:
    lines = [_ITEM_MARKER.sub("", line) for line in _parts(text).lines]
    return sum(bool(_KEY_VALUE.match(line)) and not _NUMBERED.match(line) for line in lines)


def _count_table_rows(text: str) -> int | None:
    """Count body rows (without the header) of the longest table; None where there is no table."""
    lines = _parts(text).lines
    sizes = [
        sum(1 for _ in itertools.takewhile(lambda row: "|" in row, lines[index + 1 :]))
        for index, line in enumerate(lines)
        if index and {"|", "-"} <= set(line) and "|" in lines[index - 1]
        if _TABLE_SEPARATOR.fullmatch(line)
    ]
    return max(sizes, default=None)


def _has_heading(text: str) -> bool:
    lines = _parts(text).lines
    return any(map(_HEADING.match, lines)) or any(
        _UNDERLINE.fullmatch(below) and _says_something(line) and not _BULLET.match(line)
        for line, below in itertools.pairwise(lines)
    )


def _has_bold(text: str, truncated: bool) -> bool:
    return bool(_BOLD.search(_wording(text) + "**" * truncated))


def _has_speech(text: str, truncated: bool) -> bool:
    quotes = _SPEECH.findall(_wording(text) + '"”' * truncated)
    return any(len(_WORD.findall(straight or curly)) >= 2 for straight, curly in quotes)


def _is_json_object(text: str) -> bool:
    """Tell whether the first brace opens a JSON object with at least one member."""
    start = text.find("{")
    try:
        return start >= 0 and bool(json.JSONDecoder().raw_decode(text, start)[0])
    except (ValueError, RecursionError):
        return False


def _sentences(text: str) -> list[str]:
    """Split wording into sentences; a line break ends one too, so that list items stay apart."""
    return list(filter(_says_something, _SENTENCE_END.split(_ITEM_MARKER.sub("", text))))


def _normalised(text: str) -> str:
    return " ".join(text.translate(_STRAIGHT_QUOTES).casefold().split())


def _phrase(phrase: str) -> re.Pattern[str]:
    """Compile a pattern that finds the phrase as whole words in a normalised text."""
    phrase = _normalised(phrase)
    before = r"(?<!\w)" if phrase[0].isalnum() else ""
    after = r"(?!\w)" if phrase[-1].isalnum() else ""
    return re.compile(before + re.escape(phrase) + after)


def _after(text: str, start: str) -> str | None:
    """Return what follows `start` at the text's beginning, None if it begins otherwise."""
    plain = _normalised(_EMPHASIS.sub("", text)).lstrip(_LEADING_DECORATION)
    for candidate in (_normalised(text), plain):
        if match := _phrase(start).match(candidate):
            return candidate[match.end() :]
    return None


def _last_line(text: str) -> str:
    return next(line for line in reversed(text.splitlines()) if _says_something(line))


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


NonBlank = Annotated[str, AfterValidator(_not_blank)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class Check(BaseModel, ABC):
    """One verifiable property of an answer; `name` picks it, or its opposite.

    Attributes:
        name: The check's name in a specification.
        about_ending: Names of checks that can only be judged on a text that ended by itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    about_ending: ClassVar[frozenset[str]] = frozenset(
        {
            "last_line_starts_with",
            "does_not_end_with_line",
            "final_answer_line",
            "question_at_end",
            "maximum_words",
        }
    )

    def passes(self, text: str, *, truncated: bool = False) -> bool:
        """Tell whether the text has the property.

        Args:
            text: The answer as generated.
            truncated: Whether generation stopped at its token limit.

        Returns:
            False for a text without any letter or digit and, where the check is about the ending,
            for a truncated text.
        """
        if not _says_something(text) or (truncated and self.name in self.about_ending):
            return False
        negative = self.name.startswith(("no_", "does_not_", "contains_none"))
        return self._found(text, truncated) != negative

    @abstractmethod
    def _found(self, text: str, truncated: bool) -> bool:
        """Tell whether the property (not its opposite) is there in a text that says something."""


class Presence(Check):
    """Something is there or, with `no_`, is nowhere there.

    * `fenced_code`: code between fences of three backticks or tildes.
    * `markdown_heading`: "# Title", or a line underlined with === or ---; a bold line is none.
    * `bold_text`: a span of **bold** or __bold__.
    * `json_object`: the first brace, of the text or of a fenced block, opens a whole JSON object
      with at least one member.
    * `contains_digit`: a digit anywhere, in list numbers too.
    * `question_at_end`: a question mark among the signs after the last word; `question_mark`: one
      anywhere in the wording.
    * `no_exclamation` and `no_first_person`: see `Exclamation` and `FirstPerson`.
    * `second_person`: you, your, yours, yourself or yourselves.
    * `direct_speech`: two words or more in double quotes, straight or curly, on one line.
    """

    name: Literal[
        "fenced_code",
        "no_fenced_code",
        "markdown_heading",
        "no_markdown_heading",
        "bold_text",
        "no_bold_text",
        "json_object",
        "contains_digit",
        "no_digit",
        "question_at_end",
        "question_mark",
        "no_question_mark",
        "no_exclamation",
        "no_first_person",
        "second_person",
        "no_second_person",
        "direct_speech",
        "no_direct_speech",
    ]

    def _found(self, text: str, truncated: bool) -> bool:
        parts = _parts(text)
        match self.name:
            case "fenced_code":
                blocks = [*parts.code, parts.unclosed or ""] if truncated else parts.code
                return any(map(str.strip, blocks))
            case "no_fenced_code":
                return bool(parts.code) or parts.unclosed is not None
            case "markdown_heading" | "no_markdown_heading":
                return _has_heading(text)
            case "bold_text" | "no_bold_text":
                return _has_bold(text, truncated)
            case "json_object":
                return any(map(_is_json_object, [text, *parts.code]))
            case "contains_digit" | "no_digit":
                return any(map(str.isdigit, text))
            case "question_at_end":
                last_word = max(place for place, sign in enumerate(text) if sign.isalnum())
                return bool(_QUESTION_MARK.search(text, last_word))
            case "question_mark" | "no_question_mark":
                return bool(_QUESTION_MARK.search(_wording(text)))
            case "no_exclamation":
                return bool(_EXCLAMATION.search(_wording(text)))
            case "no_first_person":
                return bool(_FIRST_PERSON.search(_persons(text)))
            case "second_person" | "no_second_person":
                return bool(_SECOND_PERSON.search(_wording(text)))
            case _:
                return _has_speech(text, truncated)


class Items(Check):
    """At least `minimum_items` lines of a kind.

    * `bullet_list`: lines that start with `-`, `*`, `+` or `•`.
    * `numbered_list`: lines "1.", "1)", "(1)" or "Step 1:", as far as their numbers increase.
    * `any_list`: one of the two.
    * `key_value_lines`: lines like "Name: value" with a key of one to three words; a bullet or a
      number before the key is no hindrance.

    Bold marks around the item or its marker, and quotation marks ">" before it, are ignored.
    """

    name: Literal["bullet_list", "numbered_list", "any_list", "key_value_lines"]
    minimum_items: Count = 2

    def _found(self, text: str, truncated: bool) -> bool:
        counters = {
            "bullet_list": [_count_bullets],
            "numbered_list": [_count_numbers],
            "any_list": [_count_bullets, _count_numbers],
            "key_value_lines": [_count_key_values],
        }[self.name]
        return any(count(text) >= self.minimum_items for count in counters)


class MarkdownTable(Check):
    """A Markdown table of at least `minimum_rows` rows below its header and separator."""

    name: Literal["markdown_table"] = "markdown_table"
    minimum_rows: Count = 2

    def _found(self, text: str, truncated: bool) -> bool:
        return (_count_table_rows(text) or 0) >= self.minimum_rows


class FlowingProse(Check):
    """No list line, heading, table or code fence; at most `maximum_paragraphs`, where given.

    Blank lines separate paragraphs. A truncated text is judged by what is there so far.
    """

    name: Literal["flowing_prose"] = "flowing_prose"
    maximum_paragraphs: Count | None = None

    def _found(self, text: str, truncated: bool) -> bool:
        parts = _parts(text)
        if parts.code or parts.unclosed is not None or _has_heading(text):
            return False
        if _count_bullets(text) or _count_numbers(text) or _count_table_rows(text) is not None:
            return False
        blocks = re.split(r"\n\s*\n", "\n".join(parts.lines))
        return sum(map(_says_something, blocks)) <= (self.maximum_paragraphs or len(blocks))


class Beginning(Check):
    """The text begins with `text`: whole words, any case, leading quotes and markup ignored."""

    name: Literal["starts_with", "does_not_start_with"]
    text: NonBlank

    def _found(self, text: str, truncated: bool) -> bool:
        return _after(text, self.text) is not None


class LastLine(Check):
    """The last line that says something begins with `text`, compared as in `Beginning`."""

    name: Literal["last_line_starts_with", "does_not_end_with_line"]
    text: NonBlank

    def _found(self, text: str, truncated: bool) -> bool:
        return _after(_last_line(text), self.text) is not None


class FinalAnswerLine(Check):
    """The last line that says something is `marker` followed by an answer on the same line."""

    name: Literal["final_answer_line"] = "final_answer_line"
    marker: NonBlank = "Answer:"

    def _found(self, text: str, truncated: bool) -> bool:
        return _says_something(_after(_last_line(text), self.marker) or "")


class Contains(Check):
    """At least one of `phrases` occurs: whole words, any case, in code too."""

    name: Literal["contains_any", "contains_none"]
    phrases: Annotated[tuple[NonBlank, ...], Field(min_length=1)]

    def _found(self, text: str, truncated: bool) -> bool:
        forms = [_normalised(text), _normalised(_EMPHASIS.sub("", text))]
        patterns = map(_phrase, self.phrases)
        return any(pattern.search(form) for pattern in patterns for form in forms)


class Exclamation(Check):
    """At least `minimum` exclamations in the wording; "!!!" is one, "n!" and "!=" are none."""

    name: Literal["exclamation"] = "exclamation"
    minimum: Count = 1

    def _found(self, text: str, truncated: bool) -> bool:
        return len(_EXCLAMATION.findall(_wording(text))) >= self.minimum


class FirstPerson(Check):
    """At least `minimum_share` of the sentences hold I, me, my, mine or myself, and one does."""

    name: Literal["first_person"] = "first_person"
    minimum_share: Share = 0.25

    def _found(self, text: str, truncated: bool) -> bool:
        hits = [bool(_FIRST_PERSON.search(sentence)) for sentence in _sentences(_persons(text))]
        return any(hits) and sum(hits) >= self.minimum_share * len(hits)


class Words(Check):
    """At most or at least `words` words; a truncated text can pass only the minimum."""

    name: Literal["maximum_words", "minimum_words"]
    words: Count

    def _found(self, text: str, truncated: bool) -> bool:
        count = len(_WORD.findall(text))
        return count <= self.words if self.name == "maximum_words" else count >= self.words


class MeanSentenceWords(Check):
    """Sentences of the wording have at most or at least `words` words on average.

    A line break ends a sentence. The last sentence of a truncated text counts only if there is no
    other. A text without a sentence outside of code fails both ways.
    """

    name: Literal["maximum_mean_sentence_words", "minimum_mean_sentence_words"]
    words: Annotated[float, Field(gt=0)]

    def _found(self, text: str, truncated: bool) -> bool:
        sentences = _sentences(_wording(text))
        if truncated and len(sentences) > 1:
            sentences.pop()
        total = sum(len(_WORD.findall(sentence)) for sentence in sentences)
        if self.name == "maximum_mean_sentence_words":
            return 0 < total <= self.words * len(sentences)
        return 0 < total >= self.words * len(sentences)


class LetterCase(Check):
    """At least `minimum_share` of the wording's letters are capitals or, respectively, small.

    The default is 0.8 for `upper_case` and 1 for `lower_case`: of the letters of ordinary prose,
    95 to 99 % are small already, so only a text without any capital was surely meant to be so.
    """

    name: Literal["upper_case", "lower_case"]
    minimum_share: Share | None = None

    def _found(self, text: str, truncated: bool) -> bool:
        upper = [letter.isupper() for letter in _wording(text) if letter.upper() != letter.lower()]
        if self.name == "upper_case":
            return bool(upper) and sum(upper) >= (self.minimum_share or 0.8) * len(upper)
        return bool(upper) and len(upper) - sum(upper) >= (self.minimum_share or 1) * len(upper)


AnyCheck = Annotated[
    Presence
    | Items
    | MarkdownTable
    | FlowingProse
    | Beginning
    | LastLine
    | FinalAnswerLine
    | Contains
    | Exclamation
    | FirstPerson
    | Words
    | MeanSentenceWords
    | LetterCase,
    Field(discriminator="name"),
]
"""Any of the checks, told apart by `name`; also a field type for other Pydantic models."""

_CLASSES: dict[str, type[Check]] = {
    name: check
    for check in get_args(get_args(AnyCheck)[0])
    for name in get_args(check.model_fields["name"].annotation)
}
_ADAPTER: TypeAdapter[Check] = TypeAdapter(AnyCheck)

CHECK_NAMES: tuple[str, ...] = tuple(_CLASSES)
"""Every name that a specification may give."""


def parse_check(specification: dict[str, Any]) -> Check:
    """Build the check that a specification names.

    Args:
        specification: `name` and the check's parameters, as written in YAML.

    Returns:
        The frozen check.

    Raises:
        ValueError: With one line, if the name is unknown (lists the known names) or a parameter is
            missing, unknown or of a wrong value (names it).
    """
    name = specification.get("name") if isinstance(specification, dict) else None
    if name not in CHECK_NAMES:
        message = f"unknown check {name!r} in {specification!r}; known: {', '.join(CHECK_NAMES)}"
        raise ValueError(message)
    try:
        return _ADAPTER.validate_python(specification)
    except ValidationError as error:
        problems = [
            f"parameter {'.'.join(map(str, detail['loc'][1:]))!r}: {detail['msg']}"
            for detail in error.errors()
        ]
        known = ", ".join(_CLASSES[name].model_fields.keys() - {"name"}) or "none"
        message = f"check {name!r}: {'; '.join(problems)} (its parameters: {known})"
        raise ValueError(message) from None
