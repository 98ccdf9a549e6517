"""Processes that train together as often as a test asks, started once: importing torch takes long.

``Team.run(count, task, …)`` lets the first ``count`` members form a group and each call a function
of ``tasks.py``; it returns what the first member returns.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class Team:
    """Processes on this machine, one thread each."""

    def __init__(self, size: int, folder: Path) -> None:
        self._folder = folder
        self._groups = 0
        context = multiprocessing.get_context("spawn")
        self._members = []
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._members.append((process, ours))

    def run(self, count: int, task: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Let members call a function at once, and return what the first returns."""
        self._groups += 1
        meeting = self._folder / f"group_{self._groups}"
        for rank, (_, connection) in enumerate(self._members[:count]):
            connection.send((rank, count, str(meeting), task, arguments, options))
        answers = [connection.recv() for _, connection in self._members[:count]]
        for ok, value in answers:
            if not ok:
                raise AssertionError(value)
        return answers[0][1]

    def end(self) -> None:
        """End all members."""
        for process, connection in self._members:
            connection.close()
            process.join(5)
            process.kill()


def _serve(connection: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    while True:
        try:
            rank, count, meeting, task, arguments, options = connection.recv()
        except EOFError:
            return
        try:
            if count > 1:
                dist.init_process_group(
                    "gloo", init_method=f"file://{meeting}", rank=rank, world_size=count
                )
                dist.barrier()  # a task that ends at once would fail members still coming
            answer = (True, task(*arguments, **options))
        except BaseException:
            answer = (False, traceback.format_exc())
        finally:
            if count > 1 and dist.is_initialized():
                dist.destroy_process_group()
        connection.send(answer)
