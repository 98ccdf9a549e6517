"""What processes that others have started need: to end with them, and to say what went wrong."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path

from sami_pipeline.errors import InputError

_SECONDS_BETWEEN_LOOKS = 0.5


def end_with_parent() -> None:
    """Let this process end at once soon after the one that started it, however that ended.

    Not on Windows, where a process keeps the number of a parent that is gone.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def need_process_groups(parameter: str) -> None:
    """Refuse what starts groups of processes where a system, such as Windows, has none.

    Raises:
        InputError: names the parameter.
    """
    if not hasattr(os, "killpg"):
        raise InputError(f"{parameter}: needs Linux or macOS (on Windows: WSL)")


def root_cause(log: Path) -> str:
    """Return the last error in a log that does not point to another one, or nothing."""
    errors = re.findall(
        r"(?:^|\s)((?:\w+\.)*\w+(?:Error|Exception): .+)$",
        log.read_text("utf-8", errors="replace"),
        flags=re.MULTILINE,
    )
    return next((error for error in reversed(errors) if "root cause" not in error), "")
