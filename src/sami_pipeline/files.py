"""Files and folders that appear under their name when they are whole.

What is written goes to a neighbour of the same file system, reaches the disk, and is renamed. After
an error or a kill, what had stood there before still stands there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def from_home(path: Path | str) -> Path:
    """Return a path whose ``~`` is a user's folder; of a user who is unknown it stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def partial_place(place: Path, writer: str | None = None) -> Path:
    """Return where what will stand at ``place`` is written.

    Args:
        place: of the whole file or folder.
        writer: a name that several processes share which write one folder together; None is this
            process alone.
    """
    return place.with_name(f".{place.name}.{writer or os.getpid()}.partial")


def remove_abandoned(place: Path) -> None:
    """Remove what killed processes had begun to write for ``place``; its folder may be absent."""
    for abandoned in place.parent.glob(f".{place.name}.*.partial"):
        if abandoned.is_dir():
            shutil.rmtree(abandoned)
        else:
            abandoned.unlink(missing_ok=True)


@contextmanager
def whole_file(place: Path) -> Iterator[Path]:
    """Yield a path to write a file to; it stands at ``place`` when the block ends without an error.

    The folder of ``place`` is created if need be.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(place)
    partial = partial_place(place)
    try:
        yield partial
        _synchronise(partial)
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)


def write_text(place: Path, text: str) -> None:
    """Write a UTF-8 text file that appears at once and whole."""
    with whole_file(place) as partial:
        partial.write_text(text, "utf-8")


@contextmanager
def whole_folder(place: Path) -> Iterator[Path]:
    """Yield a new folder to fill; it stands at ``place`` when the block ends without an error.

    An earlier folder is replaced. A kill between the two renames of that leaves the earlier one
    under another name: call ``recover_folder`` before ``place`` is read.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(place)
    remove_abandoned(place)
    partial = partial_place(place)
    partial.mkdir()
    try:
        yield partial
        replace_folder(partial, place)
    finally:
        # What failed, such as on a full disk, would only be in the way.
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(whole: Path, place: Path) -> None:
    """Let a folder that is whole stand at ``place``, once all of it has reached the disk.

    Args:
        whole: a neighbour of ``place``.
        place: of an earlier folder, or of none.
    """
    for path in [*whole.rglob("*"), whole]:
        _synchronise(path)
    if place.exists():
        shutil.rmtree(_replaced(place), ignore_errors=True)
        place.rename(_replaced(place))
    whole.rename(place)
    _synchronise(place.parent)
    shutil.rmtree(_replaced(place), ignore_errors=True)


def _synchronise(path: Path) -> None:
    """Let a file or folder reach the disk; Windows opens no folder, and a file to write alone."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    elif path.is_file():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def link_or_copy(source: Path, target: Path) -> None:
    """Link a file, or copy it where the file system can't."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


def remove_folder(place: Path) -> None:
    """Remove a folder at once: after a kill it is there whole, or not under its name."""
    removed = place.with_name(f".{place.name}.removed")
    shutil.rmtree(removed, ignore_errors=True)
    if place.exists():
        place.rename(removed)
        shutil.rmtree(removed)


def recover_folder(place: Path) -> None:
    """Put an earlier folder back if a kill fell between the two renames of its replacement."""
    if _replaced(place).exists() and not place.exists():
        _replaced(place).rename(place)


def _replaced(place: Path) -> Path:
    return place.with_name(f".{place.name}.replaced")
