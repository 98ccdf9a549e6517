"""One run at a time writes into a run's folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from sami_pipeline.errors import InputError, writing


class RunLock:
    """Keeps a second process from writing what this one writes.

    The kernel holds it for the process and gives it back however the process ends, so a kill leaves
    nothing behind to clean up. Reading needs no lock.

    Args:
        folder: of the lock, created if need be. ``lock`` is locked, ``lock.holder`` says by whom.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._holder = folder / "lock.holder"
        self._lock = FileLock(folder / "lock", timeout=0)

    def acquire(self) -> None:
        """Take the lock, or raise an InputError that names the process that has it."""
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout:
                raise InputError(
                    f"{self._folder.parent}: another run is writing there ({self._who()}); wait "
                    "until it ends, or give this one another name with --params run_name=NAME"
                ) from None
            self._holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()

    def _who(self) -> str:
        try:
            return self._holder.read_text("utf-8") or "just started"
        except OSError:
            return "just started"
