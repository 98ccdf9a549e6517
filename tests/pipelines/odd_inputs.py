"""Odd files and values of real use: the command line, spreadsheets, own queries and problems.

See ``bad_inputs``.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

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
