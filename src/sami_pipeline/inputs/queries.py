"""Training queries from tables: hub data sets or any parquet of the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyarrow as pa

from sami_pipeline.errors import InputError, one_line
from sami_pipeline.inputs.outside_files import is_missing, same_value
from sami_pipeline.parameters import QueriesParameters, QueryTableParameters


def queries_from_tables(
    tables: Mapping[str, pd.DataFrame], parameters: QueriesParameters
) -> pd.DataFrame | None:
    """Return a seeded sample of queries of each table, columns mapped as configured.

    Args:
        tables: by name.
        parameters: ``tables`` says of each how its queries are read.

    Returns:
        ``query_id, category, query, source``, or None where there are no tables.

    Raises:
        InputError: a column is missing, or fewer distinct queries than asked for.
    """
    parts = []
    for name in sorted(tables):
        mapping, where = parameters.tables[name], f"query_table_{name}"
        distinct = _distinct_queries(tables[name], mapping, where)
        wanted = mapping.at_most or parameters.per_category
        if mapping.at_most is None and len(distinct) < wanted:
            raise InputError(
                f"{where}: {len(distinct)} distinct queries, {wanted} needed; lower "
                f"queries.per_category, set queries.tables.{name}.at_most, or name a larger table"
            )
        if distinct.empty:
            raise InputError(
                f"{where}: no query is left; look at queries.tables.{name}: where, between, "
                "max_non_ascii"
            )
        sample = distinct.sample(min(wanted, len(distinct)), random_state=parameters.seed)
        parts.append(
            pd.DataFrame(
                {
                    "query_id": [f"{name}-{i:04d}" for i in range(len(sample))],
                    "category": parameters.category_of(name),
                    "query": sample.to_numpy(),
                    "source": where,
                }
            )
        )
    return pd.concat(parts, ignore_index=True) if parts else None


def _distinct_queries(table: pd.DataFrame, mapping: QueryTableParameters, where: str) -> pd.Series:
    """Return the texts of a table's queries, each once, in alphabetical order."""
    column = mapping.query if mapping.query in table else mapping.query.partition(".")[0]
    for needed in (column, *mapping.where):
        if needed not in table:
            raise InputError(
                f"{where}: column {needed!r} is missing; it has {', '.join(map(str, table))}"
            )
    if mapping.first_rows is not None:
        table = table.head(mapping.first_rows)
    for name, value in mapping.where.items():
        table = table[[same_value(each, value) for each in _values(table, name, where)]]
    steps = mapping.query.removeprefix(column).split(".")[1:]
    found = []
    for cell in _values(table, column, where):
        value = _within(cell, steps)
        if is_missing(value):
            continue
        if not isinstance(value, str):
            raise InputError(
                f"{where}: column {mapping.query!r} holds {one_line(repr(value))[:40]}, which is "
                "no text; name a column of texts"
            )
        if query := _prepared(value, mapping):
            found.append(query)
    return pd.Series(found, dtype="str").drop_duplicates().sort_values()


def _values(table: pd.DataFrame, column: str, where: str) -> list[Any]:
    try:
        return table[column].tolist()
    except pa.ArrowException as error:
        raise InputError(
            f"{where}: column {column!r}: holds text that is no UTF-8; write it again in UTF-8"
        ) from error


def _within(cell: Any, steps: list[str]) -> Any:
    """Return the place within a cell of lists and mappings, or None where it has no such place."""
    for step in steps:
        try:
            cell = cell[int(step)] if step.isdigit() else cell[step]
        except (KeyError, IndexError, TypeError):
            return None
    return cell


def _prepared(text: str, mapping: QueryTableParameters) -> str:
    """Return a query as it is asked, or nothing where it is left out."""
    if mapping.between is not None:
        start, end = mapping.between
        _, found, rest = text.partition(start)
        text, also_found, _ = rest.partition(end)
        if not (found and also_found):
            return ""
    if mapping.before is not None:
        text = text.partition(mapping.before)[0]
    text = text.strip()
    beyond = sum(not letter.isascii() for letter in text)
    if not text or (mapping.max_non_ascii is not None and beyond > mapping.max_non_ascii):
        return ""
    return f"{mapping.prefix}{text}{mapping.suffix}"
