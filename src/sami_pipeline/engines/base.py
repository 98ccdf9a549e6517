"""What every text generation engine takes and gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from sami_pipeline.models.prompts import Prompt

FinishReason = Literal["stop", "length", "prompt_too_long", "failed"]


@dataclass(frozen=True)
class SamplingParameters:
    """How a response is drawn.

    Attributes:
        max_new_tokens: limit of the response; one that reaches it has the reason "length".
        temperature: 0 is greedy.
        top_p: nucleus sampling; 1 keeps the whole distribution.
        stop: strings that end a response; the string itself is cut off.
        choices: if there are any, the response is one of them and nothing else; an engine that
            reads their log-probabilities takes the likeliest at any temperature.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt and how its response is drawn.

    Attributes:
        prompt: what is asked.
        sampling: how the response is drawn.
        sample: number of the response, from 0: n samples of a prompt are n requests that differ in
            this alone.
        goes_on: whether prompts that begin with this one and its response are likely to be asked
            later, as of a conversation; an engine may keep what it has read for them. It changes
            no response.
    """

    prompt: Prompt
    sampling: SamplingParameters
    sample: int = 0
    goes_on: bool = False


@dataclass(frozen=True)
class Completion:
    """One response.

    Attributes:
        text: the response, without special tokens and stop strings.
        finish_reason: "stop" where the model ended by itself or at a stop string, "length" at
            the token limit, "prompt_too_long" where the prompt left no room (the text is empty),
            "failed" where a server gave no usable answer after all retries (the text is empty).
        prompt_tokens: length of the rendered prompt.
        completion_tokens: length of all that was written, the token that ended it left out.
        choice_logprobs: natural logarithm of each choice's probability, renormalised over the
            choices, where an engine reads them; None elsewhere.
        end_token: the token that ended the response, written out; "" where it ended at a stop
            string or at the limit, or where a server does not tell.
        thinking: what the model thought before it responded, which is no part of the response.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    choice_logprobs: tuple[float, ...] | None = None
    end_token: str = ""
    thinking: str = ""


class Engine(Protocol):
    """Generates text; call ``generate`` of this package rather than an engine's own methods.

    Attributes:
        identity: what determines a response besides the request and the seed: the kind of engine,
            the model's fingerprint, the arithmetic.
    """

    identity: str

    def stream(
        self, requests: Sequence[GenerationRequest], *, seed: int
    ) -> Iterator[Mapping[int, Completion]]:
        """Yield completions as they come, in pieces, each by its request's index.

        Every request is answered once. A piece is what can be lost at once: a batch, or one answer
        of a server. Without the requests of some first pieces an engine forms the remaining pieces
        as before, so that a run that was killed goes on exactly.

        Args:
            requests: any mixture of prompts and sampling parameters.
            seed: makes sampled responses reproducible on one machine, where the engine can.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds: memory, processes, connections."""
        ...


@runtime_checkable
class FallibleEngine(Protocol):
    """An engine that may give no usable answer to a request: one that asks a server.

    Attributes:
        identity: see ``Engine``.
        usage: account of what was asked, got and lost.
    """

    identity: str
    usage: object

    def stream(
        self, requests: Sequence[GenerationRequest], *, seed: int, total: int | None = None
    ) -> Iterator[Mapping[int, Completion]]:
        """Yield completions as ``Engine.stream`` does, and end where too many are missing.

        Args:
            requests: what is asked now.
            seed: see ``Engine.stream``.
            total: requests of the whole stage, those answered by an earlier run among them, of
                which a share may be missing; None is the number of ``requests``.

        Raises:
            InputError: too many requests got no usable answer, or the server is gone.
        """
        ...

    def close(self) -> None:
        """See ``Engine.close``."""
        ...
