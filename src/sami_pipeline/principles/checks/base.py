"""What every check is: data that names a property, and what it finds in a text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar, NamedTuple, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sami_pipeline.principles.checks.text import says_something


class Found(NamedTuple):
    """Whether a property is there, and what was seen of it ("40 words")."""

    holds: bool
    evidence: str


class Outcome(NamedTuple):
    """Whether a text passes, and why: "40 words; at most 30 asked"."""

    passed: bool
    evidence: str


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


NonBlank = Annotated[str, AfterValidator(_not_blank)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]

NEGATIVE = ("no_", "does_not_", "contains_none")
"""How the name of a check begins that asks for its property's absence."""


class Check(BaseModel, ABC):
    """One verifiable property of an answer; `name` picks it, or its opposite.

    Attributes:
        name: The check's name in a specification; the annotation lists all that the class has.
        asks: For each name what is asked, with the parameters in braces ("at most {words} words").
        about_ending: The names that can only be judged on a text that ended by itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    asks: ClassVar[Mapping[str, str]]
    about_ending: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return every name that the class answers to."""
        return get_args(cls.model_fields["name"].annotation)

    @property
    def asked(self) -> str:
        """What the check asks for, in words: what a rate of compliance is a rate of."""
        values = {
            key: ", ".join(map(str, value)) if isinstance(value, tuple) else value
            for key, value in self
        }
        return self.asks[self.name].format(**values)

    def judge(self, text: str, *, truncated: bool = False) -> Outcome:
        """Judge whether the text has the property, and say by what.

        Args:
            text: The answer as generated.
            truncated: Whether generation stopped at its token limit.

        Returns:
            Not passed for a text without any letter or digit and, where the check is about the
            ending, for a truncated text.
        """
        if not says_something(text):
            return Outcome(False, f"nothing said; {self.asked} asked")
        if truncated and self.name in self.about_ending:
            return Outcome(False, f"cut off before its end; {self.asked} asked")
        found = self._found(text, truncated)
        passed = found.holds != self.name.startswith(NEGATIVE)
        return Outcome(passed, f"{found.evidence}; {self.asked} asked")

    def passes(self, text: str, *, truncated: bool = False) -> bool:
        """Tell whether the text has the property; see `judge`."""
        return self.judge(text, truncated=truncated).passed

    @abstractmethod
    def _found(self, text: str, truncated: bool) -> Found:
        """Tell whether the property (not its opposite) is there in a text that says something."""


def times(count: int, what: str) -> str:
    """Return a count in words: "no list item", "1 list item", "2 list items"."""
    return f"no {what}" if count == 0 else f"{count} {what}{'' if count == 1 else 's'}"
