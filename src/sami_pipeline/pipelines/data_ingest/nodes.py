"""Nodes of data_ingest: raw files become tables and model folders."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from sami_pipeline import PROJECT_FOLDER
from sami_pipeline.errors import InputError
from sami_pipeline.evaluation import mt_bench
from sami_pipeline.evaluation.statistics import MT_BENCH_CATEGORIES
from sami_pipeline.inputs.own_queries import (
    ONE_CATEGORY,
    read_principles,
    read_queries,
    split_queries,
)
from sami_pipeline.inputs.problems import load_problems, queries_of
from sami_pipeline.inputs.queries import queries_from_tables
from sami_pipeline.inputs.query_templates import build_training_prompts
from sami_pipeline.inputs.records import (
    JudgePrompt,
    Question,
    ReferenceAnswer,
    parse_records,
    read_records,
    refuse_repeated,
)
from sami_pipeline.models.checkpoints import Checkpoint, LoadedModel, import_model
from sami_pipeline.parameters import (
    ModelsParameters,
    ProblemsParameters,
    QueriesParameters,
    QueryColumnsParameters,
    QuerySplitParameters,
)
from sami_pipeline.principles.constitutions import tabulate_principles

logger = logging.getLogger(__name__)


def import_named_model(models: ModelsParameters, *, name: str) -> Checkpoint | LoadedModel:
    """Return the model of that name, from the source that the parameters name."""
    trusted = name in models.trust_remote_code
    imported = import_model(models.sources[name], PROJECT_FOLDER, trust_remote_code=trusted)
    return replace(imported, chat=models.chat)


def tidy_questions(question_file: pd.DataFrame, reference_file: pd.DataFrame) -> pd.DataFrame:
    """Return the questions' turns with their reference answers, one row each.

    The columns are ``question_id, category, turn, question, reference, published_reference``. The
    reference is the question file's own, else GPT-4's unless it is wrong, and empty where there is
    none; the published one is GPT-4's (``mt_bench.references``). Raises InputError naming the line
    and the field that is wrong.
    """
    questions = read_records(Question, question_file, "question_file", unique="question_id")
    refuse_repeated((question.turns[0] for question in questions), "question_file", "turns.0")
    answers = read_records(ReferenceAnswer, reference_file, "reference_file", unique="question_id")
    published = {answer.question_id: answer.choices[0].turns for answer in answers}
    rows = [
        {
            "question_id": str(asked.question_id),
            "category": asked.category,
            "turn": turn,
            "question": question,
            "reference": mt_bench.references(
                str(asked.question_id), asked.reference, published.get(asked.question_id)
            )[turn - 1],
            "published_reference": published.get(asked.question_id, ["", ""])[turn - 1],
        }
        for asked in questions
        for turn, question in enumerate(asked.turns, start=1)
    ]
    return pd.DataFrame(rows)


def tidy_judge_prompts(
    judge_prompt_file: pd.DataFrame, written: dict[str, Callable[[], Any]]
) -> pd.DataFrame:
    """Return MT-Bench's judge prompts and those in YAML files, one row each, with unique names."""
    published = read_records(JudgePrompt, judge_prompt_file, "judge_prompt_file")
    own = parse_records(
        JudgePrompt, (load() for load in written.values()), [f"{name}.yml" for name in written]
    )
    table = pd.DataFrame([prompt.model_dump() for prompt in (*published, *own)])
    if twice := sorted(table["name"][table["name"].duplicated()]):
        raise InputError(f"judge_prompt_file: name: {twice[0]!r} is used twice; rename one")
    return table.sort_values("name", ignore_index=True)


def build_queries(
    specifications: dict[str, Callable[[], Any]],
    parameters: QueriesParameters,
    **tables: pd.DataFrame,
) -> pd.DataFrame:
    """Return the training queries ``query_id, category, query, source``, of all eight categories.

    Args:
        specifications: loaders of the project's own template files, by file name.
        parameters: how many, and which categories come from tables instead.
        tables: for each of those, its table, named query_table_<name>.
    """
    loaded = {f"{name}.yml": load() for name, load in specifications.items()}
    written = (
        build_training_prompts(
            {
                name: content
                for name, content in loaded.items()
                if not isinstance(content, dict)
                or content.get("category") not in parameters.tabulated
            },
            parameters.per_category,
            parameters.seed,
        )
        if parameters.templates and len(parameters.tabulated) < len(MT_BENCH_CATEGORIES)
        else None
    )
    from_tables = queries_from_tables(
        {name.removeprefix("query_table_"): table for name, table in tables.items()}, parameters
    )
    queries = pd.concat([t for t in (written, from_tables) if t is not None], ignore_index=True)
    logger.info(
        "%d training queries: %s", len(queries), queries["category"].value_counts().to_dict()
    )
    return queries


def build_principles(
    specifications: dict[str, Callable[[], Any]], *, categories: Sequence[str]
) -> pd.DataFrame:
    """Return one row per principle of these categories; see ``tabulate_principles``."""
    loaded = {f"{name}.yml": load() for name, load in specifications.items()}
    return tabulate_principles(loaded, categories)


def read_own_queries(
    table: pd.DataFrame,
    principles: Any,
    columns: QueryColumnsParameters,
    split: QuerySplitParameters,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return the principles, the queries to train on or to hold out, and the test questions."""
    queries = read_queries(table, columns)
    return (
        read_principles(principles, queries["category"]),
        *split_queries(queries, split),
    )


def read_own_principles(principles: Any) -> pd.DataFrame:
    """Return the principles of a file for all of its categories, whatever the queries are."""
    lists = principles.get("categories") if isinstance(principles, dict) else None
    return read_principles(principles, lists if isinstance(lists, dict) else [ONE_CATEGORY])


def collect_problems(parameters: ProblemsParameters) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the math problems of both splits, and those to train on as training queries."""
    problems = load_problems(parameters, PROJECT_FOLDER)
    logger.info("Problems: %s", problems["split"].value_counts().to_dict())
    return problems, queries_of(problems)
