"""Kedro's session for this project: what was asked for is named, or refused in one line."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.pipeline import Pipeline
from kedro.runner import ParallelRunner, SequentialRunner

from sami_pipeline.errors import one_line
from sami_pipeline.experiments.registry import experiments
from sami_pipeline.session.command_line import CommandLineError
from sami_pipeline.session.order import OrderedRunner

logger = logging.getLogger(__name__)

_DEFAULT = "__default__"
_FILTERS = ("tags", "from_nodes", "to_nodes", "node_names", "from_inputs", "to_outputs")


class ExperimentSession(KedroSession):
    """Selects the nodes before a run begins, so that a slip in a name ends in one line."""

    _context: KedroContext | None = None

    def load_context(self) -> KedroContext:
        """Return the context of this session; it is made once."""
        if self._context is None:
            self._context = super().load_context()
        return self._context

    def run(
        self,
        pipeline_name: str | None = None,
        pipeline_names: list[str] | None = None,
        *,
        namespaces: Iterable[str] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Run as Kedro does; see ``KedroSession.run``.

        A namespace may be given with the experiment before it or without, whether a pipeline is
        named or not: ``mt_bench.sami_training`` and ``sami_training``. Several experiments run as
        they do when all are run, under their names. Nodes that run one after another do so in the
        order of ``session.order``.

        Raises:
            CommandLineError: a pipeline, node, dataset, tag or namespace is unknown, or the runner
                can't run these nodes.
        """
        if isinstance(options.get("runner"), ParallelRunner):
            raise CommandLineError(
                "--runner: ParallelRunner: nodes of this project can't be sent to other processes; "
                "leave it out, and they run one after another"
            )
        if type(runner := options.get("runner") or SequentialRunner()) is SequentialRunner:
            options["runner"] = OrderedRunner(is_async=runner._is_async)
        names = list(dict.fromkeys([pipeline_name] if pipeline_name else pipeline_names or []))
        if len(several := [name for name in experiments() if name in names]) > 1:
            names, namespaces = [], _under_experiments(several, names, namespaces or ())
        # As Kedro does before it makes the context, which builds the pipelines that are asked for.
        pipelines.set_requested(names or None)
        self.load_context()
        asked = sum((_pipeline(name) for name in names or [_DEFAULT]), Pipeline([]))
        chosen = resolved_namespaces(namespaces or (), asked, names)
        filters = {name: options.get(name) for name in _FILTERS}
        try:
            selected = asked.filter(**filters, node_namespaces=chosen or None)
        except ValueError as error:
            raise CommandLineError(_with_suggestion(one_line(str(error)), asked)) from error
        if chosen or names[1:] or not names or names[0] not in experiments():
            # Otherwise the hook that knows what is kept says what runs, and about how long.
            logger.info("Runs %s: %d nodes", _what(names, chosen, asked), len(selected.nodes))
        return super().run(pipeline_names=names or None, namespaces=chosen, **options)


def _under_experiments(
    several: Sequence[str], names: Sequence[str], namespaces: Iterable[str]
) -> list[str]:
    """Return the namespaces, among those of all experiments, that some of the experiments have."""
    if others := [name for name in names if name not in several]:
        raise CommandLineError(
            f"--pipelines: {', '.join(map(one_line, others))}: can't run with several experiments; "
            "run it by a separate command"
        )
    whole = list(namespaces) or list(several)
    return [
        namespace if namespace.partition(".")[0] in several else f"{name}.{namespace}"
        for namespace in whole
        for name in several[: 1 if namespace.partition(".")[0] in several else None]
    ]


def _pipeline(name: str) -> Pipeline:
    try:
        return pipelines[name]
    except KeyError:
        pipelines.set_requested(None)
        known = sorted(set(pipelines) - {_DEFAULT})
        raise CommandLineError(
            f"--pipelines: {one_line(name)}: is no pipeline that is known here"
            f".{_similar(name, known)} Known: {', '.join(known)}"
        ) from None


def resolved_namespaces(
    namespaces: Iterable[str], pipeline: Pipeline, pipeline_names: Sequence[str]
) -> list[str]:
    """Return namespaces as the nodes of a pipeline carry them.

    Args:
        namespaces: as given, with or without the experiment's name before the stage's.
        pipeline: what was asked for; under ``__default__`` nodes carry their experiment's name.
        pipeline_names: what was asked for by name.

    Raises:
        CommandLineError: no node has one of them.
    """
    known = {part for node in pipeline.nodes for part in _prefixes(node.namespace)}
    found: list[str] = []
    for namespace in namespaces:
        bare = next(
            (
                namespace.removeprefix(f"{name}.")
                for name in pipeline_names
                if namespace.startswith(f"{name}.")
            ),
            namespace,
        )
        if namespace in known:
            found.append(namespace)
        elif bare in known:
            found.append(bare)
        elif below := sorted(name for name in known if name.partition(".")[2] == namespace):
            found += below
        else:
            raise CommandLineError(
                f"--namespaces: {one_line(namespace)}: no node is under it"
                f".{_similar(namespace, known)} Known: {', '.join(sorted(known))}"
            )
    return list(dict.fromkeys(found))


def _prefixes(namespace: str | None) -> list[str]:
    parts = namespace.split(".") if namespace else []
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _what(names: Sequence[str], namespaces: Sequence[str], pipeline: Pipeline) -> str:
    """Return in words what a run will run."""
    if names:
        what = ", ".join(names)
    else:
        roots = dict.fromkeys(name.namespace.partition(".")[0] for name in pipeline.nodes)
        what = f"all experiments ({', '.join(roots)}; --pipelines NAME takes one)"
    return f"{', '.join(namespaces)} of {what}" if namespaces else what


def _with_suggestion(message: str, pipeline: Pipeline) -> str:
    """Return Kedro's message with names that are close to those that it quotes."""
    known = {node.name for node in pipeline.nodes} | pipeline.datasets()
    quoted = re.findall(r"'([^']+)'", message)
    close = [match for part in quoted for match in get_close_matches(part, known, 1)]
    return f"{message} Did you mean {', '.join(close)}?" if close else message


def _similar(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), 1)
    return f" Did you mean {close[0]}?" if close else ""
