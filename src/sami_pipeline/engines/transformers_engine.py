"""Generation with transformers: rows of all sampling parameters are written together.

Prompts are read by length, rows leave when they end and others take their place (``rows``). Models
whose attention transformers does not look up by name are run by their own ``generate``, batch by
batch. Either way a row draws from its own random numbers, and in fp32 its text does not depend
on its neighbours.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from sami_pipeline.engines import row_cache
from sami_pipeline.engines.base import Completion, GenerationRequest, SamplingParameters
from sami_pipeline.engines.generation import model_fingerprint
from sami_pipeline.engines.lanes import may_run_side_by_side, share_out, side_by_side
from sami_pipeline.engines.packed_linear import pack_linear_layers
from sami_pipeline.engines.rows import Row, Rows
from sami_pipeline.engines.sampling import draw_tokens, uniform_numbers
from sami_pipeline.engines.tokens import encode_prompts, read_completion, split_too_long
from sami_pipeline.errors import one_line
from sami_pipeline.models.checkpoints import load_causal_model, load_tokenizer
from sami_pipeline.models.devices import Device, device_of
from sami_pipeline.models.prompts import ChatParameters
from sami_pipeline.models.tokens import EncodedPrompt, TextEncoder, end_token_ids
from sami_pipeline.process_settings import give_back_freed_memory

logger = logging.getLogger(__name__)
Dtype = Literal["auto", "float32", "bfloat16"]

# Completions are handed over, and stored, this often.
SECONDS_BETWEEN_PIECES = 0.5
# Prompts are read when this share of the batch is free: reading one at a time is slow.
_SHARE_FREE = 1 / 8
# Reading a token of a prompt takes about this part of the time of writing one.
_READING = 1 / 4


def fastest_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the hardware multiplies it natively, else float32."""
    if device.type == "cpu":
        # Builds without oneDNN, such as those for Apple silicon, do not have it.
        supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
        native = supported is not None and supported()
    else:
        native = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if native else torch.float32


class TransformersEngine:
    """The embedded default engine.

    Args:
        model_folder: a Hugging Face folder with safetensors weights.
        device: where it computes, see ``models.devices``.
        dtype: "auto" takes bfloat16 where the hardware has it.
        batch_size: responses written together. A larger batch is faster and takes more memory.
        lanes: on a CPU the batch is divided by as many threads, which don't wait for each other.
        kept_gib: memory for keys and values of rows that have ended, in GiB: a prompt that begins
            with a row's prompt and response is read from there on. They are kept while other rows
            wait, and after that where a conversation goes on.
        trust_remote_code: let Python code run that the folder brings.
        chat: how the chat template is rendered.
    """

    def __init__(
        self,
        model_folder: Path,
        *,
        device: Device = "auto",
        dtype: Dtype = "auto",
        batch_size: int = 64,
        lanes: int = 2,
        kept_gib: float = 1.0,
        trust_remote_code: bool = False,
        chat: ChatParameters | None = None,
    ) -> None:
        self.device = torch.device(device_of(device))
        resolved = fastest_dtype(self.device) if dtype == "auto" else getattr(torch, dtype)
        self.tokenizer = load_tokenizer(model_folder, trust_remote_code, padding_side="left")
        model = load_causal_model(model_folder, resolved, trust_remote_code)
        rows = model.get_input_embeddings().weight.shape[0]
        if self.tokenizer.pad_token_id is None or self.tokenizer.pad_token_id >= rows:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = model.to(self.device).eval()
        self._ends = end_token_ids(model_folder, self.tokenizer, chat)
        self.encoder = TextEncoder(self.tokenizer, chat, self._ends)
        self.model.generation_config = GenerationConfig(
            eos_token_id=sorted(self._ends), pad_token_id=self.tokenizer.pad_token_id
        )
        self.batch_size = batch_size
        # The rule by which samples are drawn is a part of it.
        self.identity = f"transformers rows {resolved} {model_fingerprint(model_folder)}"
        self.identity += self.encoder.chat.identity
        reason = use_row_attention(self.model)
        if reason:
            logger.warning(
                "%s: rows can't be written independently (%s); plain generate is used, which is "
                "slower",
                type(self.model).__name__,
                reason,
            )
        if not reason and not trust_remote_code:
            pack_linear_layers(self.model)
        if reason or trust_remote_code or not may_run_side_by_side(self.model):
            lanes = 1
        lanes = min(lanes, batch_size)
        self.lanes = [
            Rows(self.model, -(-batch_size // lanes), kept_bytes=int(kept_gib * 2**30 / lanes))
            for _ in range(0 if reason else lanes)
        ]
        self._writing: Generator[list[Row], None, None] | None = None

    def stream(
        self, requests: Sequence[GenerationRequest], *, seed: int
    ) -> Iterator[dict[int, Completion]]:
        """Yield the completions as rows end; see ``Engine.stream``."""
        prompts = encode_prompts(self.encoder, requests)
        encoded = [prompt.ids for prompt in prompts]
        context = getattr(self.model.config, "max_position_embeddings", sys.maxsize)
        too_long, fitting = split_too_long(requests, prompts, context)
        if too_long:
            yield too_long
        # Longest first: neighbours pad little, and too large a batch fails at once.
        order = sorted(fitting, key=lambda i: (-len(encoded[i]), encoded[i], requests[i].sample))
        waiting = []
        for index in order:
            request = requests[index]
            if request.sampling.choices:
                yield {index: self._choose(prompts[index], request.sampling)}
            else:
                waiting.append(self._row(index, encoded[index], request, seed))
        if self.lanes:
            yield from self._write(waiting)
        else:
            yield from self._write_in_batches(waiting)

    def close(self) -> None:
        """Give the model's memory back."""
        self._stop_writing()
        del self.model
        self.lanes = []
        gc.collect()
        give_back_freed_memory()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _row(self, index: int, prompt: list[int], request: GenerationRequest, seed: int) -> Row:
        sampling = request.sampling
        uniforms = (
            uniform_numbers(seed, prompt, request.sample, sampling.max_new_tokens)
            if sampling.temperature > 0
            else np.empty(0)
        )
        return Row(index, prompt, sampling, uniforms, request.goes_on)

    def _write(self, waiting: Sequence[Row]) -> Iterator[dict[int, Completion]]:
        """Write rows in lanes; see ``lanes``."""
        self._stop_writing()
        prompts = [row.prompt for row in waiting]
        shares = share_out(
            prompts,
            [row.sampling.max_new_tokens + _READING * len(row.prompt) for row in waiting],
            [self._home(prompt) for prompt in prompts],
            len(self.lanes),
        )
        writers = [
            partial(self._write_lane, lane, [waiting[i] for i in share])
            for lane, share in zip(self.lanes, shares, strict=True)
            if share
        ]
        self._writing = side_by_side(writers, torch.get_num_threads())
        for ended in self._writing:
            yield {row.index: self._completion(row) for row in ended}

    def _stop_writing(self) -> None:
        """End a call that was left in the middle: its threads would write into the same rows."""
        if self._writing is not None:
            self._writing.close()

    def _home(self, prompt: Sequence[int]) -> int | None:
        """Return the lane that has read most of a prompt, if one has."""
        known = [lane.kept.find(prompt[:-1])[0] for lane in self.lanes]
        return known.index(max(known)) if 2 * max(known) >= len(prompt) else None

    @torch.inference_mode()
    def _write_lane(
        self, rows: Rows, waiting: list[Row], stop: threading.Event
    ) -> Iterator[list[Row]]:
        """Write rows together; those that wait take the places of those that end."""
        rows.clear()  # a call before may have been left in the middle
        waiting = waiting[::-1]
        done: list[Row] = []
        last_piece = time.monotonic()
        while (waiting or rows.active) and not stop.is_set():
            free = rows.slots - len(rows.active)
            if waiting and free >= min(len(waiting), max(1, _SHARE_FREE * rows.slots)):
                arriving = [waiting.pop() for _ in range(min(free, len(waiting)))]
                first = len(rows.active)
                logits = rows.read(arriving)
            else:
                first = 0
                logits = rows.step()
            ended = self._extend(rows.active[first:], logits)
            done += [rows.active[first + place] for place in ended]
            rows.leave([first + place for place in ended], others_wait=bool(waiting))
            if done and time.monotonic() - last_piece > SECONDS_BETWEEN_PIECES:
                yield done
                done, last_piece = [], time.monotonic()
        if done:
            yield done

    def _extend(self, rows: Sequence[Row], logits: torch.Tensor) -> list[int]:
        """Write one more token of each row; return the places of those that have ended.

        Args:
            rows: of the batch.
            logits: (rows, vocabulary).
        """
        tokens = draw_tokens(
            logits,
            [row.sampling for row in rows],
            [row.uniforms[len(row.written)] if len(row.uniforms) else 0.0 for row in rows],
        )
        for row, token in zip(rows, tokens, strict=True):
            row.written.append(token)
        return [place for place, row in enumerate(rows) if self._has_ended(row)]

    def _has_ended(self, row: Row) -> bool:
        if row.written[-1] in self._ends or len(row.written) >= row.sampling.max_new_tokens:
            return True
        stop = row.sampling.stop
        if not stop:
            return False
        # A character takes at most four byte-level tokens.
        tail = row.written[-4 * max(map(len, stop)) :]
        text = self.tokenizer.decode(tail, skip_special_tokens=True)
        return any(each in text for each in stop)

    def _completion(self, row: Row) -> Completion:
        return read_completion(self.encoder, row.prompt, row.written, self._ends, row.sampling)

    def _write_in_batches(self, waiting: Sequence[Row]) -> Iterator[dict[int, Completion]]:
        """Write batches of neighbours, none less than half as long as the longest of its batch."""
        batch: list[Row] = []
        for row in waiting:
            too_short = batch and 2 * len(row.prompt) < len(batch[0].prompt)
            if too_short or len(batch) == self.batch_size:
                yield self._generate_batch(batch)
                batch = []
            batch.append(row)
        if batch:
            yield self._generate_batch(batch)

    @torch.inference_mode()
    def _generate_batch(self, rows: list[Row]) -> dict[int, Completion]:
        inputs = self.tokenizer.pad(
            {"input_ids": [row.prompt for row in rows]}, return_tensors="pt"
        )
        drawn = _Drawn(self, rows)
        self.model.generate(
            **inputs.to(self.device),
            max_new_tokens=max(row.sampling.max_new_tokens for row in rows),
            do_sample=False,
            logits_processor=LogitsProcessorList([drawn]),
            stopping_criteria=StoppingCriteriaList([_Ended(drawn)]),
        )
        return {row.index: self._completion(row) for row in rows}

    @torch.inference_mode()
    def _choose(self, prompt: EncodedPrompt, sampling: SamplingParameters) -> Completion:
        """Read each choice's log-probability; the response is the likeliest.

        Choices have the tokens that they have behind the prompt and are read to their last token,
        so that those which begin alike are told apart.
        """
        choices = [self.encoder.encode_response([prompt], each) for each in sampling.choices]
        # What is read before the last token of each choice. The prompt is read once for all of
        # them, and one-token choices need no more.
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
            [logprobs[tuple(choice[:-1])][range(len(choice)), choice].sum() for choice in choices]
        )
        chosen = int(sums.argmax())
        return Completion(
            text=sampling.choices[chosen],
            finish_reason="stop",
            prompt_tokens=len(prompt.ids),
            completion_tokens=len(choices[chosen]),
            choice_logprobs=tuple(sums.log_softmax(0).tolist()),
        )


class _Drawn(LogitsProcessor):
    """Leaves plain ``generate`` no choice but the token that the engine draws for each row."""

    def __init__(self, engine: TransformersEngine, rows: Sequence[Row]) -> None:
        self.engine = engine
        self.rows = rows
        self.ended = [False] * len(rows)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        going = [place for place, ended in enumerate(self.ended) if not ended]
        ended = self.engine._extend([self.rows[place] for place in going], scores[going])
        forced = torch.full_like(scores, -torch.inf)
        for place in going:
            forced[place, self.rows[place].written[-1]] = 0
        for place, row in enumerate(self.rows):
            if self.ended[place]:
                forced[place, row.written[-1]] = 0
        for place in ended:
            self.ended[going[place]] = True
        return forced


class _Ended(StoppingCriteria):
    """Ends plain ``generate`` for the rows that the engine has seen end."""

    def __init__(self, drawn: _Drawn) -> None:
        self.drawn = drawn

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.tensor(self.drawn.ended, device=input_ids.device)


@torch.inference_mode()
def use_row_attention(model: PreTrainedModel) -> str:
    """Switch a model to ``row_cache.ATTENTION`` if its logits stay the same.

    Two prompts of different lengths are read, and continued by a token each, both ways.

    Returns:
        why the model was left as it is; "" where it was switched.
    """
    # Ordinary words, not the control tokens that a vocabulary begins with: on a row of these a
    # finetuned model in bf16 differed by 31 % from itself, read in one pass or two.
    vocabulary = model.config.get_text_config().vocab_size
    lengths, tokens = (3, 7), torch.linspace(0.1 * vocabulary, 0.9 * vocabulary, 16).long()
    prompts = [tokens[:length].tolist() for length in lengths]
    following = [tokens[-1:].tolist()] * 2
    plain = [
        model(torch.tensor([prompt + more], device=model.device), use_cache=False).logits[0, -2:]
        for prompt, more in zip(prompts, following, strict=True)
    ]
    expected = torch.stack(plain).float()  # (2, 2, vocabulary)
    before = model.config._attn_implementation
    row_cache.register()
    try:
        model.set_attn_implementation(row_cache.ATTENTION)
        if model.config._attn_implementation != row_cache.ATTENTION:
            return "its attention is not looked up by name"
        rows = Rows(model, 2, kept_bytes=0)
        arriving = [Row(i, p, SamplingParameters(2), np.empty(0)) for i, p in enumerate(prompts)]
        first = rows.read(arriving)
        for row, token in zip(arriving, following, strict=True):
            row.written += token
        found = torch.stack([first, rows.step()], 1).float()
    except Exception as error:  # whatever a model's own code raises over an unknown cache
        reason = f"{type(error).__name__}: {one_line(str(error))[:200]}"
    else:
        centred = expected - expected.mean(-1, keepdim=True)
        difference = ((found - expected).norm() / centred.norm()).item()
        limit = 1e-3 if model.dtype == torch.float32 else 0.1
        if difference <= limit:
            return ""
        reason = f"logits differ by {difference:.2g} of their size"
    model.set_attn_implementation(before)
    return reason
