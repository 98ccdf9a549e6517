"""Text files that people write or fetch, read strictly: a fault is named with file and line.

A byte order mark, which Windows programs put in front, is no part of a text.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from sami_pipeline.errors import InputError, one_line

_MARK = "\ufeff"
_HALF = re.compile(r"[\ud800-\udfff]")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decoded(content: bytes, place: str) -> str:
    """Return a file's text.

    Args:
        content: in UTF-8.
        place: what the file is called in messages.

    Raises:
        InputError: another encoding; the message holds the line and the remedy, and nothing of the
            file besides.
    """
    # UTF-16 without a mark is told by its zeros, which no text in UTF-8 has at every other place.
    if content.startswith(_UTF_16) or b"\0" in content[:2]:
        raise InputError(f"{place}: line 1: is UTF-16; save the file as UTF-8 (Excel: CSV UTF-8)")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{place}: line {line}: is not UTF-8 but, it seems, in a code page such as "
            "Windows-1252; save the file as UTF-8 (Excel: CSV UTF-8)"
        ) from None


def json_lines(content: bytes, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and the object of every line of JSON lines that holds something.

    Args:
        content: in UTF-8.
        place: what the file is called in messages.

    Raises:
        InputError: another encoding, no JSON, no object, a key that stands twice, or NaN.
    """
    decoded(content, place)
    # Not as text, where more than line feeds end a line, such as U+2028 within a string of JSON.
    for number, line in enumerate(content.splitlines(), start=1):
        text = line.decode("utf-8").removeprefix(_MARK)
        if text.strip():
            yield f"{place}: line {number}", _json_object(text, f"{place}: line {number}")


def json_value(content: bytes, place: str) -> Any:
    """Return what a file of JSON holds.

    Args:
        content: in UTF-8.
        place: what the file is called in messages.

    Raises:
        InputError: as ``json_lines``, but that it need not hold an object.
    """
    return _json(decoded(content, place), place, "correct the file")


def _json_object(text: str, place: str) -> dict[str, Any]:
    value = _json(text, place, "correct or remove the line")
    if not isinstance(value, dict):
        raise InputError(f"{place}: is no object with fields; correct or remove the line")
    return value


def _json(text: str, place: str, remedy: str) -> Any:
    try:
        value = json.loads(text, parse_constant=_refuse, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: is no valid JSON ({one_line(str(error))}); {remedy}") from error
    # UTF-8 has none; JSON can escape one. No table, page or prompt can hold it.
    if "\\ud" in text.lower() and (field := next(_half_characters(value), None)) is not None:
        raise InputError(
            f"{place}: {one_line(field)}: holds half a character (a lone surrogate); remove it"
        )
    return value


def _half_characters(value: Any, place: str = "") -> Iterator[str]:
    """Yield where a value holds a surrogate without its other half, such as ``turns.0``."""
    if isinstance(value, str) and _HALF.search(value):
        yield place
    inner = value.items() if isinstance(value, dict) else []
    for key, each in enumerate(value) if isinstance(value, list) else inner:
        yield from _half_characters(str(key), place)
        yield from _half_characters(each, f"{place}.{key}".removeprefix("."))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r:.60} stands twice")
        found[key] = value
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
