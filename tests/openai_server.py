"""A server on loopback that speaks OpenAI's protocol, and misbehaves when told to."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sami_pipeline.engines import Completion, Engine, GenerationRequest, SamplingParameters
from sami_pipeline.models.prompts import Prompt

MODEL = "small"
# What a body must hold, and what it may hold besides; anything else is refused.
NEEDED = {"model", "temperature", "top_p"}
KNOWN = {*NEEDED, "messages", "prompt", "max_tokens", "stop", "seed", "response_format"}


@dataclass
class Sent:
    """One HTTP request as it arrived."""

    at: float
    path: str
    body: dict[str, Any]
    authorization: str | None
    retry: int

    @property
    def text(self) -> str:
        """What the last message or the plain prompt says."""
        return self.body["messages"][-1]["content"] if self.chat else self.body["prompt"]

    @property
    def chat(self) -> bool:
        return self.path.endswith("/chat/completions")


def digest(sent: Sent) -> Completion:
    """Answer with a hash of the prompt and the seed, where the content does not matter."""
    said = f"{sent.text} {sent.body.get('seed')}".encode()
    return Completion(hashlib.sha256(said).hexdigest(), "stop", 7, 11)


def answers_of(engine: Engine) -> Callable[[Sent], Completion]:
    """Return a function that answers with a real model, one request at a time."""
    lock = threading.Lock()

    def answer(sent: Sent) -> Completion:
        body = sent.body
        messages = tuple((m["role"], m["content"]) for m in body.get("messages", ()))
        sampling = SamplingParameters(
            body["max_tokens"], body["temperature"], body["top_p"], tuple(body.get("stop", ()))
        )
        request = GenerationRequest(Prompt(messages, body.get("prompt", "")), sampling)
        with lock:
            (piece,) = engine.stream([request], seed=body.get("seed", 0))
        return piece[0]

    return answer


@dataclass
class Reply:
    """What goes over the wire."""

    status: int = 200
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None  # announced, where it is not the content's
    delay: float = 0.0
    drip: float = 0.0  # seconds between one byte and the next


def error(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    """Return an error in OpenAI's form."""
    content = {"error": {"message": message, "type": "error", "code": code}}
    return Reply(status, json.dumps(content).encode(), headers)


def usual(sent: Sent, completion: Completion) -> Reply:
    """Return a completion in OpenAI's form."""
    said = {"message": {"role": "assistant", "content": completion.text}}
    if not sent.chat:
        said = {"text": completion.text}
    content = {
        "id": "x",
        "object": "chat.completion" if sent.chat else "text_completion",
        "choices": [{"index": 0, "finish_reason": completion.finish_reason, **said}],
        "usage": {
            "prompt_tokens": completion.prompt_tokens,
            "completion_tokens": completion.completion_tokens,
        },
    }
    return body(content)


def body(content: dict[str, Any]) -> Reply:
    """Return a reply that holds any JSON."""
    return Reply(content=json.dumps(content).encode())


# Ways to misbehave, each from the reply that was due.
FAULTS: dict[str, Callable[[Reply], Reply]] = {
    "rate limit": lambda _: error(429, "slow down", **{"Retry-After": "0.05"}),
    "server error": lambda _: error(500, "oops"),
    "gateway": lambda _: Reply(502, b"<html>bad gateway</html>", {"Content-Type": "text/html"}),
    "hangs": lambda reply: Reply(content=reply.content, delay=2.0),
    "cut body": lambda reply: Reply(content=reply.content[:40], length=len(reply.content)),
    "cut JSON": lambda reply: Reply(content=reply.content[:40]),
    "not JSON": lambda _: Reply(content=b"<html>welcome</html>"),
    "not UTF-8": lambda _: Reply(content=b'{"choices": "\xff"}'),
    "no choices": lambda reply: body(json.loads(reply.content) | {"choices": []}),
    "error instead of an answer": lambda _: body({"error": {"message": "busy", "code": 503}}),
    "nothing": lambda _: Reply(content=b""),
}


class OpenAIServer:
    """Serves one model until it is closed; use it in a ``with`` statement.

    Args:
        answer: gives the completion of a request.
        key: what a client must show; None wants none.
        fault: gives the name of a fault of ``FAULTS``, a reply of its own, or None to behave.
        delay: seconds that an answer takes.
        port: where it listens; 0 takes any that is free.

    Attributes:
        sent: every request that has arrived.
        answered: how many have been answered, well or badly.
    """

    def __init__(
        self,
        answer: Callable[[Sent], Completion] = digest,
        *,
        key: str | None = None,
        fault: Callable[[Sent], str | Reply | None] = lambda sent: None,
        delay: float = 0.0,
        port: int = 0,
    ) -> None:
        self.answer, self.key, self.fault, self.delay = answer, key, fault, delay
        self.sent: list[Sent] = []
        self.answered = 0
        self._closed = threading.Event()
        self._lock = threading.Lock()

        class Handler(_Handler):
            owner = self

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 256

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> OpenAIServer:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def die(self) -> None:
        """Take no more connections, and no more requests on those there are."""
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def reply(self, sent: Sent) -> Reply:
        """Return what answers a request."""
        with self._lock:
            self.sent.append(sent)
            fault = self.fault(sent)
        if isinstance(fault, Reply):
            return fault
        if self.key is not None and sent.authorization != f"Bearer {self.key}":
            return error(401, f"bad credentials: {sent.authorization}", "invalid_api_key")
        if sent.path not in ("/v1/chat/completions", "/v1/completions"):
            return error(404, f"no {sent.path} here")
        if sent.body.get("model") != MODEL:
            return error(404, f"no model {sent.body.get('model')}", "model_not_found")
        if wrong := (set(sent.body) - KNOWN) | (NEEDED - set(sent.body)):
            return error(400, f"unknown or missing: {sorted(wrong)}")
        due = usual(sent, self.answer(sent))
        return FAULTS[fault](due) if fault else due

    def wait(self, seconds: float) -> None:
        """Wait, or stop waiting when the server is closed."""
        self._closed.wait(seconds)


class _Handler(BaseHTTPRequestHandler):
    owner: OpenAIServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        if self.owner._closed.is_set():
            self.close_connection = True
            return
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        sent = Sent(
            at=time.monotonic(),
            path=self.path,
            body=asked,
            authorization=self.headers.get("Authorization"),
            retry=int(self.headers.get("x-stainless-retry-count", 0)),
        )
        reply = self.owner.reply(sent)
        self.owner.wait(reply.delay + self.owner.delay)
        try:
            self.send_response(reply.status)
            for name, value in ({"Content-Type": "application/json"} | reply.headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(reply.length or len(reply.content)))
            self.end_headers()
            if reply.drip:
                for byte in reply.content:
                    self.wfile.write(bytes([byte]))
                    self.owner.wait(reply.drip)
            else:
                self.wfile.write(reply.content)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client did not wait
        else:
            self.close_connection = reply.length is not None
        with self.owner._lock:
            self.owner.answered += 1

    def log_message(self, *_: object) -> None:
        pass
