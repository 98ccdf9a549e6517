"""Queries and principles of one's own: a table and a file of any shape become the project's."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

import pandas as pd

from sami_pipeline.errors import InputError, one_line
from sami_pipeline.evaluation.statistics import ALL_PRINCIPLES, OVERALL, OVERALL_PAPER
from sami_pipeline.inputs.outside_files import is_missing, same_value
from sami_pipeline.inputs.records import plain_text
from sami_pipeline.parameters import QueryColumnsParameters, QuerySplitParameters
from sami_pipeline.principles.constitutions import tabulate_principles

logger = logging.getLogger(__name__)

ONE_CATEGORY = "all_queries"
"""What queries without a category are in."""
_RESERVED = (OVERALL, OVERALL_PAPER, ALL_PRINCIPLES)
_LONGEST_NAME = 200
_NUMBERED = re.compile(r"^\s*\d+[.)]\s*", re.MULTILINE)


def read_queries(table: pd.DataFrame, columns: QueryColumnsParameters) -> pd.DataFrame:
    """Return the queries of a table, each once.

    Args:
        table: one row a query, with any columns.
        columns: which hold what.

    Returns:
        ``query_id`` (the number of its row, from 1), ``category, query``.

    Raises:
        InputError: a column is missing, a query is empty, no text, or stands twice.
    """
    texts = _column(table, columns.query, "query")
    categories = (
        [ONE_CATEGORY] * len(table)
        if columns.category is None
        else _column(table, columns.category, "category")
    )
    kept = [True] * len(table)
    for name, wanted in columns.where.items():
        values = _column(table, name, "where")
        kept = [keep and same_value(v, wanted) for keep, v in zip(kept, values, strict=True)]
    if not any(kept):
        raise InputError(f"align.columns.where: {columns.where}: no row of the table has this")
    width = len(str(len(table)))
    rows: list[tuple[str, str, str]] = []
    first_at: dict[str, int] = {}
    dropped = 0
    for number, (keep, text, category) in enumerate(
        zip(kept, texts, categories, strict=True), start=1
    ):
        if not keep:
            continue
        query = _query(text, number, columns)
        if query in first_at:
            if columns.duplicates == "refuse":
                raise InputError(
                    f"align.queries: row {number}: {columns.query}: is the query of row "
                    f"{first_at[query]} again; remove one, or set align.columns.duplicates: drop"
                )
            dropped += 1
            continue
        first_at[query] = number
        asked = columns.wording.replace("{query}", query)
        rows.append((f"{number:0{width}d}", _category(category, number, columns), asked))
    if dropped:
        logger.info("%d rows repeat a query and are left out", dropped)
    return pd.DataFrame(rows, columns=["query_id", "category", "query"])


def _column(table: pd.DataFrame, name: str, parameter: str) -> list[Any]:
    if name in table:
        return table[name].tolist()
    outer, _, inner = name.partition(".")
    if inner and outer in table:
        values = table[outer].tolist()
        if all(isinstance(value, Mapping) and inner in value for value in values):
            return [value[inner] for value in values]
    raise InputError(
        f"align.columns.{parameter}: the table has no column {name!r}; it has "
        f"{', '.join(map(str, table))}"
    )


def _query(text: Any, number: int, columns: QueryColumnsParameters) -> str:
    place = f"align.queries: row {number}: {columns.query}"
    if not isinstance(text, str):
        raise InputError(f"{place}: holds {one_line(repr(text))[:40]}, which is no text")
    if columns.starts_after:
        _, found, text = text.partition(columns.starts_after)
        if not found:
            raise InputError(
                f"{place}: does not hold {columns.starts_after!r}; correct "
                "align.columns.starts_after, or choose rows with align.columns.where"
            )
    if columns.ends_before:
        text = text.partition(columns.ends_before)[0]
    try:
        return plain_text(text.strip())
    except ValueError as error:
        raise InputError(f"{place}: {error}") from None


def _category(value: Any, number: int, columns: QueryColumnsParameters) -> str:
    place = f"align.queries: row {number}: {columns.category}"
    if not isinstance(value, str | int | float | date | None) and not is_missing(value):
        raise InputError(f"{place}: holds {one_line(repr(value))[:40]}, which is no name")
    name = "" if is_missing(value) else str(value).strip()
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise InputError(
            f"{place}: {one_line(name)[:40]!r}: must be a name in one line, of at most "
            f"{_LONGEST_NAME} characters"
        )
    if not name:
        raise InputError(f"{place}: is empty; name a category, or set align.columns.category: null")
    if name in _RESERVED:
        raise InputError(f"{place}: {name!r} names a row of the results; choose another name")
    return name


def split_queries(
    queries: pd.DataFrame, split: QuerySplitParameters
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the queries to train on and to hold out, and the test queries as questions.

    The parts are drawn in every category by itself. A category with two queries or more is asked
    about at least once, and trained on at least once.

    Args:
        queries: as from ``read_queries``.
        split: the shares.

    Returns:
        ``query_id, category, query, source, split`` with split "train" or "held_out", and
        ``question_id, category, turn, question, reference`` with one turn and no reference.

    Raises:
        InputError: too few queries for two that are asked and two that are trained on.
    """
    parts = []
    for _, table in queries.groupby("category", sort=True):
        drawn = table.sample(frac=1, random_state=split.seed).head(split.most or len(table))
        count = len(drawn)
        test = min(max(round(split.test * count), 1), count - 1)
        held_out = min(round(split.held_out * count), count - test - 1)
        names = ["test"] * test + ["held_out"] * held_out + ["train"] * (count - test - held_out)
        parts.append(drawn.assign(split=names))
    drawn = pd.concat(parts).sort_values("query_id", ignore_index=True)
    counts = Counter(drawn["split"])
    logger.info("Queries: %s", dict(counts))
    for part in ("train", "test"):
        if counts[part] < 2:
            raise InputError(
                f"align.queries: {len(queries)} queries are too few to split: {counts[part]} to "
                f"{part}, at least 2 are needed; add queries, or change align.split"
            )
    asked = drawn["split"] == "test"
    questions = drawn[asked].rename(columns={"query_id": "question_id", "query": "question"})
    return (
        drawn[~asked]
        .assign(source="align.queries")[["query_id", "category", "query", "source", "split"]]
        .reset_index(drop=True),
        questions.assign(turn=1, reference="")[
            ["question_id", "category", "turn", "question", "reference"]
        ].reset_index(drop=True),
    )


def read_principles(content: Any, categories: Iterable[str]) -> pd.DataFrame:
    """Return the principles of a file for every category of the queries.

    Args:
        content: of a YAML file: ``principles``, a list for all queries, or ``categories``, such a
            list for each category. A principle has ``principle`` and ``antithesis``; ``id``,
            ``check`` and ``antithesis_check`` may be left out. Or the published constitutions of
            a folder by file name; see ``published_principles``.
        categories: of the queries.

    Returns:
        As from ``tabulate_principles``.

    Raises:
        InputError: the file holds no usable principle, or none for a category.
    """
    wanted = sorted(set(categories))
    if not isinstance(content, Mapping) or not content:
        raise InputError(
            "align.principles: holds no principles; write a list under principles, each with "
            "principle and antithesis"
        )
    if all(str(name).endswith(".json") for name in content):
        content = {"principles": published_principles(content)}
    known = {"principles", "categories", "written_by", "category"}
    if odd := [name for name in content if name not in known]:
        raise InputError(
            f"align.principles: {one_line(str(odd[0]))}: is no field that is known here; known: "
            f"{', '.join(sorted(known))}"
        )
    if ("principles" in content) == ("categories" in content):
        raise InputError("align.principles: give principles, or categories with a list for each")
    if "categories" in content:
        lists = content["categories"]
        if not isinstance(lists, Mapping):
            raise InputError("align.principles: categories: must be names with lists of principles")
        lists = {str(name): items for name, items in lists.items()}
        if lacking := [name for name in wanted if name not in lists]:
            raise InputError(
                f"align.principles: categories: none for {', '.join(lacking)}, which "
                "align.queries has; write them, or choose rows with align.columns.where"
            )
        for name in sorted(set(lists) - set(wanted)):
            logger.warning("align.principles: no query has the category %r; not used", name)
    else:
        lists = dict.fromkeys(wanted, content["principles"])
    written_by = content.get("written_by", "a person")
    return pd.concat(
        [
            tabulate_principles(
                {
                    "align.principles": {
                        "category": name,
                        "written_by": written_by,
                        "principles": _with_ids(lists[name]),
                    }
                },
                None,
            )
            for name in wanted
        ],
        ignore_index=True,
    )


def _with_ids(items: Any) -> Any:
    """Return a list of principles with an id for each that has none."""
    if not isinstance(items, list) or not items:
        raise InputError(
            "align.principles: holds no principles; write at least one with principle and "
            "antithesis"
        )
    return [
        {"id": f"principle_{number}"} | item if isinstance(item, Mapping) else item
        for number, item in enumerate(items, start=1)
    ]


def published_principles(files: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the principles behind published constitutions (arXiv 2404.14313).

    A file has two constitutions as numbered statements, ``positive`` and ``negative``, and for each
    statement an identifier such as "pos concise" or "neg concise". Over all files every identifier
    has its statement, and both statements of a name make a principle.

    Args:
        files: parsed JSON by file name.

    Raises:
        InputError: a file has another shape, or a principle lacks its antithesis.
    """
    statements: dict[str, dict[str, str]] = {}
    for file_name, content in sorted(files.items()):
        for side in ("positive", "negative"):
            try:
                texts = [t.strip() for t in _NUMBERED.split(content[side]) if t.strip()]
                names = content["identifiers"][side]
                for name, text in zip(names, texts, strict=True):
                    sign, _, short = name.partition(" ")
                    stance = {"pos": "principle", "neg": "antithesis"}[sign]
                    statements.setdefault(re.sub(r"\W+", "_", short.lower()), {}).setdefault(
                        stance, text
                    )
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise InputError(
                    f"align.principles: {file_name}: {side}: is no numbered list of statements "
                    "with an identifier (pos NAME or neg NAME) for each"
                ) from error
    lacking = [name for name, both in statements.items() if len(both) < 2]
    if lacking or not statements:
        raise InputError(
            f"align.principles: no pair of principle and antithesis for {', '.join(lacking)}"
        )
    return [{"id": name, **both} for name, both in sorted(statements.items())]
