"""A parquet table that is too large to be loaded whole."""

from __future__ import annotations

import pandas as pd
from kedro.io import DatasetError

from sami_pipeline.datasets.previews import TextTable
from sami_pipeline.tables import StoredTable


class StoredParquet(TextTable):
    """Loads as a ``StoredTable``, which is read as far as a node needs it.

    The file is like any other's: ``catalog.load(name).read()`` and ``pandas.read_parquet`` give the
    whole table. Saves a table in memory, or one that is stored elsewhere, part by part.
    """

    def load(self) -> StoredTable:
        """Return the table, of which only the names of its columns are read yet."""
        table = StoredTable(self._get_load_path())
        if not table.columns:
            raise DatasetError(f"{self._filepath}: has no columns")
        return table

    def save(self, data: pd.DataFrame | StoredTable) -> None:
        """Write the file, replacing an earlier one."""
        if isinstance(data, pd.DataFrame):
            super().save(data)
            return
        with self._fs.open(str(self._get_save_path()), **self._fs_open_args_save) as file:
            data.write(file)
        self._invalidate_cache()
