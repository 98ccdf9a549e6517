"""Tables that stay on disk, and one way to read them and those in memory.

A table of a million answers has a gigabyte of text, of which each reader needs a few columns or one
part after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
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
        constants: of each file, columns that have one value throughout it; they replace its own or
            are added at the end. None leaves the files as they are.
    """

    def __init__(
        self,
        *paths: Path | str,
        constants: Sequence[Mapping[str, str | int]] | None = None,
    ) -> None:
        self.paths = tuple(map(Path, paths))
        self._constants = None if constants is None else tuple(constants)

    def with_constants(self, constants: Mapping[str, str | int]) -> StoredTable:
        """Return the same table with columns that have one value throughout."""
        return StoredTable(*self.paths, constants=[constants] * len(self.paths))

    def __add__(self, other: StoredTable) -> StoredTable:
        """Return the rows of both tables, of which nothing is read."""
        constants = None
        if self._constants is not None and other._constants is not None:
            constants = self._constants + other._constants
        return StoredTable(*self.paths, *other.paths, constants=constants)

    def read(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the whole table, or some of its columns."""
        if self._constants is not None:
            return pd.concat(self.parts(columns, _ROWS_IN_A_GROUP), ignore_index=True)
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

        with pq.ParquetWriter(file, self._schema()) as writer:
            for batch in self._batches(None, _ROWS_IN_A_GROUP):
                writer.write_batch(batch)

    def _batches(self, columns: Sequence[str] | None, rows: int) -> Iterator[pyarrow.RecordBatch]:
        import pyarrow.parquet as pq

        names = None if columns is None else list(columns)
        for path, constants in zip(self.paths, self._constants or repeat({}), strict=False):
            own = names if names is None else [name for name in names if name not in constants]
            # Without a buffer a whole column of a row group is in memory.
            with pq.ParquetFile(path, buffer_size=_BYTES_AT_ONCE) as file:
                for batch in file.iter_batches(rows, columns=own):
                    yield _with_constants(batch, constants, names)

    def _schema(self) -> pyarrow.Schema:
        import pyarrow.parquet as pq

        schema = pq.read_schema(self.paths[0])
        if self._constants is None:
            return schema
        return _with_constants(_no_rows(schema), self._constants[0], None).schema

    def __len__(self) -> int:
        import pyarrow.parquet as pq

        return sum(pq.read_metadata(path).num_rows for path in self.paths)

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return self._schema().names


def _no_rows(schema: pyarrow.Schema) -> pyarrow.RecordBatch:
    import pyarrow as pa

    return pa.RecordBatch.from_pylist([], schema)


def _with_constants(
    batch: pyarrow.RecordBatch,
    constants: Mapping[str, str | int],
    columns: Sequence[str] | None,
) -> pyarrow.RecordBatch:
    """Return rows with constant columns, which replace their own or follow them."""
    import pyarrow as pa

    for name, value in constants.items():
        if columns is not None and name not in columns:
            continue
        column = pa.repeat(pa.scalar(value), batch.num_rows)
        if name in (names := batch.schema.names):
            batch = batch.set_column(names.index(name), name, column)
        else:
            batch = batch.append_column(name, column)
    return batch if not constants or columns is None else batch.select(list(columns))


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
