"""Odd files and values of real use: the command line, spreadsheets, own queries and problems.

See ``bad_inputs``.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from bad_inputs import (
    JUDGE_PROMPTS,
    QUESTIONS,
    Workshop,
    _case,
    _conf_file,
    _gsm8k,
    _jsonl,
    _model,
    _principle,
    _problems,
    _settings,
    _with,
    _yaml_file,
)

# --- What is given on the command line ------------------------------------------------------------


def _given(params: str, *named: str, pipeline: str = "mt_bench") -> None:
    @_case(f"--params {params}", *named, pipeline=pipeline)
    def bring(workshop: Workshop) -> None:
        workshop.params.append(params)


_given("mt_bench.generation.seed=@1", "mt_bench.generation.seed", "quotes")
_given("mt_bench.models.under_test=[base", "under_test", "not closed")
_given("mt_bench.queries.tables.math.prefix='Once", "prefix", "not closed")
_given("mt_bench.models.under_test=base+", "under_test", "[a, b] or a+b")
_given("mt_bench.models.under_test=[base,[sami]]", "under_test.1", "string")
_given("mt_bench.training.sami.trackers=a++b", "trackers", "[a, b] or a+b")
_given("math.accuracy.attempts=1+ten", "math.accuracy.attempts", "whole number", pipeline="math")
_given("mt_bench.queries.tables.math={query: q, between: a}", "between.1", "missing")
_given("sami", "'sami'", "NAME=VALUE")
_given("=5", "NAME=VALUE")
_given("mt_bench.generation.seed=${nowhere}", "nowhere")
_given("mt_bench.generation.seed.deep=1", "seed", "whole number")
_given("completions_of=[a]", "completions_of", "string")
_given("dry_run=perhaps", "dry_run", "true or false")
_given("write_principles.categories=cooking+math", "categories.0", pipeline="write_principles")

for _text in ("1.10", "007", "0x1f"):

    @_case(f"conf: run_name of globals is the number {_text}", "run_name", "quotes")
    def _(workshop: Workshop, text: str = _text) -> None:
        workshop.write_conf("globals.yml", f"run_name: {text}\n")
        workshop.names_the_run = True


_conf_file(
    "UTF-16", "parameters/mt_bench.yml", "mt_bench: {}\n".encode("utf-16"), "mt_bench.yml", "UTF-16"
)
_conf_file(
    "Windows-1252",
    "parameters/mt_bench.yml",
    "mt_bench: {x: „so“}\n".encode("cp1252"),
    "mt_bench.yml",
    "Windows-1252",
)


# --- Own queries and principles -------------------------------------------------------------------


def _align(name: str, changes: Callable[[Workshop], dict[str, Any]], *named: str) -> None:
    @_case(f"align: {name}", *named, pipeline="align")
    def bring(workshop: Workshop) -> None:
        workshop.change_parameters(changes(workshop), "align")


def _queries(file: str, content: str | bytes, *named: str, name: str = "", **more: Any) -> None:
    def changes(workshop: Workshop) -> dict[str, Any]:
        return {"queries": str(workshop.file(file, content)), "columns": {"query": "query"}} | more

    _align(f"queries: {name or named[-1]}", changes, "align.", *named)


def _rows(*first: Any) -> str:
    rows = [*first, *(f"What is {number} + 1?" for number in range(20))]
    return "".join(f"{json.dumps({'query': row})}\n" for row in rows)


_QUOTED = "query,note\nGrüße?,„so“\n"
_queries("q.csv", _QUOTED.encode("cp1252"), "line 2", "Windows-1252")
_queries("q.csv", _QUOTED.encode("utf-16"), "CSV UTF-8", "UTF-16", name="UTF-16 with a mark")
_queries("q.csv", _QUOTED.encode("utf-16-le"), "CSV UTF-8", "UTF-16", name="UTF-16 without a mark")
_queries("q.tsv", _QUOTED.encode("mac-roman"), "line 2", "UTF-8", name="Mac Roman")
_queries("q.xlsx", b"PK\x03\x04", ".csv", "CSV UTF-8", name="a workbook")
_queries("q", "query\nWhy?\n", "ends in nothing")
_queries("q.csv", "query\n", "holds no rows")
_queries("q.csv", "query;note\nWhy?;a\n", "has no column 'query'", "query;note")
_queries("q.csv", 'query\n"Why?\n', "quotes", name="a quote is not closed")
_queries("q.csv", "query\nWhy, then?\n", "line 2", "header 1", name="a field too many")
_queries("q.csv", "query,query\na,b\n", "stands twice")
_queries("q.csv.gz", b"no gzip", "can't be read", name="no gzip")
_queries("q.csv.gz", gzip.compress(b"query\nWhy?\n")[:-9], "can't be read", name="cut gzip")
_queries("q.jsonl", '{"query": "a", "query": "b"}\n', "line 1", "the key 'query' stands twice")
_queries("q.jsonl", _rows("a\ud800b"), "line 1: query", "half a character")
_queries("q.jsonl", _rows("a\x00b"), "row 1", "U+0000")
_queries("q.jsonl", _rows(7), "row 1", "no text", name="a number")
_queries("q.jsonl", _rows(None), "row 1", "None", "no text", name="null")
_queries("q.jsonl", _rows("  "), "row 1", "is empty", name="blank")
_queries("q.jsonl", _rows("Why?", "Why?"), "row 2", "row 1", "duplicates")
_queries("q.jsonl", _rows().splitlines()[0], "too few to split")
_queries("q.parquet", b"PAR1", "no parquet")
for _columns, *_named in (
    ({"where": {"lang": "en"}}, "where", "'lang'"),
    ({"where": {"query": "nothing"}}, "where", "no row"),
    ({"category": "kind"}, "category", "'kind'"),
    ({"starts_after": "###"}, "row 1", "starts_after"),
    ({"ends_before": "What"}, "row 1", "is empty"),
    ({"wording": "Summarise this"}, "wording", "{query}"),
):
    _align(
        f"columns {_columns}",
        lambda workshop, columns=_columns: {
            "queries": str(workshop.file("q.jsonl", _rows())),
            "columns": {"query": "query"} | columns,
        },
        *_named,
    )


@_case("align: category is overall", "row 1", "overall", pipeline="align")
def _(workshop: Workshop) -> None:
    file = workshop.file("q.jsonl", '{"query": "a", "kind": "overall"}\n')
    columns = {"query": "query", "category": "kind"}
    workshop.change_parameters({"queries": str(file), "columns": columns}, "align")


@_case("align: category holds half a character", "line 1: kind", "half a", pipeline="align")
def _(workshop: Workshop) -> None:
    rows = "".join(json.dumps({"query": f"q{n}", "kind": "\ud800"}) + "\n" for n in range(20))
    columns = {"query": "query", "category": "kind"}
    file = workshop.file("q.jsonl", rows)
    workshop.change_parameters({"queries": str(file), "columns": columns}, "align")


_align("queries are not there", lambda w: {"queries": "/nowhere/q.csv"}, "/nowhere/q.csv", "exist")
_align("queries are a folder", lambda w: {"queries": str(w.folder)}, "align.queries", "nothing")
_align("queries at no known address", lambda w: {"queries": "nosuch://a/q.csv"}, "nosuch")


def _principles(name: str, content: str | bytes | list[Any], *named: str) -> None:
    def changes(workshop: Workshop) -> dict[str, Any]:
        written = yaml.safe_dump({"principles": content}) if isinstance(content, list) else content
        return {"principles": str(workshop.file("p.yml", written))}

    _align(f"principles: {name}", changes, "align.principles", *named)


_BRIEF = {"principle": "Be brief.", "antithesis": "Be long."}
_principles("none", "principles: []\n", "no principles")
_principles("empty", "", "no principles")
_principles("both forms", "principles: []\ncategories: {}\n", "give principles, or categories")
_principles("a list of texts", ["Be brief."], "principles.0", "fields with values")
_principles("no antithesis", [{"principle": "Be brief."}], "principles.0.antithesis")
_principles("blank", [_BRIEF | {"antithesis": "  "}], "antithesis", "blank")
_principles("both sides alike", [_BRIEF | {"antithesis": " be BRIEF"}], "antithesis", "opposite")
_principles(
    "alike in evaluation",
    [_BRIEF | {"evaluation": {"antithesis": "Be brief."}}],
    "antithesis",
    "(evaluation)",
)
_principles("half a check", [_BRIEF | {"check": {"name": "fenced_code"}}], "antithesis_check")
_principles("no check for the checklist", [_BRIEF], "no principle has a check")
_principles("Windows-1252", "principles: „“\n".encode("cp1252"), "line 1", "Windows-1252")
_principles("half a character", 'principles: [{principle: "\\ud800", antithesis: b}]\n', "half a")
_align("principles are not there", lambda w: {"principles": "/nowhere/p.yml"}, "/nowhere/p.yml")


def _constitutions(name: str, content: str, *named: str) -> None:
    def changes(workshop: Workshop) -> dict[str, Any]:
        return {"principles": str(workshop.file("constitutions/a.json", content).parent)}

    _align(f"constitutions: {name}", changes, "align.principles", *named)


_constitutions("no JSON", "{", "no valid JSON")
_constitutions("another shape", "{}", "a.json", "positive")
_constitutions(
    "no antithesis",
    json.dumps(
        {
            "positive": "1. Be brief.",
            "negative": "",
            "identifiers": {"positive": ["pos brief"], "negative": []},
        }
    ),
    "brief",
)
_align(
    "constitutions: none in the folder",
    lambda w: {"principles": str(w.folder)},
    "folder without .json",
)


# --- Principles and questions of MT-Bench ---------------------------------------------------------

_yaml_file(
    "principle_files",
    "both sides alike",
    lambda v: v["principles"][0].update(antithesis=v["principles"][0]["principle"]),
    "coding.yml",
    "principles.0",
    "opposite",
)
_yaml_file(
    "principle_files", "blank", _principle(principle=" \t"), "principles.0.principle", "blank"
)
_Q = "question_file", QUESTIONS
_jsonl(*_Q, "a question twice", lambda rows: _with(5, turns=rows[2]["turns"])(rows), "line 6", "3")
_jsonl(*_Q, "a mark in UTF-16", lambda rows: b"\xff\xfe{\0}\0", "line 1", "UTF-16")
_jsonl(
    *_Q, "a key twice within", lambda rows: b'{"turns": {"a": 1, "a": 2}}\n', "line 1", "'a' stands"
)
_jsonl("judge_prompt_file", JUDGE_PROMPTS, "half a character", _with(0, name="\ud800"), "half a")


# --- Math problems --------------------------------------------------------------------------------

for _end in ("1 000", "3:30", "5 6", "3,5", "1e5", "none"):
    _gsm8k(f"the answer is {_end}", _problems(answer=f"#### {_end}"), "line 5", "####")
_gsm8k("UTF-16", _problems().encode("utf-16"), "train.jsonl", "UTF-16")
_gsm8k("a key twice", '{"question": "a", "question": "b"}\n', "line 1", "stands twice")
_gsm8k("half a character", _problems(question="a\ud800"), "line 5: question", "half a")


def _training_source(name: str, bring_file: Callable[[Workshop], str], *named: str) -> None:
    @_case(f"math.problems.training_source: {name}", *named, pipeline="math")
    def bring(workshop: Workshop) -> None:
        source = {"training_source": f"math:{bring_file(workshop)}"}
        workshop.change_parameters({"problems": source}, "math")


def _solved(**changes: Any) -> str:
    rows = [{"problem": f"{n} + 1?", "solution": f"It is {n + 1}."} for n in range(200)]
    rows[4] |= changes
    return "".join(f"{json.dumps(row)}\n" for row in rows)


_training_source("not there", lambda w: "/nowhere/m.jsonl", "/nowhere/m.jsonl")
_training_source("a folder", lambda w: str(w.folder), "can't be read")
_training_source("no parquet", lambda w: str(w.file("m.parquet", b"PAR1")), "m.parquet", "be read")
_training_source("other columns", lambda w: str(w.file("m.jsonl", _problems())), "m.jsonl", "prob")
_training_source(
    "half a character",
    lambda w: str(w.file("m.jsonl", _solved(solution="\udc00"))),
    "m.jsonl",
    "line 5: solution",
    "half a character",
)
_training_source(
    "a number", lambda w: str(w.file("m.jsonl", _solved(problem=5))), "m.jsonl", "line 5", "no text"
)


# --- Tables of queries, model folders, published answers ------------------------------------------


@_case("query_table: an unknown package", "query_table_math", "pip install openpyxl")
def _(workshop: Workshop) -> None:
    path = workshop.file("queries.xlsx", b"PK\x03\x04")
    entry = {"type": "pandas.ExcelDataset", "filepath": str(path)}
    workshop.entry("mt_bench.query_table_math", entry)
    workshop.change_parameters({"queries": {"tables": {"math": {"query": "question"}}}})


@_case("query_table: CSV in a code page", "queries.csv", "can't be read")
def _(workshop: Workshop) -> None:
    path = workshop.file("queries.csv", "question\nGrüße?\n".encode("cp1252"))
    entry = {"type": "pandas.CSVDataset", "filepath": str(path)}
    workshop.entry("mt_bench.query_table_math", entry)
    workshop.change_parameters({"queries": {"tables": {"math": {"query": "question"}}}})


def _marked(file: str) -> Callable[[Any], Any]:
    def change(folder: Any) -> None:
        path = folder / file
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    return change


_model("config.json begins with a byte order mark", _marked("config.json"), "config.json")
_model(
    "config.json in UTF-16",
    lambda f: (f / "config.json").write_bytes((f / "config.json").read_text().encode("utf-16")),
    "config.json",
)


@_case("published: no folder", "published.folder", pipeline="published")
def _(workshop: Workshop) -> None:
    pass


@_case("published: an empty folder", "published", pipeline="published")
def _(workshop: Workshop) -> None:
    workshop.params.append(f"published.folder={workshop.folder}")


# --- Catalog entries that do not reach what they name ---------------------------------------------


@_case(
    "generation_prompt: set for all, while the base names that of one",
    "case.yml",
    "'{experiment}.generation_prompt' does not reach mt_bench.generation_prompt",
    "add an entry mt_bench.generation_prompt",
)
def _(workshop: Workshop) -> None:
    file = workshop.file("template.yml", "kind: chat\nturn: '{constitution} {query}'\n")
    dataset = "sami_pipeline.datasets.StrictYamlDataset"
    workshop.entry("{experiment}.generation_prompt", {"type": dataset, "filepath": str(file)})


# --- Paths that no file can have, and cells that no text can be -----------------------------------

_LONG = f"/{'a' * 300}"
for _kind in ("folder", "gguf"):
    _given(f"mt_bench.models.sources.base={_kind}:{_LONG}", "aaaa", "too long")
    _given(f"mt_bench.models.sources.base={_kind}:~no-such-user/x", "~no-such-user/x", "not exist")
_align(
    "queries: a path too long", lambda w: {"queries": f"{_LONG * 5}.csv"}, "queries", "at most 1000"
)
_align("queries: a name too long", lambda w: {"queries": f"{_LONG}.csv"}, "aaaa", "too long")
_align(
    "queries of an unknown user",
    lambda w: {"queries": "~no-such-user/q.csv"},
    "~no-such-user/q.csv",
    "exist",
)
_align(
    "principles of an unknown user",
    lambda w: {"principles": "~no-such-user/p.yml"},
    "~no-such-user/p.yml",
    "exist",
)
_align("queries: a store without its package", lambda w: {"queries": "s3://b/q.csv"}, "s3fs")
_align("queries: no server", lambda w: {"queries": "ftp://127.0.0.1:9/q.csv"}, "refused", "copy")
_given("math.problems.source='gsm8k:s3://b/{split}.jsonl'", "s3fs", "copy it", pipeline="math")


_ENGINE = "mt_bench.generation.engine"
for _address in ("localhost/v1", "http://127.0.0.1:99999/v1", "http://127.0.0.1:x/v1"):
    _given(
        f"{_ENGINE}.kind=openai,{_ENGINE}.openai.model=m,{_ENGINE}.openai.base_url={_address}",
        f"{_ENGINE}.openai.base_url",
        "an address such as",
    )


def _loop(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(path)
    return path


_align("queries: a link to itself", lambda w: {"queries": str(_loop(w.folder / "q.csv"))}, "q.csv")
_align(
    "constitutions: a link to itself",
    lambda w: {"principles": str(_loop(w.folder / "c" / "a.json").parent)},
    "a.json",
    "can't be read",
)


@_case("conf: a file that is a link to itself", "own.yml", "link")
def _(workshop: Workshop) -> None:
    workshop.write_conf("parameters/own.yml", "")
    path = workshop.folder / "conf" / "test" / "parameters" / "own.yml"
    path.unlink()
    _loop(path)


_constitutions("a key twice", '{"positive": "1. a", "positive": "1. b"}', "a.json", "stands twice")
_constitutions("deep nesting", "[" * 100_000, "a.json", "JSON")


def _parquet(name: str, table: dict[str, Any], columns: dict[str, Any], *named: str) -> None:
    def changes(workshop: Workshop) -> dict[str, Any]:
        path = workshop.folder / "q.parquet"
        pq.write_table(pa.table({"query": [f"{n} + 1?" for n in range(20)]} | table), path)
        return {"queries": str(path), "columns": {"query": "query"} | columns}

    _align(f"queries in parquet: {name}", changes, "align.", *named)


_NO_UTF_8 = pa.array([b"\xff\xfe"] * 20).view(pa.string())
_parquet("no UTF-8", {"query": _NO_UTF_8}, {}, "q.parquet", "UTF8")
_parquet("bytes", {"query": pa.array([b"\xff"] * 20)}, {}, "row 1", "no text")
_parquet("dates", {"query": pa.array(pd.date_range("2020", periods=20))}, {}, "row 1", "no text")
_parquet("no text in a structure", {"query": [{"a": 1}] * 20}, {"query": "query.a"}, "no text")
_parquet("lists of categories", {"k": [["a", "b"]] * 20}, {"category": "k"}, "row 1", "no name")
_parquet("lists to choose by", {"k": [["a", "b"]] * 20}, {"where": {"k": "a"}}, "no row")
_parquet("a category of two lines", {"k": ["a\nb"] * 20}, {"category": "k"}, "row 1", "one line")
_queries("q.jsonl", _rows("\u200b\u202e"), "row 1", "is empty", name="nothing that is seen")
_principles("a control character", 'principles: [{principle: "a\\0", antithesis: b}]\n', "U+0000")
_principles(
    "true and false", "principles: [{principle: yes, antithesis: no}]\n", "principle", "string"
)


@_case("query_table: lists of two texts", "queries.parquet", "no text")
def _(workshop: Workshop) -> None:
    _table_of_queries(workshop, [["a", "b"]] * 50)


@_case("query_table: no UTF-8", "queries.parquet", "UTF-8")
def _(workshop: Workshop) -> None:
    _table_of_queries(workshop, pa.array([b"\xff\xfe"] * 50).view(pa.string()))


def _table_of_queries(workshop: Workshop, texts: Any) -> None:
    path = workshop.folder / "queries.parquet"
    pq.write_table(pa.table({"question": texts}), path)
    entry = {"type": "pandas.ParquetDataset", "filepath": str(path)}
    workshop.entry("mt_bench.query_table_math", entry)
    workshop.change_parameters({"queries": {"tables": {"math": {"query": "question"}}}})


# --- Answers of others ----------------------------------------------------------------------------


def _answers(name: str, content: str | bytes, *named: str, file: str = "a.jsonl") -> None:
    @_case(f"answers: {name}", *named)
    def bring(workshop: Workshop) -> None:
        path = workshop.file(file, content)
        sources = {"base": "random:0", "other": f"answers:{path}"}
        tested = {"under_test": ["base", "sami", "other"]}
        workshop.change_parameters({"models": {"sources": sources, **tested}})


def _turn(**fields: Any) -> str:
    return f"{json.dumps({'question_id': 81, 'turn': 1, 'answer': 'a'} | fields)}\n"


_answers("empty", "", "a.jsonl", "is empty")
_answers("some are missing", _turn(), "a.jsonl", "not answered")
_answers("no answer", '{"question_id": 81, "turn": 1}\n', "line 1", "answer")
_answers("a number", _turn(answer=7), "line 1: answer", "text")
_answers("a turn in words", _turn(turn="one"), "line 1: turn", "whole number")
_answers("a turn is a list", _turn(turn=[1]), "line 1: turn", "whole number")
_answers("tokens in words", _turn(completion_tokens="many"), "completion_tokens", "whole number")
_answers("a list for a constitution", _turn(constitution=["a"]), "line 1: constitution", "text")
_answers("twice", _turn() * 2, "answered twice")
_answers("turns are one text", '{"question_id": 81, "choices": [{"turns": "ab"}]}\n', "a list")
_answers("no parquet", b"PAR1", "a.parquet", "parquet", file="a.parquet")
_answers("UTF-16", _turn().encode("utf-16"), "line 1", "UTF-16")


# --- Model folders --------------------------------------------------------------------------------


def _holds(file: str, content: str) -> Callable[[Any], Any]:
    return lambda folder: (folder / file).write_text(content)


_TEMPLATE = "chat_template.jinja"
_model("template leaves out what is asked", _holds(_TEMPLATE, "Hello!"), "leaves out")
_model("template cuts what is asked", _holds(_TEMPLATE, "{{ messages[0].content[:3] }}"), "leaves")
_model(
    "template calls itself",
    _holds(_TEMPLATE, "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"),
    "chat_template",
    "RecursionError",
)
_model("more layers than weights", _settings("config.json", num_hidden_layers=10**6), "layers")
_model(
    "generation settings are no JSON", _holds("generation_config.json", "{"), "generation_config"
)
_model("generation settings are a list", _holds("generation_config.json", "[]"), "settings")
_model("end is a text", _holds("generation_config.json", '{"eos_token_id": "x"}'), "eos_token_id")
_model("tokenizer settings are a list", _holds("tokenizer_config.json", "[]"), "tokenizer_config")


@_case("references: the published ones, and there are none", "ref_answer_", "reference_answer")
def _(workshop: Workshop) -> None:
    known = workshop.file("known.jsonl", '{"question_id": 1, "choices": [{"turns": ["", ""]}]}\n')
    dataset = {"type": "sami_pipeline.datasets.JsonLinesDataset", "filepath": str(known)}
    workshop.entry("mt_bench.reference_file", dataset)
    judge = {"kind": "pairwise", "model": "base", "references": "published"}
    workshop.change_parameters({"judge": judge})
