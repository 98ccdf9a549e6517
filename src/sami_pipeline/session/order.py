"""The order that a reader wants: SAMI's first results come before what they are compared with.

Kedro runs nodes by their distance from the inputs, so that all models are trained before any of
them answers. Here a few nodes come as soon as what they read is there: the teacher's responses,
then for each SAMI its training and what it writes to held-out queries. The others follow in Kedro's
order, experiments one after another.
"""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from kedro.pipeline import Pipeline
from kedro.runner import SequentialRunner

from sami_pipeline.experiments.registry import experiments
from sami_pipeline.training.baselines.registry import sami_models

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline.node import Node
    from pluggy import PluginManager

_WRITTEN = "write_responses|ask_hosted_teacher|copy_solutions"
# What a model writes first after its training; math has no held-out queries.
_SHOWN = ("respond_as_{0}", "attempt_as_{0}")


def in_order(pipeline: Pipeline) -> list[Node]:
    """Return the nodes of a pipeline in the order in which they run, each after what it reads."""
    nodes = pipeline.nodes
    before = pipeline.node_dependencies
    goals = _goals()
    first = sorted(
        (number, place, node)
        for place, node in enumerate(nodes)
        for number, goal in enumerate(goals)
        if re.fullmatch(goal, node.name.rpartition(".")[2])
    )
    ordered: dict[Node, None] = {}
    known = experiments()
    by_experiment = sorted({_experiment(node, known) for node in nodes})
    for experiment in by_experiment:
        chosen = [node for *_, node in first if _experiment(node, known) == experiment]
        rest = [node for node in nodes if _experiment(node, known) == experiment]
        for goal in (*chosen, *rest):
            needed = _with_all_before(goal, before)
            ordered |= dict.fromkeys(node for node in nodes if node in needed)
    return list(ordered)


def _goals() -> list[str]:
    """Return patterns of the names of the nodes that a reader waits for, those first first."""
    return [_WRITTEN, *(goal.format(model) for model in sami_models() for goal in _SHOWN)]


def _experiment(node: Node, known: Iterable[str]) -> int:
    """Return the place of the experiment whose datasets a node makes; others come last."""
    name = node.outputs[0].partition(".")[0] if node.outputs else ""
    return next((place for place, each in enumerate(known) if each == name), len(list(known)))


def _with_all_before(node: Node, before: Mapping[Node, set[Node]]) -> set[Node]:
    found, left = set(), [node]
    while left:
        if (one := left.pop()) not in found:
            found.add(one)
            left += before[one]
    return found


class OrderedPipeline(Pipeline):
    """A pipeline whose nodes come as ``in_order`` has them; what is made of it is Kedro's."""

    @property
    def nodes(self) -> list[Node]:
        """The nodes in the order in which they run."""
        return in_order(Pipeline(super().nodes))


class OrderedRunner(SequentialRunner):
    """Kedro's sequential runner, but for the order of the nodes."""

    @property
    def _logger(self) -> logging.Logger:
        # What Kedro's runner says is shown or left out by its name.
        return logging.getLogger(SequentialRunner.__module__)

    def _run(
        self,
        pipeline: Pipeline,
        catalog: CatalogProtocol,
        hook_manager: PluginManager | None = None,
        run_id: str | None = None,
    ) -> None:
        frozen = gc.get_freeze_count()
        # What is imported stays. Each collection would look through all of it, and there is one
        # whenever a model is given back.
        gc.freeze()
        try:
            super()._run(OrderedPipeline(pipeline.nodes), catalog, hook_manager, run_id)
        finally:
            if not frozen:
                gc.unfreeze()
