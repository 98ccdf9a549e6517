"""All that has to be known of a GPU: whether it computes what a CPU does, and how fast.

    python benchmarks/gpu.py                          # one 80 GB GPU, 25 minutes; writes gpu.json
    python benchmarks/gpu.py --device cpu --shape tiny --steps 1 --only heads timings

It needs no network. Checks come first, each in a separate process: attention and its backward
pass, output heads, optimisers, families, states, FSDP2 with one and two processes, and memory
against its estimate. Then Llama-3.1-8B's shape with random weights is timed (this project, the
published step, compiled layers), and the engines where vLLM is installed. What does not fit into
the time is named as left out. On a GPU the figures also become a part of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import families
import sami_step
import training_memory

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
_LONGEST_CHECK = 300.0
# Seconds of a variant, with its start and what is compiled; one that hangs leaves time to others.
_LONGEST_TIMING = 360.0


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


def _interrupted(model: Any, grids: list[Any], config: Any, states: str) -> None:
    from sami_pipeline.core import train_sami, training

    real = training.learning_rate_at

    def stop(step: int, *rest: Any) -> float:
        if step == 4:
            raise KeyboardInterrupt
        return real(step, *rest)

    training.learning_rate_at = stop
    try:
        train_sami(model, None, grids, config, state_folder=states, progress=False)
    except KeyboardInterrupt:
        pass
    finally:
        training.learning_rate_at = real


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
    "one_worker": check_one_worker,
    "two_workers": check_two_workers,
    "memory": check_memory,
}
PARTS = (*CHECKS, "timings", "engines")


def in_own_process(check: str, device: str, limit: float) -> Check:
    """Return what a check finds; one that fails or takes too long says so."""
    command = [sys.executable, __file__, "--check", check, device]
    started = time.perf_counter()
    try:
        done = _finished(command, limit)
    except subprocess.TimeoutExpired:
        return {"ok": False, "failed": f"not done after {limit:.0f} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"ok": False, "failed": lines[-1]}
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": time.perf_counter() - started}


def _finished(command: list[str], limit: float) -> subprocess.CompletedProcess[str]:
    """Run a command, and end it with all that it has started once it takes too long.

    Raises:
        subprocess.TimeoutExpired: it did; workers that hang would hold the GPU's memory.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}  # what looked for a network would wait
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            printed, said = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, printed, said)


def timings(device: str, shape: str, steps: int, end: float) -> dict[str, Any]:
    """Return seconds, tokens a second, memory and use of the machine, by variant."""
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
            seconds = median(run["seconds"])
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
        done = _finished(command, limit)
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


def page(result: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [f"{result['date']}, {result['machine']}; `python benchmarks/gpu.py`.", ""]
    if result["checks"]:
        lines += ["| check | outcome | |", "|---|---|---|"]
    for name, found in result["checks"].items():
        outcome = "skipped" if "skipped" in found else "holds" if found["ok"] else "**fails**"
        known = {k: v for k, v in found.items() if k not in ("ok", "seconds")}
        lines.append(f"| {name} | {outcome} | `{json.dumps(known)[:300]}` |")
    if timed := result["timings"]:
        lines += ["", "| | tokens a second | MFU | of large products | peak, GB | seconds |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        for variant in VARIANTS:
            run = timed[variant]
            if why := run.get("failed") or run.get("left_out"):
                lines.append(f"| {variant} | {why} | | | | |")
                continue
            mfu = "" if run["mfu"] is None else f"{run['mfu']:.0%}"
            lines.append(
                f"| {variant} | {run['tokens_per_second']:.0f} | {mfu} "
                f"| {run['share_of_ceiling']:.0%} | {run['peak_bytes'] / 1e9:.1f} "
                f"| {median(run['seconds']):.2f} |"
            )
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
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    parser.add_argument("--no-write", action="store_true", help="leave docs/benchmarks.md alone")
    arguments = parser.parse_args(given)
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu --shape tiny tries the script itself")
    started = time.perf_counter()
    end = started + 60 * arguments.minutes
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"), "machine": sami_step.machine(arguments.device),
        "shape": arguments.shape, "checks": {}, "timings": {}, "engines": {}, "left_out": [],
    }  # fmt: skip

    def keep() -> None:
        """Write what is known, lest a machine that is taken away takes it along."""
        result["seconds"] = time.perf_counter() - started
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")

    # Checks may take the first half; the figures are wanted in any case.
    half = started + 30 * arguments.minutes
    for name in arguments.only:
        if name in CHECKS:
            left = half - time.perf_counter()
            if left < 20:
                result["left_out"].append(name)
                continue
            found = in_own_process(name, arguments.device, min(_LONGEST_CHECK, left))
            result["checks"][name] = found
            keep()
            print(f"{name}: {json.dumps(found)}", flush=True)
    if "timings" in arguments.only:
        result["timings"] = timings(arguments.device, arguments.shape, arguments.steps, end)
        keep()
        print(json.dumps(result["timings"]), flush=True)
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
