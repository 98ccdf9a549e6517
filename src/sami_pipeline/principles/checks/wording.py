"""Wording: how a text begins and ends, what occurs in it, whom it addresses."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sami_pipeline.principles.checks.base import Check, Count, Found, NonBlank, Share, times
from sami_pipeline.principles.checks.text import (
    after,
    count_words,
    first_line,
    last_line,
    normalised,
    phrase_pattern,
    quoted,
    says_something,
    sentences,
    without_emphasis,
    wording,
)

_SPEECH = re.compile(r"\"([^\"\n]+)\"|[“„«]([^“”»\n]+)[”“»]")
_ACTION = re.compile(r"\*[^*\n]+\*|\([^()\n]+\)")
_QUESTION_MARK = re.compile(r"[?？؟]")
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


def _persons(text: str) -> str:
    return _NOT_A_PERSON.sub(" ", wording(text))


def _asked(text: str) -> str:
    """Return the wording without what is only told: speech in a line that says more than it."""
    lines = wording(text).split("\n")
    for at, line in enumerate(lines):
        narrated = _SPEECH.sub(" ", line)
        if narrated != line and says_something(_ACTION.sub("", narrated)):
            lines[at] = narrated
    return "\n".join(lines)


class Wording(Check):
    """A kind of wording is there or, with `no_`, is nowhere there.

    * `contains_digit`: a digit anywhere, in list numbers too.
    * `question_at_end`: a question mark among the signs after the last word.
    * `question_mark`: one anywhere in the wording, but not in what somebody is told to have said
      ("Who?" he asked). Speech that fills its line, with *actions* or without, is the answer's own.
    * `no_exclamation` and `no_first_person`: see `Exclamation` and `FirstPerson`.
    * `second_person`: you, your, yours, yourself or yourselves.
    * `direct_speech`: two words or more in double quotes, straight or curly, on one line; one that
      the token limit cut open counts.
    """

    name: Literal[
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
    asks: ClassVar = {
        "contains_digit": "a digit",
        "no_digit": "no digit",
        "question_at_end": "a question at the end",
        "question_mark": "a question",
        "no_question_mark": "no question",
        "no_exclamation": "no exclamation",
        "no_first_person": "no first person",
        "second_person": "the second person",
        "no_second_person": "no second person",
        "direct_speech": "direct speech",
        "no_direct_speech": "no direct speech",
    }
    about_ending: ClassVar = frozenset({"question_at_end"})

    def _found(self, text: str, truncated: bool) -> Found:
        match self.name:
            case "contains_digit" | "no_digit":
                digits = sum(map(str.isdigit, text))
                return Found(digits > 0, times(digits, "digit"))
            case "question_at_end":
                last_word = max(place for place, sign in enumerate(text) if sign.isalnum())
                found = _QUESTION_MARK.search(text, last_word)
                return Found(bool(found), f"it ends in {quoted(text[last_word:])}")
            case "question_mark" | "no_question_mark":
                questions = len(_QUESTION_MARK.findall(_asked(text)))
                return Found(questions > 0, times(questions, "question mark"))
            case "no_exclamation":
                count = len(_EXCLAMATION.findall(wording(text)))
                return Found(count > 0, times(count, "exclamation"))
            case "no_first_person":
                found = _FIRST_PERSON.search(_persons(text))
            case "second_person" | "no_second_person":
                found = _SECOND_PERSON.search(wording(text))
            case _:
                speeches = _SPEECH.finditer(wording(text) + '"”' * truncated)
                found = next((f for f in speeches if count_words(f[1] or f[2]) >= 2), None)
        return Found(bool(found), quoted(found[0]) if found else "none")


class Beginning(Check):
    """The text begins with `text`: whole words, any case.

    Quotes, emoji, markup and HTML tags before it are ignored.
    """

    name: Literal["starts_with", "does_not_start_with"]
    text: NonBlank
    asks: ClassVar = {
        "starts_with": "“{text}” at the beginning",
        "does_not_start_with": "no “{text}” at the beginning",
    }

    def _found(self, text: str, truncated: bool) -> Found:
        begun = after(text, self.text) is not None
        return Found(begun, f"it begins {quoted(first_line(text))}")


class LastLine(Check):
    """The last line that says something begins with `text`, compared as in `Beginning`."""

    name: Literal["last_line_starts_with", "does_not_end_with_line"]
    text: NonBlank
    asks: ClassVar = {
        "last_line_starts_with": "a last line with “{text}” at its beginning",
        "does_not_end_with_line": "no last line with “{text}” at its beginning",
    }
    about_ending: ClassVar = frozenset({"last_line_starts_with", "does_not_end_with_line"})

    def _found(self, text: str, truncated: bool) -> Found:
        line = last_line(text)
        return Found(after(line, self.text) is not None, f"the last line is {quoted(line)}")


class FinalAnswerLine(Check):
    """The last line that says something is `marker` followed by an answer on the same line."""

    name: Literal["final_answer_line"] = "final_answer_line"
    marker: NonBlank = "Answer:"
    asks: ClassVar = {"final_answer_line": "a last line of “{marker}” and an answer"}
    about_ending: ClassVar = frozenset({"final_answer_line"})

    def _found(self, text: str, truncated: bool) -> Found:
        line = last_line(text)
        answered = says_something(after(line, self.marker) or "")
        return Found(answered, f"the last line is {quoted(line)}")


class Contains(Check):
    """At least one of `phrases` occurs: whole words, any case, in code too."""

    name: Literal["contains_any", "contains_none"]
    phrases: Annotated[tuple[NonBlank, ...], Field(min_length=1)]
    asks: ClassVar = {"contains_any": "one of: {phrases}", "contains_none": "none of: {phrases}"}

    def _found(self, text: str, truncated: bool) -> Found:
        forms = [normalised(text), normalised(without_emphasis(text))]
        for phrase in self.phrases:
            if any(phrase_pattern(phrase).search(form) for form in forms):
                return Found(True, quoted(phrase))
        return Found(False, "none")


class Exclamation(Check):
    """At least `minimum` exclamations in the wording; "!!!" is one, "n!" and "!=" are none."""

    name: Literal["exclamation"] = "exclamation"
    minimum: Count = 1
    asks: ClassVar = {"exclamation": "at least {minimum} exclamations"}

    def _found(self, text: str, truncated: bool) -> Found:
        count = len(_EXCLAMATION.findall(wording(text)))
        return Found(count >= self.minimum, times(count, "exclamation"))


class FirstPerson(Check):
    """At least `minimum_share` of the sentences hold I, me, my, mine or myself, and one does."""

    name: Literal["first_person"] = "first_person"
    minimum_share: Share = 0.25
    asks: ClassVar = {"first_person": "the first person in {minimum_share:.0%} of the sentences"}

    def _found(self, text: str, truncated: bool) -> Found:
        hits = [bool(_FIRST_PERSON.search(sentence)) for sentence in sentences(_persons(text))]
        enough = any(hits) and sum(hits) >= self.minimum_share * len(hits)
        return Found(enough, f"in {sum(hits)} of {times(len(hits), 'sentence')}")


class LetterCase(Check):
    """At least `minimum_share` of the wording's letters are capitals or, respectively, small.

    The default is 0.8 for `upper_case` and 1 for `lower_case`: of the letters of ordinary prose,
    95 to 99 % are small already, so only a text without any capital was surely meant to be so.
    """

    name: Literal["upper_case", "lower_case"]
    minimum_share: Share | None = None
    asks: ClassVar = {"upper_case": "capitals", "lower_case": "small letters"}

    @property
    def _least(self) -> float:
        return self.minimum_share or (0.8 if self.name == "upper_case" else 1)

    @property
    def asked(self) -> str:
        """What is asked, with the share that is needed."""
        return f"{self._least:.0%} {super().asked}"

    def _found(self, text: str, truncated: bool) -> Found:
        upper = [letter.isupper() for letter in wording(text) if letter.upper() != letter.lower()]
        own = sum(upper) if self.name == "upper_case" else len(upper) - sum(upper)
        if not upper:
            return Found(False, "no letter that has a case")
        return Found(own >= self._least * len(upper), f"{own / len(upper):.0%}")
