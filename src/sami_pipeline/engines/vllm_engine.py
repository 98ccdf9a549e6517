"""Generation with vLLM, which runs in separate processes and, if wanted, a separate environment."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sami_pipeline.engines import vllm_server
from sami_pipeline.engines.base import Completion, GenerationRequest, SamplingParameters
from sami_pipeline.engines.generation import model_fingerprint
from sami_pipeline.engines.tokens import encode_prompts, read_completion, split_too_long
from sami_pipeline.engines.transformers_engine import fastest_dtype
from sami_pipeline.errors import EngineError
from sami_pipeline.models.checkpoints import load_tokenizer
from sami_pipeline.models.prompts import ChatParameters
from sami_pipeline.models.tokens import EncodedPrompt, TextEncoder, end_token_ids

if TYPE_CHECKING:
    from sami_pipeline.engines import VllmParameters


def trusting(parameters: VllmParameters) -> VllmParameters:
    """Return settings under which vLLM runs the Python code of the model that it loads."""
    arguments = parameters.arguments | {"trust_remote_code": True}
    return parameters.model_copy(update={"arguments": arguments})


class VllmEngine:
    """The engine of large models.

    vLLM starts when the first prompt comes, so that a run whose responses are all stored starts
    nothing. Text is rendered, tokenised and detokenised here, by the same functions as in the
    transformers engine.

    With ``request_seeds`` each sampled response is drawn from its own seed, made of the
    run's seed, the prompt and the sample's number: what else is asked at the same time changes
    no draw, only the rounding of what is drawn from, as it does for greedy responses. On a GPU
    that has it, VLLM_BATCH_INVARIANT=1 in ``environment`` takes that away too.

    Args:
        model_folder: a Hugging Face folder with safetensors weights.
        parameters: settings of the engine.
        trust_remote_code: let Python code run that the folder brings, here and in vLLM.
        chat: how the chat template is rendered.

    Raises:
        InputError: the interpreter is missing or has no vLLM.
    """

    def __init__(
        self,
        model_folder: Path,
        parameters: VllmParameters,
        *,
        trust_remote_code: bool = False,
        chat: ChatParameters | None = None,
    ) -> None:
        version = vllm_server.version(vllm_server.interpreter(parameters.python))
        self.tokenizer = load_tokenizer(model_folder, trust_remote_code)
        self._folder = model_folder
        self._parameters = trusting(parameters) if trust_remote_code else parameters
        self._dtype = parameters.dtype
        if self._dtype == "auto":
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            self._dtype = str(fastest_dtype(device)).removeprefix("torch.")
        self._ends = end_token_ids(model_folder, self.tokenizer, chat)
        self.encoder = TextEncoder(self.tokenizer, chat, self._ends)
        self._fingerprint = model_fingerprint(model_folder)
        self._server: vllm_server.Server | None = None
        self.identity = f"vllm {version} {self._dtype} {self._fingerprint}"
        if parameters.max_model_len is not None:
            self.identity += f" {parameters.max_model_len}"
        if parameters.arguments:
            self.identity += f" {json.dumps(parameters.arguments, sort_keys=True)}"
        self.identity += self.encoder.chat.identity

    def stream(
        self, requests: Sequence[GenerationRequest], *, seed: int
    ) -> Iterator[dict[int, Completion]]:
        """Yield the completions as they finish, twice a second; see ``Engine.stream``."""
        if not requests:
            return
        server = self._running_server()
        encoded = encode_prompts(self.encoder, requests)
        too_long, fitting = split_too_long(requests, encoded, server.max_model_len)
        if too_long:
            yield too_long
        if not fitting:
            return
        # Samples of a prompt stand together, in the order in which the prompts came.
        ids = {index: tuple(encoded[index].ids) for index in fitting}
        prompts = list(dict.fromkeys(ids.values()))
        places = {each: place for place, each in enumerate(prompts)}
        fitting.sort(key=lambda index: places[ids[index]])
        kinds = list(dict.fromkeys(requests[index].sampling for index in fitting))
        asked = [
            (
                places[ids[index]],
                kinds.index(requests[index].sampling),
                self._seed(seed, encoded[index].text, requests[index]),
            )
            for index in fitting
        ]
        sampling = [self._sampling(kind) for kind in kinds]
        try:
            for responses in server.generate([list(each) for each in prompts], sampling, asked):
                yield {
                    fitting[number]: self._completion(
                        requests[fitting[number]], encoded[fitting[number]], tokens, reason
                    )
                    for number, tokens, reason in responses
                }
        except EngineError:
            self._server = None
            vllm_server.discard(server, keep_log=True)
            raise

    def close(self) -> None:
        """Leave vLLM to the next engine; ``engines.release`` gives its memory back."""
        if self._server is None:
            return
        if self._server.interrupted:
            vllm_server.discard(self._server)
        else:
            self._server.in_use = False
        self._server = None

    def _running_server(self) -> vllm_server.Server:
        if self._server is not None and self._server.interrupted:
            self.close()
        if self._server is None:
            if torch.cuda.is_initialized():
                # What training in this process held is vLLM's now.
                gc.collect()
                torch.cuda.empty_cache()
            self._server = vllm_server.acquire(
                self._parameters, self._dtype, self._folder, self._fingerprint
            )
        return self._server

    def _seed(self, seed: int, rendered: str, request: GenerationRequest) -> int | None:
        if request.sampling.temperature == 0 or not self._parameters.request_seeds:
            return None
        digest = hashlib.sha256(repr((seed, rendered, request.sample)).encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def _sampling(self, sampling: SamplingParameters) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stop": list(sampling.stop),
            "stop_token_ids": sorted(self._ends_of(sampling)),
        }
        if sampling.choices:
            # A choice has at most one token a byte, and the end.
            longest = max(len(choice.encode()) for choice in sampling.choices) + 1
            fields |= {"max_tokens": longest, "choices": list(sampling.choices), "stop": []}
        return fields

    def _ends_of(self, sampling: SamplingParameters) -> frozenset[int]:
        # After a whole choice vLLM admits the tokenizer's own end alone.
        own = {self.tokenizer.eos_token_id} - {None} if sampling.choices else set()
        return self._ends | own

    def _completion(
        self, request: GenerationRequest, prompt: EncodedPrompt, ids: list[int], reason: str
    ) -> Completion:
        sampling = request.sampling
        if reason not in ("stop", "length"):
            raise EngineError(f"vLLM engine: a response ended with the reason {reason!r}")
        ends = self._ends_of(sampling)
        completion = read_completion(self.encoder, prompt.ids, ids, ends, sampling)
        if sampling.choices and completion.text not in sampling.choices:
            return Completion("", "failed", len(prompt.ids), completion.completion_tokens)
        return replace(completion, finish_reason="stop") if reason == "stop" else completion
