"""Tiny random models of every family, alike in all processes that a test starts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

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
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "bloom": {"n_layer": 2, "n_head": 4},
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
