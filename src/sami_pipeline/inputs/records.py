"""Contracts of raw files: one model per kind of record, checked line by line.

Prompt templates, principles and training prompts have theirs next to what reads them
(``prompts``, ``constitutions``, ``training_prompts``, ``principle_writing``).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from typing import Annotated, Any, Literal, TypeVar

import pandas as pd
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from sami_pipeline.errors import InputError, first_fault
from sami_pipeline.evaluation.statistics import MT_BENCH_CATEGORIES

MAX_CHARACTERS = 1_000_000
# What no table, page or prompt can hold: control characters but tab and line ends, half characters.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")

# Kinds of characters that are not seen: spaces, marks of direction, of width zero.
_UNSEEN = {"Zs", "Zl", "Zp", "Cf", "Cc"}


def plain_text(value: str) -> str:
    """Return a text that holds something to read, and nothing that can't be written or shown."""
    if found := _UNPRINTABLE.search(value):
        raise ValueError(f"holds the control character U+{ord(found.group()):04X}; remove it")
    if all(unicodedata.category(letter) in _UNSEEN for letter in value):
        raise ValueError("is empty; write the text")
    return value


Text = Annotated[str, Field(max_length=MAX_CHARACTERS), AfterValidator(plain_text)]
_Id = Annotated[int | str, Field(union_mode="left_to_right")]


class _Record(BaseModel):
    # Published files have further fields, which nothing here reads.
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class Question(_Record):
    """A question of MT-Bench with its two turns."""

    question_id: _Id
    category: Literal[*MT_BENCH_CATEGORIES]
    turns: list[Text] = Field(min_length=2, max_length=2)
    reference: list[str] | None = Field(None, max_length=2)


class _Choice(_Record):
    turns: list[str] = Field(min_length=2, max_length=2)


class ReferenceAnswer(_Record):
    """A reference answer to both turns of a question."""

    question_id: _Id
    choices: list[_Choice] = Field(min_length=1)


class JudgePrompt(_Record):
    """A prompt for a judge, MT-Bench's own or one of this project."""

    name: Text
    type: Literal["pairwise", "single"]
    system_prompt: str
    prompt_template: Text
    description: str
    category: str
    output_format: str


class MathProblem(_Record):
    """A problem of GSM8K; the answer is a worked solution that ends in ``#### N``."""

    question: Text
    answer: Text


_Model = TypeVar("_Model", bound=BaseModel)


def read_records(
    model: type[_Model], table: pd.DataFrame, name: str, unique: str | None = None
) -> list[_Model]:
    """Return the rows of a raw table as records.

    Args:
        model: the contract of one row.
        table: one row a line of the file; what a line lacks is missing.
        name: what the table is called in the catalog, for the message.
        unique: the field that no two rows may share.

    Raises:
        InputError: one line naming the table, the line, the field and what is wrong.
    """
    rows = (
        {field: value for field, value in row.items() if not _is_missing(value)}
        for row in table.to_dict("records")
    )
    places = (f"{name}: line {number}" for number in range(1, len(table) + 1))
    return parse_records(model, rows, list(places), unique)


def parse_records(
    model: type[_Model], values: Iterable[Any], places: Sequence[str], unique: str | None = None
) -> list[_Model]:
    """Return parsed values as records; see ``read_records``.

    Args:
        model: the contract of one record.
        values: mappings from fields to values.
        places: what each is called in messages.
        unique: the field that no two may share.
    """
    records: list[_Model] = []
    seen: dict[Hashable, str] = {}
    for value, place in zip(values, places, strict=True):
        try:
            record = model.model_validate(value)
        except ValidationError as error:
            raise InputError(f"{place}: {first_fault(error)}") from error
        if unique is not None:
            key = str(getattr(record, unique))
            if key in seen:
                raise InputError(
                    f"{place}: {unique}: {key!r} is used already ({seen[key]}); remove one"
                )
            seen[key] = place
        records.append(record)
    return records


def refuse_repeated(texts: Iterable[str], name: str, field: str) -> None:
    """Refuse a table of which two rows ask the same.

    Args:
        texts: of one field, in the order of the rows.
        name: what the table is called in the catalog, for the message.
        field: what the field is called.

    Raises:
        InputError: one line naming both lines.
    """
    first: dict[str, int] = {}
    for number, text in enumerate(texts, start=1):
        if (before := first.setdefault(" ".join(text.split()), number)) != number:
            raise InputError(
                f"{name}: line {number}: {field}: is that of line {before} again; remove one"
            )


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)
