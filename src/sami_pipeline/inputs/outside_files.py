"""Files that parameters name, here or at an address: their content, or one line with the reason."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import fsspec
import pandas as pd

from sami_pipeline.errors import InputError, one_line


def content_of(location: str, place: str) -> bytes:
    """Return a file's bytes, without the compression that its name tells of.

    Args:
        location: a path, or an address of any kind that fsspec knows.
        place: what the file is called in messages.

    Raises:
        InputError: it can't be read.
    """
    try:
        with fsspec.open(location, "rb", compression="infer") as file:
            return file.read()
    # Each file system has its own errors, and asks for its own package.
    except Exception as error:
        reason = one_line(str(error)) or type(error).__name__
        raise InputError(f"{place}: can't be read ({reason}); check it, or copy it here") from error


def parquet_table(content: bytes, place: str) -> pd.DataFrame:
    """Return a table of parquet, whose texts are UTF-8 throughout.

    Args:
        content: of the file.
        place: what the file is called in messages.

    Raises:
        InputError: it is no such table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Not io.BytesIO: Arrow's threads may still hold it when Python ends, and abort the process.
        file = pa.BufferReader(content)
        # Else what is no UTF-8 fails later, wherever it is looked at first.
        pq.read_table(file).validate(full=True)
        return pd.read_parquet(file)
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        reason = one_line(str(error))
        raise InputError(
            f"{place}: is no parquet file that can be read ({reason}); get it again"
        ) from error


def same_value(value: Any, wanted: Any) -> bool:
    """Return whether a cell holds the wanted value; in a CSV file everything is text."""
    if not isinstance(value, Hashable) or value is pd.NA:  # lists and arrays
        return False
    return bool(value == wanted or (isinstance(value, str) and value == str(wanted)))


def is_missing(value: Any) -> bool:
    """Return whether a cell holds nothing: None, NaN, NaT or NA."""
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))
