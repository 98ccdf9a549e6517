"""Tiny random models with the tokenizers, templates and ends of turns of well-known families."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sami_pipeline.models.checkpoints import Checkpoint

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (m['content'] | trim) + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
    "{% else %}{{ eos_token }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ m['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% set day = strftime_now('%d %b %Y %H:%M:%S') %}"
    "<|h|>system<|/h|>\nToday Date: {{ day }}<|eot|>{% for m in messages %}"
    "<|h|>{{ m['role'] }}<|/h|>\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant<|/h|>\n{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}{% set c = m['content'] %}"
    "{% if m['role'] == 'assistant' and '</think>' in c %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ c }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
GPT2 = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
HARMONY = (
    "<|start|>system<|message|>Current date: {{ strftime_now('%Y-%m-%d') }}<|end|>"
    "{% for m in messages %}<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}"
    "{{ '<|return|>' if m['role'] == 'assistant' and loop.last else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|message|>{% endif %}"
)
# The next turn's first token ends this one.
GLM4 = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer(
    special: list[str], plain: tuple[str, ...] = (), **names: str
) -> PreTrainedTokenizerBase:
    """Return a byte-level tokenizer with these special and these other added tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *plain, *alphabet])}
    # Merges across what could be a border of prompt and response.
    merges = [("Ċ", "Ċ"), ("Ġ", "T"), ("T", "h"), ("Th", "e"), ("ĠT", "h"), ("ĠTh", "e")]
    vocabulary |= {a + b: len(vocabulary) + index for index, (a, b) in enumerate(merges)}
    bytewise = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    bytewise.add_special_tokens(list(special))
    if plain:
        bytewise.add_tokens([AddedToken(p, special=False, normalized=False) for p in plain])
    return PreTrainedTokenizerFast(tokenizer_object=bytewise, **names)


def sentencepiece_tokenizer(
    folder: Path, file: str = "tokenizer.model.v1", **settings: object
) -> PreTrainedTokenizerBase:
    """Return one of Mistral's own tokenizers, which the package mistral-common ships."""
    shipped = Path(sys.prefix) / "reference" / "mistral_common" / "data" / file
    if not shipped.is_file():
        pytest.fail(f"{shipped} does not exist; run `make setup`")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy2(shipped, folder / "tokenizer.model")
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    named = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True} | names
    (folder / "tokenizer_config.json").write_text(json.dumps(named | settings))
    return AutoTokenizer.from_pretrained(folder)


_SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
}  # fmt: skip


def gemma3(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = byte_tokenizer(
        names, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", chat_template=GEMMA
    )
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer), head_dim=32, sliding_window=512, bos_token_id=2,
        eos_token_id=1, pad_token_id=0, **_SMALL,
    )  # fmt: skip
    return Gemma3ForCausalLM(config), tokenizer, [1, 5]


def phi3(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    tokenizer = sentencepiece_tokenizer(folder)
    added = ["<|endoftext|>", "<|assistant|>", "<|user|>", "<|system|>", "<|end|>"]
    tokenizer.add_tokens([AddedToken(name, rstrip=True, special=True) for name in added])
    tokenizer.eos_token = tokenizer.pad_token = added[0]
    tokenizer.chat_template = PHI3
    config = Phi3Config(
        vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=32000, pad_token_id=32000, **_SMALL
    )
    return Phi3ForCausalLM(config), tokenizer, [32000, 32001, 32004]


def mistral(
    folder: Path, template: str = MISTRAL, file: str = "tokenizer.model.v1"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    tokenizer = sentencepiece_tokenizer(folder, file)
    tokenizer.chat_template = template
    config = MistralConfig(vocab_size=len(tokenizer), head_dim=16, sliding_window=4096, **_SMALL)
    return MistralForCausalLM(config), tokenizer, [2]


def zephyr(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    return mistral(folder, ZEPHYR)


def mistral_v3(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    return mistral(folder, file="mistral_instruct_tokenizer_240323.model.v3")


def gpt2(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    end = "<|endoftext|>"
    tokenizer = byte_tokenizer([end], bos_token=end, eos_token=end, chat_template=GPT2)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=4, n_positions=4096,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config), tokenizer, [0]


def llama(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    names = ["<|bos|>", "<|end_of_text|>", "<|eot|>", "<|h|>", "<|/h|>"]
    tokenizer = byte_tokenizer(
        names, bos_token="<|bos|>", eos_token="<|end_of_text|>", chat_template=LLAMA
    )
    config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=[1, 2], **_SMALL)
    return LlamaForCausalLM(config), tokenizer, [1, 2]


def qwen3(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    tokenizer = byte_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ("<think>", "</think>"),
        eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=QWEN3,
    )  # fmt: skip
    config = Qwen3Config(vocab_size=len(tokenizer), head_dim=32, eos_token_id=2, **_SMALL)
    return Qwen3ForCausalLM(config), tokenizer, [2, 0]


def glm4(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    names = ["<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>"]
    tokenizer = byte_tokenizer(names, eos_token="<|endoftext|>", chat_template=GLM4)
    config = LlamaConfig(vocab_size=len(tokenizer), eos_token_id=[0, 3, 5], **_SMALL)
    return LlamaForCausalLM(config), tokenizer, [0, 3, 5]


def gemma2(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    _, tokenizer, ends = gemma3(folder)
    config = Gemma2Config(
        vocab_size=len(tokenizer), head_dim=32, query_pre_attn_scalar=32, sliding_window=512,
        bos_token_id=2, eos_token_id=1, pad_token_id=0, **_SMALL,
    )  # fmt: skip
    return Gemma2ForCausalLM(config), tokenizer, ends


def opt(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    """A base model: it has no chat template, and begins texts with its end."""
    tokenizer = byte_tokenizer(
        ["<s>", "<pad>", "</s>"], bos_token="</s>", eos_token="</s>", pad_token="<pad>"
    )
    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=64, ffn_dim=128, num_hidden_layers=2,
        num_attention_heads=4, word_embed_proj_dim=64, max_position_embeddings=2048,
    )  # fmt: skip
    return OPTForCausalLM(config), tokenizer, [2]


def mixtral(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    tokenizer = sentencepiece_tokenizer(folder)
    tokenizer.chat_template = MISTRAL
    config = MixtralConfig(vocab_size=len(tokenizer), num_local_experts=4, **_SMALL)
    return MixtralForCausalLM(config), tokenizer, [2]


def gpt_oss(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    names = ["<|startoftext|>", "<|endoftext|>", "<|start|>", "<|message|>", "<|end|>"]
    tokenizer = byte_tokenizer(
        [*names, "<|return|>"], bos_token=names[0], eos_token="<|return|>", pad_token=names[1],
        chat_template=HARMONY,
    )  # fmt: skip
    config = GptOssConfig(
        vocab_size=len(tokenizer), head_dim=32, num_local_experts=4, num_experts_per_tok=2,
        sliding_window=128, eos_token_id=5, pad_token_id=1,
        rope_parameters={"rope_type": "default", "rope_theta": 150000.0}, **_SMALL,
    )  # fmt: skip
    return GptOssForCausalLM(config), tokenizer, [5, 1]


FAMILIES: dict[str, Callable] = {
    function.__name__: function
    for function in (gemma3, phi3, mistral, mistral_v3, zephyr, gpt2, llama, qwen3, glm4)
}
# Their tokens are like those of others; what they compute is not.
MORE_FAMILIES: dict[str, Callable] = {
    function.__name__: function for function in (gemma2, gpt_oss, mixtral, opt)
}


def make(family: str, folder: Path) -> Checkpoint:
    """Return a tiny model of a family with random weights, saved as a folder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, tokenizer, ends = (FAMILIES | MORE_FAMILIES)[family](folder)
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Checkpoint(folder)
