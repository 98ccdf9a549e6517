"""Answers that a server did not give, and what is made of those that come later.

A run may end with a few answers missing (``max_missing``). An output that lacks some is not
complete, and the next run asks for them before it decides what it keeps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

logger = logging.getLogger(__name__)

HAVE_COME = "answers that were missing have come"


def missing_in(data: Any) -> int:
    """Return how many answers a table lacks that a server was asked for."""
    if not isinstance(data, pd.DataFrame) or "finish_reason" not in data:
        return 0
    return int((data["finish_reason"] == "failed").sum())


def ask_again(
    pipeline: Pipeline,
    missing: Callable[[str], int],
    is_right: Callable[[str], bool],
    load: Callable[[str], Any],
) -> set[str]:
    """Ask for the missing answers of outputs that are right otherwise.

    What comes is stored with the other answers, so that making the output again asks nothing twice.

    Args:
        pipeline: the nodes that are to run.
        missing: number of answers that an output lacks.
        is_right: whether a dataset is there and would be made from the same again.
        load: gives the data of a dataset.

    Returns:
        The outputs to be made again: those that lack fewer answers now, and what follows of them.

    Raises:
        InputError: the server is gone, or refuses.
    """
    changed: set[str] = set()
    for node in pipeline.nodes:
        lacking = {name: count for name in node.outputs if (count := missing(name))}
        inputs = [name for name in node.inputs if not name.startswith("params:")]
        if (
            not lacking
            or not _asks(node)
            or changed & set(inputs)
            or not all(map(is_right, [*lacking, *inputs]))
        ):
            continue
        logger.info("Asking again for missing answers: %s", _counted(lacking))
        made = node.run({name: load(name) for name in node.inputs})
        now = {name: missing_in(data) for name, data in made.items()}
        if any(now[name] < count for name, count in lacking.items()):
            changed |= pipeline.from_nodes(node.name).all_outputs()
    return changed


def _asks(node: Node) -> bool:
    """Return whether a node asks an engine, and does not only hand on what another has asked."""
    return any(name.endswith(".completions") for name in node.inputs)


def _counted(lacking: Mapping[str, int]) -> str:
    return ", ".join(f"{count} in {name}" for name, count in lacking.items())
