"""Run Kedro's command line in a process that kills itself and its group by SIGKILL.

Run by test_killed_runs.py as ``python dying_kedro.py RUN NODES HOW AMOUNT ARGUMENT...``: once the
first of NODES (names, with commas) has begun, either AMOUNT seconds later (HOW is "after-seconds")
or just before the AMOUNT-th change to a file of the run (HOW is "at-file-change"), wherever the
process then is. No code of the project runs between the decision and the end.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from typing import Any

from kedro.framework.cli import main

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link"}
WRITING = os.O_WRONLY | os.O_RDWR


def die() -> None:
    os.killpg(0, signal.SIGKILL)


class Death(logging.Filter):
    """Sees Kedro's message that a node begins, in the process itself."""

    def __init__(self, run: str, nodes: set[str], how: str, amount: float) -> None:
        super().__init__()
        self.run, self.nodes, self.how, self.amount = run, nodes, how, amount
        self.changes: int | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message.startswith("Running node: ") and message.split(": ")[1] in self.nodes:
            self.nodes = set()
            self.begin()
        return True

    def begin(self) -> None:
        if self.how == "after-seconds":
            timer = threading.Timer(self.amount, die)
            timer.daemon = True
            timer.start()
        else:
            self.changes = 0
            sys.addaudithook(self.see)

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if (writes or event in CHANGES) and self.run in str(arguments[0]):
            self.changes += 1
            if self.changes == self.amount:
                die()


if __name__ == "__main__":
    run, nodes, how, amount, *command = sys.argv[1:]
    death = Death(run, set(nodes.split(",")), how, float(amount))
    logging.getLogger("kedro.pipeline.node").addFilter(death)
    sys.argv = ["kedro", *command]
    main()
