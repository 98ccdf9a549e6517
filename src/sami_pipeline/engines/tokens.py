"""From prompts to token ids and from token ids to completions, alike in every local engine."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from sami_pipeline.engines.base import Completion, GenerationRequest, SamplingParameters
from sami_pipeline.models.thinking import is_thinking, split_thinking
from sami_pipeline.models.tokens import EncodedPrompt, TextEncoder

logger = logging.getLogger(__name__)


def encode_prompts(
    encoder: TextEncoder, requests: Sequence[GenerationRequest]
) -> list[EncodedPrompt]:
    """Return the exact text before each response, and its token ids."""
    prompts = [encoder.encode(request.prompt) for request in requests]
    if found := sum(prompt.control_strings > 0 for prompt in prompts):
        logger.warning(
            "%d of %d prompts name control tokens in queries, answers or constitutions; they were "
            "encoded as text", found, len(prompts),
        )  # fmt: skip
    return prompts


def split_too_long(
    requests: Sequence[GenerationRequest], prompts: Sequence[EncodedPrompt], context: int
) -> tuple[dict[int, Completion], list[int]]:
    """Return the answers to prompts that leave no room for a response, and the other indices.

    Args:
        requests: what is asked.
        prompts: each as it is read.
        context: the most tokens that prompt and response may have together.
    """
    too_long: dict[int, Completion] = {}
    fitting = []
    for index, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
        if len(prompt.ids) + request.sampling.max_new_tokens > context:
            too_long[index] = Completion("", "prompt_too_long", len(prompt.ids), 0)
        else:
            fitting.append(index)
    return too_long, fitting


def read_completion(
    encoder: TextEncoder,
    prompt: Sequence[int],
    ids: Sequence[int],
    ends: Collection[int],
    sampling: SamplingParameters,
) -> Completion:
    """Return the completion that generated token ids are.

    Args:
        encoder: the model's.
        prompt: the tokens that they were generated behind.
        ids: what was generated, the token that ended it and what follows included.
        ends: tokens that end a response.
        sampling: its stop strings end the response too and are cut off.
    """
    length = next((i for i, token in enumerate(ids) if token in ends), None)
    written = list(ids[:length])
    end_token = ""
    if length is not None:
        end_token = str(encoder.tokenizer.convert_ids_to_tokens(ids[length]))
    text, thinking = encoder.read(prompt, written), ""
    cuts = [text.find(stop) for stop in sampling.stop if stop in text]
    if cuts:
        text, end_token = text[: min(cuts)], ""
    if not encoder.chat.keep_thinking:
        begun = is_thinking(encoder.end_of(prompt))
        marked = encoder.read_with_marks(prompt, written)
        thinking, response = split_thinking(marked, begun=begun)
        if thinking or begun:
            text = response
    return Completion(
        text=text,
        finish_reason="stop" if cuts or length is not None else "length",
        prompt_tokens=len(prompt),
        completion_tokens=len(ids) if length is None else length,
        end_token=end_token,
        thinking=thinking,
    )
