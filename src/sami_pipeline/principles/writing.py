"""Principles and antitheses written by a model: step (a) of SAMI (arXiv 2404.14313).

The model answers in lines that begin with "Principle:" and "Antithesis:", a form that small models
keep to; lines of YAML and JSON with these names are read too.
"""

from __future__ import annotations

import itertools
import logging
import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sami_pipeline import schemas
from sami_pipeline.engines import Completion, GenerationRequest
from sami_pipeline.errors import InputError, first_fault
from sami_pipeline.models.prompts import Prompt, check_placeholders
from sami_pipeline.parameters import PrincipleWritingParameters
from sami_pipeline.principles.constitutions import CategoryPrinciples

logger = logging.getLogger(__name__)

COMPLETE, INCOMPLETE, MALFORMED = "complete", "incomplete", "malformed"

_LONGEST_STATEMENT = 300
# A label begins a line, after a number or signs of markup, or a field of JSON.
_SIGN = r"(?:[^\w\n]|_)"
_LABEL = re.compile(
    rf"(?:^|[{{,]){_SIGN}*(?:\d+{_SIGN}+)?(principle|antithesis)(?![^\W\d_]){_SIGN}*\d*{_SIGN}*?:",
    re.IGNORECASE | re.MULTILINE,
)
_MARKUP = " \t\r\"'`“”*_,{}[]"

Pair = tuple[str, str]


class WritingPrompt(BaseModel):
    """How a model is asked for principles; one YAML file.

    In ``prompt`` the placeholders ``{description}`` and ``{count}`` are replaced, and
    ``{existing}`` by the category's principles, one a line.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: str | None = Field(None, description="System message.")
    prompt: str
    opening: str | None = Field(None, description="What the model's answer goes on with.")
    descriptions: dict[str, str] = Field(description="What is asked for in each category.")

    @field_validator("prompt")
    @classmethod
    def _placeholders(cls, value: str) -> str:
        for needed in ("{description}", "{count}"):
            if needed not in value:
                raise ValueError(f"the placeholder {needed} is missing")
        check_placeholders(value, ("description", "count", "existing"))
        return value

    @classmethod
    def parse(cls, value: Any) -> WritingPrompt:
        """Return the prompt that a YAML file holds; raise InputError naming a wrong field."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise InputError(f"writing_prompt: {first_fault(error)}") from error

    def build(self, category: str, count: int, existing: Sequence[str]) -> Prompt:
        """Return the prompt for ``count`` principles of a category besides the existing ones."""
        if category not in self.descriptions:
            raise InputError(
                f"writing_prompt: descriptions: {category} is missing; say what is asked for in it"
            )
        text = self.prompt.format(
            description=self.descriptions[category],
            count=count,
            existing="\n".join(f"- {statement}" for statement in existing) or "(there are none)",
        )
        system = [("system", self.system)] if self.system else []
        opening = [("assistant", self.opening)] if self.opening else []
        return Prompt(messages=(*system, ("user", text), *opening))

    def answer(self, text: str) -> str:
        """Return a model's whole answer, also of one that started over instead of going on."""
        begun = self.opening or ""
        if not text or text.lstrip().startswith(begun):
            return text
        return f"{begun} {text.lstrip()}"


def parse_pairs(text: str, *, truncated: bool = False) -> list[Pair]:
    """Return the (principle, antithesis) pairs in a model's answer.

    A principle counts with the antithesis that follows it next. A statement is the rest of its
    line, or the next line where that is empty.

    Args:
        text: the answer.
        truncated: the answer was cut off; what it ends with is left out.
    """
    labels = list(_LABEL.finditer(text))
    statements = []
    for label, following in itertools.zip_longest(labels, labels[1:]):
        raw = text[label.end() : following.start() if following else len(text)].lstrip()
        line, *below = raw.split("\n", 1)
        if truncated and not following and not below:
            continue
        statements.append((label.group(1).lower(), " ".join(line.strip(_MARKUP).split())))
    return [
        (principle, antithesis)
        for (kind, principle), (next_kind, antithesis) in itertools.pairwise(statements)
        if kind == "principle" and next_kind == "antithesis" and _usable(principle, antithesis)
    ]


def _usable(principle: str, antithesis: str) -> bool:
    return (
        all(len(each) <= _LONGEST_STATEMENT and " " in each for each in (principle, antithesis))
        and normalised(principle) != normalised(antithesis)
        and "" not in (normalised(principle), normalised(antithesis))
    )


def normalised(statement: str) -> str:
    """Return a statement by which duplicates are told: without case, space and punctuation."""
    folded = unicodedata.normalize("NFKC", statement).casefold()
    return " ".join(re.findall(r"[^\W_]+", folded))


def new_pairs(pairs: Sequence[Pair], known: Collection[str]) -> list[Pair]:
    """Return the pairs that are new, each once.

    Args:
        pairs: (principle, antithesis) pairs.
        known: statements that exist, principles and antitheses alike. A pair whose principle is
            one of them is not new: neither a repetition nor an existing pair turned round.
    """
    seen = {normalised(statement) for statement in known}
    kept = []
    for principle, antithesis in pairs:
        if normalised(principle) not in seen:
            kept.append((principle, antithesis))
            seen |= {normalised(principle), normalised(antithesis)}
    return kept


def write_principles(
    existing: Mapping[str, Sequence[Mapping[str, str]]],
    prompt: WritingPrompt,
    parameters: PrincipleWritingParameters,
    ask: Callable[[list[GenerationRequest]], list[Completion]],
    written_by: str,
) -> tuple[dict[str, dict[str, Any]], pd.DataFrame]:
    """Let a model write principles of every category, asking again where too few were usable.

    Args:
        existing: ``id, principle, antithesis`` of the principles that there are, by category.
        prompt: how the model is asked.
        parameters: categories, how many principles, how many attempts, how they are sampled.
        ask: gives one completion per request.
        written_by: who the files say wrote them.

    Returns:
        For each category with any new principle the contents of its YAML file, as a person would
        write it; and one row per answer: ``category, attempt, status, found, kept, text``, with
        status "complete" (all principles are there), "incomplete" (more were needed), "malformed"
        (no pair was found) or the reason why there was no answer.
    """
    sampling = parameters.sampling()
    written: dict[str, list[Pair]] = {category: [] for category in parameters.categories}
    rows = []
    for attempt in range(parameters.attempts):
        short = [name for name, got in written.items() if len(got) < parameters.per_category]
        prompts = {
            name: prompt.build(
                name,
                parameters.per_category,
                [each["principle"] for each in existing.get(name, ())],
            )
            for name in short
        }
        requests = [GenerationRequest(prompts[name], sampling, sample=attempt) for name in short]
        for name, completion in zip(short, ask(requests) if requests else [], strict=True):
            given = existing.get(name, ())
            # The prompt's own example is no new principle.
            known = [s for pair in parse_pairs(prompt.prompt) for s in pair]
            known += [each[side] for each in given for side in ("principle", "antithesis")]
            known += [statement for pair in written[name] for statement in pair]
            text = prompt.answer(completion.text)
            found = parse_pairs(text, truncated=completion.finish_reason == "length")
            room = parameters.per_category - len(written[name])
            kept = new_pairs(found, known)[:room]
            written[name] += kept
            rows.append(
                {
                    "category": name,
                    "attempt": attempt,
                    "status": _status(completion, found, len(kept) == room),
                    "found": len(found),
                    "kept": len(kept),
                    "text": text,
                }
            )
    files = {
        name: _file(name, pairs, existing.get(name, ()), written_by)
        for name, pairs in written.items()
        if pairs
    }
    for name, pairs in written.items():
        if len(pairs) < parameters.per_category:
            logger.warning(
                "Principles: %s has %d of %d after %d attempts; what the model wrote is in "
                "principle_writing",
                name, len(pairs), parameters.per_category, parameters.attempts,
            )  # fmt: skip
    return files, schemas.PrincipleWriting.tabulate(rows)


def _status(completion: Completion, found: Sequence[Pair], complete: bool) -> str:
    if completion.finish_reason in ("prompt_too_long", "failed"):
        return completion.finish_reason
    if not found:
        return MALFORMED
    return COMPLETE if complete else INCOMPLETE


def _file(
    category: str, pairs: Sequence[Pair], existing: Sequence[Mapping[str, str]], written_by: str
) -> dict[str, Any]:
    """Return what a principles file holds, checked as one that a person wrote."""
    taken = {each["id"] for each in existing}
    principles = []
    for principle, antithesis in pairs:
        name = _identifier(principle, taken)
        taken.add(name)
        principles.append({"id": name, "principle": principle, "antithesis": antithesis})
    content = {"category": category, "written_by": written_by, "principles": principles}
    CategoryPrinciples.model_validate(content)
    return content


def _identifier(statement: str, taken: Collection[str]) -> str:
    """Return the statement's first words as a name that is not taken."""
    plain = unicodedata.normalize("NFKD", statement).encode("ascii", "ignore").decode().lower()
    name = "_".join(re.findall(r"[a-z][a-z0-9]*", plain)[:4]) or "principle"
    number = 2
    unique = name
    while unique in taken:
        unique, number = f"{name}_{number}", number + 1
    return unique
