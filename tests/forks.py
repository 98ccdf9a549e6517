"""Commands of Python that start as forks of a process which has imported the libraries.

Importing torch, transformers, pandas and the like takes a process longer than a run on a small
model. Nothing of this project and nothing of Kedro is imported before the fork, so a fork may run
a changed copy of the project, with variables and a folder of its own.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

# Run with ``-S``: a few milliseconds. It is a process like the one that it stands for: it ends
# with the same code or signal, and what it stands for ends with it.
COMMAND = """#!{python} -IS
import json, os, signal, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    asked = json.dumps([{begin!r} + sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(asked).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(asked)
    code = int(server.makefile().readline() or -9)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
sys.exit(code)
"""
SERVER = """
import gc, importlib, json, os, runpy, select, signal, socket, sys, threading
from pathlib import Path

for name in (
    "torch", "transformers", "pandas", "pyarrow.parquet", "pandera.pandas", "scipy.stats",
    "plotly.express", "omegaconf", "pydantic", "rapidfuzz", "trl.trainer.sft_trainer",
    "transformers.models.llama.modeling_llama", "transformers.models.llama.tokenization_llama",
    "pandera.strategies.pandas_strategies", "sqlalchemy", "rich.console", "jinja2",
):
    importlib.import_module(name)
taken = {name.partition(".")[0] for name in sys.modules} & {"kedro", "sami_pipeline"}
assert not taken, f"imported before the fork: {taken}"
gc.collect()
gc.freeze()  # else each fork copies every object when it collects
# pyarrow's allocator takes care of its own thread when a process forks.
threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
threads = [name for name in threads if name != "jemalloc_bg_thd"]
assert len(threads) <= 1 == threading.active_count(), f"an import starts threads: {threads}"
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # of those that watch, nobody asks how they ended
listening = socket.socket(fileno=int(sys.argv[1]))
while True:
    connection, _ = listening.accept()
    if os.fork() == 0:
        break
    connection.close()
listening.close()
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
size, streams, _, _ = socket.recv_fds(connection, 8, 3)
with connection.makefile("rb") as reading:
    command, folder, variables = json.loads(reading.read(int.from_bytes(size, "big")))
if child := os.fork():
    for stream in streams:
        os.close(stream)
    ended = 0
    while not ended:
        if select.select([connection], [], [], 0.03)[0]:  # nobody waits any more
            os.killpg(child, signal.SIGKILL)
        ended, status = os.waitpid(child, os.WNOHANG)
    try:
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\\n".encode())
    finally:
        os._exit(0)
os.setsid()
connection.close()
for number, stream in enumerate(streams):
    os.dup2(stream, number)
    os.close(stream)
os.chdir(folder)
os.environ.clear()
os.environ.update(variables)
sys.path[:0] = [each for each in variables.get("PYTHONPATH", "").split(os.pathsep) if each]
kind, *rest = command
if kind == "-m":
    sys.argv = rest
    runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
else:
    sys.argv = command
    sys.path.insert(0, str(Path(kind).parent))
    runpy.run_path(kind, run_name="__main__")
"""


class Forks:
    """Executables that start such forks; the process that has the imports starts when it is needed.

    Args:
        folder: an empty one, for the executables.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def kedro(self) -> Path:
        """What stands for ``kedro``; its folder may lead PATH."""
        return self._executables() / "kedro"

    @property
    def python(self) -> Path:
        """What stands for ``python`` with a script, or with ``-m`` and a module."""
        return self._executables() / "fork_python"

    def _executables(self) -> Path:
        if self._process is not None:
            return self._folder
        # The kernel wants a short path.
        self._address = Path(tempfile.mkdtemp(prefix="forks")) / "socket"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self._address))
            listening.listen(16)
            # It alone listens: once it has ended, commands fail at once.
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(listening.fileno())],
                pass_fds=[listening.fileno()], stdin=subprocess.DEVNULL, cwd="/",
                env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
                                  "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"},
            )  # fmt: skip
        for name, begin in (("kedro", ["-m", "kedro"]), ("fork_python", [])):
            path = self._folder / name
            path.write_text(
                COMMAND.format(python=sys.executable, address=str(self._address), begin=begin),
                "utf-8",
            )
            path.chmod(0o755)
        return self._folder

    def end(self) -> None:
        """End the process that has the imports."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            shutil.rmtree(self._address.parent)
