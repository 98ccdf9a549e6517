"""Tables that stay on disk, and one way to read them and those in memory.

A table of a million answers has a gigabyte of text, of which each reader needs a few columns or one
part after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

# Python's objects take a multiple of what a table of the same rows does.
ROWS_AT_ONCE = 10_000
_BYTES_AT_ONCE = 2**20


class StoredTable:
    """A parquet file, read as far as it is needed.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def read(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the whole table, or some of its columns."""
        return pd.read_parquet(self.path, columns=None if columns is None else list(columns))

    def parts(
        self, columns: Sequence[str] | None = None, rows: int = ROWS_AT_ONCE
    ) -> Iterator[pd.DataFrame]:
        """Yield the table, or some of its columns, by at most so many rows at a time."""
        import pyarrow.parquet as pq

        # Without a buffer a whole column of a row group is in memory.
        with pq.ParquetFile(self.path, buffer_size=_BYTES_AT_ONCE) as file:
            names = None if columns is None else list(columns)
            for batch in file.iter_batches(rows, columns=names):
                yield batch.to_pandas()

    def __len__(self) -> int:
        import pyarrow.parquet as pq

        return pq.read_metadata(self.path).num_rows

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        import pyarrow.parquet as pq

        return pq.read_schema(self.path).names


def columns_of(table: pd.DataFrame | StoredTable, columns: Sequence[str]) -> pd.DataFrame:
    """Return those of the columns that a table has."""
    present = [column for column in columns if column in table.columns]
    return table.read(present) if isinstance(table, StoredTable) else table[present]


def parts_of(
    table: pd.DataFrame | StoredTable, columns: Sequence[str], rows: int = ROWS_AT_ONCE
) -> Iterator[pd.DataFrame]:
    """Yield those of the columns that a table has, by at most so many rows at a time."""
    present = [column for column in columns if column in table.columns]
    if isinstance(table, StoredTable):
        yield from table.parts(present, rows)
        return
    for start in range(0, len(table), rows):
        yield table[present].iloc[start : start + rows]
