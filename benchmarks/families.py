"""Which families of models get the token tree, which padded rows, and which are refused.

    python benchmarks/families.py            # writes docs/families.md

A tiny random model of each family is built from its configuration in transformers and tried as
every model is before its first grid (``sami_pipeline.core.probe``).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "docs" / "families.md"
sys.path.insert(0, str(PROJECT / "src"))

VOCABULARY = 101
WINDOW = 6
_SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
}  # fmt: skip
_QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
_LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "num_key_value_heads": 4, "head_dim": 4,
}  # fmt: skip
# By model type, what its tiny model has besides the common shape; None takes a field out.
FAMILIES: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "aria_text": {},
    "bert": {},
    "biogpt": {},
    "bloom": {"n_layer": 2, "n_head": 4},
    "codegen": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 128},
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"logit_scale": 0.3, "sliding_window": WINDOW},
    "cwm": {},
    "deepseek_v2": {**_EXPERTS, **_LATENT},
    "deepseek_v3": {**_EXPERTS, **_LATENT},
    "dbrx": {
        "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2,
                       "hidden_size": 32},
    },
    "diffllama": {},
    "doge": {},
    # Its head is a linear layer with a factor for each token, which begin alike.
    "dory": {
        "num_hidden_layers": 3, "n_input_layers": 1, "n_recurrent_layers": 1,
        "n_output_layers": 1, "sliding_window": WINDOW,
    },
    "ernie4_5": {},
    "exaone": {},
    "exaone4": {"sliding_window": WINDOW, "sliding_window_pattern": 2},
    "falcon": {
        "num_kv_heads": 2, "new_decoder_architecture": True, "alibi": False, "head_dim": None,
    },
    "falcon_mamba": {"state_size": 4},
    "flex_olmo": {},
    "gemma": {},
    "gemma2": {"sliding_window": WINDOW, "query_pre_attn_scalar": 8},
    "gemma3_text": {
        "sliding_window": WINDOW, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8,
    },
    "glm": {},
    "glm4": {},
    "glm4_moe": {**_EXPERTS, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_bigcode": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neo": {
        "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
        "window_size": WINDOW,
    },
    "gpt_neox": {},
    "gpt_oss": {**_EXPERTS, "sliding_window": WINDOW},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 128},
    "granite": {"logits_scaling": 3.0},
    "granitemoe": {"logits_scaling": 3.0, **_EXPERTS},
    "helium": {},
    "hunyuan_v1_dense": {},
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False,
        "mamba_dt_rank": 4, **_EXPERTS,
    },
    "jetmoe": {**_EXPERTS},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16},
    "llama": {},
    "llama4_text": {},
    "mamba": {"state_size": 4},
    "mamba2": {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1},
    "minimax": {**_EXPERTS},
    "ministral": {"sliding_window": WINDOW},
    "mistral": {"sliding_window": WINDOW},
    "mixtral": {**_EXPERTS, "sliding_window": WINDOW},
    "modernbert-decoder": {},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": WINDOW},
    "olmo_hybrid": {},
    "olmoe": {**_EXPERTS},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "persimmon": {},
    "phi": {},
    "phi3": {"sliding_window": WINDOW},
    "phimoe": {**_EXPERTS},
    "qwen2": _QWEN_WINDOW,
    "qwen2_moe": {**_EXPERTS},
    "qwen3": _QWEN_WINDOW,
    "qwen3_moe": {**_EXPERTS},
    "qwen3_next": {
        **_EXPERTS, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "recurrent_gemma": {
        "logits_soft_cap": 2.0, "lru_width": 32, "block_types": ["attention", "recurrent"],
        "attention_window_size": 64,
    },
    "seed_oss": {},
    "smollm3": {"no_rope_layers": [1, 0]},
    "stablelm": {},
    "starcoder2": {"sliding_window": WINDOW},
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
}  # fmt: skip


def tiny_model(family: str, seed: int = 0, **changes: Any) -> Any:
    """Return a two-layer model of a family whose weights depend on the seed and their names.

    Args:
        family: its model type.
        seed: of the weights.
        changes: to its configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = _SHAPE | FAMILIES[family] | changes
    config = AutoConfig.for_model(family, **{k: v for k, v in shape.items() if v is not None})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        # Large enough that attention matters, and what is learnt about scales and states kept.
        if parameter.ndim > 1 and not any(part in name for part in ("A_log", "conv1d")):
            parameter.data = 0.15 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def page() -> str:
    """Return docs/families.md."""
    import transformers

    from sami_pipeline.core.probe import traits_of

    rows = []
    for family in sorted(FAMILIES):
        traits = traits_of(tiny_model(family))
        layout = {"shared_prefix": "tree", "repeated": "rows"}[traits.layout]
        why = "" if layout == "tree" else traits.reason
        if traits.refusal:
            layout, why = "refused", traits.refusal
        logits = "chunked" if traits.logits else "the model's own"
        rows.append(f"| `{family}` | {layout} | {logits} | {why} |")
    trees = sum("| tree |" in row for row in rows)
    return TEXT.format(
        table="\n".join(rows),
        version=transformers.__version__,
        count=len(rows),
        trees=trees,
    )


TEXT = """# Families of models

<!-- written by `python benchmarks/families.py`; a test compares it -->

Any causal language model that transformers {version} loads can be trained. How its grids are laid
out is not read from a list. Before its first grid, the model computes a grid of a few tokens both
ways: as a **tree**, where what prompts have in common is computed once, and as padded **rows**, one
a cell. Where values and gradients are equal up to rounding it gets the tree. Else it gets rows,
which are as exact and slower, and the log says why. A model whose log-probabilities change with
what follows a token is refused.

The same trial decides about the output layer. Where the logits are the product with its weights, a
factor and a soft cap, they are taken in chunks (`head`), and never for all positions at once. Else
the model's own logits at the response's positions are taken.

This is what tiny random models of {count} families got; {trees} get the tree. The model that is
trained is tried itself, so a family that is not here needs nothing.

| family | layout | logits | why |
| --- | --- | --- | --- |
{table}
"""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print", action="store_true", help="print the page, write nothing")
    arguments = parser.parse_args()
    if arguments.print:
        print(page())
    else:
        PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
