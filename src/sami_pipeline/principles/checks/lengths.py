"""Lengths: numbers of words, and of words in a sentence."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sami_pipeline.principles.checks.base import Check, Count, Found, times
from sami_pipeline.principles.checks.text import count_words, sentences, wording


class Words(Check):
    """At most or at least `words` words, counted as `text.count_words` says, in code too.

    A truncated text can pass only the minimum: who knows how long it would have become.
    """

    name: Literal["maximum_words", "minimum_words"]
    words: Count
    asks: ClassVar = {
        "maximum_words": "at most {words} words",
        "minimum_words": "at least {words} words",
    }
    about_ending: ClassVar = frozenset({"maximum_words"})

    def _found(self, text: str, truncated: bool) -> Found:
        count = count_words(text)
        holds = count <= self.words if self.name == "maximum_words" else count >= self.words
        return Found(holds, times(count, "word"))


class MeanSentenceWords(Check):
    """Sentences of the wording have at most or at least `words` words on average.

    A line break ends a sentence. The last sentence of a truncated text counts only if there is no
    other. A text without a sentence outside of code fails both ways.
    """

    name: Literal["maximum_mean_sentence_words", "minimum_mean_sentence_words"]
    words: Annotated[float, Field(gt=0)]
    asks: ClassVar = {
        "maximum_mean_sentence_words": "at most {words:g} words a sentence",
        "minimum_mean_sentence_words": "at least {words:g} words a sentence",
    }

    def _found(self, text: str, truncated: bool) -> Found:
        found = sentences(wording(text))
        if truncated and len(found) > 1:
            found.pop()
        total = sum(map(count_words, found))
        if not total:
            return Found(False, "no sentence")
        mean = total / len(found)
        at_most = self.name == "maximum_mean_sentence_words"
        holds = mean <= self.words if at_most else mean >= self.words
        return Found(holds, f"{mean:.1f} words a sentence")
