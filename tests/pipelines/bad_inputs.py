"""Malformed inputs, one a case: what is brought in, and what the one line must name.

Each changes one thing of a run that works. A case writes into a copy of conf/ and a folder of its
own; what is random in it comes from a seed.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from safetensors.numpy import load_file, save_file

PROJECT = Path(__file__).parents[2]
RAW = PROJECT / "data" / "01_raw"
QUESTIONS = RAW / "mt_bench" / "question.jsonl"
REFERENCES = RAW / "mt_bench" / "reference_answer" / "gpt-4.jsonl"
JUDGE_PROMPTS = RAW / "mt_bench" / "judge_prompts.jsonl"


class Workshop:
    """Where a case writes what it brings in.

    Attributes:
        folder: of this case alone.
        checkpoint: a model folder that is whole.
        params: what stands after ``--params``, besides the run's name.
        conf: a copy of conf/, once a case asks for one.
        names_the_run: the case brings the run's name itself.
    """

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.folder = folder
        self.checkpoint = checkpoint
        self.params: list[str] = []
        self.names_the_run = False
        self._conf = folder / "conf"

    @property
    def conf(self) -> Path | None:
        """The changed copy of conf/, if there is one."""
        return self._conf if self._conf.exists() else None

    def write_conf(self, file: str, content: str | bytes, *, append: bool = False) -> None:
        """Put a file into the test environment of the copy of conf/."""
        if not self._conf.exists():
            shutil.copytree(PROJECT / "conf", self._conf)
        path = self._conf / "test" / file
        path.parent.mkdir(exist_ok=True)
        content = content.encode() if isinstance(content, str) else content
        before = path.read_bytes() if append and path.exists() else b""
        path.write_bytes(before + content)

    def change_parameters(self, changes: Mapping[str, Any], experiment: str = "mt_bench") -> None:
        """Merge values into the test environment's parameters."""
        path = PROJECT / "conf" / "test" / "parameters" / f"{experiment}.yml"
        merged = _merged(yaml.safe_load(path.read_text("utf-8")), {experiment: changes})
        self.write_conf(f"parameters/{experiment}.yml", yaml.safe_dump(merged))

    def entry(self, name: str, content: Mapping[str, Any]) -> None:
        """Put an entry into the catalog instead of the shipped one."""
        self.write_conf("catalog/case.yml", yaml.safe_dump({name: dict(content)}), append=True)

    def file(self, name: str, content: str | bytes) -> Path:
        """Write a file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def model(self) -> Path:
        """Return a copy of the whole model folder, which the run imports as ``base``."""
        folder = self.folder / "model"
        shutil.copytree(self.checkpoint, folder)
        self.params.append(f"mt_bench.models.sources.base=folder:{folder}")
        return folder


@dataclass(frozen=True)
class Case:
    """A malformed input.

    Attributes:
        name: what is wrong, unique.
        named: what the line must hold: file, field and what else tells the remedy.
        bring: writes it.
        pipeline: what is run.
    """

    name: str
    named: tuple[str, ...]
    bring: Callable[[Workshop], None]
    pipeline: str = "mt_bench"


def _merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return dict(content) | {
        key: _merged(content.get(key) or {}, value) if isinstance(value, dict) else value
        for key, value in changes.items()
    }


CASES: list[Case] = []


def _case(name: str, *named: str, pipeline: str = "mt_bench") -> Callable[[Any], Any]:
    """Register a function that brings an input in."""

    def register(bring: Callable[[Workshop], None]) -> Callable[[Workshop], None]:
        CASES.append(Case(name, named, bring, pipeline))
        return bring

    return register


# --- Parameters -----------------------------------------------------------------------------------


def _nested(dotted: str, value: Any) -> dict[str, Any]:
    first, _, rest = dotted.partition(".")
    return {first: _nested(rest, value) if rest else value}


def _parameter(field: str, value: Any, *named: str, label: str = "") -> None:
    experiment, _, rest = field.partition(".")

    @_case(f"parameter {field}={label or value!r}", field, *named, pipeline=experiment)
    def bring(workshop: Workshop) -> None:
        workshop.change_parameters(_nested(rest, value), experiment)


_NAN, _INF, _HUGE = float("nan"), float("inf"), 10**30
for _field, _value, *_named in (
    ("mt_bench.queries.per_category", 0, "greater than 0"),
    ("mt_bench.queries.per_category", "forty", "must be a whole number"),
    ("mt_bench.queries.per_category", "4", "leave out the quotes"),
    ("mt_bench.queries.per_category", True, "must be a whole number"),
    ("mt_bench.queries.per_category", 2.5, "whole number"),
    ("mt_bench.queries.per_category", _HUGE, "1000000"),
    ("mt_bench.queries.per_category", [4], "whole number, got a list"),
    ("mt_bench.queries.seed", -1, "greater than or equal to 0"),
    ("mt_bench.queries.seed", 2**32, "4294967296"),
    ("mt_bench.queries.tables", {"cooking": {"query": "q"}}, "writing"),
    ("mt_bench.queries.tables", {"../../math": {"query": "q"}}, "pattern"),
    ("mt_bench.constitutions.n_constitutions", 1, "2"),
    ("mt_bench.constitutions.n_constitutions", 10**9, "64"),
    ("mt_bench.constitutions.contrast", "none", "sampled"),
    ("mt_bench.generation.temperature", _NAN, "finite"),
    ("mt_bench.generation.temperature", _INF, "finite"),
    ("mt_bench.generation.temperature", -0.1, "greater than or equal to 0"),
    ("mt_bench.generation.top_p", 1.5, "less than or equal to 1"),
    ("mt_bench.generation.max_new_tokens", _HUGE, "less than or equal to"),
    ("mt_bench.generation.temprature", 1, "no field"),
    ("mt_bench.generation.held_out_per_category", 2, "below queries_per_category"),
    ("mt_bench.generation.engine", "transformers", "fields with values"),
    ("mt_bench.generation.engine.kind", "telepathy", "transformers"),
    ("mt_bench.generation.engine.transformers.batch_size", 10**9, "65536"),
    ("mt_bench.generation.engine.vllm.arguments", {"load_format": "pt"}, "load_format"),
    ("mt_bench.generation.engine.vllm.arguments", {"trust_remote_code": True}, "trust_remote"),
    ("mt_bench.generation.engine.vllm.environment", {"HF_TOKEN": "hf_x"}, "HF_TOKEN"),
    ("mt_bench.training.resamples", 10**12, "no parameter any more"),
    ("mt_bench.training.sami.learning_rate", _NAN, "learning_rate"),
    ("mt_bench.training.sami.learning_rate", _INF, "learning_rate"),
    ("mt_bench.training.sami.batch_size", "4", "batch_size", "quotes"),
    ("mt_bench.training.sami.batch_size", -4, "batch_size"),
    ("mt_bench.training.sami.seed", _HUGE, "seed"),
    ("mt_bench.training.sami.optimiser", "sgd", "optimiser", "adamw"),
    ("mt_bench.training.sami.momentum", 0.9, "momentum"),
    ("mt_bench.training.sami.lora", {"rank": 0}, "rank"),
    ("mt_bench.training.sami", [1, 2], "mt_bench.yml", "fields with values"),
    ("mt_bench.models.sources.base", "torrent:x", "torrent:x", "folder:PATH"),
    ("mt_bench.models.sources.base", "hub:../../etc/passwd", "hub:OWNER/NAME"),
    ("mt_bench.models.sources.base", "folder:a\x00b", "control characters"),
    ("mt_bench.models.sources.base", f"random:{_HUGE}", "2**63"),
    ("mt_bench.models.sources.base", 7, "fields with values"),
    ("mt_bench.models.sources", {"../evil": "random:1"}, "../evil"),
    ("mt_bench.models.sources", {"/tmp/evil": "random:1"}, "/tmp/evil"),
    ("mt_bench.models.sources", {"sami": "random:1"}, "'sami'", "another name"),
    ("mt_bench.models.student", "nobody", "nobody", "base"),
    ("mt_bench.models.under_test", [], "at least 1"),
    ("mt_bench.models.under_test", ["base", "sami", "sami"], "twice"),
    ("mt_bench.models.under_test", "base", "besides the baseline"),
    ("mt_bench.models.trust_remote_code", ["nobody"], "nobody", "base"),
    ("mt_bench.models.trust_remote_code", True, "tuple"),
    ("mt_bench.evaluation.temperatures", {"writing": "warm"}, "writing"),
    ("mt_bench.evaluation.temperatures", {"cooking": 0.1}, "cooking"),
    ("mt_bench.evaluation.questions_per_category", 0, "greater than 0"),
    ("mt_bench.judge.kind", "oracle", "checklist"),
    ("mt_bench.iterations.count", 10**6, "100"),
    ("math.problems.source", "gsm8k:/nowhere/train.jsonl", "{split}"),
    ("math.problems.families", {"topology": 1}, "gsm_symbolic"),
    ("math.problems.train", _HUGE, "1000000"),
    ("math.accuracy.attempts", -3, "greater than 0"),
    ("math.accuracy.top_p", _NAN, "finite"),
):
    _label = "1e30" if _value == _HUGE else ""
    _parts = _field.split(".")
    # A fault that concerns several fields is named by the group.
    _parameter(_field, _value, *_named, label=_label)


@_case("judge without a model", "mt_bench", "judge.model", "base")
def _(workshop: Workshop) -> None:
    workshop.change_parameters({"judge": {"kind": "pairwise"}})


@_case("prices are not both given", "judge.engine.openai", "prompt_price, completion_price")
def _(workshop: Workshop) -> None:
    server = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "prompt_price": 1.0}
    engine = {"kind": "openai", "openai": server}
    workshop.change_parameters({"judge": {"kind": "pairwise", "engine": engine}})


@_case("price is infinite", "judge.engine.openai.prompt_price", "finite")
def _(workshop: Workshop) -> None:
    server = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "prompt_price": _INF}
    engine = {"kind": "openai", "openai": server | {"completion_price": 1.0}}
    workshop.change_parameters({"judge": {"kind": "pairwise", "engine": engine}})


@_case("interpreter of vllm is not there", "engine.vllm.python", "/nowhere/python", "make vllm")
def _(workshop: Workshop) -> None:
    engine = {"kind": "vllm", "vllm": {"python": "/nowhere/python"}}
    workshop.change_parameters({"generation": {"engine": engine}})


@_case("runs to compare are a number", "compare_runs.runs", pipeline="compare_runs")
def _(workshop: Workshop) -> None:
    workshop.write_conf("parameters/compare_runs.yml", "compare_runs: {runs: 5}\n")


@_case("writer of principles is missing", "write_principles", "source", pipeline="write_principles")
def _(workshop: Workshop) -> None:
    workshop.params.append("write_principles.source=null")
    workshop.write_conf("parameters/write_principles.yml", "write_principles: {source: null}\n")


# --- Names that become paths ----------------------------------------------------------------------

for _option in ("run_name", "completions_of"):
    for _name in ("../up", "/tmp/away", "..", ".hidden", "a/b", "~root", "a\nb", "x" * 300, "a:b"):

        @_case(f"{_option}={_name[:12]!r}", _option, "letters, digits")
        def _(workshop: Workshop, option: str = _option, name: str = _name) -> None:
            workshop.params.append(f"{option}={name}")


@_case("unknown parameter at the top level", "runname", "run_name")
def _(workshop: Workshop) -> None:
    workshop.params.append("runname=other")


# --- Files of conf/ -------------------------------------------------------------------------------

_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def _conf_file(name: str, file: str, content: str | bytes, *named: str) -> None:
    @_case(f"conf: {name}", *named)
    def bring(workshop: Workshop) -> None:
        workshop.write_conf(file, content)


_PARAMETERS = "parameters/mt_bench.yml"
_conf_file("broken YAML", _PARAMETERS, "mt_bench: {models: [\n", "mt_bench.yml", "line 2")
_conf_file("tabs", _PARAMETERS, "mt_bench:\n\tmodels: 1\n", "mt_bench.yml", "line 2")
_conf_file("wrong nesting", _PARAMETERS, "mt_bench: [1, 2]\n", "mt_bench")
_conf_file("not UTF-8", _PARAMETERS, b"mt_bench: {x: \xff\xfe}\n", "mt_bench.yml", "UTF-8")
_conf_file("alias bomb", _PARAMETERS, _BOMB, "mt_bench.yml", "aliases")
_conf_file("control character", _PARAMETERS, b"mt_bench: a\x07b\n", "mt_bench.yml", "U+0007")
_conf_file("repeated key", _PARAMETERS, "mt_bench: {}\nmt_bench: {}\n", "mt_bench")
_conf_file("unknown group", "parameters/x.yml", "mtbench: {a: 1}\n", "mtbench", "mt_bench")
_conf_file("reference to nothing", _PARAMETERS, "mt_bench: ${nowhere}\n", "nowhere")
_conf_file("Python object", _PARAMETERS, "mt_bench: !!python/name:os.system\n", "python")


@_case("conf: run_name of globals", "globals", "run_name")
def _(workshop: Workshop) -> None:
    workshop.write_conf("globals.yml", "run_name: ../x\n")
    workshop.names_the_run = True


_conf_file("catalog without type", "catalog/x.yml", "mt_bench.questions: {filepath: a}\n", "type")
_conf_file("catalog entry is text", "catalog/x.yml", "mt_bench.questions: a\n", "questions")
_conf_file(
    "unknown kind of data set",
    "catalog/x.yml",
    "mt_bench.question_file: {type: pandas.Nothing, filepath: a}\n",
    "question_file",
)
_conf_file("credentials are a list", "credentials.yml", "[1, 2]\n", "credentials")
_conf_file(
    "credentials without a group", "credentials.yml", "openai: sk-x\n", "credentials: openai"
)


# --- Raw files ------------------------------------------------------------------------------------


def _jsonl(
    entry: str,
    path: Path,
    name: str,
    change: Callable[[list[Any]], Any],
    *named: str,
    judge: bool = False,
) -> None:
    """A file of JSON lines; ``change`` gives its bytes, or changes its rows and gives None."""

    @_case(f"{entry}: {name}", *(named or (path.name,)))
    def bring(workshop: Workshop) -> None:
        rows: list[Any] = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        content = change(rows)
        if content is None:
            content = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
        dataset = "sami_pipeline.datasets.JsonLinesDataset"
        file = workshop.file(path.name, content)
        workshop.entry(f"mt_bench.{entry}", {"type": dataset, "filepath": str(file)})
        if judge:
            workshop.change_parameters({"judge": {"kind": "pairwise", "model": "base"}})


def _with(index: int, **fields: Any) -> Callable[[list[Any]], None]:
    def change(rows: list[Any]) -> None:
        rows[index] |= fields

    return change


def _without(index: int, field: str) -> Callable[[list[Any]], None]:
    def change(rows: list[Any]) -> None:
        del rows[index][field]

    return change


_Q = "question_file", QUESTIONS
_jsonl(*_Q, "empty", lambda rows: b"", "question.jsonl", "empty")
_jsonl(*_Q, "blank lines", lambda rows: b"\n \r\n", "question.jsonl", "empty")
_jsonl(*_Q, "no category", _without(3, "category"), "question.jsonl", "line 4", "category")
_jsonl(*_Q, "no turns", _without(0, "turns"), "question.jsonl", "line 1", "turns")
_jsonl(*_Q, "unknown category", _with(1, category="cooking"), "line 2", "category", "writing")
_jsonl(*_Q, "path for a category", _with(1, category="../math"), "line 2", "category", "writing")
_jsonl(*_Q, "one turn", _with(2, turns=["One?"]), "line 3", "turns", "2")
_jsonl(*_Q, "turns are text", _with(2, turns="One? Two?"), "line 3", "turns", "list")
_jsonl(*_Q, "a turn is a number", _with(2, turns=["One?", 2]), "line 3", "turns.1", "string")
_jsonl(*_Q, "a turn is empty", _with(2, turns=["One?", " "]), "line 3", "turns.1", "empty")
_jsonl(*_Q, "control character", _with(2, turns=["a\x00", "b"]), "line 3", "turns.0", "U+0000")
_jsonl(
    *_Q,
    "half a character",
    _with(2, turns=["\ud800", "b"]),
    "line 3",
    "turns.0",
    "half a character",
)
_jsonl(*_Q, "absurdly long", _with(2, turns=["a" * 2_000_000, "b"]), "line 3", "1000000")
_jsonl(*_Q, "id is null", _with(4, question_id=None), "line 5", "question_id")
_jsonl(*_Q, "id is a list", _with(4, question_id=[1]), "line 5", "question_id")
_jsonl(*_Q, "id used twice", _with(4, question_id=81), "line 5", "question_id", "'81'", "line 1")
_jsonl(*_Q, "a line is cut short", lambda rows: QUESTIONS.read_bytes()[:700], "line 3", "JSON")
_jsonl(*_Q, "a line is a list", lambda rows: b"[1, 2]\n", "line 1", "object")
_jsonl(*_Q, "NaN", lambda rows: b'{"question_id": NaN}\n', "line 1", "NaN")
_jsonl(*_Q, "repeated key", lambda rows: b'{"a": 1, "a": 2}\n', "line 1", "twice")
_jsonl(*_Q, "Latin-1", lambda rows: '{"a": "é"}\n'.encode("latin-1"), "line 1", "UTF-8")
_jsonl(*_Q, "UTF-16", lambda rows: '{"a": 1}\n'.encode("utf-16"), "line 1", "UTF-8")
_jsonl(*_Q, "deep nesting", lambda rows: b"[" * 100_000, "line 1", "JSON")
_R = "reference_file", REFERENCES
_jsonl(*_R, "no choices", _without(0, "choices"), "gpt-4.jsonl", "line 1", "choices")
_jsonl(*_R, "choices are empty", _with(0, choices=[]), "gpt-4.jsonl", "line 1", "choices")
_jsonl(*_R, "turns of a choice are null", _with(0, choices=[{"turns": None}]), "choices.0.turns")
_jsonl(*_R, "answers a question twice", _with(1, question_id=101), "line 2", "'101'", "line 1")


@_case("references: neither file has those that the judge needs", "ref_answer_", "reference_answer")
def _(workshop: Workshop) -> None:
    rows = [json.loads(line) for line in QUESTIONS.read_text("utf-8").splitlines()]
    asked = "".join(f"{json.dumps(row | {'reference': None})}\n" for row in rows)
    known = '{"question_id": 1, "choices": [{"turns": ["", ""]}]}\n'
    for entry, content in (("question_file", asked), ("reference_file", known)):
        path = str(workshop.file(f"{entry}.jsonl", content))
        dataset = {"type": "sami_pipeline.datasets.JsonLinesDataset", "filepath": path}
        workshop.entry(f"mt_bench.{entry}", dataset)
    workshop.change_parameters({"judge": {"kind": "pairwise", "model": "base"}})


_J = "judge_prompt_file", JUDGE_PROMPTS
_jsonl(*_J, "no template", _without(0, "prompt_template"), "judge_prompts.jsonl", "line 1")
_jsonl(*_J, "unknown type", _with(0, type="triple"), "line 1", "type", "pairwise")
_jsonl(*_J, "name used twice", lambda rows: rows.append(rows[0]), "pair-v2", "twice")
_jsonl(
    *_J,
    "prompt of the judge is missing",
    lambda rows: rows.pop(0) and None,
    "pair-v2",
    "missing",
    judge=True,
)
_jsonl(
    *_J,
    "placeholder is unknown",
    _with(0, prompt_template="{question} {answer_a} {answer_c}"),
    "pair-v2",
    "answer_c",
    judge=True,
)
_jsonl(
    *_J,
    "single braces",
    _with(0, prompt_template="{question} { {answer_a}"),
    "pair-v2",
    "doubled",
    judge=True,
)


@_case("question_file: is not there", "absent.jsonl")
def _(workshop: Workshop) -> None:
    entry = {"type": "sami_pipeline.datasets.JsonLinesDataset"}
    workshop.entry(
        "mt_bench.question_file", entry | {"filepath": str(workshop.folder / "absent.jsonl")}
    )


@_case("question_file: is a folder", "questions.jsonl")
def _(workshop: Workshop) -> None:
    folder = workshop.folder / "questions.jsonl"
    folder.mkdir()
    entry = {"type": "sami_pipeline.datasets.JsonLinesDataset", "filepath": str(folder)}
    workshop.entry("mt_bench.question_file", entry)


def _folder_entry(folder: Path) -> dict[str, Any]:
    return {
        "type": "partitions.PartitionedDataset",
        "path": str(folder),
        "filename_suffix": ".yml",
        "dataset": {"type": "sami_pipeline.datasets.StrictYamlDataset"},
    }


def _yaml_file(
    entry: str, name: str, content: str | bytes | Callable[[dict[str, Any]], Any], *named: str
) -> None:
    """One file of a folder of YAML files that is changed, or written again."""
    folder = {
        "principle_files": RAW / "principles",
        "query_templates": RAW / "training_prompts",
        "judge_prompt_files": RAW / "judge_prompts",
    }[entry]

    @_case(f"{entry}: {name}", *named)
    def bring(workshop: Workshop) -> None:
        copy = Path(shutil.copytree(folder, workshop.folder / folder.name))
        file = next(iter(sorted(copy.glob("*.yml"))))
        written = content
        if callable(written):
            values = yaml.safe_load(file.read_text("utf-8"))
            changed = written(values)
            written = yaml.safe_dump(values if changed is None else changed)
        file.write_bytes(written.encode() if isinstance(written, str) else written)
        workshop.entry(f"mt_bench.{entry}", _folder_entry(copy))


def _principle(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: values["principles"][0].update(fields)


_P = "principle_files"
_yaml_file(_P, "empty", b"", "coding.yml", "empty")
_yaml_file(_P, "broken", "category: [\n", "coding.yml", "line 2")
_yaml_file(
    _P, "repeated key", "category: coding\ncategory: math\n", "coding.yml", "line 2", "twice"
)
_yaml_file(_P, "alias bomb", _BOMB, "coding.yml", "aliases")
_yaml_file(_P, "alias of itself", "category: &a [*a]\n", "coding.yml")
_yaml_file(_P, "deep nesting", "[" * 5000, "coding.yml", "nested too deeply")
_yaml_file(_P, "Latin-1", "category: é\n".encode("latin-1"), "coding.yml", "line 1", "UTF-8")
_yaml_file(_P, "bell", b"category: a\x07\n", "coding.yml", "U+0007")
_yaml_file(_P, "a list", "- 1\n", "coding.yml", "fields with values")
_yaml_file(
    _P, "a date for a text", _principle(principle=2024), "coding.yml", "principles.0.principle"
)
_yaml_file(_P, "id is a path", _principle(id="../x"), "coding.yml", "principles.0.id")
_yaml_file(_P, "statement is empty", _principle(antithesis=""), "principles.0.antithesis")
_yaml_file(
    _P, "unknown check", _principle(check={"kind": "magic"}), "coding.yml", "principles.0.check"
)
_yaml_file(
    _P,
    "id used twice",
    lambda v: v["principles"].append(v["principles"][0]),
    "coding.yml",
    "2 times",
)
_yaml_file(_P, "unknown key", lambda v: v.update(author="me"), "coding.yml", "author")
_yaml_file(_P, "category of another file", lambda v: v.update(category="math"), "category", "math")
_yaml_file(_P, "Python object", "category: !!python/object/apply:os.system [ls]\n", "coding.yml")
_T = "query_templates"
_yaml_file(_T, "empty", b"", "coding.yml")
_yaml_file(
    _T,
    "slot without fillers",
    lambda v: v["templates"][0].update(text="{nothing}"),
    "coding.yml",
    "nothing",
)
_yaml_file(
    _T,
    "attribute of a slot",
    lambda v: v["templates"][0].update(text="{a.__class__}"),
    "coding.yml",
    "plain slot",
)
_yaml_file(
    _T,
    "too few",
    lambda v: {"category": "coding", "templates": [{"id": "one", "text": "Only this."}]},
    "coding.yml",
    "only 1",
    "per_category",
)
_yaml_file(_T, "category is a path", lambda v: v.update(category="../x"), "coding.yml", "category")
_yaml_file(
    "judge_prompt_files",
    "no system prompt",
    lambda v: v.pop("system_prompt") and None,
    "constitution-v1-multi-turn.yml",
    "system_prompt",
)
_yaml_file(
    "judge_prompt_files",
    "a number for a text",
    lambda v: v.update(prompt_template=5),
    "constitution-v1-multi-turn.yml",
    "prompt_template",
)


def _template(entry: str, name: str, content: str | bytes, *named: str) -> None:
    @_case(f"{entry}: {name}", *named)
    def bring(workshop: Workshop) -> None:
        file = workshop.file("template.yml", content)
        dataset = "sami_pipeline.datasets.StrictYamlDataset"
        workshop.entry(f"mt_bench.{entry}", {"type": dataset, "filepath": str(file)})


_template("generation_prompt", "empty", "", "generation_prompt", "empty")
_template("training_prompt", "unknown kind", "kind: poem\nturn: a\n", "training_prompt: kind")
_template(
    "evaluation_prompt",
    "no placeholder",
    "kind: chat\nturn: '{query}'\n",
    "evaluation_prompt",
    "{constitution}",
)
_template(
    "evaluation_prompt",
    "attribute of a placeholder",
    "kind: chat\nturn: '{query.__class__} {query} {constitution}'\n",
    "evaluation_prompt",
)
_template(
    "evaluation_prompt",
    "system of a plain prompt",
    "kind: plain\nsystem: a\nturn: '{query} {constitution}'\n",
    "evaluation_prompt",
    "system",
)


_template(
    "generation_prompt",
    "absurd width",
    "kind: chat\nturn: '{query} {constitution:>9999999999}'\n",
    "generation_prompt: turn",
)


@_case("principle_files: no file", "principle_files", "No partitions")
def _(workshop: Workshop) -> None:
    folder = workshop.folder / "none"
    folder.mkdir()
    workshop.entry("mt_bench.principle_files", _folder_entry(folder))


# Tables of queries, and GSM8K's own files.


def _query_table(name: str, table: Callable[[], pd.DataFrame | bytes], *named: str) -> None:
    @_case(f"query_table: {name}", *named)
    def bring(workshop: Workshop) -> None:
        made = table()
        path = workshop.folder / "queries.parquet"
        path.write_bytes(made) if isinstance(made, bytes) else made.to_parquet(path)
        workshop.entry(
            "mt_bench.query_table_math", {"type": "pandas.ParquetDataset", "filepath": str(path)}
        )
        workshop.change_parameters({"queries": {"tables": {"math": {"query": "question"}}}})


_MANY = [f"What is {number} + 1?" for number in range(50)]
_query_table(
    "no column", lambda: pd.DataFrame({"text": _MANY}), "queries.parquet", "'question'", "text"
)
_query_table(
    "numbers", lambda: pd.DataFrame({"question": range(50)}), "queries.parquet", "question", "text"
)
_query_table(
    "bytes", lambda: pd.DataFrame({"question": [b"a"] * 50}), "queries.parquet", "question"
)
_query_table(
    "lists", lambda: pd.DataFrame({"question": [["a"]] * 50}), "queries.parquet", "question"
)
_query_table(
    "missing values",
    lambda: pd.DataFrame({"question": [*_MANY[:2], *[None] * 48]}),
    "queries.parquet",
    "2 distinct",
    "per_category",
)
_query_table("repeated", lambda: pd.DataFrame({"question": ["Why?"] * 50}), "1 distinct")
_query_table("no rows", lambda: pd.DataFrame({"question": []}, dtype=str), "0 distinct")
_query_table("empty file", lambda: b"", "queries.parquet")
_query_table("no parquet", lambda: b"question\nWhy?\n", "queries.parquet")


def _gsm8k(name: str, content: str | bytes, *named: str) -> None:
    @_case(f"gsm8k: {name}", *named, pipeline="math")
    def bring(workshop: Workshop) -> None:
        for split in ("train", "test"):
            workshop.file(f"{split}.jsonl", content)
        source = f"gsm8k:{workshop.folder}/{{split}}.jsonl"
        workshop.change_parameters({"problems": {"source": source}}, "math")


def _problems(**changes: Any) -> str:
    rows = [{"question": f"{n} + 1?", "answer": f"#### {n + 1}"} for n in range(20)]
    rows[4] |= changes
    return "".join(f"{json.dumps(row)}\n" for row in rows)


_gsm8k("empty", "", "train.jsonl")
_gsm8k("no answers", '{"question": "1 + 1?"}\n' * 20, "train.jsonl", "answer")
_gsm8k(
    "too few", '{"question": "1 + 1?", "answer": "#### 2"}\n', "train.jsonl", "math.problems.train"
)
_gsm8k("broken line", '{"question": \n', "train.jsonl")
_gsm8k("no final number", _problems(answer="two"), "train.jsonl", "####")
_gsm8k("an answer is null", _problems(answer=None), "train.jsonl", "answer")
_gsm8k("a question is a list", _problems(question=["a"]), "train.jsonl", "question")
_gsm8k(
    "Latin-1",
    _problems(question="é").encode("utf-8").decode("unicode_escape").encode("latin-1"),
    "train.jsonl",
)


# --- Model folders --------------------------------------------------------------------------------


def _model(name: str, change: Callable[[Path], Any], *named: str) -> None:
    @_case(f"model: {name}", "model", *named)
    def bring(workshop: Workshop) -> None:
        change(workshop.model())


def _settings(file: str, **fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def _weights(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(1)}, folder / "pytorch_model.bin")


def _chat_template(template: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "chat_template.jinja").write_text(template)


def _index(weight_map: Any) -> Callable[[Path], Any]:
    return lambda folder: (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map})
    )


_NORM = "model.norm.weight"
_model("pickled weights", _pickled, "pickled", "safetensors")
_model("no weights", lambda f: (f / "model.safetensors").unlink(), "no weights")
_model("no config", lambda f: (f / "config.json").unlink(), "config.json is missing")
_model("no tokenizer", lambda f: [p.unlink() for p in f.glob("tokenizer*")], "no tokenizer")
_model("config is no JSON", lambda f: (f / "config.json").write_text("{"), "config.json", "JSON")
_model("config is a list", lambda f: (f / "config.json").write_text("[]"), "config.json")
_model("no model_type", _settings("config.json", model_type=None), "config.json", "model_type")
_model(
    "unknown model_type", _settings("config.json", model_type="psychic"), "config.json", "psychic"
)
_model(
    "hidden size of another model",
    _settings("config.json", hidden_size=128),
    "config.json",
    "[259, 64]",
    "128",
)
_model(
    "vocabulary of another model",
    _settings("config.json", vocab_size=100),
    "config.json",
    "[100, 64]",
)
_model("hidden size is text", _settings("config.json", hidden_size="big"), "config.json")
_model("heads do not divide", _settings("config.json", num_attention_heads=0), "config.json")
_model(
    "code of its own",
    _settings("config.json", auto_map={"AutoModelForCausalLM": "m.M"}),
    "auto_map",
    "models.trust_remote_code",
)
_model(
    "tokenizer code of its own",
    _settings("tokenizer_config.json", auto_map={"AutoTokenizer": ["m.T", None]}),
    "tokenizer_config.json",
    "models.trust_remote_code",
)
_model("wrong shape", _weights(lambda w: w.update({_NORM: np.zeros(65, "float32")})), _NORM, "[65]")
_model("a weight is missing", _weights(lambda w: w.pop(_NORM)), _NORM, "config.json")
_model(
    "weights of nothing",
    _weights(lambda w: [w.pop(n) for n in list(w)] and w.update({"other": np.zeros(2, "float32")})),
    "none of its weights",
)
_model("NaN", _weights(lambda w: w[_NORM].fill(np.nan)), _NORM, "NaN")
_model("infinity", _weights(lambda w: w[_NORM].fill(np.inf)), _NORM, "infinity")
_model(
    "truncated weights",
    lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
    "model.safetensors",
    "cut short",
)
_model(
    "absurd header",
    lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}"),
    "model.safetensors",
    "cut short",
)
_model("empty weights", lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors")
_model("index leaves the folder", _index({"a": "../../other.safetensors"}), "../../other")
_model("index names an absolute path", _index({"a": "/etc/passwd"}), "/etc/passwd")
_model("shard is missing", _index({"a": "model-00001.safetensors"}), "model-00001.safetensors")
_model("index is a list", lambda f: (f / "model.safetensors.index.json").write_text("[]"), "index")
_model("tokenizer is broken", lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer")
_model("template is no jinja", _chat_template("{% for x in %}"), "chat_template", "TemplateSyntax")
_model(
    "template fails",
    _chat_template("{{ raise_exception('no such role') }}"),
    "chat_template",
    "no such role",
)
_model(
    "template wants what is not there",
    _chat_template("{{ messages[7]['content'] }}"),
    "chat_template",
)
_model(
    "template reaches for Python",
    _chat_template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "chat_template",
)
_model(
    "template divides by nothing", _chat_template("{{ 1 / 0 }}"), "chat_template", "ZeroDivision"
)


@_case("model: is not there", "/nowhere/model", "does not exist")
def _(workshop: Workshop) -> None:
    workshop.params.append("mt_bench.models.sources.base=folder:/nowhere/model")


@_case("model: GGUF is not there", "absent.gguf", "make setup")
def _(workshop: Workshop) -> None:
    workshop.params.append(f"mt_bench.models.sources.base=gguf:{workshop.folder}/absent.gguf")


@_case("model: GGUF is something else", "model.gguf", "no GGUF")
def _(workshop: Workshop) -> None:
    path = workshop.file("model.gguf", b"PK\x03\x04 not a model")
    workshop.params.append(f"mt_bench.models.sources.base=gguf:{path}")


# --- Seeded damage: a byte that no UTF-8 has, at a place drawn for each file ----------------------


def _damaged(entry: str, path: Path, seed: int) -> None:
    @_case(f"{entry}: damaged with seed {seed}", path.name, "line", "UTF-8")
    def bring(workshop: Workshop) -> None:
        content = path.read_bytes()
        place = random.Random(seed).randrange(len(content))
        file = workshop.file(path.name, content[:place] + b"\xff" + content[place:])
        kind = "JsonLinesDataset" if path.suffix == ".jsonl" else "StrictYamlDataset"
        filed = {"type": f"sami_pipeline.datasets.{kind}", "filepath": str(file)}
        workshop.entry(f"mt_bench.{entry}", filed)


for _seed in range(3):
    _damaged("question_file", QUESTIONS, _seed)
    _damaged("reference_file", REFERENCES, _seed)
    _damaged("judge_prompt_file", JUDGE_PROMPTS, _seed)
    _damaged("generation_prompt", RAW / "prompt_templates" / "chat.yml", _seed)
