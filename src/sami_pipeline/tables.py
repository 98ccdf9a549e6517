"""Tables that stay on disk, and one way to read them and those in memory.

A table of a million answers has a gigabyte of text, of which each reader needs a few columns or one
part after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pandas as pd

if TYPE_CHECKING:
    import pyarrow

# Python's objects take a multiple of what a table of the same rows does.
ROWS_AT_ONCE = 10_000
_BYTES_AT_ONCE = 2**20
_ROWS_IN_A_GROUP = 2**16


class StoredTable:
    """One or more parquet files of the same columns, read as far as they are needed.

    Args:
        paths: of the files, whose rows follow each other.
    """

    def __init__(self, *paths: Path | str) -> None:
        self.paths = tuple(map(Path, paths))

    def read(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the whole table, or some of its columns."""
        names = None if columns is None else list(columns)
        return pd.concat(
            [pd.read_parquet(path, columns=names) for path in self.paths], ignore_index=True
        )

    def parts(
        self, columns: Sequence[str] | None = None, rows: int = ROWS_AT_ONCE
    ) -> Iterator[pd.DataFrame]:
        """Yield the table, or some of its columns, by at most so many rows at a time."""
        for batch in self._batches(columns, rows):
            yield batch.to_pandas()

    def write(self, file: BinaryIO) -> None:
        """Write the rows of all files into one, a part at a time."""
        import pyarrow.parquet as pq

        with pq.ParquetWriter(file, pq.read_schema(self.paths[0])) as writer:
            for batch in self._batches(None, _ROWS_IN_A_GROUP):
                writer.write_batch(batch)

    def _batches(self, columns: Sequence[str] | None, rows: int) -> Iterator[pyarrow.RecordBatch]:
        import pyarrow.parquet as pq

        names = None if columns is None else list(columns)
        for path in self.paths:
            # Without a buffer a whole column of a row group is in memory.
            with pq.ParquetFile(path, buffer_size=_BYTES_AT_ONCE) as file:
                yield from file.iter_batches(rows, columns=names)

    def __len__(self) -> int:
        import pyarrow.parquet as pq

        return sum(pq.read_metadata(path).num_rows for path in self.paths)

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        import pyarrow.parquet as pq

        return pq.read_schema(self.paths[0]).names


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
