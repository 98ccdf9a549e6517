"""Letters to somebody: a greeting, and a text that goes on after it."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from sami_pipeline.principles.checks.base import Check, Found, NonBlank
from sami_pipeline.principles.checks.text import after, first_line, quoted, says_something, wording

# What follows the greeting's word: a name of up to seven words that a sign or the line ends.
_NAME = re.compile(
    r"\s+(?!me\b|oh\b)[^\s,:!.]+(?:[ .]+[^\s,:!.]+){0,6}\s*(?:[,:!—-]|$)", re.IGNORECASE
)
_SALUTATION = re.compile(
    r"[\W_]*(?:(?:dear|dearest|hello|hi|hey|greetings)\b.{1,60}|to whom it may concern)[,:][\W_]*$",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"[\W_]*(?:yours(?: \w+)?|sincerely|(?:best|kind|warm|with)(?: \w+)? (?:regards|wishes)|regards"
    r"|(?:with )?(?:love|gratitude|appreciation)|cheers|respectfully|cordially)(?: \w+)?[\W_]*$",
    re.IGNORECASE,
)
_ADDRESSED = re.compile(r"[\W_]*(?:dear|dearest)\b.{1,60}[,:][\W_]*$", re.IGNORECASE)


class Letter(Check):
    """A letter that begins with `greeting`; or neither a letter nor that beginning.

    * `letter`: the text begins with the greeting and whom it greets ("Dear Ann," or a line of it),
      and says more after it. "Dear me, what a day!" greets nobody.
    * `no_letter`: the text does not begin with the greeting, no line of it is a salutation "Dear
      Ann,", and it has no other salutation with a closing such as "Sincerely," below it.
    """

    name: Literal["letter", "no_letter"]
    greeting: NonBlank = "Dear"
    asks: ClassVar = {
        "letter": "a letter that begins with “{greeting}”",
        "no_letter": "no letter and no “{greeting}” at the beginning",
    }

    def _found(self, text: str, truncated: bool) -> Found:
        beginning = f"it begins {quoted(first_line(text))}"
        begun = after(text, self.greeting) is not None
        if self.name == "letter":
            return Found(begun and self._goes_on(text), beginning)
        if begun:
            return Found(True, beginning)
        lines = wording(text).splitlines()
        greeted = next(filter(_ADDRESSED.match, lines), None)
        for at, line in enumerate(lines):
            if _SALUTATION.match(line) and any(map(_CLOSING.match, lines[at + 1 :])):
                greeted = line
        return Found(greeted is not None, f"the line {quoted(greeted)}" if greeted else beginning)

    def _goes_on(self, text: str) -> bool:
        """Tell whether somebody is greeted and something is said after it."""
        line = first_line(text)
        rest = after(line, self.greeting) or ""
        named = _NAME.match(rest)
        below = text.split(line, 1)[1]
        return bool(named) and says_something(rest[named.end() :] + below)
