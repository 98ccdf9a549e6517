"""More malformed inputs, of the kinds that users of such libraries report; see ``bad_inputs``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from bad_inputs import Workshop, _case, _model, _settings
from tokenizers import pre_tokenizers

# --- GGUF files -----------------------------------------------------------------------------------

_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    context: int = 8192,
    tokenizer: bool = True,
    template: str | None = _CHAT,
    merged: bool = True,
    blocks: int = 1,
) -> Path:
    """Write a model of one layer, whatever it says, with a byte-level tokenizer of 260 tokens."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(context)
    writer.add_embedding_length(32)
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(260)
    if tokenizer:
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        writer.add_token_list([*special, *alphabet, *(["ab"] if merged else [])])
        writer.add_token_types([3] * 3 + [1] * (len(alphabet) + merged))
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        if template is not None:
            writer.add_chat_template(template)
    draw = np.random.default_rng(0)
    shapes = {
        "token_embd": (260, 32), "output_norm": (32,), "blk.0.attn_norm": (32,),
        "blk.0.ffn_norm": (32,), "blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32),
        "blk.0.attn_v": (16, 32), "blk.0.attn_output": (32, 32), "blk.0.ffn_gate": (64, 32),
        "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64),
    }  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", draw.normal(size=shape).astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf(name: str, change: Callable[[Path], Any], *named: str, **options: Any) -> None:
    @_case(f"GGUF: {name}", *named)
    def bring(workshop: Workshop) -> None:
        path = write_gguf(workshop.folder / "model.gguf", **options)
        change(path)
        workshop.params.append(f"mt_bench.models.sources.base=gguf:{path}")


def _cut(share: float) -> Callable[[Path], Any]:
    def change(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return change


def _as_it_is(path: Path) -> None:
    pass


_gguf("cut in half", _cut(0.5), "cut short", "get it again")
_gguf("cut in its header", _cut(0.05), "header", "get it again")
_gguf("its last bytes are missing", lambda p: p.write_bytes(p.read_bytes()[:-8]), "cut short")
_gguf("only the magic", lambda p: p.write_bytes(b"GGUF"), "header")
_gguf("version of the future", lambda p: p.write_bytes(b"GGUF\x09\0\0\0" + bytes(99)), "version 9")
_gguf("absurd lengths", lambda p: p.write_bytes(b"GGUF\3\0\0\0" + b"\xff" * 99), "header")
_gguf("empty", lambda p: p.write_bytes(b""), "no GGUF")
_gguf("unknown architecture", _as_it_is, "deepseek9", "safetensors", architecture="deepseek9")
_gguf("no tokenizer", _as_it_is, "no tokenizer", tokenizer=False)
_gguf("no chat template", _as_it_is, "models.teacher", "chat template", template=None)
_gguf("context too short", _as_it_is, "models.teacher", "context of 60 tokens", context=60)
_gguf("its tokenizer lacks a merged token", _as_it_is, "tokenizer", "ab", context=60, merged=False)


# --- What models are asked ------------------------------------------------------------------------


def _without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def _endless(folder: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        if (path := folder / name).is_file():
            path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": None}))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["eos_token"]
    path.write_text(json.dumps(settings))


_model("no chat template", _without_template, "models.teacher", "plain prompt template")
_model("nothing ends a response", _endless, "eos_token", "tokenizer_config.json")
_model(
    "context too short for the training responses",
    _settings("config.json", max_position_embeddings=40),
    "mt_bench.models.teacher",
    "context of 40 tokens",
    "generation.max_new_tokens",
)


def _judging(name: str, change: Callable[[Path], Any], *named: str, **judge: Any) -> None:
    @_case(f"judge: {name}", "mt_bench.judge.model", *named)
    def bring(workshop: Workshop) -> None:
        folder = workshop.model()
        workshop.params.clear()
        change(folder)
        workshop.change_parameters(
            {
                "models": {"sources": {"base": "random:0", "reader": f"folder:{folder}"}},
                "judge": {"kind": "pairwise", "model": "reader"} | judge,
            }
        )


_judging("has no chat template", _without_template, "reader", "chat template")
_judging(
    "has a context too short for two answers",
    _settings("config.json", max_position_embeddings=3000),
    "context of 3000 tokens",
    "evaluation.max_new_tokens",
)
_judging(
    "has a context too short for a verdict alone",
    _settings("config.json", max_position_embeddings=500),
    "context of 500 tokens",
    answer_format="choice",
)


# --- The hub --------------------------------------------------------------------------------------


@_case("hub: offline", "hub:owner/not-fetched", "HF_HUB_OFFLINE", "hf download owner/not-fetched")
def _(workshop: Workshop) -> None:
    workshop.params.append("mt_bench.models.sources.base=hub:owner/not-fetched")


@_case("hub: offline, a revision", "hub:owner/not-fetched@v2", "HF_HUB_OFFLINE")
def _(workshop: Workshop) -> None:
    workshop.params.append("mt_bench.models.sources.base=hub:owner/not-fetched@v2")
