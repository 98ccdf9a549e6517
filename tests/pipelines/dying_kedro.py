"""Run Kedro's command line in a process that kills itself and its group by SIGKILL.

Run by test_killed_runs.py as ``python dying_kedro.py NODE HOW AMOUNT WHERE ARGUMENT...``: once
the node of that name has begun, either AMOUNT seconds later (HOW is "after-seconds")
or just before the AMOUNT-th change to a file whose path has WHERE in it (HOW is "at-file-change"),
and at the latest when the next node is to begin. No code of the project runs between the decision
and the end.
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

    def __init__(self, node: str, how: str, amount: float, where: str) -> None:
        super().__init__()
        self.node, self.how, self.amount, self.where = node, how, amount, where
        self.begun = False
        self.changes = 0

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message.startswith("Running node: "):
            if self.begun:
                die()
            self.begun = message.split(": ")[1] == self.node
            if self.begun:
                self.begin()
        return True

    def begin(self) -> None:
        if self.how == "after-seconds":
            timer = threading.Timer(self.amount, die)
            timer.daemon = True
            timer.start()
        else:
            sys.addaudithook(self.see)

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if (writes or event in CHANGES) and self.where in str(arguments[0]):
            self.changes += 1
            if self.changes == self.amount:
                die()


if __name__ == "__main__":
    node, how, amount, where, *command = sys.argv[1:]
    death = Death(node, how, float(amount), where)
    logging.getLogger("kedro.pipeline.node").addFilter(death)
    sys.argv = ["kedro", *command]
    main()
