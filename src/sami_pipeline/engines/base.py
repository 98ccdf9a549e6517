"""What every text generation engine takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from sami_pipeline.prompts import Prompt

FinishReason = Literal["stop", "length", "prompt_too_long"]


@dataclass(frozen=True)
class SamplingParameters:
    """How a response is drawn.

    Attributes:
        max_new_tokens: limit of the response; one that reaches it has the reason "length".
        temperature: 0 is greedy.
        top_p: nucleus sampling; 1 keeps the whole distribution.
        stop: strings that end a response; the string itself is cut off.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt and how its response is drawn."""

    prompt: Prompt
    sampling: SamplingParameters


@dataclass(frozen=True)
class Completion:
    """One response.

    Attributes:
        text: the response, without special tokens and stop strings.
        finish_reason: "stop" where the model ended by itself or at a stop string, "length" at
            the token limit, "prompt_too_long" where the prompt left no room (the text is empty).
        prompt_tokens: length of the rendered prompt.
        completion_tokens: length of the response, the end-of-sequence token left out.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int


class Engine(Protocol):
    """Generates text; implementations load their model when they are constructed."""

    def generate(
        self, requests: Sequence[GenerationRequest], *, seed: int, description: str
    ) -> list[Completion]:
        """Return one completion per request, in the order of the requests.

        Args:
            requests: any mixture of prompts and sampling parameters.
            seed: makes sampled responses reproducible on one machine.
            description: what the progress bar says.
        """
        ...
