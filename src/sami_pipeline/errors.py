"""Errors that a user can mend: bad parameters, raw files and folders."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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
