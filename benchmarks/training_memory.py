"""Estimated memory of a training step against the measured peak of real ones, on this machine.

    python benchmarks/training_memory.py            # prints the table of docs/dry_run.md
    python benchmarks/training_memory.py "fp32" "LoRA"

Every case is a separate process that trains two steps with ``train_sami``. On a CPU the peak is
that of the resident memory, above what it was before the model was made and after a step of a
trifling model had loaded every library; glibc gives freed blocks back at once
(MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_), or the peak would be that of the heap. With
--device cuda it is torch.cuda.max_memory_allocated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT / "src"))

_DEEP = {
    "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6,
    "num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
}  # fmt: skip
_WIDE = _DEEP | {
    "vocab_size": 49152, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4,
    "tie_word_embeddings": True,
}  # fmt: skip
_REMAINDER = {
    "weights": "bfloat16_remainder",
    "optimiser": "rmsprop",
    "optimiser_state": "bfloat16",
    "gradient_checkpointing": True,
}
_FP32 = {"compute_dtype": "float32"}
# Name: shape, tokens (shared, own, response, n), what differs from the defaults.
CASES: dict[str, tuple[dict[str, Any], tuple[int, int, int, int], dict[str, Any]]] = {
    "fp32": (_DEEP, (300, 60, 150, 2), _FP32),
    "bf16 autocast": (_DEEP, (300, 60, 150, 2), {}),
    "gradient checkpointing": (_DEEP, (300, 60, 150, 2), {"gradient_checkpointing": True}),
    "bfloat16_remainder, rmsprop, checkpointing": (_DEEP, (300, 60, 150, 2), _REMAINDER),
    "KL term": (_DEEP, (300, 60, 150, 2), _FP32 | {"kl_beta": 0.1}),
    "two_pass, n = 4": (_DEEP, (200, 60, 100, 4), _FP32 | {"memory": "two_pass"}),
    "LoRA": (_DEEP, (300, 60, 150, 2), _FP32 | {"lora": {"rank": 8}}),
    "large vocabulary, two grids at once": (
        _WIDE, (300, 60, 150, 2), {"grids_per_micro_batch": 2},
    ),
}  # fmt: skip


def measure(case: str, device: str = "cpu") -> dict[str, int]:
    """Return ``estimated`` and ``measured`` bytes of a case, measured in a separate process."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, __file__, "--child", "--device", device, case]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise RuntimeError(finished.stderr[-2000:])
    return json.loads(finished.stdout.splitlines()[-1])


def _child(case: str, device: str) -> dict[str, int]:
    import gc

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from sami_pipeline.core import SamiTrainingConfig, train_sami
    from sami_pipeline.core.memory import example_grid, sami_step_memory

    torch.set_num_threads(1)
    shape, tokens, changes = CASES[case]
    config = SamiTrainingConfig(batch_size=2, max_steps=2, **changes)

    def train(size: dict[str, Any], grid_tokens: tuple[int, int, int, int]) -> None:
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model("llama", **size), dtype=torch.float32, attn_implementation="sdpa"
        ).to(device)
        grid = example_grid(*grid_tokens, vocabulary=size["vocab_size"])
        train_sami(model, None, [grid] * 4, config, progress=False)

    trifling = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32}
    train(shape | trifling | {"num_hidden_layers": 1}, (8, 4, 6, 2))
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = _status("VmRSS")
    train(shape, tokens)
    after = torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")
    grids = [example_grid(*tokens, vocabulary=shape["vocab_size"])] * config.grids_per_micro_batch
    architecture = AutoConfig.for_model("llama", **shape)
    estimated = sami_step_memory(architecture, grids, config, device=device)
    return {"estimated": estimated.total, "measured": after - before}


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help="all by default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_child(arguments.cases[0], arguments.device)))
        return
    print("| setting | estimated, MB | measured, MB | estimated / measured |\n|---|---|---|---|")
    for case in arguments.cases or CASES:
        found = measure(case, arguments.device)
        ratio = found["estimated"] / found["measured"]
        sizes = f"{found['estimated'] / 1e6:.0f} | {found['measured'] / 1e6:.0f}"
        print(f"| {case} | {sizes} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
