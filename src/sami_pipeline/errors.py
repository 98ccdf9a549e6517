"""Errors that a user can mend: bad parameters, raw files and folders."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class InputError(ValueError):
    """An input is wrong.

    The message is one line that names the file, the field, what is wrong and the remedy. On the
    command line it is printed without a traceback (``kedro --verbose`` shows it).
    """


def first_fault(error: ValidationError) -> str:
    """Return the first fault that pydantic found as "field: what is wrong"."""
    fault = error.errors()[0]
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] in ("model_type", "model_attributes_type"):
        message = "expected fields with values; the file is empty or holds something else"
    field = ".".join(str(part) for part in fault["loc"])
    return f"{field}: {message}" if field else message


class EngineError(InputError):
    """A process or server that generates text has failed; the message says where its log is."""


class WorkerError(InputError):
    """A worker of a training has failed for good; the message says where its log is."""
