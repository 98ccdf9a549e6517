"""Folders as they are published: what transformers loads is taken, the rest refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    SiglipVisionConfig,
)

from sami_pipeline.core import Grid, grid_logprobs
from sami_pipeline.engines import SamplingParameters
from sami_pipeline.engines.base import GenerationRequest
from sami_pipeline.engines.transformers_engine import TransformersEngine
from sami_pipeline.models.checkpoints import Checkpoint, CheckpointError, check_folder
from sami_pipeline.models.prompts import ChatParameters, Prompt

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import families


@pytest.fixture
def folder_of(random_checkpoint, tmp_path, monkeypatch) -> Callable[[str], Path]:
    """Return a function that saves a family's tiny model with the random model's tokenizer."""
    monkeypatch.setitem(families._SHAPE, "vocab_size", 259)

    def save(family: str) -> Path:
        folder = tmp_path / family
        families.tiny_model(family).save_pretrained(folder)
        for path in random_checkpoint.folder.glob("*token*"):
            shutil.copy(path, folder)
        return folder

    return save


def change_weights(folder: Path, change: Callable[[dict], dict]) -> None:
    weights = change(load_file(folder / "model.safetensors"))
    weights = {name: weight.clone() for name, weight in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


FAMILIES = ["gemma2", "gpt_oss", "bloom", "mpt", "mamba", "mixtral", "opt", "phi3"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_checked_loaded_and_computed(family, folder_of):
    folder = folder_of(family)
    check_folder(folder, chat=ChatParameters())
    model = Checkpoint(folder).load_model(torch.float32, "cpu")
    grid = Grid([[5, 6, 7], [5, 8]], [[9, 10], [11]])
    assert grid_logprobs(model, grid).sums.isfinite().all()


@pytest.mark.parametrize("family", ["gpt2", "bloom"])
def test_weights_without_the_prefix_are_those_of_the_model(family, folder_of):
    folder = folder_of(family)
    expected = Checkpoint(folder).load_model(torch.float32, "cpu").state_dict()

    def as_published(weights: dict) -> dict:
        kept = {k.removeprefix("transformer."): v for k, v in weights.items() if "lm_head" not in k}
        assert kept.keys() != weights.keys()
        causal = {"h.0.attn.bias": torch.ones(1, 1, 8, 8)} if family == "gpt2" else {}
        return kept | causal

    change_weights(folder, as_published)
    check_folder(folder)
    loaded = Checkpoint(folder).load_model(torch.float32, "cpu").state_dict()
    assert all(loaded[name].equal(weight) for name, weight in expected.items())


def test_the_text_of_a_multimodal_model_is_taken(random_checkpoint, tmp_path):
    text = Gemma3TextConfig(
        vocab_size=270, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=6,
        max_position_embeddings=512,
    )  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        image_size=28, patch_size=14,
    )  # fmt: skip
    config = Gemma3Config(
        text_config=text.to_dict(), vision_config=vision.to_dict(), mm_tokens_per_image=4,
        boi_token_index=260, eoi_token_index=261, image_token_index=262,
    )  # fmt: skip
    folder = tmp_path / "gemma3"
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    random_checkpoint.load_tokenizer().save_pretrained(folder)
    check_folder(folder, chat=ChatParameters())
    model = Checkpoint(folder).load_model(torch.float32, "cpu")
    grid = Grid([[5, 6, 7, 8, 9, 10, 11], [5, 8]], [[9, 10], [11]])
    alone = model(input_ids=torch.tensor([[*grid.prompt_ids[0], 11]])).logits[0, -2]
    torch.testing.assert_close(
        grid_logprobs(model, grid).sums[0, 1], alone.log_softmax(-1)[11], rtol=1e-4, atol=1e-4
    )


def test_an_added_token_may_have_no_row_and_a_word_must_have_one(folder_of, random_checkpoint):
    folder = folder_of("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    assert tokenizer.pad_token_id == 259
    check_folder(folder)
    change_weights(
        folder,
        lambda weights: {k: v[:200] if v.shape[0] == 259 else v for k, v in weights.items()},
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 200}))
    with pytest.raises(CheckpointError, match="259 tokens, but the model's embedding 200 rows"):
        check_folder(folder)


@pytest.mark.parametrize(
    ("settings", "package"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "optimum"),
        ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, "gptqmodel"),
    ],
)
def test_a_quantised_folder_is_refused_without_its_package(settings, package, folder_of):
    folder = folder_of("qwen3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    with pytest.raises(CheckpointError, match=package):
        check_folder(folder)


def test_a_padding_token_without_a_row_pads_nothing(folder_of):
    folder = folder_of("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    engine = TransformersEngine(folder, dtype="float32")
    sampling = SamplingParameters(3, 0.0, 1.0)
    asked = [GenerationRequest(Prompt(text=text), sampling) for text in ("Hi", "A longer one")]
    completions = {}
    for part in engine.stream(asked, seed=0):
        completions |= part
    assert sorted(completions) == [0, 1]
