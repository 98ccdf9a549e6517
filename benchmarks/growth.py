"""Time and memory of everything but the models, as the number of rows grows.

    python benchmarks/growth.py                    # every stage; writes docs/growth.md
    python benchmarks/growth.py --only win_rates --scales 1 10 --no-write
    python benchmarks/growth.py --rows 1000000     # judge and tabulate a table of a million answers

Rows are those of the embedded experiments, 1, 10 and 100 times as many: their questions, queries
and principles, and texts put together by a seed from the sentences of MT-Bench. Every measurement
is a separate process, in which the input is made before the clock starts. Times are of the
processor, which other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import platform
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "docs" / "growth.md"
sys.path.insert(0, str(PROJECT / "src"))

RAW = PROJECT / "data" / "01_raw"
MODELS = ["base", "sami", "dpo"]
PAIRS = [("sami", "base"), ("dpo", "base"), ("sami", "dpo")]
# As in conf/base: queries of a category written and answered, problems of each split, attempts.
WRITTEN, ANSWERED, PROBLEMS, ATTEMPTS = 40, 14, {"train": 136, "test": 32}, 10
RESAMPLES = 1000
# Answers to MT-Bench of the embedded model have 350 characters, of which the lists are a part.
CHARACTERS = 350
DEGENERATE = 0.05
# How often the questions are asked in each part of a large table.
COPIES_AT_ONCE = 5


class Work(NamedTuple):
    """What is measured, and how many rows go in."""

    rows: int
    run: Callable[[], Any]


# What goes in


def yaml_folder(name: str) -> dict[str, Any]:
    """Return the parsed files of a folder of data/01_raw by file name."""
    return {p.name: yaml.safe_load(p.read_text("utf-8")) for p in (RAW / name).glob("*.yml")}


def json_lines(name: str) -> pd.DataFrame:
    """Return a file of MT-Bench as the catalog reads it."""
    return pd.read_json(RAW / "mt_bench" / name, lines=True)


class Texts:
    """Texts put together from the sentences of MT-Bench's questions and reference answers."""

    def __init__(self, seed: object) -> None:
        self.generator = random.Random(f"texts/{seed}")
        references = json_lines("reference_answer/gpt-4.jsonl")
        written = [turn for row in references["choices"] for turn in row[0]["turns"]]
        written += [turn for turns in json_lines("question.jsonl")["turns"] for turn in turns]
        pieces = (piece for text in written for piece in re.split(r"(?<=[.!?])\s+|\n+", text))
        self.pieces = sorted({piece for piece in pieces if piece.strip()})

    def text(self, characters: int = CHARACTERS) -> str:
        """Return a text of about so many characters; some mostly repeat themselves."""
        wanted = characters * self.generator.uniform(0.2, 1.8)
        if self.generator.random() < DEGENERATE:
            piece = self.generator.choice(self.pieces)
            return f"{piece} " * math.ceil(wanted / len(piece) + 3)
        parts: list[str] = []
        length = 0
        while length < wanted:
            parts += [self.generator.choice(self.pieces), self.generator.choice(" \n")]
            length += len(parts[-2])
        return "".join(parts[:-1])


def completions(count: int, seed: object, characters: int = CHARACTERS) -> list[Any]:
    """Return what a model might have written."""
    from sami_pipeline.engines import Completion

    texts = Texts(seed)
    reasons = ["stop", "stop", "stop", "length"]
    return [
        Completion(texts.text(characters), texts.generator.choice(reasons), 160, 90)
        for _ in range(count)
    ]


def principles() -> pd.DataFrame:
    """Return the shipped principles."""
    from sami_pipeline.principles.constitutions import tabulate_principles

    return tabulate_principles(yaml_folder("principles"))


def template() -> Any:
    """Return the shipped template of chat prompts."""
    from sami_pipeline.models.prompts import PromptTemplate

    return PromptTemplate.model_validate(yaml_folder("prompt_templates")["chat.yml"])


def question_files(copies: range) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return MT-Bench's questions and references so many times, with new ids and texts."""
    asked, references = json_lines("question.jsonl"), json_lines("reference_answer/gpt-4.jsonl")

    def numbered(file: pd.DataFrame, copy: int) -> pd.DataFrame:
        return file.assign(question_id=[f"{each}-{copy}" for each in file["question_id"]])

    return (
        pd.concat(
            [
                numbered(asked, copy).assign(
                    turns=[[f"{copy}. {turn}" for turn in turns] for turns in asked["turns"]]
                )
                for copy in copies
            ],
            ignore_index=True,
        ),
        pd.concat([numbered(references, copy) for copy in copies], ignore_index=True),
    )


def questions(copies: range) -> pd.DataFrame:
    """Return the table of those questions, two rows each."""
    from sami_pipeline.pipelines.data_ingest.nodes import tidy_questions

    return tidy_questions(*question_files(copies))


def constitutions_of(asked: pd.DataFrame) -> pd.DataFrame:
    """Return both constitutions of questions or queries."""
    from sami_pipeline.principles.constitutions import sample_constitutions

    return sample_constitutions(asked, principles(), n_constitutions=2, seed=0, contrast="opposite")


def answers(copies: int) -> pd.DataFrame:
    """Return three models' answers to MT-Bench's questions, each asked so many times."""
    return pd.concat(answer_parts(copies), ignore_index=True)


def answer_parts(copies: int) -> Iterator[pd.DataFrame]:
    """Yield those answers a few copies of the questions at a time.

    Later parts have the texts of the first in another order.
    """
    first = first_answers(min(copies, COPIES_AT_ONCE))
    question, copy = zip(*first["question_id"].str.split("-"), strict=True)
    question, copy = pd.Series(question), pd.Series(copy).astype(int)
    written = ["answer", "finish_reason", "completion_tokens", "degenerate"]
    for start in range(0, copies, COPIES_AT_ONCE):
        texts = first[written].sample(frac=1, random_state=start).reset_index(drop=True)
        number = copy + start
        part = first.assign(
            question_id=question + "-" + number.astype("str"),
            **{column: texts[column] for column in written},
        )
        yield part[number < copies]


def first_answers(copies: int) -> pd.DataFrame:
    """Return answers to those questions, 9 rows each, by MT-Bench's protocol."""
    from sami_pipeline.evaluation import mt_bench
    from sami_pipeline.evaluation.mt_bench_answers import turn_requests
    from sami_pipeline.parameters import EvaluationParameters
    from sami_pipeline.training.responses import with_completions

    temperatures = dict.fromkeys(set(principles()["category"]), 0.0)
    parameters = EvaluationParameters(max_new_tokens=96, temperatures=temperatures)
    asked, chat = questions(range(copies)), template()
    first = asked[asked["turn"] == 1].rename(columns={"question_id": "query_id"})
    constitutions = constitutions_of(first)

    def write(rows: pd.DataFrame, description: str) -> pd.DataFrame:
        rows, requests = turn_requests(rows, chat, parameters)
        written = completions(len(requests), f"{description}/{copies}")
        return with_completions(rows, written).rename(columns={"response": "answer"})

    return pd.concat(
        [
            mt_bench.answer_questions(
                model, asked, constitutions, write, without_constitution=False
            )
            for model in MODELS
        ],
        ignore_index=True,
    )


def write_answers(rows: int, path: Path) -> None:
    """Write a parquet table of at least so many answers, a part at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    for part in answer_parts(math.ceil(rows / (80 * 3 * len(MODELS)))):
        table = pa.Table.from_pandas(part, preserve_index=False)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()


def write_run(rows: int, run: str) -> None:
    """Write each model's answers where a run of that name has them, at least so many in all."""
    folder = PROJECT / "data" / "07_model_output" / run / "mt_bench"
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "answers.parquet"
        write_answers(rows, path)
        for model in MODELS:
            (folder / model).mkdir(parents=True)
            given = pd.read_parquet(path, filters=[("model", "==", model)])
            given.to_parquet(folder / model / "answers.parquet")


def queries(scale: int, per_category: int = WRITTEN) -> pd.DataFrame:
    """Return training queries of all categories."""
    texts = Texts("queries")
    return pd.DataFrame(
        [
            (f"{category}-{index:04d}", category, texts.text(120), "benchmark")
            for category in sorted(set(principles()["category"]))
            for index in range(per_category * scale)
        ],
        columns=["query_id", "category", "query", "source"],
    )


def generation(scale: int) -> tuple[pd.DataFrame, list[Any]]:
    """Return the rows of training responses to be written, and their requests."""
    from sami_pipeline.engines import SamplingParameters
    from sami_pipeline.training.responses import generation_requests

    chosen = queries(scale, ANSWERED).assign(split="train")
    sampling = SamplingParameters(96, 0.7)
    return generation_requests(chosen, constitutions_of(chosen), template(), sampling)


def responses(scale: int) -> pd.DataFrame:
    """Return written training responses."""
    from sami_pipeline.training.responses import with_completions

    rows, requests = generation(scale)
    return with_completions(rows, completions(len(requests), "responses"))


def checked(scale: int) -> pd.DataFrame:
    """Return the checked statements of answers."""
    from sami_pipeline.principles.statements import check_answers

    return check_answers(answers(scale), principles())


def verdicts(scale: int) -> pd.DataFrame:
    """Return the checklist's verdicts."""
    from sami_pipeline.evaluation.checklist import judge_checklist

    statements = checked(scale)
    return pd.concat([judge_checklist(statements, *pair) for pair in PAIRS], ignore_index=True)


def judging(scale: int, kind: str) -> tuple[pd.DataFrame, list[Any], Any]:
    """Return planned judgements, what a judge wrote, and its parameters."""
    from sami_pipeline.evaluation.judges import plan_judgements
    from sami_pipeline.parameters import JudgeParameters
    from sami_pipeline.pipelines.data_ingest.nodes import tidy_judge_prompts

    parameters = JudgeParameters(kind=kind, model="base")
    prompts = tidy_judge_prompts(
        json_lines("judge_prompts.jsonl"),
        {name: lambda file=file: file for name, file in yaml_folder("judge_prompts").items()},
    )
    asked, given = questions(range(scale)), answers(scale)
    first = asked[asked["turn"] == 1].rename(columns={"question_id": "query_id"})
    asked["reference"] = asked["reference"].replace("", "A reference.")
    planned = plan_judgements(
        kind, given, asked, constitutions_of(first), prompts, PAIRS, constrained=False
    )
    texts = Texts("judge")
    choices = ["[[A]]", "[[B]]", "[[C]]", ""] if kind == "pairwise" else ["[[3]]", "[[8.5]]", ""]
    said = [
        each.__class__(f"{each.text} {texts.generator.choice(choices)}", "stop", 900, 90)
        for each in completions(len(planned), "judge")
    ]
    return planned, said, parameters


def judgements(scale: int, kind: str) -> pd.DataFrame:
    """Return what a model that judges said."""
    from sami_pipeline.evaluation.judge_requests import tabulate_judgements

    return tabulate_judgements(*judging(scale, kind))


def problems(scale: int) -> pd.DataFrame:
    """Return sums as math problems."""
    generator = random.Random("problems")
    rows = []
    for split, count in PROBLEMS.items():
        for index in range(count * scale):
            one, other = generator.randrange(10**6), generator.randrange(10**6)
            steps = f"{one} + {other} = <<{one}+{other}={one + other}>>{one + other}"
            rows.append(
                {
                    "split": split,
                    "problem_id": f"sum-{split}-{index}",
                    "question": f"{index}: What is {one} + {other}?",
                    "answer": str(one + other),
                    "solution": f"{steps}\n#### {one + other}",
                    "template": "",
                }
            )
    return pd.DataFrame(rows)


def attempting(scale: int) -> tuple[pd.DataFrame, list[Any]]:
    """Return one model's attempts to be made at every test problem, and what it wrote."""
    from sami_pipeline.engines import Completion
    from sami_pipeline.evaluation.math_attempts import attempt_requests
    from sami_pipeline.parameters import AccuracyParameters
    from sami_pipeline.principles.constitutions import tabulate_principles

    rows, _ = attempt_requests(
        problems(scale),
        tabulate_principles(yaml_folder("math_principles/worked")),
        template(),
        AccuracyParameters(attempts=ATTEMPTS, max_new_tokens=96),
    )
    texts = Texts("attempts")
    written = []
    for reference in rows["reference"]:
        guess = int(reference) + texts.generator.choice([0, 0, 1, 10])
        end = texts.generator.choice([f"\n#### {guess}", f" So {guess}.", f" It is ${guess:,}", ""])
        written.append(Completion(texts.text(150) + end, "stop", 120, 60))
    return rows, written


def attempts(scale: int) -> pd.DataFrame:
    """Return two models' attempts."""
    from sami_pipeline.evaluation.math_attempts import tabulate_attempts

    rows, written = attempting(scale)
    return pd.concat(
        [
            tabulate_attempts("base", rows, written),
            tabulate_attempts("sft", rows, [*written[ATTEMPTS + 1 :], *written[: ATTEMPTS + 1]]),
        ],
        ignore_index=True,
    )


# Ingest


def ingest_questions(scale: int) -> Work:
    """Tidy MT-Bench's questions and references."""
    from sami_pipeline.pipelines.data_ingest.nodes import tidy_questions

    files = question_files(range(scale))
    return Work(len(files[0]), lambda: tidy_questions(*files))


def ingest_query_templates(scale: int) -> Work:
    """Fill the templates of training queries."""
    from sami_pipeline.inputs.query_templates import build_training_prompts

    files = {
        name: file
        | {
            "templates": [
                {"id": f"{each['id']}-{copy}", "text": f"{each['text']} ({copy})"}
                for copy in range(scale)
                for each in file["templates"]
            ]
        }
        for name, file in yaml_folder("training_prompts").items()
    }
    per_category = WRITTEN * scale
    return Work(8 * per_category, lambda: build_training_prompts(files, per_category, 0))


def ingest_query_tables(scale: int) -> Work:
    """Sample training queries from tables."""
    from sami_pipeline.inputs.queries import queries_from_tables
    from sami_pipeline.parameters import QueriesParameters

    table = queries(scale, 10 * WRITTEN)
    tables = dict(list(table.groupby("category")))
    mapping = {category: {"query": "query"} for category in tables}
    parameters = QueriesParameters(per_category=WRITTEN * scale, tables=mapping)
    return Work(len(table), lambda: queries_from_tables(tables, parameters))


def ingest_principles(scale: int) -> Work:
    """Check and tabulate principles."""
    from sami_pipeline.principles.constitutions import tabulate_principles

    files = {
        name: file
        | {
            "principles": [
                each | {"id": f"{each['id']}_{copy}"}
                for copy in range(scale)
                for each in file["principles"]
            ]
        }
        for name, file in yaml_folder("principles").items()
    }
    rows = sum(len(file["principles"]) for file in files.values())
    return Work(rows, lambda: tabulate_principles(files))


def ingest_constitutions(scale: int) -> Work:
    """Write two constitutions for every training query."""
    table = queries(scale)
    return Work(len(table), lambda: constitutions_of(table))


def ingest_problems(scale: int) -> Work:
    """Read math problems in GSM8K's format."""
    from sami_pipeline.inputs.problems import load_problems, queries_of
    from sami_pipeline.parameters import ProblemsParameters

    table, folder = problems(scale), Path(tempfile.mkdtemp())
    for split, part in table.groupby("split"):
        lines = part[["question", "solution"]].rename(columns={"solution": "answer"})
        lines.to_json(folder / f"{split}.jsonl", orient="records", lines=True)
    parameters = ProblemsParameters(
        source=f"gsm8k:{folder}/{{split}}.jsonl",
        **{split: count * scale for split, count in PROBLEMS.items()},
    )
    return Work(len(table), lambda: queries_of(load_problems(parameters, PROJECT)))


# Grids


def grids_requests(scale: int) -> Work:
    """Build the requests of training responses, and their keys in the store."""
    from sami_pipeline.engines.store import completion_key

    return Work(
        8 * ANSWERED * scale * 2,
        lambda: [completion_key("engine", each, 0) for each in generation(scale)[1]],
    )


def grids_store(scale: int) -> Work:
    """Store completions in pieces of 80 and find them again."""
    from sami_pipeline.engines import CompletionStore

    written = completions(8 * ANSWERED * scale * 2, "store")
    by_key = {f"{index:064x}": each for index, each in enumerate(written)}
    keys = list(by_key)
    folder = Path(tempfile.mkdtemp())

    def run() -> int:
        store = CompletionStore(folder)
        for start in range(0, len(keys), 80):
            store.add({key: by_key[key] for key in keys[start : start + 80]})
        found = CompletionStore(folder).find(keys)
        return len(found)

    return Work(len(keys), run)


def grids_responses(scale: int) -> Work:
    """Mark responses usable or not, and write their training prompts."""
    from sami_pipeline.parameters import GenerationParameters
    from sami_pipeline.training.responses import count_statuses, mark_usable, with_training_prompts

    table, known, chat = responses(scale), principles(), template()
    parameters = GenerationParameters(queries_per_category=ANSWERED * scale)

    def run() -> tuple[pd.DataFrame, pd.DataFrame]:
        marked = mark_usable(table, parameters)
        return with_training_prompts(marked, known, chat, 0), count_statuses(marked)

    return Work(len(table), run)


def grids_teacher(scale: int) -> Work:
    """Check how far the teacher followed the principles."""
    from sami_pipeline.training.responses import teacher_compliance

    table, known = responses(scale), principles()
    return Work(len(table), lambda: teacher_compliance(table, known))


def grids_tokens(scale: int) -> Work:
    """Put responses into grids and tokenise them."""
    from sami_pipeline.models.checkpoints import ModelSource, import_model
    from sami_pipeline.models.tokens import TextEncoder
    from sami_pipeline.training.data import select_grids

    model = import_model(ModelSource.model_validate("random:0"), PROJECT)
    table, _ = grids_responses(scale).run()
    return Work(len(table), lambda: select_grids(table, "train", TextEncoder(model.tokenizer)))


# Evaluation


def evaluation_checks(scale: int) -> Work:
    """Check every statement of every answer's constitution."""
    from sami_pipeline.principles.statements import check_answers

    table, known = answers(scale), principles()
    return Work(len(table), lambda: check_answers(table, known))


def evaluation_checklist(scale: int) -> Work:
    """Judge every pair of models by their checked statements."""
    from sami_pipeline.evaluation.checklist import judge_checklist

    table = checked(scale)
    return Work(len(table), lambda: [judge_checklist(table, *pair) for pair in PAIRS])


def evaluation_pairwise(scale: int) -> Work:
    """Build the requests of comparisons, read a judge's texts, decide."""
    from sami_pipeline.evaluation.judge_requests import (
        decide_verdicts,
        judgement_requests,
        tabulate_judgements,
    )

    planned, said, parameters = judging(scale, "pairwise")

    def run() -> pd.DataFrame:
        judgement_requests(planned, parameters)
        table = tabulate_judgements(planned, said, parameters)
        return decide_verdicts(table, parameters.kind, PAIRS)

    return Work(len(planned), run)


def evaluation_ratings(scale: int) -> Work:
    """Read ratings, decide, and average them."""
    from sami_pipeline.evaluation.judge_requests import decide_verdicts, tabulate_judgements
    from sami_pipeline.evaluation.judges import ratings

    planned, said, parameters = judging(scale, "single")

    def run() -> tuple[pd.DataFrame, pd.DataFrame]:
        table = tabulate_judgements(planned, said, parameters)
        decided = decide_verdicts(table, parameters.kind, PAIRS)
        return decided, ratings(table)

    return Work(len(planned), run)


def evaluation_attempts(scale: int) -> Work:
    """Read the answers of attempts at math problems in every way."""
    from sami_pipeline.evaluation.math_attempts import tabulate_attempts

    rows, written = attempting(scale)
    return Work(len(rows), lambda: tabulate_attempts("base", rows, written))


# Statistics


def win_rates(scale: int) -> Work:
    """Tabulate win rates."""
    from sami_pipeline.evaluation import statistics

    table = verdicts(scale)
    return Work(len(table), lambda: statistics.win_rates(table))


def compliance(scale: int) -> Work:
    """Tabulate compliance and its differences."""
    from sami_pipeline.evaluation import statistics

    table = checked(scale)

    def run() -> tuple[pd.DataFrame, pd.DataFrame]:
        return (
            statistics.compliance(table, "base"),
            statistics.compliance_difference(table, "base"),
        )

    return Work(len(table), run)


def degeneration(scale: int) -> Work:
    """Tabulate degeneration and length."""
    from sami_pipeline.evaluation import statistics

    table = answers(scale)
    return Work(len(table), lambda: statistics.degeneration(table))


def length_controlled(scale: int) -> Work:
    """Tabulate length-controlled win rates."""
    from sami_pipeline.evaluation import length_control

    given, table = answers(scale), verdicts(scale)
    return Work(
        len(table),
        lambda: length_control.length_controlled(table, given, resamples=RESAMPLES, seed=0),
    )


def judge_quality(scale: int) -> Work:
    """Tabulate how good a judge is."""
    from sami_pipeline.evaluation import judge_quality as quality
    from sami_pipeline.evaluation.judges import decide_comparisons

    said = judgements(scale, "pairwise")
    table = pd.concat([verdicts(scale), decide_comparisons(said)], ignore_index=True)
    given = answers(scale)
    return Work(len(table), lambda: quality.judge_quality(table, given, said))


def accuracy(scale: int) -> Work:
    """Tabulate pass@k, maj@k and their differences."""
    from sami_pipeline.evaluation import math_accuracy as statistics

    table = attempts(scale)
    options = {"extraction": "flexible"}

    def run() -> tuple[pd.DataFrame, pd.DataFrame]:
        return (
            statistics.accuracy(table, **options),
            statistics.accuracy_difference(table, "base", **options),
        )

    return Work(len(table), run)


def report_answers(scale: int) -> Work:
    """Choose what a report shows of the answers."""
    from sami_pipeline.reporting.answers import judged_answers

    tables = {
        "answers": answers(scale),
        "verdicts": verdicts(scale),
        "checked": checked(scale),
        "questions": questions(range(scale)),
        "question_constitutions": constitutions_of(
            questions(range(scale)).query("turn == 1").rename(columns={"question_id": "query_id"})
        ),
        "principles": principles(),
    }
    return Work(len(tables["answers"]), lambda: judged_answers(tables, "base", 100))


STAGES: dict[str, Callable[[int], Work]] = {
    stage.__name__: stage
    for stage in (
        ingest_questions, ingest_query_templates, ingest_query_tables, ingest_principles,
        ingest_constitutions, ingest_problems, grids_requests, grids_store, grids_responses,
        grids_teacher, grids_tokens, evaluation_checks, evaluation_checklist, evaluation_pairwise,
        evaluation_ratings, evaluation_attempts, win_rates, compliance, degeneration,
        length_controlled, judge_quality, accuracy, report_answers,
    )
}  # fmt: skip


# Measuring


def measure(stage: str, scale: int) -> dict[str, Any]:
    """Return rows, processor seconds and bytes above the start of one stage, in this process."""
    work = STAGES[stage](scale)
    start = restart_peak()
    started = time.process_time()
    work.run()
    seconds = time.process_time() - started
    return {"rows": work.rows, "seconds": seconds, "bytes": max(0, peak_bytes() - start)}


def restart_peak() -> int:
    """Let the peak of this process's memory begin again, and return its memory now."""
    gc.collect()
    with contextlib.suppress(OSError):
        # What the system then counts from is the memory of now.
        Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes() -> int:
    """Return the most memory that this process has had, since ``restart_peak`` where there is."""
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        return int(found[1]) * 1024
    return whole_process_bytes()


def whole_process_bytes() -> int:
    """Return the most memory that this process has had in all its life."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux's ru_maxrss begins with what the process that started this one had
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def judge_table(path: Path, resamples: int) -> dict[str, Any]:
    """Judge and tabulate a stored table of answers by the nodes of mt_bench_eval.

    Returns:
        Rows, processor seconds of each node, and the peak memory of this whole process.
    """
    from sami_pipeline.parameters import EvaluationParameters, JudgeParameters, ModelsParameters
    from sami_pipeline.pipelines.mt_bench_eval.nodes import judging
    from sami_pipeline.principles.statements import check_answers
    from sami_pipeline.result_tables import registry
    from sami_pipeline.tables import StoredTable

    given = StoredTable(path)
    models = ModelsParameters(
        sources={"base": "random:0"}, student="base", teacher="base", under_test=MODELS,
        baseline="base",
    )  # fmt: skip
    temperatures = dict.fromkeys(set(principles()["category"]), 0.0)
    parameters = EvaluationParameters(
        max_new_tokens=96, temperatures=temperatures, resamples=resamples
    )
    seconds: dict[str, float] = {}

    def run(node: Callable[..., Any], *inputs: Any, name: str = "") -> Any:
        started = time.process_time()
        result = node(*inputs)
        seconds[name or node.__name__] = time.process_time() - started
        return result

    def tabulate(name: str, *inputs: Any) -> Any:
        (table,) = (table for table in registry.JUDGED if table.name == name)
        return run(table.make, *inputs, name=f"tabulate_{name}")

    statements = run(check_answers, given, principles())
    tabulate("compliance", statements, models)
    tabulate("compliance_difference", statements, models)
    table = run(judging.judge_answers, statements, models, JudgeParameters(kind="checklist"))
    rates = tabulate("win_rates", table)
    tabulate("length_controlled", table, given, parameters)
    tabulate("judge_quality", table, given)
    tabulate("degeneration", given)
    whole = rates[(rates["category"] == "overall") & (rates["turn"] == "both")]
    return {
        "answers": len(given),
        "statements": len(statements),
        "comparisons": int(whole["rows"].sum()),
        "seconds": seconds,
        "bytes": whole_process_bytes(),
    }


def in_own_process(*arguments: object) -> dict[str, Any]:
    """Run one measurement in a separate process and return what it printed."""
    command = [sys.executable, __file__, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def million(rows: int, resamples: int) -> dict[str, Any]:
    """Write a table of so many answers, then judge and tabulate it in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answers.parquet"
        in_own_process("--write", path, rows)
        return in_own_process("--judge", path, resamples)


# Reporting


def exponent(small: dict[str, Any], large: dict[str, Any], of: str) -> float:
    """Return the power of the rows that seconds or bytes grow with; 1 is linear."""
    return math.log(large[of] / small[of]) / math.log(large["rows"] / small["rows"])


def table(found: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Return all stages as a Markdown table."""
    scales = list(next(iter(found.values())))
    heads = [f"{unit}, {scale}×" for unit in ("seconds", "MB") for scale in scales]
    lines = [
        f"| stage | rows, 1× | {' | '.join(heads)} | exponent of time |",
        f"|---|---|{'---|' * len(heads)}---|",
    ]
    for stage, runs in found.items():
        seconds = [f"{runs[scale]['seconds']:.2f}" for scale in scales]
        megabytes = [f"{runs[scale]['bytes'] / 1e6:.0f}" for scale in scales]
        power = exponent(runs[scales[-2]], runs[scales[-1]], "seconds")
        rows = round(runs[scales[0]]["rows"] / scales[0])
        cells = [stage_title(stage), str(rows), *seconds, *megabytes, f"{power:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def stage_title(stage: str) -> str:
    """Return what a stage does, without the full stop."""
    return STAGES[stage].__doc__.rstrip(".")


def million_in_words(found: dict[str, Any]) -> str:
    """Return how a large table was judged, in words and a table of its nodes."""
    lines = [
        f"{found['answers']:,} answers, {found['statements']:,} checked statements, "
        f"{found['comparisons']:,} comparisons: {sum(found['seconds'].values()):.0f} s, peak of "
        f"the whole process {found['bytes'] / 1e9:.2f} GB.",
        "",
        "| node | seconds |",
        "|---|---|",
    ]
    lines += [f"| `{node}` | {seconds:.1f} |" for node, seconds in found["seconds"].items()]
    return "\n".join(lines)


def machine() -> str:
    """Return what this ran on, in words."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        name = re.search(r"model name\s*: (.*)", information.read_text())[1]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {name}, {memory:.0f} GB, pandas {pd.__version__}"


def write_page(section: str, text: str) -> None:
    """Replace a section of the page between its markers."""
    start, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    before, _, rest = PAGE.read_text().partition(start)
    _, _, after = rest.partition(end)
    PAGE.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}")


def main() -> None:
    """Measure and report."""
    match sys.argv[1:]:
        case ["--measure", stage, scale]:
            return print(json.dumps(measure(stage, int(scale))))
        case ["--write", path, rows]:
            return print(json.dumps(write_answers(int(rows), Path(path))))
        case ["--write-run", run, rows]:
            return print(json.dumps(write_run(int(rows), run)))
        case ["--judge", path, resamples]:
            return print(json.dumps(judge_table(Path(path), int(resamples))))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=STAGES, help="names of stages")
    parser.add_argument("--scales", nargs="+", type=int, default=[1, 10, 100])
    parser.add_argument("--rows", type=int, help="judge a table of so many answers instead")
    parser.add_argument("--resamples", type=int, default=100, help="with --rows")
    parser.add_argument("--no-write", action="store_true", help="leave docs/growth.md alone")
    arguments = parser.parse_args()
    if arguments.rows:
        section = "million"
        text = million_in_words(million(arguments.rows, arguments.resamples))
    else:
        section, found = "stages", {}
        for stage in arguments.only or STAGES:
            found[stage] = {
                scale: in_own_process("--measure", stage, scale) for scale in arguments.scales
            }
            print(stage, found[stage], flush=True)
        text = table(found)
    text = f"{time.strftime('%Y-%m-%d')}, {machine()}.\n\n{text}"
    print(text)
    if not arguments.no_write:
        write_page(section, text)
        print(f"Written to {PAGE.relative_to(PROJECT)}")
    return None


if __name__ == "__main__":
    main()
