"""All that has to be known of a GPU: whether it computes what a CPU does, and how fast.

    python benchmarks/gpu.py                          # one 80 GB GPU, 10 minutes; writes gpu.json
    python benchmarks/gpu.py --device cpu --shape tiny --steps 1 --only heads timings
    python benchmarks/gpu.py --page gpu.json          # writes the page from figures, runs nothing

It needs no network. Checks come first, each in a separate process: attention and its backward
pass, output heads, optimisers, families, states, a training that is killed and gone on with, FSDP2
with one and two processes, and memory against its estimate. Then Llama-3.1-8B's shape with random
weights is timed (this project, the published step, compiled layers), loops that write many rows
(``writing.py``), and the engines where vLLM is installed. What does not fit into the time is named
as left out. On a GPU the figures also become a part of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import families
import sami_step
import training_memory
import writing

Check = dict[str, Any]
# Products of bf16 matrices in 10^12 operations a second, dense, as their makers have it; the first
# that a GPU's name holds.
PEAK_TERAFLOPS = {
    "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "H200": 989.0, "A100": 312.0,
    "B200": 2250.0,
}  # fmt: skip
FAMILIES = ("llama", "gpt2", "gemma2", "mixtral", "gpt_oss")
VARIANTS = (sami_step.SAMI, sami_step.PLAIN, sami_step.COMPILED)
MEMORY_CASES = ("bf16 autocast", "bfloat16_remainder, rmsprop, checkpointing", "LoRA")
_LONGEST_CHECK = 300.0  # FlexAttention is compiled on slow processors
# Seconds of a variant, with its start and what is compiled; one that hangs leaves time to others.
_LONGEST_TIMING = 120.0
_LONGEST_WRITING = 60.0
# What is written: shape, dtype, rows, rows at once, ways. All must agree in fp32.
_FEW_WAYS = (writing.OWN, writing.UNRECORDED, writing.GENERATE, writing.CONTINUOUS)
WRITING = (
    ("smollm2-135m", "float32", 128, 64, writing.WAYS),
    ("smollm2-135m", "bfloat16", 128, 64, _FEW_WAYS),
    ("llama-3.1-8b", "bfloat16", 64, 64, _FEW_WAYS),
)
WRITING_ON_CPU = (("tiny", "float32", 6, 4, writing.WAYS),)


def _grid(seed: int = 1) -> Any:
    from sami_pipeline.core import Grid

    def ids(start: int, count: int) -> list[int]:
        return [3 + (start + 7 * seed + 5 * i) % 90 for i in range(count)]

    return Grid([ids(1, 8) + ids(20, 5), ids(1, 8) + ids(50, 7)], [ids(11, 9), ids(31, 6)])


def _apart(actual: Any, expected: Any) -> float:
    """Return the norm of a difference as a share of the norm."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    return ((actual - expected).norm() / expected.norm()).item()


def _gradient(model: Any) -> Any:
    import torch

    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return gradient


def _cells(model: Any, grid: Any) -> Any:
    """Return a grid's log-probabilities, one call a cell."""
    import torch

    from sami_pipeline.core import Grid, grid_logprobs

    rows = [
        torch.cat([grid_logprobs(model, Grid([p], [r])).sums[0] for r in grid.response_ids])
        for p in grid.prompt_ids
    ]
    return torch.stack(rows)


def check_attention(device: str) -> Check:
    """Compare FlexAttention's token tree with SDPA's: values and gradients."""
    from sami_pipeline.core import grid_logprobs

    if device == "cpu":
        return {"skipped": "FlexAttention has no backward pass on a CPU"}
    found = {}
    for family in ("llama", "gemma3_text"):
        # On a GPU FlexAttention takes no heads of a width below 16.
        model = families.tiny_model(family, head_dim=16).to(device)
        results = []
        for attention in ("sdpa", "flex_attention"):
            model.set_attn_implementation(attention)
            sums = grid_logprobs(model, _grid()).sums
            (sums * sums.detach()).sum().backward()
            results.append((sums, _gradient(model)))
        found[family] = [_apart(*pair) for pair in zip(*reversed(results), strict=True)]
    return {"ok": max(map(max, found.values())) < 1e-3, "apart": found}


def check_levels(device: str) -> Check:
    """Compare attention in one call a level of the tree with one a segment, and both with fp64."""
    import torch

    from sami_pipeline.core.packing import pack
    from sami_pipeline.core.tree_attention import TokenTree, _level_by_level, _segment_by_segment

    packed = pack([_grid(seed) for seed in range(3)], pad_to_multiple=64)
    generator, length = torch.Generator().manual_seed(0), packed.input_ids.shape[1]
    states = [torch.randn(1, heads, length, 64, generator=generator) for heads in (8, 2, 2)]

    def computed(walk: Any, dtype: torch.dtype, window: int | None, where: str) -> list[Any]:
        leaves = [state.to(where, dtype).requires_grad_() for state in states]
        tree = TokenTree(packed.segments)
        output = walk(*leaves, tree, dropout=0.0, scale=0.3, window=window)
        return [output, *torch.autograd.grad((output * output.detach()).sum(), leaves)]

    found = {}
    for dtype, limit in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
        for window in (None, 7):
            exact = computed(_segment_by_segment, torch.float64, window, "cpu")
            for walk in (_level_by_level, _segment_by_segment):
                pairs = zip(computed(walk, dtype, window, device), exact, strict=True)
                apart = max(_apart(*pair) for pair in pairs)
                name = f"{walk.__name__.strip('_')}, {dtype}, window {window}"
                found[name] = {"ok": apart < limit, "apart": apart}
    return {"ok": all(each["ok"] for each in found.values()), "walks": found}


def check_heads(device: str) -> Check:
    """Compare output heads with fp64: values, and gradients of states and weights."""
    import torch

    from sami_pipeline.core.heads import token_logprobs

    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 128, generator=generator) * 0.3 for n in (200, 1000))
    targets = torch.randint(1000, (200,), generator=generator)

    def computed(head: str, dtype: torch.dtype) -> list[Any]:
        where = device if dtype != torch.float64 else "cpu"
        leaves = [t.to(where, dtype).requires_grad_() for t in (hidden, weight)]
        values = token_logprobs(*leaves, targets.to(where), head=head)
        return [values, *torch.autograd.grad(values.mean(), leaves)]

    exact, found = computed("chunked", torch.float64), {}
    for head in ("chunked", "torch", "liger"):
        for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
            name = f"{head}, {str(dtype).removeprefix('torch.')}"
            try:
                apart = [_apart(*pair) for pair in zip(computed(head, dtype), exact, strict=True)]
            except (ValueError, ImportError, RuntimeError) as error:
                found[name] = {"skipped": str(error).splitlines()[0]}
            else:
                found[name] = {"ok": max(apart) < limit, "apart": apart}
    return {"ok": all(each.get("ok", True) for each in found.values()), "heads": found}


def check_optimisers(device: str) -> Check:
    """Compare the fused AdamW with the plain one, and weights with remainder with fp32 ones."""
    import torch

    from sami_pipeline.core import SamiTrainingConfig
    from sami_pipeline.core.optimisers import build_optimiser

    def trained(make: Callable[[Any], Any]) -> Any:
        torch.manual_seed(0)
        model = torch.nn.Linear(200, 100).to(device)
        optimiser = make(model)
        generator = torch.Generator().manual_seed(1)
        for _ in range(5):
            for p in model.parameters():
                gradient = torch.randn(p.shape, generator=generator).to(device)
                p.grad = gradient.bfloat16().to(p.dtype)
            optimiser.step()
        if hasattr(optimiser, "whole"):
            return torch.cat([optimiser.whole(p, slice(None)) for p in model.parameters()])
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    config = SamiTrainingConfig(learning_rate=1e-3)
    remainder = config.replaced(weights="bfloat16_remainder")
    plain = trained(
        lambda m: torch.optim.AdamW(m.parameters(), 1e-3, weight_decay=0.0, foreach=False)
    )
    fused, exact = (
        trained(lambda m, c=c: build_optimiser(m, c)) for c in (config, remainder)
    )  # fmt: skip
    found = {"fused": _apart(fused, plain), "remainder": _apart(exact, fused)}
    return {"ok": max(found.values()) < 1e-6, "apart": found}


def check_families(device: str) -> Check:
    """Compare grids of several families with one call a cell: values and gradients."""
    from sami_pipeline.core import grid_logprobs
    from sami_pipeline.core.logprobs import choose_layout

    found = {}
    for family in FAMILIES:
        model, results = families.tiny_model(family).to(device), []
        for compute in (lambda m, g: grid_logprobs(m, g).sums, _cells):
            sums = compute(model, _grid())
            (sums * sums.detach()).sum().backward()
            results.append((sums, _gradient(model)))
        apart = [_apart(*pair) for pair in zip(*results, strict=True)]
        found[family] = {"layout": choose_layout(model)[0], "apart": apart}
    # fp32 products on a GPU may be rounded to 10 bits where the user allows it; here they are not.
    return {"ok": max(max(each["apart"]) for each in found.values()) < 1e-4, "families": found}


def check_states(device: str) -> Check:
    """Compare three steps and three more with six at once."""
    import torch

    from sami_pipeline.core import SamiTrainingConfig, train_sami

    grids = [_grid(seed) for seed in range(6)]
    config = SamiTrainingConfig(batch_size=1, learning_rate=1e-3, save_state_every=3)
    weights = []
    with tempfile.TemporaryDirectory() as folder:
        for states in (None, folder):
            model = families.tiny_model("llama").to(device)
            if states is not None:
                _interrupted(model, grids, config, states)
                model = families.tiny_model("llama").to(device)
            history = train_sami(
                model, None, grids, config, state_folder=states, progress=False
            ).history
            weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    apart = _apart(*weights)
    loss = [history["loss"].iloc[0], history["loss"].iloc[-1]]
    return {"ok": len(history) == 6 and apart < 1e-3, "apart": apart, "loss": loss}


def _interrupted(model: Any, grids: list[Any], config: Any, states: str, at_step: int = 4) -> None:
    from sami_pipeline.core import train_sami, training

    real = training.learning_rate_at

    def stop(step: int, *rest: Any) -> float:
        if step == at_step:
            raise KeyboardInterrupt
        return real(step, *rest)

    training.learning_rate_at = stop
    try:
        train_sami(model, None, grids, config, state_folder=states, progress=False)
    except KeyboardInterrupt:
        pass
    finally:
        training.learning_rate_at = real


def check_training(device: str) -> Check:
    """Train with all that is for a GPU: the loss falls, a killed run ends in the same weights.

    16-bit weights with their remainder, recomputed layers, FlexAttention and Liger's head where
    they run. The peak is compared with the dry run's estimate.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sami_pipeline.core import SamiTrainingConfig, train_sami
    from sami_pipeline.core.memory import example_grid, sami_step_memory

    on_gpu = device == "cuda"
    shape = sami_step.SHAPES["smollm2-135m" if on_gpu else "tiny"]
    architecture = LlamaConfig(**shape, attn_implementation="sdpa")
    lengths = (320, 80, 250) if on_gpu else (12, 4, 9)
    grids = [
        example_grid(*(length - number for length in lengths), 2, vocabulary=shape["vocab_size"])
        for number in range(4)
    ]
    config = SamiTrainingConfig(
        batch_size=2, epochs=4, learning_rate=2e-5 if on_gpu else 1e-4,
        weights="bfloat16_remainder", optimiser="rmsprop", optimiser_state="bfloat16",
        gradient_checkpointing=True,
        attention="flex_attention" if on_gpu else "sdpa", head="liger" if on_gpu else "chunked",
        pad_to_multiple=128 if on_gpu else 1, save_state_every=3, grids_per_micro_batch=2,
    )  # fmt: skip

    def new_model() -> Any:
        torch.manual_seed(0)
        return LlamaForCausalLM(architecture).to(device)

    results, peaks = [], []
    with tempfile.TemporaryDirectory() as folder:
        for states in (None, folder):
            if states is not None:
                _interrupted(new_model(), grids, config, states, 4)
            before = 0
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            model = new_model()
            history = train_sami(
                model, None, grids, config, state_folder=states, progress=False
            ).history
            results.append((history, torch.cat([p.detach().flatten() for p in model.parameters()])))
            peaks.append(history["peak_memory_bytes"].max() - before)
            del model
    (whole, weights), (resumed, same) = results
    loss = [whole["loss"].iloc[0], whole["loss"].iloc[-1]]
    found = {
        "loss": loss,
        "apart": {"weights": _apart(same, weights),
                  "loss": float((resumed["loss"] - whole["loss"]).abs().max())},
        "steps": [len(whole), len(resumed)],
        "tokens_per_second": whole["tokens_per_second"].median(),
    }  # fmt: skip
    share = 1.0
    if on_gpu:  # on a CPU the peak is that of the process, libraries and all
        estimated = sami_step_memory(architecture, grids[:2], config, device="cuda").total
        share = estimated / peaks[0]
        found["memory"] = {"estimated": estimated, "measured": int(peaks[0]), "share": share}
    ok = loss[1] < 0.9 * loss[0] and len(resumed) == len(whole) == 8
    return found | {"ok": bool(ok and found["apart"]["weights"] < 1e-2 and 0.8 < share < 1.25)}


def check_engine(device: str) -> Check:
    """Compare what the transformers engine writes with what it writes on a CPU, in fp32.

    Rows are greedy, drawn, drawn from a nucleus, and chosen from a list; more wait than there are
    places, so that steps of several sizes are recorded.
    """
    from contextlib import closing

    from sami_pipeline.engines import GenerationRequest, SamplingParameters, generate
    from sami_pipeline.engines.transformers_engine import TransformersEngine
    from sami_pipeline.models.checkpoints import ModelSource, import_model
    from sami_pipeline.models.prompts import Prompt

    source = ModelSource.model_validate("random:0")
    drawn = ((0.0, 1.0), (1.0, 1.0), (0.7, 0.9))
    requests = [
        GenerationRequest(
            Prompt(text=f"Question {number}" + 3 * number * " and more"),
            SamplingParameters(20 + 3 * number, temperature=temperature, top_p=top_p),
        )
        for number in range(8)
        for temperature, top_p in drawn
    ]
    choices = SamplingParameters(4, choices=("yes", "no", "yes, but"))
    requests += [GenerationRequest(Prompt(text=f"Is {n} even?"), choices) for n in range(2)]
    texts, chosen = [], []
    with tempfile.TemporaryDirectory() as temporary:
        loaded = import_model(source, sami_step.PROJECT)
        for part in (loaded.model, loaded.tokenizer):
            part.save_pretrained(temporary)
        for where in ("cpu", device):
            engine = TransformersEngine(
                Path(temporary), device=where, dtype="float32", batch_size=6
            )
            with closing(engine):
                found = generate(engine, requests, seed=0, description=where)
                rows = len(engine.lanes)
            texts.append([each.text for each in found])
            chosen.append([p for each in found for p in each.choice_logprobs or ()])
    same = sum(one == other for one, other in zip(*texts, strict=True))
    apart = max(abs(one - other) for one, other in zip(*chosen, strict=True))
    ok = same == len(requests) and apart < 1e-4 and rows > 0 and len(set(texts[0])) > 20
    return {"ok": ok, "same": same, "of": len(requests), "choices_apart": apart}


def check_one_worker(device: str) -> Check:
    """Compare a model in one shard with one that is whole: loss and norm of the gradient."""
    return _check_workers(device, 1)


def check_two_workers(device: str) -> Check:
    """Compare a model in two shards with one that is whole."""
    return _check_workers(device, 2)


def _check_workers(device: str, count: int) -> Check:
    import torch

    backend = "gloo"
    if device == "cuda":
        nccl = torch.distributed.is_nccl_available() and torch.cuda.device_count() >= count
        backend = "cpu:gloo,cuda:nccl" if nccl else "cpu:gloo,cuda:gloo"
    expected = _step_of_a_worker(device)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_worker, (count, backend, device, folder), count)
        found = json.loads((Path(folder) / "result.json").read_text())
    apart = [abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True)]
    return {"ok": max(apart) < 1e-4, "backend": backend, "apart": apart}


def _worker(rank: int, count: int, backend: str, device: str, folder: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    torch.distributed.init_process_group(
        backend, init_method=f"file://{folder}/meeting", rank=rank, world_size=count
    )
    result = _step_of_a_worker(device, sharded=True)
    if rank == 0:
        (Path(folder) / "result.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _step_of_a_worker(device: str, *, sharded: bool = False) -> list[float]:
    import torch

    from sami_pipeline.core import SamiTrainingConfig
    from sami_pipeline.core.distributed import shard, whole
    from sami_pipeline.core.logprobs import choose_layout
    from sami_pipeline.core.training import accumulate_gradients

    where = torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else device
    model = families.tiny_model("llama").to(where)
    choose_layout(model)
    if sharded:
        shard(model, torch.device(where))
    config = SamiTrainingConfig(batch_size=4, compute_dtype="float32")
    loss = accumulate_gradients(model, [_grid(seed) for seed in range(4)], config)["loss"]
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    return [loss, whole(norm).item()]


def check_memory(device: str) -> Check:
    """Compare the peak memory of two steps with its estimate."""
    found = {}
    for case in MEMORY_CASES:
        measured = training_memory.measure(case, device)
        found[case] = measured | {"share": measured["estimated"] / measured["measured"]}
    return {"ok": all(0.8 < each["share"] < 1.25 for each in found.values()), "cases": found}


CHECKS: dict[str, Callable[[str], Check]] = {
    "attention": check_attention,
    "levels": check_levels,
    "heads": check_heads,
    "optimisers": check_optimisers,
    "families": check_families,
    "states": check_states,
    "training": check_training,
    "engine": check_engine,
    "one_worker": check_one_worker,
    "two_workers": check_two_workers,
    "memory": check_memory,
}
PARTS = (*CHECKS, "timings", "writing", "engines")


def in_own_process(check: str, device: str, limit: float) -> Check:
    """Return what a check finds; one that fails or takes too long says so."""
    command = [sys.executable, __file__, "--check", check, device]
    started = time.perf_counter()
    try:
        done = sami_step.finished(command, limit, _offline())
    except subprocess.TimeoutExpired:
        return {"ok": False, "failed": f"not done after {limit:.0f} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"ok": False, "failed": lines[-1], "said": lines[-25:]}
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": time.perf_counter() - started}


def _offline() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1"}  # what looked for a network would wait


def timings(device: str, shape: str, steps: int, end: float) -> dict[str, Any]:
    """Return seconds, tokens a second, memory and use of the machine, by variant.

    Rates are those of a grid's gradient. A training takes many grids a step, and the optimiser's
    time, which is told apart, once.
    """
    found: dict[str, Any] = {"ceiling": sami_step.matmul_ceiling("bfloat16", device)}
    for variant in VARIANTS:
        left = end - time.perf_counter()
        if left < 30:
            found[variant] = {"left_out": "no time was left"}
            continue
        arguments = [variant, "2", "bfloat16", shape, device, str(steps)]
        try:
            run = sami_step.in_own_process(arguments, timeout=min(left, _LONGEST_TIMING))
        except SystemExit as error:
            lines = str(error).strip().splitlines() or ["ended without a word"]
            found[variant] = {"failed": lines[-1]}
            continue
        if "failed" not in run:
            seconds = median(run["gradient_seconds"])
            rate = run["flops"] / seconds
            run |= {
                "tokens_per_second": run["tokens"] / seconds,
                "share_of_ceiling": rate / found["ceiling"],
                "mfu": None if (peak := _peak(device)) is None else rate / peak,
            }
        found[variant] = run
    return found


def _peak(device: str) -> float | None:
    """Return the operations a second that the GPU's maker names, if they are known here."""
    if device == "cpu":
        return None
    import torch

    name = torch.cuda.get_device_name()
    return next((1e12 * rate for kind, rate in PEAK_TERAFLOPS.items() if kind in name), None)


def written(device: str, end: float) -> list[dict[str, Any]]:
    """Return tokens a second of loops that write many rows, see ``writing.py``."""

    def limit() -> float:
        return min(_LONGEST_WRITING, end - time.perf_counter())

    cases = WRITING if device == "cuda" else WRITING_ON_CPU
    return [
        writing.compare(shape, dtype, device, rows, slots, limit, ways)
        for shape, dtype, rows, slots, ways in cases
    ]


def engines(end: float) -> dict[str, Any]:
    """Return tokens a second of this project's vllm engine and of vLLM alone, if it is installed.

    The embedded model answers 64 short questions, in one batch.
    """
    import engines as benchmark

    if not benchmark.VLLM_PYTHON.is_file():
        return {"left_out": f"vLLM is not installed in {benchmark.VLLM_PYTHON.parents[1].name}"}
    limit = end - time.perf_counter()
    if limit < 60:
        return {"left_out": "no time was left"}
    command = [sys.executable, __file__, "--engines"]
    try:
        done = sami_step.finished(command, limit, _offline())
    except subprocess.TimeoutExpired:
        return {"left_out": "no time was left"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["ended without a word"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def measure_engines() -> dict[str, Any]:
    """Return tokens a second by engine, measured here."""
    import engines as benchmark

    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        benchmark.save_model(folder)
        task = {"folder": str(folder), "batch_size": 64, "requests": questions(folder)}
        for way in ("vllm", "LLM.generate"):
            run = benchmark.in_own_process(way, task)
            found[benchmark.NAMES[way]] = run["tokens"] / run["seconds"]
    return {"tokens_per_second": found}


def questions(folder: Path) -> list[dict[str, Any]]:
    """Return 64 greedy requests of 128 tokens at most, as the benchmark of the engines has them."""
    import engines as benchmark

    asked = [f"Tell me three facts about the number {number}." for number in range(64)]
    requests = [
        {
            "prompt": json.dumps({"messages": [{"role": "user", "content": question}]}),
            "sample": 0, "temperature": 0.0, "tokens": 128, "stop": [],
        }
        for question in asked
    ]  # fmt: skip
    return benchmark.with_texts(requests, folder)


def _in_words(found: Check) -> str:
    """Return what a check has found: its largest differences, and what it has left out."""
    if why := found.get("failed") or found.get("skipped"):
        return str(why)
    numbers: dict[str, list[float]] = {"apart": [], "share": []}
    skipped = []

    def collect(kind: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                if isinstance(inner, dict) and "skipped" in inner:
                    skipped.append(name)
                else:
                    part = name if name in numbers else "apart" if "apart" in name else kind
                    collect(part, inner)
        elif isinstance(value, list):
            for inner in value:
                collect(kind, inner)
        elif kind in numbers:
            numbers[kind].append(float(value))

    collect("", found)
    said = [f"largest difference {max(numbers['apart']):.1e}"] if numbers["apart"] else []
    if shares := numbers["share"]:
        said.append(f"estimated / measured {min(shares):.2f} to {max(shares):.2f}")
    if "same" in found:
        said.append(f"{found['same']} of {found['of']} texts the same")
    if "backend" in found:
        said.append(f"`{found['backend']}`")
    if "loss" in found:
        said.append("loss {:.3f} to {:.3f}".format(*found["loss"]))
    if skipped:
        said.append(f"not here: {'; '.join(skipped)}")
    return ", ".join(said)


def page(result: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [f"{result['date']}, {result['machine']}; `python benchmarks/gpu.py`.", ""]
    if result["checks"]:
        lines += ["| check | outcome | |", "|---|---|---|"]
    for name, found in result["checks"].items():
        outcome = "skipped" if "skipped" in found else "holds" if found["ok"] else "**fails**"
        lines.append(f"| {name} | {outcome} | {_in_words(found)} |")
    if timed := result["timings"]:
        lines += ["", "| | positions a second | MFU | of large products | peak, GB "
                  "| seconds, gradient of a grid: median [min, max] | norm and optimiser |",
                  "|---|---|---|---|---|---|---|"]  # fmt: skip
        for variant in VARIANTS:
            run = timed[variant]
            if why := run.get("failed") or run.get("left_out"):
                lines.append(f"| {variant} | {why} | | | | | |")
                continue
            mfu = "" if run["mfu"] is None else f"{run['mfu']:.0%}"
            lines.append(
                f"| {variant} | {run['tokens_per_second']:.0f} | {mfu} "
                f"| {run['share_of_ceiling']:.0%} | {run['peak_bytes'] / 1e9:.1f} "
                f"| {median(run['gradient_seconds']):.2f} "
                f"[{min(run['gradient_seconds']):.2f}, {max(run['gradient_seconds']):.2f}] "
                f"| {median(run['seconds']) - median(run['gradient_seconds']):.2f} |"
            )
    for compared in result.get("writing", []):
        lines += ["", writing.table(compared)]
    if result["engines"]:
        found = result["engines"]
        said = (
            found.get("left_out")
            or found.get("failed")
            or "; ".join(
                f"{name} {rate:.0f} tokens/s" for name, rate in found["tokens_per_second"].items()
            )
        )
        lines += ["", f"Engines: {said}"]
    if result["left_out"]:
        lines += ["", f"Left out: {', '.join(result['left_out'])}."]
    return "\n".join(lines) + "\n"


def main(given: list[str]) -> int:
    """Check, time and report; return 1 where a check fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=sami_step.SHAPES, default="llama-3.1-8b")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of each variant")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--at-once", type=int, help="checks at once; 4 on a GPU, 1 on a CPU")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    parser.add_argument("--no-write", action="store_true", help="leave docs/benchmarks.md alone")
    parser.add_argument("--page", type=Path, help="write the page from these figures, run nothing")
    arguments = parser.parse_args(given)
    if arguments.page:
        sami_step.write_page("gpu", page(json.loads(arguments.page.read_text())))
        return 0
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu --shape tiny tries the script itself")
    started = time.perf_counter()
    end = started + 60 * arguments.minutes
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"), "machine": sami_step.machine(arguments.device),
        "shape": arguments.shape, "checks": {}, "timings": {}, "writing": [], "engines": {},
        "left_out": [],
    }  # fmt: skip

    def keep() -> None:
        """Write what is known, lest a machine that is taken away takes it along."""
        result["seconds"] = time.perf_counter() - started
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")

    # Checks may take the first half; the figures are wanted in any case.
    half = started + 30 * arguments.minutes

    def checked(name: str) -> Check | None:
        left = half - time.perf_counter()
        if left < 20:
            return None
        return in_own_process(name, arguments.device, min(_LONGEST_CHECK, left))

    names = [name for name in arguments.only if name in CHECKS]
    at_once = arguments.at_once or (4 if arguments.device == "cuda" else 1)
    with ThreadPoolExecutor(at_once) as pool:
        for name, found in zip(names, pool.map(checked, names), strict=True):
            if found is None:
                result["left_out"].append(name)
                continue
            result["checks"][name] = found
            keep()
            print(f"{name}: {json.dumps(found)}", flush=True)
    if "timings" in arguments.only:
        result["timings"] = timings(arguments.device, arguments.shape, arguments.steps, end)
        keep()
        print(json.dumps(result["timings"]), flush=True)
    if "writing" in arguments.only:
        result["writing"] = written(arguments.device, end)
        keep()
        print(json.dumps(result["writing"]), flush=True)
    if "engines" in arguments.only:
        result["engines"] = engines(end)
    keep()
    text = page(result)
    print(text)
    if arguments.device == "cuda" and not arguments.no_write:
        sami_step.write_page("gpu", text)
    return int(not all(found.get("ok", True) for found in result["checks"].values()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--check"]:
        print(json.dumps(CHECKS[sys.argv[2]](sys.argv[3])))
    elif sys.argv[1:2] == ["--engines"]:
        print(json.dumps(measure_engines()))
    else:
        sys.exit(main(sys.argv[1:]))
