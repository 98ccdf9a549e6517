"""Tokens a second of loops that write many rows, on a model with random weights.

    python benchmarks/writing.py --shape smollm2-135m --dtype float32
    python benchmarks/writing.py --device cpu --shape tiny --dtype float32 --rows 6 --slots 4

Compared are this project's transformers engine (``engines/rows.py``), the same without recorded
steps (``engines/step_graphs.py``), plain ``generate`` on padded batches, and transformers'
continuous batching. All are greedy and have the same prompts and limits; with random weights no
row ends before its limit, so limits are uneven. Every way is a separate process, timed after a
warm-up. In fp32 all must write the same tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import sami_step

OWN = "this project's transformers engine"
UNRECORDED = "the same, steps not recorded"
GENERATE = "plain padded `generate`"
CONTINUOUS = "transformers' continuous batching"
CONTINUOUS_RECORDED = "transformers' continuous batching, CUDA graphs"
WAYS = (OWN, UNRECORDED, GENERATE, CONTINUOUS, CONTINUOUS_RECORDED)
_PROMPTS, _LIMITS = (40, 240), (32, 256)
_TRIFLES = (3, 9)

Task = tuple[list[int], int]


def tasks(rows: int, vocabulary: int, *, small: bool) -> list[Task]:
    """Return prompts of random tokens, with the number of tokens to write after each."""
    generator = random.Random(rows)
    lengths, limits = (_TRIFLES, _TRIFLES) if small else (_PROMPTS, _LIMITS)
    return [
        (
            [generator.randrange(10, vocabulary) for _ in range(generator.randint(*lengths))],
            generator.randint(*limits),
        )
        for _ in range(rows)
    ]


def random_model(shape: str, dtype: str, device: str) -> Any:
    """Return a Llama of a shape whose rows never end by themselves."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    with torch.device(device):
        config = LlamaConfig(**sami_step.SHAPES[shape], attn_implementation="sdpa")
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=None, pad_token_id=0)
    return model


def own_loop(model: Any, slots: int, *, recorded: bool) -> Callable[[list[Task]], list[list[int]]]:
    """Return a function that writes as the transformers engine does."""
    import numpy as np

    from sami_pipeline.engines import SamplingParameters
    from sami_pipeline.engines.rows import Row, Rows
    from sami_pipeline.engines.transformers_engine import TransformersEngine, use_row_attention

    class Loop(TransformersEngine):
        """The engine's loop, for a model that has neither a folder nor a tokenizer."""

        def __init__(self) -> None:
            self._ends = frozenset()

    if reason := use_row_attention(model):
        raise RuntimeError(reason)
    rows = Rows(model, slots, kept_bytes=0)
    if not recorded:
        rows._graphs = None
    loop = Loop()

    def write(asked: list[Task]) -> list[list[int]]:
        waiting = [
            Row(i, prompt, SamplingParameters(limit), np.empty(0))
            for i, (prompt, limit) in enumerate(asked)
        ]
        longest_first = sorted(waiting, key=lambda row: -len(row.prompt))
        for _ in loop._write_lane(rows, longest_first, threading.Event()):
            pass
        return [row.written for row in waiting]

    return write


def by_generate(model: Any, slots: int) -> Callable[[list[Task]], list[list[int]]]:
    """Return a function that writes padded batches, each to the longest limit of its rows."""
    import torch

    @torch.inference_mode()
    def write(asked: list[Task]) -> list[list[int]]:
        written = []
        for first in range(0, len(asked), slots):
            batch = asked[first : first + slots]
            longest = max(len(prompt) for prompt, _ in batch)
            ids, mask = (torch.zeros(len(batch), longest, dtype=torch.long) for _ in range(2))
            for row, (prompt, _) in enumerate(batch):
                ids[row, longest - len(prompt) :] = torch.tensor(prompt)
                mask[row, longest - len(prompt) :] = 1
            output = model.generate(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device),
                max_new_tokens=max(limit for _, limit in batch), do_sample=False,
            )  # fmt: skip
            responses = output[:, longest:].tolist()
            written += [ids[:limit] for ids, (_, limit) in zip(responses, batch, strict=True)]
        return written

    return write


def by_continuous_batching(
    model: Any, slots: int, *, recorded: bool
) -> Callable[[list[Task]], list[list[int]]]:
    """Return a function that gives all rows to the library's own manager, which is started."""
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    most = _PROMPTS[1] + _LIMITS[1]
    # Room for the rows of a batch and no more, in blocks as large as the library's own default.
    blocks = slots * -(-most // 256) + 8
    on_gpu = model.device.type == "cuda"
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(
            do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=_LIMITS[1]
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            num_blocks=blocks, max_batch_tokens=8192 if on_gpu else 256,
            max_requests_per_batch=slots, use_cuda_graph=recorded,
        ),
    )  # fmt: skip
    if recorded:
        manager.warmup()
    manager.start()

    def write(asked: list[Task]) -> list[list[int]]:
        names = [
            manager.add_request(prompt, max_new_tokens=limit, eos_token_id=-1)
            for prompt, limit in asked
        ]
        found: dict[str, list[int]] = {}
        while len(found) < len(names):
            result = manager.get_result(timeout=1)
            if result is None:
                if not manager.is_running():
                    raise RuntimeError("continuous batching ended before all rows were written")
            elif result.error is not None:
                raise RuntimeError(f"continuous batching: {result.error}")
            elif result.is_finished():
                found[result.request_id] = list(result.generated_tokens)
        return [found[name] for name in names]

    write.close = lambda: manager.stop(block=True, timeout=10)  # type: ignore[attr-defined]
    return write


def measure(way: str, shape: str, dtype: str, device: str, rows: int, slots: int) -> dict[str, Any]:
    """Return seconds, tokens, peak memory and what was written by one way, measured here."""
    import torch

    vocabulary = sami_step.SHAPES[shape]["vocab_size"]
    asked = tasks(rows, vocabulary, small=shape == "tiny")
    model = random_model(shape, dtype, device)
    if way in (OWN, UNRECORDED):
        write = own_loop(model, slots, recorded=way == OWN)
    elif way == GENERATE:
        write = by_generate(model, slots)
    else:
        write = by_continuous_batching(model, slots, recorded=way == CONTINUOUS_RECORDED)
    write([(prompt, 4) for prompt, _ in asked[:slots]])
    sami_step.synchronise(device)
    started = time.perf_counter()
    written = write(asked)
    sami_step.synchronise(device)
    seconds = time.perf_counter() - started
    getattr(write, "close", lambda: None)()
    short = [i for i, (ids, (_, limit)) in enumerate(zip(written, asked, strict=True))
             if len(ids) != limit]  # fmt: skip
    return {
        "seconds": seconds,
        "tokens": sum(map(len, written)),
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        # Of each row, so that those that differ can be counted.
        "rows": [hashlib.sha256(repr(ids).encode()).hexdigest()[:12] for ids in written],
        "of_other_length": short,
    }


def compare(
    shape: str, dtype: str, device: str, rows: int, slots: int,
    limit: Callable[[], float] = lambda: 600.0, ways: Sequence[str] = WAYS,
) -> dict[str, Any]:  # fmt: skip
    """Return what each way has measured, or why it has not.

    Args:
        shape: of ``sami_step.SHAPES``.
        dtype: of the weights.
        device: "cuda" or "cpu".
        rows: how many are written.
        slots: at once.
        limit: returns how many seconds the next way may take.
        ways: some of ``WAYS``.
    """
    found: dict[str, Any] = {}
    for way in ways:
        if device == "cpu" and way in (UNRECORDED, CONTINUOUS_RECORDED):
            continue  # nothing is recorded there
        command = [
            sys.executable, __file__, "--measure", way, shape, dtype, device, str(rows), str(slots)
        ]  # fmt: skip
        left = limit()
        if left < 20:
            found[way] = {"left_out": "no time was left"}
            continue
        try:
            done = sami_step.finished(command, left)
        except subprocess.TimeoutExpired:
            found[way] = {"failed": f"not done after {left:.0f} s"}
            continue
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            found[way] = {"failed": lines[-1], "said": lines[-25:]}
            continue
        run = json.loads(done.stdout.splitlines()[-1])
        run["tokens_per_second"] = run["tokens"] / run["seconds"]
        run["said"] = [line for line in done.stderr.splitlines() if "recorded" in line]
        found[way] = run
    reference = found.get(GENERATE, {}).get("rows")
    for run in found.values():
        written = run.pop("rows", None)
        if reference is not None and written is not None:
            pairs = zip(written, reference, strict=True)
            run["rows_as_generate"] = sum(one == other for one, other in pairs)
    return {"shape": shape, "dtype": dtype, "rows": rows, "slots": slots, "ways": found}


def table(result: dict[str, Any]) -> str:
    """Return a comparison as a Markdown table."""
    title = "{shape}, {dtype}: {rows} rows, {slots} at once".format_map(result)
    lines = [title, "", "| | tokens a second | seconds | peak, GB | rows as `generate`'s |",
             "|---|---|---|---|---|"]  # fmt: skip
    for way, run in result["ways"].items():
        if why := run.get("failed") or run.get("left_out"):
            lines.append(f"| {way} | {why} | | | |")
            continue
        peak = "" if run["peak_bytes"] is None else f"{run['peak_bytes'] / 1e9:.1f}"
        same = f"{run['rows_as_generate']} of {result['rows']}" if "rows_as_generate" in run else ""
        lines.append(
            f"| {way} | {run['tokens_per_second']:.0f} | {run['seconds']:.2f} | {peak} | {same} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print a table."""
    if sys.argv[1:2] == ["--measure"]:
        way, shape, dtype, device, rows, slots = sys.argv[2:]
        print(json.dumps(measure(way, shape, dtype, device, int(rows), int(slots))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=sami_step.SHAPES, default="smollm2-135m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--slots", type=int, default=64, help="rows written at once")
    arguments = parser.parse_args()
    shape, dtype, device = arguments.shape, arguments.dtype, arguments.device
    print(table(compare(shape, dtype, device, arguments.rows, arguments.slots)))


if __name__ == "__main__":
    main()
