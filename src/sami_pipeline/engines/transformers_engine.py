"""Generation with transformers: batched by length, greedy, sampled or one of given choices."""

from __future__ import annotations

import gc
import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    StoppingCriteria,
)

from sami_pipeline.engines.base import Completion, GenerationRequest, SamplingParameters
from sami_pipeline.engines.generation import model_fingerprint
from sami_pipeline.engines.tokens import encode_prompts, read_completion, split_too_long
from sami_pipeline.models.checkpoints import load_causal_model, load_tokenizer
from sami_pipeline.models.prompts import ChatParameters
from sami_pipeline.models.tokens import EncodedPrompt, TextEncoder, end_token_ids

Dtype = Literal["auto", "float32", "bfloat16"]


def fastest_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the hardware multiplies it natively, else float32."""
    if device.type == "cpu":
        native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    else:
        native = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if native else torch.float32


class _StopStrings(StoppingCriteria):
    """Ends each row at a stop string in what it has generated; the prompt may hold one too."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], prompt_width: int
    ) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.prompt_width = prompt_width
        # A character takes at most four byte-level tokens.
        self.window = 4 * max(map(len, stop))

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any
    ) -> torch.BoolTensor:
        first = max(self.prompt_width, input_ids.shape[1] - self.window)
        texts = self.tokenizer.batch_decode(input_ids[:, first:], skip_special_tokens=True)
        found = [any(stop in text for stop in self.stop) for text in texts]
        return torch.tensor(found, device=input_ids.device)


def _batch_seed(seed: int, drawn: Sequence[tuple[str, int]]) -> int:
    digest = hashlib.sha256(repr((seed, drawn)).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


class TransformersEngine:
    """The embedded default engine.

    Args:
        model_folder: a Hugging Face folder with safetensors weights.
        dtype: "auto" takes bfloat16 where the hardware has it.
        batch_size: prompts generated together. A larger batch is faster and takes more memory:
            on two CPU cores SmolLM2-135M gave 84, 210, 338 and 435 tokens/s at 4, 16, 40 and 80.
        trust_remote_code: let Python code run that the folder brings.
        chat: how the chat template is rendered.
    """

    def __init__(
        self,
        model_folder: Path,
        *,
        dtype: Dtype = "auto",
        batch_size: int = 64,
        trust_remote_code: bool = False,
        chat: ChatParameters | None = None,
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        resolved = fastest_dtype(self.device) if dtype == "auto" else getattr(torch, dtype)
        self.tokenizer = load_tokenizer(model_folder, trust_remote_code, padding_side="left")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model = load_causal_model(model_folder, resolved, trust_remote_code)
        self.model = model.to(self.device).eval()
        self._ends = end_token_ids(model_folder, self.tokenizer, chat)
        self.encoder = TextEncoder(self.tokenizer, chat, self._ends)
        self.model.generation_config = GenerationConfig(
            eos_token_id=sorted(self._ends), pad_token_id=self.tokenizer.pad_token_id
        )
        self.batch_size = batch_size
        self.identity = f"transformers {resolved} {model_fingerprint(model_folder)}"
        self.identity += self.encoder.chat.identity

    def stream(
        self, requests: Sequence[GenerationRequest], *, seed: int
    ) -> Iterator[dict[int, Completion]]:
        """Yield the completions batch by batch; see ``Engine.stream``."""
        prompts = encode_prompts(self.encoder, requests)
        encoded = [prompt.ids for prompt in prompts]
        context = getattr(self.model.config, "max_position_embeddings", sys.maxsize)
        too_long, fitting = split_too_long(requests, prompts, context)
        if too_long:
            yield too_long
        groups: dict[SamplingParameters, list[int]] = defaultdict(list)
        for index in fitting:
            groups[requests[index].sampling].append(index)
        for sampling in sorted(groups, key=repr):
            # Longest first: neighbours pad little, and too large a batch fails at once.
            order = sorted(
                groups[sampling],
                key=lambda i: (-len(encoded[i]), prompts[i].text, requests[i].sample),
            )
            for batch in self._batches(order, encoded):
                asked = [prompts[i] for i in batch]
                if sampling.choices:
                    outputs = self._choose(asked, sampling)
                else:
                    # A batch draws from a seed of its own: it does not matter what was drawn
                    # before, by this process or by one that was killed.
                    drawn = [(prompts[i].text, requests[i].sample) for i in batch]
                    outputs = self._generate_batch(asked, sampling, _batch_seed(seed, drawn))
                yield dict(zip(batch, outputs, strict=True))

    def close(self) -> None:
        """Give the model's memory back."""
        del self.model
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _batches(
        self, order: Sequence[int], encoded: Sequence[Sequence[int]]
    ) -> Iterator[list[int]]:
        """Yield batches of neighbours, none less than half as long as the longest beside it."""
        batch: list[int] = []
        for index in order:
            too_short = batch and 2 * len(encoded[index]) < len(encoded[batch[0]])
            if too_short or len(batch) == self.batch_size:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    @torch.inference_mode()
    def _generate_batch(
        self, prompts: Sequence[EncodedPrompt], sampling: SamplingParameters, seed: int
    ) -> list[Completion]:
        inputs = self.tokenizer.pad(
            {"input_ids": [prompt.ids for prompt in prompts]}, return_tensors="pt"
        )
        width = inputs["input_ids"].shape[1]
        sampled = sampling.temperature > 0
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            output = self.model.generate(
                **inputs.to(self.device),
                max_new_tokens=sampling.max_new_tokens,
                do_sample=sampled,
                temperature=sampling.temperature if sampled else None,
                top_p=sampling.top_p if sampled else None,
                top_k=0 if sampled else None,
                stopping_criteria=[_StopStrings(self.tokenizer, sampling.stop, width)]
                if sampling.stop
                else None,
            )
        return [
            # A row that ended before its batch is filled up with padding, which ends it too.
            read_completion(self.encoder, prompt, row[width:].tolist(), self._ends, sampling)
            for prompt, row in zip(prompts, output, strict=True)
        ]

    @torch.inference_mode()
    def _choose(
        self, prompts: Sequence[EncodedPrompt], sampling: SamplingParameters
    ) -> list[Completion]:
        """Read each choice's log-probability; the response is the likeliest.

        Choices have the tokens that they have behind the prompt and are read to their last token,
        so that those which begin alike are told apart.
        """
        completions = []
        for prompt in prompts:
            choices = [self.encoder.encode_response([prompt], each) for each in sampling.choices]
            # What is read before the last token of each choice. The prompt is read once for all
            # of them, and one-token choices need no more.
            beginnings = list(dict.fromkeys(tuple(c[:-1]) for c in choices if len(c) > 1))
            read = self.model(
                torch.tensor([prompt.ids], device=self.device),
                use_cache=bool(beginnings),
                logits_to_keep=1,
            )
            # (1, vocabulary) after the prompt alone; (beginning + 1, vocabulary) after a beginning.
            first = read.logits[0].float().log_softmax(-1)
            logprobs: dict[tuple[int, ...], torch.Tensor] = {(): first}
            if beginnings:
                inputs = self.tokenizer.pad(
                    {"input_ids": [list(each) for each in beginnings]},
                    padding_side="right",
                    return_tensors="pt",
                )
                read.past_key_values.batch_repeat_interleave(len(beginnings))
                # Padding stands behind what is read: the causal mask alone hides it.
                output = self.model(
                    inputs["input_ids"].to(self.device), past_key_values=read.past_key_values
                )
                for beginning, logits in zip(beginnings, output.logits, strict=True):
                    logprobs[beginning] = torch.cat([first, logits.float().log_softmax(-1)])
            sums = torch.stack(
                [
                    logprobs[tuple(choice[:-1])][range(len(choice)), choice].sum()
                    for choice in choices
                ]
            )
            chosen = int(sums.argmax())
            completions.append(
                Completion(
                    text=sampling.choices[chosen],
                    finish_reason="stop",
                    prompt_tokens=len(prompt.ids),
                    completion_tokens=len(choices[chosen]),
                    choice_logprobs=tuple(sums.log_softmax(0).tolist()),
                )
            )
        return completions
