"""Programmatic checks of what a statement in a constitution asks an answer to do.

A check is plain data (`{"name": "bullet_list", "minimum_items": 3}`), so that principles can live
in YAML. Each says what it asks and by what it judged: "40 words; at most 30 words asked". To add
one, write a class in a file of this folder and name the file in `FILES`.

A negative check (`no_…`, `does_not_…`, `contains_none`) holds exactly where its positive does not,
with these exceptions:

* A text without a letter or a digit says nothing and passes nothing, also no negative check.
* A *truncated* text (generation stopped at its token limit) has no ending: checks about the ending
  fail both ways, and so does `maximum_words`, for who knows how long the answer would have become.
  Checks about the beginning or the body judge what is there, and a fence, quotation or bold span
  that the limit cut open counts as closed.
* `no_fenced_code` asks for no code at all, and `no_letter` for no letter with any greeting; a fence
  that a finished text never closes is neither `fenced_code` nor `no_fenced_code`.

What is inside fenced code never counts as a list, heading, table, bold text or wording (a Python
comment is not a heading); inline code and web addresses do not count as wording either. Verifiable
instructions of this kind were introduced by IFEval (arXiv 2311.07911); `ifeval.IFEVAL` maps its
names.
"""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, ValidationError

from sami_pipeline.principles.checks.base import NEGATIVE, Check, Found, Outcome

FILES = (
    "code",
    "ifeval",
    "lengths",
    "letters",
    "lists",
    "markup",
    "wording",
)
"""The files of this folder that hold checks."""


def _classes(file: str) -> list[type[Check]]:
    module = import_module(f"{__name__}.{file}")
    own = (each for each in vars(module).values() if isinstance(each, type))
    return [each for each in own if issubclass(each, Check) and each.__module__ == module.__name__]


CHECKS: list[type[Check]] = [check for file in FILES for check in _classes(file)]
"""Every class of checks. A specification finds its own by name."""


def check_names() -> tuple[str, ...]:
    """Return every name that a specification may give."""
    return tuple(name for check in CHECKS for name in check.names())


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
    found = next((check for check in CHECKS if name in check.names()), None)
    if found is None:
        known = ", ".join(check_names())
        raise ValueError(f"unknown check {name!r} in {specification!r}; known: {known}")
    try:
        return found.model_validate(specification)
    except ValidationError as error:
        problems = [
            f"parameter {'.'.join(map(str, detail['loc']))!r}: {detail['msg']}"
            for detail in error.errors()
        ]
        known = ", ".join(found.model_fields.keys() - {"name"}) or "none"
        message = f"check {name!r}: {'; '.join(problems)} (its parameters: {known})"
        raise ValueError(message) from None


def _parsed(value: Any) -> Check:
    return value if isinstance(value, Check) else parse_check(value)


AnyCheck = Annotated[
    Check, PlainValidator(_parsed), PlainSerializer(lambda check: check.model_dump())
]
"""Any of the checks, told apart by `name`: a field type for other Pydantic models."""

__all__ = [
    "CHECKS",
    "NEGATIVE",
    "AnyCheck",
    "Check",
    "Found",
    "Outcome",
    "check_names",
    "parse_check",
]
