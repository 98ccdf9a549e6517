"""Training queries from tables: hub data sets or any parquet of the catalog."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from sami_pipeline.errors import InputError, one_line
from sami_pipeline.parameters import QueriesParameters


def queries_from_tables(
    tables: Mapping[str, pd.DataFrame], parameters: QueriesParameters
) -> pd.DataFrame | None:
    """Return a seeded sample of queries of each table, columns mapped as configured.

    Args:
        tables: by category.
        parameters: ``tables`` names the query column and the rows to keep for each category.

    Returns:
        ``query_id, category, query, source``, or None where there are no tables.

    Raises:
        InputError: a column is missing, or fewer distinct queries than asked for.
    """
    parts = []
    for category in sorted(tables):
        mapping, table = parameters.tables[category], tables[category]
        where = f"query_table_{category}"
        for column in (mapping.query, *mapping.where):
            if column not in table:
                raise InputError(
                    f"{where}: column {column!r} is missing; it has {', '.join(map(str, table))}"
                )
        for column, value in mapping.where.items():
            table = table[table[column] == value]
        if odd := [value for value in table[mapping.query].dropna() if not isinstance(value, str)]:
            raise InputError(
                f"{where}: column {mapping.query!r} holds {one_line(repr(odd[0]))[:40]}, which is "
                "no text; name a column of texts"
            )
        distinct = table[mapping.query].dropna().astype(str).str.strip()
        distinct = distinct[distinct != ""].drop_duplicates().sort_values()
        if len(distinct) < parameters.per_category:
            raise InputError(
                f"{where}: {len(distinct)} distinct queries, {parameters.per_category} needed; "
                "lower queries.per_category or name a larger table"
            )
        sample = distinct.sample(parameters.per_category, random_state=parameters.seed)
        parts.append(
            pd.DataFrame(
                {
                    "query_id": [f"{category}-{i:04d}" for i in range(len(sample))],
                    "category": category,
                    "query": sample.to_numpy(),
                    "source": where,
                }
            )
        )
    return pd.concat(parts, ignore_index=True) if parts else None
