"""vLLM in a separate process: run as a file by an interpreter that has vLLM.

It is started as::

    python vllm_worker.py --version
    python vllm_worker.py SOCKET        # number of an inherited socket

It knows nothing of this project and needs nothing but vLLM. One JSON object a line comes in and
goes out::

    {"do": "load", "model": FOLDER, "arguments": {…}}      → {"ready": {"max_model_len": …}}
    {"do": "reload", "model": FOLDER}                      → {"ready": {"max_model_len": …}}
    {"do": "generate", "prompts": [IDS, …], "sampling": [{…}, …],
     "requests": [[PROMPT, SAMPLING, SEED], …]}            → {"done": [[REQUEST, IDS, REASON], …]} …

Where something goes wrong: {"failed": "what"}. The process group ends when the socket closes.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Modules next to this file are not to be found by what vLLM imports.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]

# Finished responses travel together: each message is stored by itself on the other side.
SECONDS_BETWEEN_MESSAGES = 0.5
# Of the key-value cache on a CPU, where nothing else says how much; vLLM would take all it finds.
CPU_CACHE_BYTES = 2**30


def version() -> str:
    """Return the version of vLLM, whatever the distribution that brings it is called."""
    names = importlib.metadata.packages_distributions()["vllm"]
    return importlib.metadata.version(names[0])


class Channel:
    """Messages over a socket; a thread reads, so that the other side's end is noticed at once."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, **message: Any) -> None:
        """Write a message."""
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        """Wait for the next message."""
        return self._received.get()

    def _read(self) -> None:
        with self._connection.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                self._received.put(json.loads(line))
        # Nobody is there any more: end with all processes that vLLM has started.
        os.killpg(os.getpgrp(), signal.SIGKILL)


class Model:
    """A loaded model."""

    def __init__(self, folder: str, arguments: dict[str, Any]) -> None:
        from vllm import LLM
        from vllm.platforms import current_platform

        on_cpu = current_platform.is_cpu()
        if arguments["enforce_eager"] is None:
            arguments["enforce_eager"] = on_cpu
        if on_cpu:
            # vLLM 0.32 rewinds the generator of a prompt that it reads in parts, which a CPU's
            # can't: with seeds the engine died.
            arguments.setdefault("enable_chunked_prefill", False)
            if not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
                arguments.setdefault("kv_cache_memory_bytes", CPU_CACHE_BYTES)
        self.llm = LLM(model=folder, **arguments)
        # vLLM numbers requests from 0 on.
        self.asked = 0

    @property
    def facts(self) -> dict[str, Any]:
        """What the other side is told of the model."""
        return {"max_model_len": self.llm.model_config.max_model_len}

    def reload(self, folder: str) -> None:
        """Load other weights, and forget what was computed with the last ones."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache was not emptied")

    def generate(
        self,
        prompts: list[list[int]],
        sampling: list[dict[str, Any]],
        requests: list[tuple[int, int, int | None]],
    ) -> Iterator[list[tuple[int, list[int], str]]]:
        """Yield (request, token ids, reason to finish) of all requests, as they finish.

        vLLM has all prompts at once, as from ``LLM.generate``; n samples of a prompt are n
        requests, which is what its own ``n`` makes of them, and share the prompt's cache.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        parameters = []
        for _, kind, seed in requests:
            fields = dict(sampling[kind])
            choices = fields.pop("choices", None)
            parameters.append(
                SamplingParams(
                    **fields,
                    seed=seed,
                    # Only stop_token_ids end a response, whatever the folder's own settings say.
                    ignore_eos=True,
                    # Text is made on the other side; here it is needed to find stop strings.
                    detokenize=bool(fields.get("stop")),
                    structured_outputs=StructuredOutputsParams(choice=choices) if choices else None,
                )
            )
        first, self.asked = self.asked, self.asked + len(requests)
        self.llm.enqueue(
            [{"prompt_token_ids": prompts[prompt]} for prompt, _, _ in requests],
            parameters,
            use_tqdm=False,
        )
        engine = self.llm.llm_engine
        finished: list[tuple[int, list[int], str]] = []
        sent = time.monotonic()
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    response = output.outputs[0]
                    request = int(output.request_id) - first
                    finished.append((request, list(response.token_ids), response.finish_reason))
            if finished and time.monotonic() - sent > SECONDS_BETWEEN_MESSAGES:
                yield finished
                finished, sent = [], time.monotonic()
        if finished:
            yield finished


def serve(channel: Channel) -> None:
    """Do what comes in, until the socket closes."""
    model: Model | None = None
    while True:
        message = channel.receive()
        task = message.pop("do")
        try:
            if task == "load":
                model = Model(message["model"], message["arguments"])
                channel.send(ready=model.facts)
            elif model is None:
                raise RuntimeError("no model is loaded")
            elif task == "reload":
                model.reload(message["model"])
                channel.send(ready=model.facts)
            elif task == "generate":
                for finished in model.generate(**message):
                    channel.send(done=finished)
        except Exception as error:
            import traceback

            traceback.print_exc()
            channel.send(failed=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    if sys.argv[1] == "--version":
        sys.stdout.write(version())
    else:
        inherited = int(sys.argv[1])
        os.set_inheritable(inherited, False)
        serve(Channel(socket.socket(fileno=inherited)))
