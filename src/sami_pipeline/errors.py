"""Errors that a user can correct: bad parameters, raw files and folders."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

_LONGEST = 1000
# Of pydantic's types of faults.
_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
}


class InputError(ValueError):
    """An input is wrong.

    The message is one line that names the file, the field, what is wrong and the remedy. On the
    command line it is printed without a traceback (``SAMI_TRACEBACK=1 kedro run`` shows it).
    """


def first_fault(error: ValidationError) -> str:
    """Return the first fault that pydantic found as "field: what is wrong"."""
    faults = error.errors(include_url=False)
    fault = faults[0]
    message = one_line(fault["msg"].removeprefix("Value error, "))
    if fault["type"] in ("model_type", "model_attributes_type", "dataclass_type", "dict_type"):
        message = "expected fields with values; it is empty or holds something else"
    elif fault["type"] == "string_unicode":
        message = "holds half a character (a lone surrogate); remove it"
    elif fault["type"] in _KINDS:
        message = f"must be {_KINDS[fault['type']]}, got {_as_written(fault['input'])}"
    elif fault["type"] == "missing":
        message = "is missing; add it"
    elif fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        message = "is no field that is known here; correct or remove it"
    more = f" ({len(faults) - 1} more faults)" if len(faults) > 1 else ""
    field = ".".join(one_line(str(part)) for part in fault["loc"])
    # A check of several fields names the one at fault itself.
    if field and fault["type"] == "value_error" and re.match(r"[a-z_][\w.]*: ", message):
        return f"{field}.{message}{more}"
    return f"{field}: {message}{more}" if field else f"{message}{more}"


def _as_written(value: object) -> str:
    """Return what stands in YAML where something else was wanted, as far as it is short."""
    if isinstance(value, str):
        return f"the text {one_line(value)!r:.40}; leave out the quotes"
    if isinstance(value, bool | int | float):
        return str(value).lower()
    kinds = {list: "a list", dict: "fields with values", type(None): "nothing"}
    return kinds.get(type(value), "something else")


def one_line(text: str) -> str:
    """Return a text without line ends and control characters, shortened where it is very long.

    What a message quotes comes from outside: it must neither break the line nor steer a terminal.
    """
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


class EngineError(InputError):
    """A process or server that generates text has failed; the message says where its log is."""


class WorkerError(InputError):
    """A worker of a training has failed for good; the message says where its log is."""


_STORAGE_FAULTS = {
    errno.ENOSPC: ("the disk is full", "free space there"),
    errno.EDQUOT: ("the disk quota is used up", "free space there"),
    errno.EFBIG: ("the limit on the size of a file is reached", "raise it (ulimit -f)"),
    errno.EROFS: ("the file system is read-only", "make it writable"),
    errno.EACCES: ("permission is denied", "make it accessible"),
    errno.EPERM: ("the operation is not permitted", "make it accessible"),
    errno.EIO: ("the disk reports an error", "look after the disk"),
}


def storage_fault(error: BaseException) -> str | None:
    """Return what is wrong with the disk and the remedy, if that is why an error was raised.

    Looks through its causes; safetensors and PyTorch write files outside of Python and tell the
    reason in their message only.
    """
    seen: BaseException | None = error
    while seen is not None:
        told = re.search(r"\(os error (\d+)\)", str(seen))
        number = seen.errno if isinstance(seen, OSError) else int(told[1]) if told else None
        if number in _STORAGE_FAULTS:
            return "; ".join(_STORAGE_FAULTS[number])
        if "PytorchStreamWriter failed" in str(seen):
            return "it could not be written; free space there and look whether it is writable"
        seen = seen.__cause__ or seen.__context__
    return None


@contextmanager
def writing(place: Path | str) -> Iterator[None]:
    """Name the place, the fault and the remedy where the disk refuses what is written there."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if (fault := storage_fault(error)) is None:
            raise
        raise InputError(
            f"{place}: can't be written: {fault}, then go on with --only-missing-outputs"
        ) from error
