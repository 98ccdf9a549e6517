"""What the command line prints where a run ends early."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

from kedro.framework.cli.utils import KedroCliError


class CommandLineError(KedroCliError):
    """What the command line prints for an error that the user can correct: its message."""

    def show(self, file: Any = None) -> None:
        """Print the message, after the traceback where SAMI_TRACEBACK is set.

        ``kedro run`` has no ``--verbose``, which other commands of Kedro have.
        """
        if self.VERBOSE_ERROR or os.environ.get("SAMI_TRACEBACK"):
            traceback.print_exception(self)
        sys.stderr.write(f"Error: {self.message}\n")
