"""Time and memory of one SAMI gradient against a plain version of the published step.

    python benchmarks/sami_step.py                  # this machine; writes docs/benchmarks.md
    python benchmarks/sami_step.py --only n2-bfloat16 --rounds 1 --no-write
    python benchmarks/sami_step.py --suite gpu --json results.json    # on a GPU, without kedro
    python benchmarks/sami_step.py --kernels        # how many kernels a layer starts, on a CPU

Every measurement is a separate process, which prints the peak memory it has needed; the
variants of a comparison take turns, and medians over the rounds are reported.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import platform
import random
import resource
import signal
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "docs" / "benchmarks.md"
sys.path.insert(0, str(PROJECT / "src"))

# SmolLM2-135M and Llama-3.1-8B: what takes time is the shape, so the weights are random.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "tie_word_embeddings": True, "max_position_embeddings": 2048,
    },
    "smollm2-135m": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "tie_word_embeddings": True, "max_position_embeddings": 8192,
    },
    "llama-3.1-8b": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "tie_word_embeddings": False, "max_position_embeddings": 8192,
    },
}  # fmt: skip

PLAIN, PUBLISHED = "plain", "plain, as published"
SAMI, TWO_PASS, COMPILED = "this project", "this project, two passes", "this project, compiled"
NOTHING_SHARED = "this project, prompts without a common start"
SEGMENTS = "this project, one call of attention a segment (CPU)"
LEVELS = "this project, one call of attention a level of the tree (GPU)"
# What is compared on a CPU: name, constitutions, numerics, variants.
CPU_SUITE = {
    "n2-bfloat16": (2, "bfloat16", (PLAIN, SAMI, COMPILED, TWO_PASS, NOTHING_SHARED, PUBLISHED)),
    "n2-float32": (2, "float32", (PLAIN, SAMI, COMPILED, TWO_PASS)),
    "n4-bfloat16": (4, "bfloat16", (PLAIN, SAMI, COMPILED, TWO_PASS, NOTHING_SHARED)),
    "n4-float32": (4, "float32", (PLAIN, SAMI, TWO_PASS)),
}
GPU_SUITE = {
    "n2-bfloat16": (2, "bfloat16", (PLAIN, SAMI, TWO_PASS, PUBLISHED)),
    "n4-bfloat16": (4, "bfloat16", (PLAIN, SAMI, TWO_PASS)),
}


def make_grid(n: int, vocabulary: int, *, shared: bool):
    """Return a grid of random tokens: prompts of about 400, responses of about 250.

    As in the project's prompts, the query comes first (320 tokens) and the constitution after it.
    """
    from sami_pipeline.core import Grid

    generator = random.Random(n)

    def tokens(count: int) -> list[int]:
        return [generator.randrange(10, vocabulary) for _ in range(count)]

    query = tokens(320)
    prompts = [
        (query if shared else tokens(320)) + tokens(generator.randint(70, 90)) for _ in range(n)
    ]
    return Grid(prompts, [tokens(generator.randint(225, 275)) for _ in range(n)])


def plain_step(model, grid, vocabulary: int):
    """Backpropagate the loss as the published trainer does (arXiv 2404.14313, its code).

    Every prompt is repeated for every response, all rows are padded to the longest, the logits of
    all positions are made and taken to fp32, and one example goes through at a time.
    """
    import torch
    import torch.nn.functional as F

    from sami_pipeline.core import sami_loss

    n = len(grid.prompt_ids)
    rows = [([*p, *y], len(p)) for p in grid.prompt_ids for y in grid.response_ids]
    length = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), -100)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for row, (tokens, prompt_length) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        labels[row, prompt_length : len(tokens)] = torch.tensor(tokens[prompt_length:])
    ids, labels, mask = (t.to(model.device) for t in (ids, labels, mask))
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()[:, :-1]
    labels = labels[:, 1:]
    logprobs = -F.cross_entropy(
        logits.reshape(-1, vocabulary), labels.reshape(-1), reduction="none"
    ).view(labels.shape)
    means = logprobs.sum(-1) / (labels != -100).sum(-1)
    return sami_loss(means.view(n, n))


def measure(
    variant: str, n: int, numerics: str, shape: str, device: str, steps: int
) -> dict[str, Any]:
    """Return seconds per step, peak memory and loss of one variant, measured in this process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sami_pipeline.core import SamiTrainingConfig
    from sami_pipeline.core.logprobs import choose_layout
    from sami_pipeline.core.optimisers import build_optimiser
    from sami_pipeline.core.packing import packed_length
    from sami_pipeline.core.training import accumulate_gradients, prepared

    on_gpu = device == "cuda"
    config = SamiTrainingConfig(
        compute_dtype=numerics,
        memory="two_pass" if variant == TWO_PASS else "single_pass",
        compile_layers=variant == COMPILED,
        # Full finetuning of 8B fits one 80 GB GPU only with 16-bit weights and moments.
        weights="bfloat16_remainder" if on_gpu else "float32",
        optimiser="rmsprop" if on_gpu else "adamw",
        optimiser_state="bfloat16" if on_gpu else "float32",
        gradient_checkpointing=on_gpu and variant != PUBLISHED,
    )
    torch.manual_seed(0)
    vocabulary = SHAPES[shape]["vocab_size"]
    model_dtype = torch.bfloat16 if on_gpu else torch.float32
    with torch.device(device):
        torch.set_default_dtype(model_dtype)
        model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], attn_implementation="sdpa"))
        torch.set_default_dtype(torch.float32)
    grid = make_grid(n, vocabulary, shared=variant != NOTHING_SHARED)
    plain = variant in (PLAIN, PUBLISHED)
    if not plain:
        choose_layout(model)  # tried before its layers are compiled, as in a training
    if variant == PUBLISHED:
        checkpoint_twice(model)

    def gradient() -> float:
        if not plain:
            return accumulate_gradients(model, [grid], config)["loss"]
        mixed = numerics == "bfloat16" and not on_gpu
        watch = torch.autograd.set_detect_anomaly(True) if variant == PUBLISHED else nullcontext()
        with watch:
            with torch.autocast(device, dtype=torch.bfloat16, enabled=mixed):
                loss = plain_step(model, grid, vocabulary)
            loss.backward()
        return loss.item()

    seconds, gradient_seconds = [], []
    with prepared(model, config):
        # On a GPU the optimiser's memory decides what fits, so it takes its step too.
        optimiser = build_optimiser(model, config) if on_gpu else None
        for _ in range(steps + 1):  # the first is a warm-up
            synchronise(device)
            started = time.perf_counter()
            loss = gradient()
            synchronise(device)
            gradient_seconds.append(time.perf_counter() - started)
            # As a training takes it; squares of an embedding's gradient in fp32 were 4 GB at 8B.
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            if optimiser is not None:
                optimiser.step()
            synchronise(device)
            seconds.append(time.perf_counter() - started)
            del gradients  # or they would be there beside those of the next step
            model.zero_grad(set_to_none=True)
        layout = "repeated" if plain else choose_layout(model)[0]
    peak = (
        torch.cuda.max_memory_allocated()
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    tokens = packed_length(grid, layout)
    predicted = tokens if plain else n * grid.response_tokens
    return {
        "seconds": seconds[1:],
        "gradient_seconds": gradient_seconds[1:],
        "peak_bytes": peak,
        "loss": loss,
        "gradient_norm": norm.item(),
        "tokens": tokens,
        "flops": training_flops(SHAPES[shape], tokens, predicted),
    }


def kernels_a_layer(variant: str, n: int) -> int:
    """Return how many kernels a layer's forward and backward passes start.

    Counted are torch's operations below autograd that compute something, as the profiler's, of a
    small model in fp32 on a CPU: three layers less two. A GPU runs about one kernel for each.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from sami_pipeline.core import SamiTrainingConfig, tree_attention
    from sami_pipeline.core.logprobs import choose_layout
    from sami_pipeline.core.training import accumulate_gradients

    config = SamiTrainingConfig(compute_dtype="float32")
    shape = SHAPES["tiny"] | {"num_hidden_layers": 0}
    grid = make_grid(n, shape["vocab_size"], shared=True)
    counts = []
    segments = tree_attention._segment_by_segment
    if variant == LEVELS:
        tree_attention._segment_by_segment = tree_attention._level_by_level
    try:
        for layers in (2, 3):
            shape["num_hidden_layers"] = layers
            model = LlamaForCausalLM(LlamaConfig(**shape, attn_implementation="sdpa"))
            choose_layout(model)
            with _kernel_counter() as counter:
                if variant == PLAIN:
                    plain_step(model, grid, shape["vocab_size"]).backward()
                else:
                    accumulate_gradients(model, [grid], config)
            counts.append(counter.count)
    finally:
        tree_attention._segment_by_segment = segments
    return counts[1] - counts[0]


_NO_KERNEL = {
    "empty", "empty_like", "empty_strided", "new_empty", "detach", "_unsafe_view",
    "_local_scalar_dense",
}  # fmt: skip


def _kernel_counter():
    """Return a counter of operations that compute or copy; views and new memory are none."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func._schema.name.removeprefix("aten::")
            if not func.is_view and name not in _NO_KERNEL:
                self.count += 1
            return func(*args, **(kwargs or {}))

    return Counter()


def training_flops(shape: dict[str, Any], tokens: int, predicted: int) -> float:
    """Return the operations of forward and backward in the linear layers: 6 a weight and token."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    key_value = hidden * shape["num_key_value_heads"] // shape["num_attention_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * key_value + 3 * hidden * inner
    body = shape["num_hidden_layers"] * layer
    return 6.0 * (body * tokens + shape["vocab_size"] * hidden * predicted)


def checkpoint_twice(model) -> None:
    """Recompute each layer by two mechanisms at once, as the published trainer does."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        CheckpointImpl,
        apply_activation_checkpointing,
        checkpoint_wrapper,
    )
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    apply_activation_checkpointing(
        model,
        checkpoint_wrapper_fn=functools.partial(
            checkpoint_wrapper, checkpoint_impl=CheckpointImpl.NO_REENTRANT
        ),
        check_fn=lambda module: isinstance(module, LlamaDecoderLayer),
    )


def synchronise(device: str) -> None:
    """Wait for a GPU."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def matmul_ceiling(numerics: str, device: str) -> float:
    """Return the operations per second of large matrix products on this machine."""
    import torch

    size = 8192 if device == "cuda" else 2048
    a = torch.randn(size, size, dtype=getattr(torch, numerics), device=device)
    best = math.inf
    for _ in range(8):
        synchronise(device)
        started = time.perf_counter()
        a @ a
        synchronise(device)
        best = min(best, time.perf_counter() - started)
    del a
    if device == "cuda":  # what is measured next may need all of it
        torch.cuda.empty_cache()
    return 2 * size**3 / best


def in_own_process(arguments: list[str], timeout: float | None = None) -> dict[str, Any]:
    """Run one measurement in a separate process and return what it printed, or its fate."""
    # Large blocks are kept instead of faulted in again, as in every process of this project.
    kept = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
    given_back = {"MALLOC_MMAP_THRESHOLD_": str(2**17), "MALLOC_TRIM_THRESHOLD_": str(2**17)}
    command = [sys.executable, __file__, "--measure", *arguments]
    # The plain version with n = 4 needs them back: keeping them it was killed at 23 GB.
    keeps = arguments[1] == "2" or arguments[0] not in (PLAIN, PUBLISHED)
    environment = os.environ | (kept if keeps else given_back)
    try:
        done = finished(command, timeout, environment)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {timeout:.0f} s"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if done.returncode == -9 or "OutOfMemoryError" in done.stderr:
        return {"failed": "out of memory"}
    raise SystemExit(done.stderr[-3000:])


def finished(
    command: list[str], limit: float | None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command, and end it with all that it has started once it takes too long.

    Args:
        command: what runs.
        limit: seconds; None sets none.
        environment: of the process; None takes this one's.

    Raises:
        subprocess.TimeoutExpired: it did; workers that hang would hold the GPU's memory.
    """
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            printed, said = process.communicate(timeout=limit)
        except BaseException:  # also where this process is told to end
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, printed, said)


def run_suite(suite: dict, shape: str, device: str, rounds: int, steps: int) -> dict[str, Any]:
    """Return all measurements of a suite, its variants taking turns."""
    results: dict[str, Any] = {}
    for name, (n, numerics, variants) in suite.items():
        runs: dict[str, list[dict]] = {variant: [] for variant in variants}
        for number in range(rounds):
            for variant in variants:
                if any("failed" in run for run in runs[variant]):
                    continue
                arguments = [variant, str(n), numerics, shape, device, str(steps)]
                runs[variant].append(in_own_process(arguments))
                told = runs[variant][-1].get("seconds", runs[variant][-1])
                print(f"{name}  round {number + 1}  {variant}: {told}", flush=True)
        ceiling = matmul_ceiling(numerics, device)
        results[name] = {"n": n, "numerics": numerics, "ceiling": ceiling, "runs": runs}
    return results


def table(result: dict[str, Any], on_gpu: bool) -> str:
    """Return one comparison as a Markdown table."""
    runs = result["runs"]
    baseline = [s for run in runs[PLAIN] for s in run.get("seconds", [])]
    base_peak = statistics.median(r["peak_bytes"] for r in runs[PLAIN]) if baseline else None
    lines = [
        "| | tokens | seconds, median [min, max] | times faster | peak, GB | share of plain "
        "| of the ceiling |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant, measured in runs.items():
        if "failed" in measured[0]:
            lines.append(f"| {variant} | | {measured[0]['failed']} | | | | |")
            continue
        seconds = [s for run in measured for s in run["seconds"]]
        median = statistics.median(seconds)
        peak = statistics.median(run["peak_bytes"] for run in measured)
        faster = f"{statistics.median(baseline) / median:.2f}" if baseline else ""
        share = f"{peak / base_peak:.2f}" if base_peak else ""
        used = measured[0]["flops"] / median / result["ceiling"]
        lines.append(
            f"| {variant} | {measured[0]['tokens']} "
            f"| {median:.2f} [{min(seconds):.2f}, {max(seconds):.2f}] "
            f"| {faster} | {peak / 1e9:.2f} | {share} | {used:.0%} |"
        )
    unit = "TFLOP/s" if on_gpu else "GFLOP/s"
    ceiling = result["ceiling"] / (1e12 if on_gpu else 1e9)
    title = f"### n = {result['n']}, {result['numerics']}"
    return f"{title}\n\n" + "\n".join(lines) + f"\n\nCeiling: {ceiling:.0f} {unit}.\n"


def machine(device: str) -> str:
    """Return what this ran on, in words."""
    import torch
    import transformers

    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    if device == "cuda":
        return f"one {torch.cuda.get_device_name()}, {versions}"
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    if information.is_file():
        fields = dict(
            line.split(":", 1) for line in information.read_text().splitlines() if ":" in line
        )
        name = {key.strip(): value.strip() for key, value in fields.items()}["model name"]
    return f"{os.cpu_count()} cores of {name}, {memory:.0f} GB, {versions}"


def write_page(section: str, text: str) -> None:
    """Replace a section of the page between its markers."""
    start, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    page = PAGE.read_text()
    before, _, rest = page.partition(start)
    _, _, after = rest.partition(end)
    PAGE.write_text(f"{before}{start}\n\n{text}\n{end}{after}")


def main() -> None:
    """Measure and report."""
    if sys.argv[1:2] == ["--measure"]:
        variant, n, numerics, shape, device, steps = sys.argv[2:]
        print(json.dumps(measure(variant, int(n), numerics, shape, device, int(steps))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--only", nargs="*", help="names of comparisons, such as n2-bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each process")
    parser.add_argument("--shape", choices=SHAPES, help="the model's; each suite has its own")
    parser.add_argument("--json", type=Path, help="also write the raw figures here")
    parser.add_argument("--kernels", action="store_true", help="count kernels, and nothing else")
    parser.add_argument("--no-write", action="store_true", help="leave docs/benchmarks.md alone")
    arguments = parser.parse_args()
    if arguments.kernels:
        for n in (2, 4):
            for variant in (PLAIN, SEGMENTS, LEVELS):
                print(f"n = {n}, {variant}: {kernels_a_layer(variant, n)}")
        return

    on_gpu = arguments.suite == "gpu"
    device = "cuda" if on_gpu else "cpu"
    shape = arguments.shape or ("llama-3.1-8b" if on_gpu else "smollm2-135m")
    suite = GPU_SUITE if on_gpu else CPU_SUITE
    if arguments.only:
        suite = {name: suite[name] for name in arguments.only}
    results = run_suite(suite, shape, device, arguments.rounds, arguments.steps)
    text = f"{time.strftime('%Y-%m-%d')}, {machine(device)}; {shape}, " + (
        f"{arguments.rounds} rounds of {arguments.steps} steps each.\n\n"
    )
    text += "\n".join(table(result, on_gpu) for result in results.values())
    print(text)
    if arguments.json:
        arguments.json.write_text(json.dumps(results))
    if not arguments.no_write:
        write_page(arguments.suite, text)
        print(f"Written to {PAGE.relative_to(PROJECT)}")


if __name__ == "__main__":
    main()
