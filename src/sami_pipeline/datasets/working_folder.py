"""A folder in which a long node keeps its own progress."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from kedro.io import AbstractDataset, DatasetError


class WorkingFolder(AbstractDataset[NoReturn, Path]):
    """Loads as the path of a folder, which the node creates when it has something to put there.

    A node that takes hours saves its state there while it runs, which a dataset that is written
    once at the end cannot do. It is only ever an input.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        """Take the folder's path, relative to the project, and Kedro's metadata."""
        self._folder = Path(filepath)
        self.metadata = metadata

    def load(self) -> Path:
        """Return the folder."""
        return self._folder

    def save(self, data: NoReturn) -> None:
        """Refuse: the node writes into the folder itself."""
        raise DatasetError(f"working folder {self._folder}: is an input only")

    def _exists(self) -> bool:
        return True

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._folder)}
