"""Processes that run vLLM: started where needed, given other weights, ended together.

A server outlives the engine that asked for it, so that the next checkpoint of the same
architecture needs no start; ``release`` ends those that live. Imports neither vllm nor torch.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sami_pipeline import PROJECT_FOLDER
from sami_pipeline.errors import EngineError, InputError
from sami_pipeline.processes import root_cause

if TYPE_CHECKING:
    from sami_pipeline.engines import VllmParameters

logger = logging.getLogger(__name__)

_WORKER = Path(__file__).with_name("vllm_worker.py")
# What `make vllm` makes.
_ENVIRONMENT_OF_ITS_OWN = ".venv-vllm/bin/python"
_SECONDS_TO_END = 20.0
# What a configuration says of a model besides its architecture.
_NO_ARCHITECTURE = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache")
_ENVIRONMENT = {
    # Nothing is reported to vLLM's publishers.
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}

# What was generated: (request, token ids, reason to finish).
Responses = list[tuple[int, list[int], str]]


def interpreter(python: str | None) -> str:
    """Return the path of the Python interpreter that has vLLM.

    Raises:
        InputError: there is none.
    """
    if python is None:
        made = PROJECT_FOLDER / _ENVIRONMENT_OF_ITS_OWN
        return str(made) if made.is_file() else sys.executable
    path = PROJECT_FOLDER / python
    if not path.is_file():
        raise InputError(
            f"engine.vllm.python: {path} does not exist; name the interpreter of an environment "
            "that has vLLM, or null for the one that `make vllm` makes"
        )
    return str(path)


@functools.cache
def version(python: str) -> str:
    """Return the version of vLLM that an interpreter has.

    Raises:
        InputError: it has none.
    """
    command = [python, str(_WORKER), "--version"]
    asked = subprocess.run(command, capture_output=True, text=True)
    if asked.returncode:
        raise InputError(
            f"engine.vllm.python: {python} has no vLLM; run `make vllm`, or name the interpreter "
            "of an environment that has it"
        )
    return asked.stdout


def architecture(folder: Path) -> str:
    """Return a hash of what two models must have in common for one to take the other's weights.

    That is the configuration, and the tokenizer, by which a server finds stop strings and the ends
    of choices.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    shape = {key: value for key, value in config.items() if key not in _NO_ARCHITECTURE}
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file():
        shape["eos_token"] = json.loads(tokenizer.read_text("utf-8")).get("eos_token")
    whole = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    for name in ("tokenizer.json", "tokenizer.model", "vocab.json"):
        if (folder / name).is_file():
            whole.update(name.encode() + (folder / name).read_bytes())
    return whole.hexdigest()


class _Worker:
    """One process with one copy of the model, and the processes that vLLM starts for it."""

    def __init__(self, python: str, environment: dict[str, str]) -> None:
        descriptor, name = tempfile.mkstemp(prefix="vllm_", suffix=".log")
        self.log = Path(name)
        ours, theirs = socket.socketpair()
        with theirs, os.fdopen(descriptor, "wb") as log:
            self._process = subprocess.Popen(
                [python, str(_WORKER), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                # Its own group, which is ended as a whole.
                start_new_session=True,
                env=os.environ | _ENVIRONMENT | environment,
            )
        self.connection = ours
        self._received = b""

    def send(self, message: dict[str, Any]) -> None:
        try:
            self.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            raise self.failure("ended") from None

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield what has come in; call it when the connection can be read.

        Raises:
            EngineError: the process has ended, or says that it failed.
        """
        try:
            received = self.connection.recv(2**20)
        except OSError:
            received = b""
        if not received:
            raise self.failure("ended")
        *lines, self._received = (self._received + received).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "failed" in message:
                raise self.failure(message["failed"])
            yield message

    def check(self) -> None:
        """Raise an EngineError if the process has ended."""
        if self._process.poll() is not None:
            raise self.failure("ended")

    def failure(self, what: str) -> EngineError:
        """Return the error that says in one line what happened and where more is to be read."""
        if what == "ended":
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
            code = self._process.poll()
            what = f"its process ended with code {code}"
            if code is not None and code < 0:
                what = f"its process was ended by {signal.Signals(-code).name}"
                if code == -signal.SIGKILL:
                    what += ", as a machine does that runs out of memory"
        if "root cause" in what or what.startswith("its process ended"):
            what = root_cause(self.log) or what
        return EngineError(f"vLLM engine: {' '.join(what.split())[:500]}; its log: {self.log}")

    def end(self, *, keep_log: bool) -> None:
        """End the process and all that it has started, and wait until they are gone."""
        deadline = time.monotonic() + _SECONDS_TO_END
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
            while time.monotonic() < deadline:
                self._process.poll()
                os.killpg(self._process.pid, 0)
                time.sleep(0.05)
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.connection.close()
        if not keep_log:
            self.log.unlink(missing_ok=True)


class Server:
    """One or several workers with the same model, which share the prompts.

    Args:
        parameters: settings of the engine.
        dtype: of the weights.
        folder: the model's.
        fingerprint: of its files.

    Attributes:
        max_model_len: the most tokens that prompt and response may have together.
        in_use: an engine has it; nobody else may.
    """

    def __init__(
        self, parameters: VllmParameters, dtype: str, folder: Path, fingerprint: str
    ) -> None:
        self.max_model_len = 0
        self.in_use = True
        self._settings = (parameters, dtype)
        self._architecture = architecture(folder)
        self._fingerprint = fingerprint
        self._generating = False
        self._workers = [
            _Worker(interpreter(parameters.python), environment)
            for environment in _environments(parameters)
        ]
        started = time.monotonic()
        try:
            self._load("load", folder, arguments=_arguments(parameters, dtype))
        except BaseException:
            self.end(keep_log=True)
            raise
        logger.info("vLLM started with %s in %.0f s", folder, time.monotonic() - started)

    @property
    def interrupted(self) -> bool:
        """Whether responses are still under way that nobody waits for any more."""
        return self._generating

    def fits(self, parameters: VllmParameters, dtype: str, folder: Path) -> bool:
        """Return whether this server can take a model's weights."""
        same = self._settings == (parameters, dtype)
        return same and self._architecture == architecture(folder)

    def take(self, folder: Path, fingerprint: str) -> None:
        """Load a model's weights instead of those that are there.

        Raises:
            EngineError: they could not be loaded, or the server has died meanwhile.
        """
        for worker in self._workers:
            worker.check()
        if fingerprint == self._fingerprint:
            return
        self._fingerprint = ""
        started = time.monotonic()
        self._load("reload", folder)
        self._fingerprint = fingerprint
        logger.info("vLLM took the weights of %s in %.1f s", folder, time.monotonic() - started)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sequence[dict[str, Any]],
        requests: Sequence[tuple[int, int, int | None]],
    ) -> Iterator[Responses]:
        """Yield what is generated as it comes.

        Args:
            prompts: token ids.
            sampling: ways to draw a response, as ``vllm.SamplingParams`` names them.
            requests: (prompt, sampling, seed) by number, at least one.

        Raises:
            EngineError: a worker has failed.
        """
        self._generating = True
        # Whole prompts to each worker: samples of a prompt share its cache.
        turns = {prompt: turn for turn, prompt in enumerate(dict.fromkeys(r[0] for r in requests))}
        shares: list[list[int]] = [[] for _ in self._workers]
        for number, (prompt, _, _) in enumerate(requests):
            shares[turns[prompt] % len(shares)].append(number)
        missing = len(requests)
        for worker, share in zip(self._workers, shares, strict=True):
            asked = {requests[number][0]: None for number in share}
            places = {prompt: place for place, prompt in enumerate(asked)}
            worker.send(
                {
                    "do": "generate",
                    "prompts": [list(prompts[prompt]) for prompt in asked],
                    "sampling": list(sampling),
                    "requests": [
                        (places[prompt], kind, seed)
                        for prompt, kind, seed in (requests[number] for number in share)
                    ],
                }
            )
        for place, message in self._messages():
            responses = [(shares[place][n], ids, reason) for n, ids, reason in message["done"]]
            missing -= len(responses)
            yield responses
            if not missing:
                break
        self._generating = False

    def end(self, *, keep_log: bool = False) -> None:
        """End all processes and give their memory back."""
        for worker in self._workers:
            worker.end(keep_log=keep_log)

    def _load(self, task: str, folder: Path, **more: Any) -> None:
        for worker in self._workers:
            worker.send({"do": task, "model": str(folder.resolve()), **more})
        waiting = set(range(len(self._workers)))
        for place, message in self._messages():
            self.max_model_len = message["ready"]["max_model_len"]
            waiting.remove(place)
            if not waiting:
                break

    def _messages(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (worker, message) without end."""
        with selectors.DefaultSelector() as selector:
            for place, worker in enumerate(self._workers):
                selector.register(worker.connection, selectors.EVENT_READ, place)
            while True:
                ready = selector.select(timeout=1)
                if not ready:
                    # A process that a dead worker has left behind may hold the socket open.
                    for worker in self._workers:
                        worker.check()
                for key, _ in ready:
                    for message in self._workers[key.data].messages():
                        yield key.data, message


_servers: list[Server] = []
_lock = threading.Lock()


def acquire(parameters: VllmParameters, dtype: str, folder: Path, fingerprint: str) -> Server:
    """Return a server with a model's weights: a living one if it can take them, else a new one.

    Servers that are not in use and can't take them are ended first: a GPU holds one.

    Raises:
        EngineError: vLLM does not start.
    """
    with _lock:
        for server in [server for server in _servers if not server.in_use]:
            if server.fits(parameters, dtype, folder):
                try:
                    server.take(folder, fingerprint)
                except EngineError as error:
                    logger.warning("%s; vLLM is restarted", error)
                else:
                    server.in_use = True
                    return server
            discard(server)
        if not _servers:
            atexit.unregister(release)
            atexit.register(release)
        server = Server(parameters, dtype, folder, fingerprint)
        _servers.append(server)
        return server


def discard(server: Server, *, keep_log: bool = False) -> None:
    """End a server that is of no more use."""
    server.end(keep_log=keep_log)
    _servers.remove(server)


def release() -> None:
    """End all servers and give their memory back, whether they are in use or not."""
    while _servers:
        discard(_servers[-1])
        logger.info("vLLM ended")


def _arguments(parameters: VllmParameters, dtype: str) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "tensor_parallel_size": parameters.tensor_parallel_size,
        "gpu_memory_utilization": parameters.gpu_memory_utilization,
        "max_model_len": parameters.max_model_len,
        "enforce_eager": parameters.enforce_eager,
        "enable_prefix_caching": parameters.enable_prefix_caching,
        "distributed_executor_backend": parameters.distributed_executor_backend,
        # The folder's own settings are for the request to say.
        "generation_config": "vllm",
        # Nothing is ever unpickled.
        "load_format": "safetensors",
    } | parameters.arguments


def _environments(parameters: VllmParameters) -> list[dict[str, str]]:
    """Return the environment of each worker; each of several has its own GPUs."""
    own = parameters.environment
    if parameters.data_parallel_size == 1:
        return [own]
    size, copies = parameters.tensor_parallel_size, parameters.data_parallel_size
    named = own.get("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES"))
    devices = named.split(",") if named else [str(number) for number in range(size * copies)]
    return [
        own | {"CUDA_VISIBLE_DEVICES": ",".join(devices[size * copy : size * (copy + 1)])}
        for copy in range(copies)
    ]
