"""Files that appear under their name when they are whole."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from kedro.io import AbstractDataset

from sami_pipeline import files


class WholeFiles(LocalFileSystem):
    """A local file system on which a file that is written appears at once or not at all.

    It is written next to its place, flushed to the disk and renamed when it is closed; after an
    error or a kill an earlier file of that name is as it was.
    """

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        """Open a file; one that is opened for writing appears when it is closed."""
        if not mode.startswith("w"):
            return super().open(path, mode, **options)
        target = Path(self._strip_protocol(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        files.remove_abandoned(target)
        file = _WholeFile(target)
        if "b" in mode:
            return file
        text = {k: v for k, v in options.items() if k in ("encoding", "errors", "newline")}
        return _WholeText(file, **text)


class _WholeFile(io.BufferedWriter):
    def __init__(self, target: Path) -> None:
        self._target = target
        self._partial = files.partial_place(target)
        self._abandoned = False
        super().__init__(io.FileIO(self._partial, "w"))

    def abandon(self) -> None:
        """Let the file not appear: what was to be written has failed."""
        self._abandoned = True

    def write(self, data: Any) -> int:
        """Write, and abandon the file when that fails: whoever closes it then may not know."""
        try:
            return super().write(data)
        except BaseException:
            self.abandon()
            raise

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            self.abandon()
        self.close()

    def __del__(self) -> None:
        self.abandon()  # an open file that is forgotten was not finished
        with suppress(Exception):
            self.close()

    def close(self) -> None:
        """Close the file and let it appear, unless it was abandoned or can't be written."""
        if self.closed:
            return
        try:
            if not self._abandoned:
                self.flush()
                os.fsync(self.fileno())
                super().close()  # Windows renames no file that is open
                self._partial.replace(self._target)
        except BaseException:
            self.abandon()
            raise
        finally:
            if self._abandoned:
                self.raw.close()  # past the buffer, for which a full disk has no room
                self._partial.unlink(missing_ok=True)


class _WholeText(io.TextIOWrapper):
    def __init__(self, file: _WholeFile, **options: Any) -> None:
        self._file = file
        super().__init__(file, **options)

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            self._file.abandon()
        self.close()


@contextmanager
def written_whole(dataset: AbstractDataset) -> Iterator[None]:
    """Let a dataset of kedro-datasets write its file whole; those that see to it themselves may.

    Those that write files open them through ``_fs``, their fsspec file system. Swapping that, and
    only while they save, keeps their type, versions and previews as Kedro and kedro-viz know them.
    """
    file_system = getattr(dataset, "_fs", None)
    if type(file_system) is not LocalFileSystem:
        yield
        return
    dataset._fs = WholeFiles()
    try:
        yield
    finally:
        dataset._fs = file_system
