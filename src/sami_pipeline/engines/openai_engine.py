"""Generation by any endpoint that speaks OpenAI's protocol: a hosted model, or ``vllm serve``."""

from __future__ import annotations

import asyncio
import hashlib
import html
import json
import logging
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
import openai
from anyio.from_thread import start_blocking_portal
from pydantic import (
    BaseModel,
    Field,
    NonNegativeInt,
    ValidationError,
    field_validator,
    model_validator,
)

from sami_pipeline.engines import OpenAIParameters
from sami_pipeline.engines.base import Completion, GenerationRequest, SamplingParameters
from sami_pipeline.engines.credentials import api_key
from sami_pipeline.errors import InputError, first_fault, one_line
from sami_pipeline.models.prompts import Prompt
from sami_pipeline.models.thinking import split_thinking

logger = logging.getLogger(__name__)

_FAILED = Completion("", "failed", 0, 0)
_PROMPT_TOO_LONG = Completion("", "prompt_too_long", 0, 0)
# How servers say that a prompt and its response do not fit.
_TOO_LONG = ("context length", "context_length", "context window", "context size", "prompt is too")


# Of so many results a majority that are no answers ends a run.
_RECENT = 20
# What a surrogate is in JSON, and one that stands alone in what was read of it.
_ESCAPED_HALF, _HALF = re.compile(rb"\\ud[89a-f]", re.IGNORECASE), re.compile(r"[\ud800-\udfff]")
_PAGE = re.compile(r"\s*<(!doctype|html|head|body|\?xml)\b", re.IGNORECASE)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_MARKUP = re.compile(r"<(style|script)\b.*?</\1>|<[^>]*>", re.IGNORECASE | re.DOTALL)
_FENCE = re.compile(r"\A```\w*\s*\n(.*?)\n?\s*```\Z", re.DOTALL)


class _Tokens(BaseModel):
    prompt_tokens: NonNegativeInt = 0
    completion_tokens: NonNegativeInt = 0


class _Bill(BaseModel):
    usage: _Tokens


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _parts_are_joined(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        texts = [part.get("text") for part in value if isinstance(part, dict)]
        return "".join(text for text in texts if isinstance(text, str))


class _Choice(BaseModel):
    finish_reason: str | None = None
    message: _Message | None = None
    text: str | None = None

    @model_validator(mode="after")
    def _is_an_answer(self) -> _Choice:
        if self.finish_reason in ("abort", "error"):
            raise ValueError("the server broke the response off")
        if self.finish_reason is None and self.response is None:
            raise ValueError("text and finish_reason are missing")
        if self.message is None and self.text is None:
            raise ValueError("message or text is missing")
        return self

    @property
    def response(self) -> str | None:
        """The text, if any: a model may end at once, or spend all its tokens on reasoning."""
        if self.message is None:
            return self.text
        return self.message.refusal if self.message.content is None else self.message.content


class _Answer(BaseModel):
    usage: _Tokens | None = None
    choices: list[_Choice] = Field(min_length=1)
    model: str | None = None

    @field_validator("usage", "model", mode="wrap")
    @classmethod
    def _is_left_out_where_it_is_odd(cls, value: Any, read: Callable[[Any], Any]) -> Any:
        try:
            return read(value)
        except ValidationError:
            return None  # no reason to ask again for a text that is there

    @classmethod
    def read(cls, content: bytes) -> _Answer:
        """Return the answer in a body; half characters become U+FFFD.

        A server that cuts a text at its limit may cut an emoji in two.

        Raises:
            ValidationError: the body holds none.
        """
        if _ESCAPED_HALF.search(content):
            with suppress(ValueError, RecursionError):
                whole = _HALF.sub("\ufffd", json.dumps(json.loads(content), ensure_ascii=False))
                content = whole.encode()
        return cls.model_validate_json(content)


class _Said(BaseModel):
    message: str = ""
    code: str | int | None = None


class _ErrorBody(BaseModel):
    """An error that some servers send as if it were an answer, with status 200."""

    error: _Said | str

    @property
    def status(self) -> int:
        """The HTTP status that belongs to it; 500, which is tried again, where it names none."""
        code = str(getattr(self.error, "code", None))
        return int(code) if re.fullmatch("[45][0-9]{2}", code) else 500


class _UnusableBody(httpx2.RemoteProtocolError):
    """An answer with a body that is none; the openai package retries it like a lost connection."""


@dataclass
class Usage:
    """What an engine has asked and got since it was opened.

    Attributes:
        sent: HTTP requests, retries among them.
        retries: those that repeat another.
        answered: completions that came of it.
        prompt_tokens: of all answers that state them, unusable ones among them.
        completion_tokens: likewise.
        failures: requests without a usable answer after all retries, by reason.
        without_usage: answers that state no tokens.
        models: what answers say has written them, "" where they say nothing.
        prompt_price: per million tokens, in any currency; None if it is not known.
        completion_price: likewise.
    """

    sent: int = 0
    retries: int = 0
    answered: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    without_usage: int = 0
    models: Counter[str] = field(default_factory=Counter)
    prompt_price: float | None = None
    completion_price: float | None = None

    @property
    def failed(self) -> int:
        """Requests without a usable answer after all retries."""
        return self.failures.total()

    @property
    def cost(self) -> float | None:
        """What the tokens cost, in the currency of the prices; None without prices."""
        if self.prompt_price is None or self.completion_price is None:
            return None
        prompt = self.prompt_tokens * self.prompt_price
        return (prompt + self.completion_tokens * self.completion_price) / 1e6

    def __str__(self) -> str:
        reasons = _counted(self.failures)
        unknown = f", {self.without_usage} answers without a count" if self.without_usage else ""
        return (
            f"{self.answered} answered, {self.failed} failed{f' ({reasons})' if reasons else ''}, "
            f"{self.retries} retries, {self.prompt_tokens} prompt and {self.completion_tokens} "
            f"completion tokens{unknown}"
            f"{'' if self.cost is None else f', cost {self.cost:.4f}'}"
        )


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason}: {n}" for reason, n in reasons.most_common())


class _Missing:
    """Counts requests without a usable answer, and says when there are too many.

    Args:
        total: requests of the stage, those answered by an earlier run among them.
        asked: those that are asked now.
        share: of the total, what may be without an answer.
    """

    def __init__(self, total: int, asked: int, share: float) -> None:
        self._total, self._allowed = total, share * total
        self._any_answered = asked < total
        self._recent: deque[bool] = deque(maxlen=_RECENT)
        self.count = 0

    def add(self, failed: bool) -> None:
        """Take note of one result."""
        self.count += failed
        self._any_answered |= not failed
        self._recent.append(failed)

    @property
    def too_many(self) -> bool:
        """Whether more are missing than may be."""
        return self.count > self._allowed

    @property
    def in_a_row(self) -> bool:
        """Whether it is no use to go on asking.

        Most of the last requests have failed, and there are too many already or nothing has been
        answered at all. A few that fail each time they are asked, all that is left of an earlier
        run, end nothing.
        """
        gone = len(self._recent) == _RECENT and sum(self._recent) > _RECENT / 2
        return gone and (self.too_many or not self._any_answered)

    def __str__(self) -> str:
        return f"{self.count} of {self._total} requests"


class OpenAIEngine:
    """Asks a server, several requests at once, each alone so that one failure loses one answer.

    The openai package retries, waits and honours ``Retry-After``; here an unusable body counts as
    a lost connection, and a request that fails is told from an endpoint that fails.

    Args:
        parameters: the endpoint; its key is looked up in the credentials and the environment.

    Attributes:
        usage: account of tokens, retries and failures.

    Raises:
        InputError: the key can't be sent.
    """

    def __init__(self, parameters: OpenAIParameters) -> None:
        self._parameters = parameters
        # All that shapes a request, and nothing of how it is sent.
        shaping = {"base_url", "model", "extra", "choices", "leave_out"}
        shape = json.dumps(parameters.model_dump(include=shaping), sort_keys=True)
        self.identity = f"openai {shape}"
        if parameters.keep_thinking:
            self.identity += " keep_thinking"
        self.usage = Usage(
            prompt_price=parameters.prompt_price, completion_price=parameters.completion_price
        )
        self._key = api_key(parameters.credentials, parameters.api_key_variable)
        # When each kind of request was answered last, and the kinds that are refused whatever they
        # ask, since this stream began.
        self._answered: dict[tuple[Any, ...], float] = {}
        self._refused: set[tuple[Any, ...]] = set()
        # What the server said to a request that failed, by the reason that is counted.
        self._said: dict[str, str] = {}
        # Other models than the one asked for that the log has named.
        self._told: set[str] = set()
        self._probing = asyncio.Lock()
        self._stack = ExitStack()
        # A thread with its own event loop: the caller's may be running already (Jupyter).
        self._portal = self._stack.enter_context(start_blocking_portal())
        self._client = openai.AsyncOpenAI(
            base_url=parameters.base_url,
            api_key=self._key or "none",
            timeout=parameters.timeout,
            max_retries=parameters.max_retries,
            http_client=openai.DefaultAsyncHttpxClient(
                event_hooks={"request": [self._count], "response": [self._check]}
            ),
        )

    def stream(
        self, requests: Sequence[GenerationRequest], *, seed: int, total: int | None = None
    ) -> Iterator[dict[int, Completion]]:
        """Yield each completion as it comes; see ``FallibleEngine.stream``.

        A request is sent when an earlier one's completion has been taken, so no more than
        ``concurrency`` are ever under way or not yet stored.

        Raises:
            InputError: no request can be answered (any more): a refused key, an unknown model, a
                field that the endpoint does not know, a server that is gone; or more than
                ``max_missing`` got no usable answer. What is under way is waited for and yielded
                first.
        """
        self._answered.clear()
        self._refused.clear()
        missing = _Missing(
            len(requests) if total is None else total, len(requests), self._parameters.max_missing
        )
        waiting = deque(range(len(requests)))
        running: dict[Future[Completion | InputError], int] = {}
        fault: InputError | None = None
        try:
            while running or (waiting and fault is None):
                while waiting and fault is None and len(running) < self._parameters.concurrency:
                    index = waiting.popleft()
                    future = self._portal.start_task_soon(self._complete, requests[index], seed)
                    running[future] = index
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    index, result = running.pop(future), future.result()
                    if isinstance(result, InputError):
                        fault = fault or result
                        continue
                    missing.add(result.finish_reason == "failed")
                    yield {index: result}
                if fault is None and missing.in_a_row:
                    fault = self._too_many(missing)
            if fault is None and missing.too_many:
                fault = self._too_many(missing)
            if fault is not None:
                raise fault
        finally:
            for future in running:
                future.cancel()
            logger.info("%s: %s", self._parameters.model, self.usage)
            self._tell_models()

    def _tell_models(self) -> None:
        """Warn, once of each, of models that have answered in place of the one asked for."""
        for name in self.usage.models.keys() - self._told - {"", self._parameters.model}:
            self._told.add(name)
            logger.warning(
                "engine.openai.model: %r was asked for, and answers come from %r; name that one, "
                "if a later run is to ask the same", self._parameters.model, one_line(name)[:200],
            )  # fmt: skip

    def close(self) -> None:
        """Close the connections; requests under way are given up."""
        self._portal.call(self._client.close)
        self._portal.call(self._portal.stop, True)
        self._stack.close()

    async def _complete(self, request: GenerationRequest, seed: int) -> Completion | InputError:
        # An error is returned, not raised: as another's context it would carry the key along.
        began = asyncio.get_running_loop().time()
        try:
            answer = await self._ask(request, seed)
        except openai.APIError as error:
            return await self._without_answer(error, request, began)
        except TimeoutError:
            return self._failed(f"took more than {self._parameters.answer_timeout:g} s")
        return self._completion(answer, request.sampling)

    async def _ask(self, request: GenerationRequest, seed: int) -> _Answer:
        chat = bool(request.prompt.messages)
        endpoint = self._client.chat.completions if chat else self._client.completions
        # Begins with each attempt; see _count.
        async with asyncio.timeout(None) as limit:
            _limit.set(limit)
            response = await endpoint.with_raw_response.create(
                **_request_fields(self._parameters, request, seed),
                extra_headers=None if self._key else {"Authorization": openai.Omit()},
                extra_body=_extra_fields(self._parameters, request),
            )
        self._answered[_kind(request)] = asyncio.get_running_loop().time()
        return _Answer.read(response.content)

    def _completion(self, answer: _Answer, sampling: SamplingParameters) -> Completion:
        choice = answer.choices[0]
        if choice.finish_reason == "content_filter":
            return self._failed("content filter")
        usage = answer.usage
        if usage is None:
            self.usage.without_usage += 1
            usage = _Tokens()
        text, ended = choice.response or "", choice.finish_reason != "length"
        if choice.finish_reason is None:
            ended = usage.completion_tokens < sampling.max_new_tokens
        cuts = [text.find(stop) for stop in sampling.stop if stop in text]
        if cuts:
            text, ended = text[: min(cuts)], True
        thinking = ""
        if not self._parameters.keep_thinking:
            thinking, text = split_thinking(text)
        if sampling.choices:
            chosen = _chosen(text, sampling.choices)
            if chosen is None:
                return self._failed("none of the choices")
            text, ended = chosen, True
        self.usage.answered += 1
        self.usage.models[answer.model or ""] += 1
        return Completion(
            text=text,
            finish_reason="stop" if ended else "length",
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            thinking=thinking,
        )

    def _failed(self, reason: str) -> Completion:
        self.usage.failures[reason] += 1
        return _FAILED

    def _too_many(self, missing: _Missing) -> InputError:
        at, reasons = self._parameters, self.usage.failures
        said = next((f"; it said: {self._said[r]}" for r in reasons if r in self._said), "")
        return InputError(
            f"engine.openai: {at.base_url}: {missing} got no usable answer ({_counted(reasons)}), "
            f"and max_missing allows {at.max_missing * 100:.3g} % of them{said}; what was answered "
            "is stored: go on with --only-missing-outputs, which asks for the rest"
        )

    async def _without_answer(
        self, error: openai.APIError, request: GenerationRequest, began: float
    ) -> Completion | InputError:
        """Return what becomes of a request after all retries: it has failed, or all would."""
        status = _status(error)
        said = f"{error.code} {_told(error)}".lower()
        if status in (400, 413, 422) and any(sign in said for sign in _TOO_LONG):
            return _PROMPT_TOO_LONG
        if (
            status in (401, 404)
            or _out_of_credit(error)
            or await self._refuses_any(request, since=began)
        ):
            return self._fault(error)
        if said := self._message(error):
            self._said[_reason(error)] = said
        return self._failed(_reason(error))

    async def _refuses_any(self, request: GenerationRequest, *, since: float) -> bool:
        """Return whether even a trivial prompt gets no answer, asked as the request is.

        Asked only where no request of this kind has been answered since this one began: a server
        that has answered before may be gone now.
        """
        kind = _kind(request)
        async with self._probing:
            if kind not in self._refused and self._answered.get(kind, -1.0) < since:
                try:
                    await self._ask(_trivial(request), seed=0)
                except (openai.APIError, TimeoutError):
                    self._refused.add(kind)
            return kind in self._refused

    def _message(self, error: openai.APIError) -> str:
        """Return what the server says of an error in one line, without the key."""
        if _status(error) is None:
            return ""
        return _without_key(one_line(_told(error)), self._key)[:300]

    def _fault(self, error: openai.APIError) -> InputError:
        at, status = self._parameters, _status(error)
        said = self._message(error)
        key_goes = (
            f"into conf/local/credentials.yml ({at.credentials}: {{api_key: …}}) or into the "
            f"environment variable {at.api_key_variable}"
        )
        if status == 401:
            where, what = "", "refuses the key" if self._key else "wants a key"
            remedy = f"put a valid one {key_goes}"
        elif status == 403:
            where, what = "", "forbids every request" if self._key else "wants a key"
            remedy = (
                "settle with the provider what it says, then go on with --only-missing-outputs; "
                f"another key goes {key_goes}"
            )
        elif _out_of_credit(error):
            where, what, remedy = "", "has no credit left", "pay in; what is stored is kept"
        elif status == 404:
            where, what = ".model", f"does not know {at.model!r}, or not this kind of prompt"
            remedy = "correct model or base_url, or choose a prompt template of the other kind"
        elif status is None or _is_passing(status) or status < 400:
            where, what = ".base_url", "answers not even a trivial prompt"
            remedy = (
                "wait until its limit has passed, then go on with --only-missing-outputs"
                if status == 429
                else "start the server or correct the address; what is stored is kept"
            )
        elif self.usage.answered:
            where, what = "", "answers no request any more"
            remedy = "settle what it says, then go on with --only-missing-outputs"
        else:
            where, what = "", "refuses any request with these fields"
            remedy = "name what it does not know in leave_out, or correct extra or choices"
            if (field := _wanted_limit_field(said, at.token_limit_field)) is not None:
                where, remedy = ".token_limit_field", f"set token_limit_field: {field}"
        reason = f"{_reason(error)}: {said}" if said else _reason(error)
        return InputError(f"engine.openai{where}: {at.base_url} {what} ({reason}); {remedy}")

    async def _count(self, request: httpx2.Request) -> None:
        self.usage.sent += 1
        self.usage.retries += request.headers.get("x-stainless-retry-count", "0") != "0"
        now = asyncio.get_running_loop().time()
        _limit.get().reschedule(now + self._parameters.answer_timeout)

    async def _check(self, response: httpx2.Response) -> None:
        """Count an answer's tokens, and refuse a body that is no answer."""
        if not response.is_success:
            return
        body = await response.aread()
        with suppress(ValidationError):
            tokens = _Bill.model_validate_json(body).usage
            self.usage.prompt_tokens += tokens.prompt_tokens
            self.usage.completion_tokens += tokens.completion_tokens
        try:
            _Answer.read(body)
        except ValidationError as error:
            with suppress(ValidationError):
                # The package treats it from here as the error that it is.
                response.status_code = _ErrorBody.model_validate_json(body).status
                response.extensions["sent_as"] = 200
                return
            what = first_fault(error)
            if error.errors()[0]["type"] == "json_invalid":
                what = _page(response.text) or "no JSON"
            raise _UnusableBody(
                _without_key(one_line(f"unusable body, {what}"), self._key)[:300],
                request=response.request,
            ) from None


# When the attempt that is under way in a task is given up.
_limit: ContextVar[asyncio.Timeout] = ContextVar("limit")


def _status(error: openai.APIError) -> int | None:
    return error.status_code if isinstance(error, openai.APIStatusError) else None


def _is_passing(status: int) -> bool:
    return status in (408, 409, 429) or status >= 500


def _out_of_credit(error: openai.APIError) -> bool:
    return _status(error) == 402 or error.code == "insufficient_quota"


def _reason(error: openai.APIError) -> str:
    if isinstance(error, openai.APIStatusError):
        if sent_as := error.response.extensions.get("sent_as"):
            return f"HTTP {sent_as} with an error instead of an answer"
        return f"HTTP {error.status_code}"
    if isinstance(error, openai.APITimeoutError):
        return "timed out"
    if isinstance(error.__cause__, _UnusableBody):
        return str(error.__cause__)
    if isinstance(error.__cause__, httpx2.ConnectError | httpx2.ProxyError):
        proxy = _proxy(str(error.request.url))
        return f"no connection through the proxy {proxy}" if proxy else "no connection"
    return "connection lost"


def _proxy(address: str) -> str | None:
    """Return the proxy that the environment sets for an address, without what it may hold of a key.

    Proxies stand in HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, exceptions in NO_PROXY.
    """
    parts = urlsplit(address)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc):
        return None
    place = urlsplit(proxy)
    name = place.netloc.rpartition("@")[2] or proxy.rpartition("@")[2]
    return f"{name} (set by {parts.scheme.upper()}_PROXY or ALL_PROXY)"


def _told(error: openai.APIError) -> str:
    """Return what the body of an error says: in OpenAI's form, another's, plain text or a page."""
    body = error.body
    if isinstance(body, dict):
        body = next((body[name] for name in _TELLING if body.get(name)), body)
    if not isinstance(body, str):
        return json.dumps(body, ensure_ascii=False) if body else error.message
    return _page(body) or body or error.message


# Fields of errors, in OpenAI's form and in those of FastAPI and others.
_TELLING = ("message", "detail", "error", "msg")


def _page(text: str) -> str | None:
    """Return in words what a web page says, or None where a text is none."""
    if not _PAGE.match(text):
        return None
    title = _TITLE.search(text)
    said = title[1] if title else _MARKUP.sub(" ", text)
    return f"a web page: {' '.join(html.unescape(said).split())}"


def _wanted_limit_field(said: str, sent: str) -> str | None:
    """Return what an endpoint calls its token limit, where it refuses the name that was sent."""
    other = "max_tokens" if sent == "max_completion_tokens" else "max_completion_tokens"
    return other if re.search(rf"\b{sent}\b", said) else None


def _without_key(text: str, key: str | None) -> str:
    """Strike out all words that hold a part of the key; servers quote it, or its ends."""
    if not key:
        return text
    parts = {key[i : i + 4].lower() for i in range(max(1, len(key) - 3))}
    return re.sub(
        r"[^\s'\"(){}<>,]+",
        lambda word: "***" if any(part in word[0].lower() for part in parts) else word[0],
        text,
    )


def _kind(request: GenerationRequest) -> tuple[Any, ...]:
    """Return what requests have in common that differ in what they say."""
    return request.sampling, tuple(role for role, _ in request.prompt.messages)


def _trivial(request: GenerationRequest) -> GenerationRequest:
    """Return a request of the same kind that no server has a reason to refuse for what it says."""
    roles = tuple(role for role, _ in request.prompt.messages)
    hello = Prompt(tuple((role, "Hello") for role in roles), "" if roles else "Hello")
    return replace(request, prompt=hello, sample=0)


def _request_fields(
    parameters: OpenAIParameters, request: GenerationRequest, seed: int
) -> dict[str, Any]:
    sampling, prompt = request.sampling, request.prompt
    # Sent even where they are the protocol's defaults: servers take others from the model's files.
    fields: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.temperature > 0:
        drawn = repr((seed, prompt.to_json(), request.sample)).encode()
        # 31 bits, which every server takes.
        fields["seed"] = int.from_bytes(hashlib.sha256(drawn).digest()[:4], "big") >> 1
    fields = {name: value for name, value in fields.items() if name not in parameters.leave_out}
    limit = sampling.max_new_tokens
    if sampling.choices and parameters.choices == "json_schema":
        # The choice stands in a JSON object, a token for each byte at worst.
        limit += max(len(json.dumps({"choice": choice})) for choice in sampling.choices)
    if not prompt.messages:
        return {"model": parameters.model, "prompt": prompt.text, "max_tokens": limit, **fields}
    messages = [{"role": role, "content": content} for role, content in prompt.messages]
    limit_field = parameters.token_limit_field
    return {"model": parameters.model, "messages": messages, limit_field: limit, **fields}


def _extra_fields(parameters: OpenAIParameters, request: GenerationRequest) -> dict[str, Any]:
    choices = list(request.sampling.choices)
    if not choices or parameters.choices == "text":
        return parameters.extra
    if parameters.choices != "json_schema":
        # vLLM, which can go on with what the prompt has begun to say for the model.
        roles = [role for role, _ in request.prompt.messages]
        begun = roles[-1:] == ["assistant"]
        going_on = {"add_generation_prompt": False, "continue_final_message": True} if begun else {}
        constraint = (
            {"guided_choice": choices}
            if parameters.choices == "guided_choice"
            else {"structured_outputs": {"choice": choices}}
        )
        return parameters.extra | constraint | going_on
    schema = {
        "type": "object",
        "properties": {"choice": {"type": "string", "enum": choices}},
        "required": ["choice"],
        "additionalProperties": False,
    }
    named = {"name": "choice", "strict": True, "schema": schema}
    return parameters.extra | {"response_format": {"type": "json_schema", "json_schema": named}}


def _chosen(text: str, choices: Sequence[str]) -> str | None:
    """Return which choice a response is, in plain text or as the schema's object, if any.

    Either may stand in a code fence.
    """
    text = text.strip()
    if fenced := _FENCE.match(text):
        text = fenced[1]
    with suppress(ValueError):
        value = json.loads(text)
        if isinstance(value, dict):
            text = str(value.get("choice"))
    return next((each for each in choices if each.strip() == text.strip()), None)
