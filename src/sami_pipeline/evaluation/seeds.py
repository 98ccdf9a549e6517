"""Training seeds: a model that was trained several times is one model under test.

Its trainings are *replicates*: the same responses, parameters and questions, another seed of the
training. Tables of texts and verdicts name the seed in a column (`SEED`, and `OPPONENT_SEED` of the
model compared with), which is absent where every model was trained once.

**Which replicates are compared.** Where two models were trained apart, seed 1 of one has nothing to
do with seed 1 of the other, and which of them meet would be decided by their numbers alone: every
replicate meets every other. Where both go on with the same model (SAMI after SFT and SFT, or DPO
and SAMI after the same SFT), replicates of the same seed share it, and only these are compared,
which is the question ("what does SAMI change in the model that it starts from?") and leaves out of
the difference what they share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

SEED = "seed"
OPPONENT_SEED = "opponent_seed"
SEED_COLUMNS = (SEED, OPPONENT_SEED)

NO_SEED = -1
"""The seed of a model that is not trained here."""

Lineage = Mapping[str, str]
"""The model that a trained model goes on with, by its name; none where that is the student."""

_MARK = "#"


def seed_columns(table: pd.DataFrame) -> list[str]:
    """Return those columns of a table that name training seeds."""
    return [column for column in SEED_COLUMNS if column in table]


def seeds_in(table: pd.DataFrame) -> list[pd.Series]:
    """Return the training seeds of a table's rows, as intervals take them; none without any.

    Replicates that are compared seed by seed vary by one seed, not by two.
    """
    return different([table[column] for column in seed_columns(table)])


def different(columns: Sequence[pd.Series]) -> list[pd.Series]:
    """Return columns of seeds without those that are the same as an earlier one."""
    kept: list[pd.Series] = []
    for column in columns:
        if not any(column.equals(earlier) for earlier in kept):
            kept.append(column)
    return kept


def with_seeds(table: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """Return results with their column `seeds` if the table that they are of names seeds.

    Args:
        table: what was summarised.
        records: the results, with `seeds`: how many there are, 0 for a model that is not trained.
    """
    return records if seed_columns(table) else records.drop(columns="seeds")


def share_training(model: str, other: str, lineage: Lineage) -> bool:
    """Return whether two models go on with the same trained model, or one with the other."""
    return bool({model, *_ancestors(model, lineage)} & {other, *_ancestors(other, lineage)})


def _ancestors(model: str, lineage: Lineage) -> list[str]:
    found = []
    while (model := lineage.get(model, "")) and model not in found:
        found.append(model)
    return found


def seed_pairs(
    table: pd.DataFrame, model: str, other: str, lineage: Lineage
) -> list[tuple[int, int]]:
    """Return which replicates of two models are compared, as (seed, seed of the other).

    Args:
        table: rows with `model` and `SEED`.
        model: name of the first model.
        other: name of the second model.
        lineage: see `Lineage`.
    """
    ours, theirs = (
        table.loc[table["model"] == name, SEED].drop_duplicates().tolist()
        for name in (model, other)
    )
    together = share_training(model, other, lineage)
    return [(a, b) for a in ours for b in theirs if not together or a == b]


def labelled(table: pd.DataFrame, mark: str = _MARK) -> pd.DataFrame:
    """Return a table in which every replicate is a model with its own name.

    For what compares texts of models by their names; `unlabelled` gives names and seeds back. A
    table without seeds is returned as it is.

    Args:
        table: rows with `model` and, where they compare, `opponent`.
        mark: what parts name and seed; for readers ", seed ".
    """
    columns = {}
    for name, seed in (("model", SEED), ("opponent", OPPONENT_SEED)):
        if name in table and seed in table:
            pairs = zip(table[name], table[seed], strict=True)
            columns[name] = [_label(model, number, mark) for model, number in pairs]
    return table.assign(**columns).drop(columns=seed_columns(table))


def labelled_pairs(
    table: pd.DataFrame, pairs: Sequence[tuple[str, str]], lineage: Lineage
) -> list[tuple[str, str]]:
    """Return the pairs of replicates that pairs of models amount to, by their labels."""
    return [
        (_label(model, a), _label(other, b))
        for model, other in pairs
        for a, b in seed_pairs(table, model, other, lineage)
    ]


def unlabelled(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of labels with names and seeds, the seeds as last columns."""
    columns: dict[str, list] = {}
    for name, seed in (("model", SEED), ("opponent", OPPONENT_SEED)):
        if name in table:
            parts = [label.partition(_MARK) for label in table[name]]
            columns[name] = [model for model, _, _ in parts]
            columns[seed] = [int(number or NO_SEED) for _, _, number in parts]
    return table.assign(**columns)


def model_of(label: str) -> str:
    """Return the name of the model that a label of a replicate is of."""
    return label.partition(_MARK)[0]


def _label(model: str, seed: int, mark: str = _MARK) -> str:
    return model if seed == NO_SEED else f"{model}{mark}{seed}"
