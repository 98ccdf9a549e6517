"""Further checks after IFEval (Zhou et al. 2023, arXiv 2311.07911), from the paper's table 1.

Written from the paper's descriptions, not from its code. `IFEVAL` says which check stands for which
of its 25 instructions; the language of a response has none here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sami_pipeline.principles.checks.base import Check, Count, Found, NonBlank, times
from sami_pipeline.principles.checks.lists import count_bullets
from sami_pipeline.principles.checks.text import (
    normalised,
    paragraphs,
    phrase_pattern,
    quoted,
    says_something,
    sentences,
    wording,
)

IFEVAL: Mapping[str, tuple[str, ...]] = {
    "keywords:existence": ("contains_any",),
    "keywords:frequency": ("keyword_frequency",),
    "keywords:forbidden_words": ("contains_none",),
    "keywords:letter_frequency": ("letter_frequency",),
    "language:response_language": (),
    "length_constraints:number_paragraphs": ("paragraphs",),
    "length_constraints:number_words": ("maximum_words", "minimum_words"),
    "length_constraints:number_sentences": ("maximum_sentences", "minimum_sentences"),
    "length_constraints:nth_paragraph_first_word": ("paragraph_starts_with",),
    "detectable_content:postscript": ("postscript",),
    "detectable_content:number_placeholders": ("placeholders",),
    "detectable_format:number_bullet_lists": ("exact_bullets", "bullet_list"),
    "detectable_format:title": ("title_in_brackets",),
    "detectable_format:constrained_response": ("contains_any",),
    "detectable_format:number_highlighted_sections": ("highlighted_sections",),
    "detectable_format:multiple_sections": ("labelled_sections",),
    "detectable_format:json_format": ("json_object",),
    "combination:repeat_prompt": ("starts_with",),
    "combination:two_responses": ("two_responses",),
    "change_case:english_capital": ("upper_case",),
    "change_case:english_lowercase": ("lower_case",),
    "change_case:capital_word_frequency": ("capital_words",),
    "startend:end_checker": ("ends_with",),
    "startend:quotation": ("quotation",),
    "punctuation:no_comma": ("no_comma",),
}
"""IFEval's instructions and the checks that stand for them."""

_PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\](?!\()")
_HIGHLIGHT = re.compile(r"(?<!\*)\*{1,2}(?=[^\s*])[^*\n]*[^\s*]\*{1,2}(?!\*)")
_CAPITAL_WORD = re.compile(r"\b[A-Z][A-Z'’-]+\b")
_TITLE = re.compile(r"<<[^\s<>][^<>\n]*>>")
_POSTSCRIPT = re.compile(r"^[\W_]*P\.?\s?(?:P\.?\s?)?S\b[.:]?\s*\S", re.IGNORECASE | re.MULTILINE)
_RESPONSES = re.compile(r"^\s*\*{6}\s*$", re.MULTILINE)


class Amount(Check):
    """At least `minimum` of something (`letter_frequency` and the like by their own classes).

    * `placeholders`: "[address]"; `highlighted_sections`: spans of *emphasis*.
    * `capital_words`: words of two or more capitals.
    """

    name: Literal["placeholders", "highlighted_sections", "capital_words"]
    minimum: Count = 1
    asks: ClassVar = {
        "placeholders": "at least {minimum} placeholders in brackets",
        "highlighted_sections": "at least {minimum} highlighted spans",
        "capital_words": "at least {minimum} words in capitals",
    }

    def _found(self, text: str, truncated: bool) -> Found:
        pattern = {
            "placeholders": _PLACEHOLDER,
            "highlighted_sections": _HIGHLIGHT,
            "capital_words": _CAPITAL_WORD,
        }[self.name]
        count = len(pattern.findall(wording(text)))
        return Found(count >= self.minimum, f"{count}")


class KeywordFrequency(Check):
    """`keyword` occurs at least `minimum` times, as whole words in any case."""

    name: Literal["keyword_frequency"] = "keyword_frequency"
    keyword: NonBlank
    minimum: Count = 1
    asks: ClassVar = {"keyword_frequency": "“{keyword}” at least {minimum} times"}

    def _found(self, text: str, truncated: bool) -> Found:
        count = len(phrase_pattern(self.keyword).findall(normalised(text)))
        return Found(count >= self.minimum, times(count, "time"))


class LetterFrequency(Check):
    """`letter` occurs at least `minimum` times, in any case."""

    name: Literal["letter_frequency"] = "letter_frequency"
    letter: Annotated[str, Field(min_length=1, max_length=1)]
    minimum: Count = 1
    asks: ClassVar = {"letter_frequency": "the letter “{letter}” at least {minimum} times"}

    def _found(self, text: str, truncated: bool) -> Found:
        count = text.casefold().count(self.letter.casefold())
        return Found(count >= self.minimum, times(count, "time"))


class ExactBullets(Check):
    """Exactly `items` lines that start with a bullet."""

    name: Literal["exact_bullets"] = "exact_bullets"
    items: Count
    asks: ClassVar = {"exact_bullets": "exactly {items} bullets"}
    about_ending: ClassVar = frozenset({"exact_bullets"})

    def _found(self, text: str, truncated: bool) -> Found:
        count = count_bullets(text)[0]
        return Found(count == self.items, times(count, "bullet"))


class Paragraphs(Check):
    """Exactly `paragraphs` paragraphs, separated by blank lines or by lines of three asterisks."""

    name: Literal["paragraphs"] = "paragraphs"
    paragraphs: Count
    asks: ClassVar = {"paragraphs": "exactly {paragraphs} paragraphs"}
    about_ending: ClassVar = frozenset({"paragraphs"})

    def _found(self, text: str, truncated: bool) -> Found:
        count = len(paragraphs(text))
        return Found(count == self.paragraphs, times(count, "paragraph"))


class ParagraphBeginning(Check):
    """Paragraph number `paragraph` begins with `text`, compared as `starts_with` does."""

    name: Literal["paragraph_starts_with"] = "paragraph_starts_with"
    paragraph: Count
    text: NonBlank
    asks: ClassVar = {"paragraph_starts_with": "“{text}” at the beginning of paragraph {paragraph}"}

    def _found(self, text: str, truncated: bool) -> Found:
        found = paragraphs(text)
        if len(found) < self.paragraph:
            return Found(False, times(len(found), "paragraph"))
        own = normalised(found[self.paragraph - 1])
        return Found(bool(phrase_pattern(self.text).match(own)), f"it begins {quoted(own)}")


class Sentences(Check):
    """At most or at least `sentences` sentences outside of code; a line break ends one too."""

    name: Literal["maximum_sentences", "minimum_sentences"]
    sentences: Count
    asks: ClassVar = {
        "maximum_sentences": "at most {sentences} sentences",
        "minimum_sentences": "at least {sentences} sentences",
    }
    about_ending: ClassVar = frozenset({"maximum_sentences"})

    def _found(self, text: str, truncated: bool) -> Found:
        count = len(sentences(wording(text)))
        holds = count <= self.sentences if self.name[:3] == "max" else count >= self.sentences
        return Found(holds, times(count, "sentence"))


class LabelledSections(Check):
    """At least `minimum` lines that begin with `label` and a number: "Section 1"."""

    name: Literal["labelled_sections"] = "labelled_sections"
    label: NonBlank = "Section"
    minimum: Count = 2
    asks: ClassVar = {"labelled_sections": "at least {minimum} sections “{label} 1”"}

    def _found(self, text: str, truncated: bool) -> Found:
        pattern = rf"^[\W_]*{re.escape(self.label)}\s+(?:\d+|[IVX]+)\b"
        count = len(re.findall(pattern, wording(text), re.IGNORECASE | re.MULTILINE))
        return Found(count >= self.minimum, times(count, "section"))


class Form(Check):
    """A form that a whole text has.

    * `postscript`: a line that begins with P.S.; `title_in_brackets`: a title in <<double angular
      brackets>>; `quotation`: the whole text in double quotes; `no_comma`: no comma in any script.
    * `two_responses`: two different texts, separated by a line of six asterisks.
    """

    name: Literal["postscript", "title_in_brackets", "quotation", "no_comma", "two_responses"]
    asks: ClassVar = {
        "postscript": "a postscript",
        "title_in_brackets": "a title in <<angular brackets>>",
        "quotation": "the whole text in double quotes",
        "no_comma": "no comma",
        "two_responses": "two responses with ****** between them",
    }
    about_ending: ClassVar = frozenset({"quotation", "two_responses"})

    def _found(self, text: str, truncated: bool) -> Found:
        text = text.strip()
        match self.name:
            case "postscript":
                found = _POSTSCRIPT.search(text)
            case "title_in_brackets":
                found = _TITLE.search(text)
            case "quotation":
                holds = len(text) > 1 and text[0] in '"“„«' and text[-1] in '"”“»'
                return Found(holds, f"it begins with {text[0]} and ends with {text[-1]}")
            case "no_comma":
                count = sum(sign in ",،，、" for sign in text)
                return Found(count > 0, times(count, "comma"))
            case _:
                both = list(filter(says_something, _RESPONSES.split(text)))
                differ = len(both) == 2 and normalised(both[0]) != normalised(both[1])
                return Found(differ, times(len(both), "response"))
        return Found(bool(found), quoted(found[0]) if found else "none")


class Ending(Check):
    """The text ends with `text`; quotes and white space after it are ignored."""

    name: Literal["ends_with"] = "ends_with"
    text: NonBlank
    asks: ClassVar = {"ends_with": "“{text}” at the end"}
    about_ending: ClassVar = frozenset({"ends_with"})

    def _found(self, text: str, truncated: bool) -> Found:
        own = normalised(text).rstrip(" \"'*_")
        ends = own.endswith(normalised(self.text).rstrip(" \"'*_"))
        return Found(ends, f"it ends {quoted(own[-40:])}")
