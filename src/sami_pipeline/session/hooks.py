"""Hooks: credentials, input checks, lock, engine release, records, progress, messages, MLflow."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from kedro.config import MissingConfigException
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol, DatasetError
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from sami_pipeline import engines
from sami_pipeline.engines import credentials, store
from sami_pipeline.errors import InputError, storage_fault
from sami_pipeline.experiments.registry import experiments
from sami_pipeline.models.prompts import PromptTemplate
from sami_pipeline.parameters import HousekeepingParameters
from sami_pipeline.process_settings import give_back_freed_memory, peak_memory_bytes
from sami_pipeline.reporting import summary
from sami_pipeline.reporting.record import RunRecord, Work
from sami_pipeline.session import (
    estimates,
    input_checks,
    mlflow_results,
    progress,
    provenance,
)
from sami_pipeline.session.catalog import STATE, RunCatalog
from sami_pipeline.session.command_line import CommandLineError
from sami_pipeline.session.experiments import experiment_parameters, housekeeping
from sami_pipeline.session.run_lock import RunLock

logger = logging.getLogger(__name__)


class CredentialsHook:
    """Hands the keys of conf/local/credentials.yml to the engines, past catalog and parameters."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Read the credentials of this session's environment, if there are any."""
        try:
            credentials.hand_over(context.config_loader["credentials"])
        except MissingConfigException:
            credentials.hand_over({})


class RunLockHook:
    """Locks the folders that a run writes into, and has the catalog follow what it makes there."""

    def __init__(self) -> None:
        self._locks: list[RunLock] = []
        self._catalog: RunCatalog | None = None

    @hook_impl(tryfirst=True)
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol
    ) -> None:
        """Lock each experiment's folder, or refuse to run."""
        made = {name.partition(".")[0] for name in pipeline.all_outputs() if "." in name}
        try:
            for experiment in sorted(made):
                lock = RunLock(catalog.get(f"{experiment}.{STATE}").load())
                lock.acquire()
                self._locks.append(lock)
            if isinstance(catalog, RunCatalog):
                wanted = housekeeping()
                store.hand_over(_store_policy(pipeline, catalog, wanted))
                self._catalog = catalog
                catalog.follow(
                    pipeline, going_on=run_params["only_missing_outputs"], housekeeping=wanted
                )
        except (InputError, DatasetError) as error:
            self._release()
            raise CommandLineError(str(error)) from error

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Give the locks back."""
        self._release()

    @hook_impl(tryfirst=True)
    def on_pipeline_error(self) -> None:
        """Give the locks back."""
        self._release()

    def _release(self) -> None:
        store.hand_over(store.StorePolicy())
        if self._catalog is not None:
            self._catalog.release_nodes()
        while self._locks:
            self._locks.pop().release()


def _store_policy(
    pipeline: Pipeline, catalog: CatalogProtocol, wanted: HousekeepingParameters
) -> store.StorePolicy:
    """Return what a run takes of the stored texts of others: RUN/EXPERIMENT/completions."""
    others: dict[Path, list[Path]] = {}
    for name in pipeline.inputs() if wanted.share_between_runs else ():
        if name.endswith(provenance.COMPLETIONS):
            own = catalog.get(name).load()
            alike = own.parents[2].glob(f"*/{own.parent.name}/{own.name}")
            others[own] = sorted(folder for folder in alike if folder != own)
    return store.StorePolicy(wanted.completions == "ask_again", others)


class EngineReleaseHook:
    """Ends what engines have left running, however a run ends."""

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Give the memory of idle engines back."""
        engines.release()

    # An error that another hook raises instead of this one ends the chain of hooks.
    @hook_impl(tryfirst=True)
    def on_pipeline_error(self) -> None:
        """Give the memory of all engines back."""
        engines.release()


class InputCheckHook:
    """Ends a run with a wrong input before it has loaded a model or written anything."""

    def __init__(self) -> None:
        self._unreached: dict[str, str] = {}

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Keep which datasets an environment's catalog does not reach."""
        self._unreached = getattr(context, "unreached", {})

    # First of all: the other hooks begin records.
    @hook_impl(tryfirst=True)
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol
    ) -> None:
        """Check what the run will read."""
        missing = bool(run_params.get("only_missing_outputs"))
        for name in sorted(pipeline.datasets() & self._unreached.keys()):
            raise CommandLineError(self._unreached[name])
        try:
            input_checks.check(pipeline, catalog, only_missing_outputs=missing)
        except (InputError, DatasetError, OSError) as error:
            raise CommandLineError(input_checks.plain_message(error)) from error


class ErrorMessageHook:
    """Lets what a user can correct end in its message alone; SAMI_TRACEBACK=1 shows the rest."""

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        """Replace an input error by one that the command line prints without a traceback."""
        if isinstance(error, InputError | DatasetError):
            raise CommandLineError(input_checks.plain_message(error)) from error
        if (fault := storage_fault(error)) is not None:
            place = getattr(error, "filename", None) or "the run's folders"
            raise CommandLineError(
                f"{place}: {fault}, then go on with --only-missing-outputs"
            ) from error


class NodeRecordHook:
    """Keeps what each node of an experiment ran on and how long it took, for the report."""

    # What of a run says what was asked for; the rest of Kedro's record is empty or a path.
    _COMMAND = ("env", "pipeline_names", "only_missing_outputs", "runtime_params")

    def __init__(self, work_of: Callable[[Node], Work | None] = lambda node: None) -> None:
        """Take what counts the work of a node before it runs."""
        self._work_of = work_of
        self._command: dict[str, Any] = {}
        self._started: dict[str, float] = {}
        self._taken = 0

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any]) -> None:
        """Keep what the run was asked for."""
        self._command = {name: run_params[name] for name in self._COMMAND if run_params.get(name)}

    @hook_impl
    def before_node_run(self, node: Node, catalog: CatalogProtocol, run_id: str) -> None:
        """Start the node's clock and record its start."""
        if (experiment := _experiment_of(node)) is not None:
            record, name = _run_record(experiment, catalog), _name_in(experiment, node)
            other = catalog.taken_from(node) if isinstance(catalog, RunCatalog) else None
            if other is not None:  # RUN/EXPERIMENT/node_records
                folder = (
                    record.folder.parents[1].with_name(other).joinpath(*record.folder.parts[-2:])
                )
                record.take_over(name, RunRecord(folder))
                return
            record.start(name, run_id, self._command, self._work_of(node))
            self._started[node.name] = time.monotonic()
            self._taken = store.taken()

    @hook_impl
    def after_node_run(self, node: Node, catalog: CatalogProtocol) -> None:
        """Record how long the node took; what it has freed is no memory of the next one's."""
        self._end(node, catalog, "finished")
        give_back_freed_memory()

    @hook_impl
    def on_node_error(self, node: Node, catalog: CatalogProtocol) -> None:
        """Record how long the node took until it failed."""
        with suppress(InputError):  # on a full disk the node's own error is told
            self._end(node, catalog, "failed")

    def _end(
        self, node: Node, catalog: CatalogProtocol, outcome: Literal["finished", "failed"]
    ) -> None:
        if (started := self._started.pop(node.name, None)) is not None:
            experiment = _experiment_of(node)
            record, name = _run_record(experiment, catalog), _name_in(experiment, node)
            in_part = store.taken() > self._taken
            record.end(name, time.monotonic() - started, outcome, in_part=in_part)


def _experiment_of(node: Node) -> str | None:
    """Return the experiment whose datasets a node makes, or None where it is no experiment's."""
    name = node.outputs[0].partition(".")[0] if node.outputs else ""
    return name if name in experiments() else None


def _name_in(experiment: str, node: Node) -> str:
    """Return a node's name within its experiment, which both together put before it."""
    return node.name.removeprefix(f"{experiment}.")


def _run_record(experiment: str, catalog: CatalogProtocol) -> RunRecord:
    return RunRecord(catalog.get(f"{experiment}.node_records").load())


def _folders_of(records: Path, run: str | None = None) -> list[Path]:
    """Return the folders that a run of an experiment writes into.

    Args:
        records: LAYER/RUN/EXPERIMENT/node_records of a run of it.
        run: the run; None takes that one.
    """
    experiment = records.parent
    return sorted(
        experiment.parents[2].glob(f"*/{run or experiment.parent.name}/{experiment.name}")
    )


def _quietly(node: Node, given: dict[str, Any]) -> dict[str, Any]:
    """Return what a node makes; what it logs belongs to the run itself."""
    logging.disable(logging.INFO)
    try:
        return node.run(given)
    finally:
        logging.disable(logging.NOTSET)


def _counting(
    experiment: str, catalog: CatalogProtocol
) -> Callable[[pd.DataFrame | None], dict[str, Work]]:
    """Return what counts an experiment's work, given its responses or None before they are made."""
    of, parameters = experiments()[experiment], experiment_parameters(experiment)
    names = ("generation_prompt", "training_prompt", "evaluation_prompt")
    try:
        reading = of.principles_node()
        given = {name: catalog.load(f"{experiment}.{name}") for name in reading.inputs}
        principles = _quietly(reading, given)["principles"]
        workload = of.workload(parameters, principles)
        templates = {
            name: PromptTemplate.parse(catalog.load(f"{experiment}.{name}"), name) for name in names
        }
    except (InputError, DatasetError) as error:
        logger.debug("%s: its work can't be counted: %s", experiment, error)
        return lambda responses: {}
    return partial(estimates.count_work, parameters, workload, principles, templates)


class MlflowHook:
    """Gives a run's parameters and results to MLflow, where kedro-mlflow is installed."""

    # Before the plugin ends MLflow's run.
    @hook_impl(tryfirst=True)
    def after_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Log what was made."""
        mlflow_results.log(pipeline, catalog)


class ProgressHook:
    """Says what will run and about how long, where the run is, and what models write."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._stages: dict[str, tuple[int, progress.Stage]] = {}
        self._told: set[int] = set()
        self._times: dict[str, estimates.Estimates] = {}
        self._left: dict[str, str] = {}
        self._counts: dict[str, Callable[[pd.DataFrame | None], dict[str, Work]]] = {}
        self._began, self._taken = 0.0, 0

    def work_of(self, node: Node) -> Work | None:
        """Return how much a node has to compute, where that could be counted."""
        times = self._times.get(_experiment_of(node) or "")
        return None if times is None else times.work.get(node.name)

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol
    ) -> None:
        """Say what will run, each experiment in a line, and about how long."""
        self._forget()
        if not isinstance(catalog, RunCatalog):
            return
        running = catalog.running(pipeline, going_on=bool(run_params.get("only_missing_outputs")))
        by_experiment: dict[str, list[Node]] = {}
        for node in running:
            if (experiment := _experiment_of(node)) is not None:
                by_experiment.setdefault(experiment, []).append(node)
        for experiment, nodes in by_experiment.items():
            self._begin(experiment, nodes, catalog)

    def _begin(self, experiment: str, nodes: list[Node], catalog: RunCatalog) -> None:
        """Say what will run of an experiment, and about how long."""
        record = _run_record(experiment, catalog)
        folder = record.folder
        names = {_name_in(experiment, node): node.name for node in nodes}
        known = estimates.earlier(folder, names)
        count = _counting(experiment, catalog)
        times = estimates.Estimates(
            before={names[name]: each for name, each in known.latest.items()},
            counted=known.counted,
            sources=estimates.known_models(experiment_parameters(experiment)),
            free={node.name for node in nodes if catalog.taken_from(node) is not None},
            begun={names[name] for name in names if record.is_begun(name)},
        )
        self._times[experiment], self._counts[experiment] = times, count
        self._left |= dict.fromkeys(names.values(), experiment)
        responses = f"{experiment}.responses"
        made = {output for node in nodes for output in node.outputs}
        there = responses not in made and responses in catalog and catalog.exists(responses)
        self._count(experiment, catalog.load(responses) if there else None)
        stages = progress.stages_of(nodes)
        what = f"{experiment}, run {folder.parents[1].name}"
        seconds = times.total(names.values())
        origin = times.origin(names.values())
        logger.info("%s", progress.announcement(what, stages, seconds, origin))
        disk = progress.disk_used(_folders_of(folder, known.run)) if known.run else None
        if said := progress.needs(known.memory, disk, known.run):
            logger.info("%s", said)
        for number, stage in enumerate(stages, len(self._stages_numbers()) + 1):
            self._stages |= dict.fromkeys(stage.nodes, (number, stage))

    def _count(self, experiment: str, responses: pd.DataFrame | None) -> None:
        """Count the work of the nodes that have not run, of what is known of the responses."""
        counted = self._counts[experiment](responses)
        self._times[experiment].work |= {
            node: counted[short]
            for node, of in self._left.items()
            if of == experiment and (short := node.rpartition(".")[2]) in counted
        }

    def _stages_numbers(self) -> set[int]:
        return {number for number, _ in self._stages.values()}

    def _seconds(self, nodes: Iterable[str]) -> float | None:
        """Return how long those of the nodes take together that have not run."""
        each = [self._times[self._left[n]].seconds(n) for n in nodes if n in self._left]
        return None if None in each else float(sum(each))

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Say which stage begins and when it ends, where this node is the first of one."""
        self._began, self._taken = time.monotonic(), store.taken()
        if node.name in self._stages:
            number, stage = self._stages[node.name]
            if number not in self._told:
                self._told.add(number)
                of, left = len(self._stages_numbers()), self._seconds(list(self._left))
                seconds = self._seconds(stage.nodes)
                logger.info("%s", progress.line(stage, number, of, seconds, left))

    @hook_impl
    def after_node_run(self, node: Node, outputs: dict[str, Any]) -> None:
        """Show two texts that a model has just written, and correct what is left."""
        if node.name not in self._stages:
            return
        for text in progress.written(outputs):
            logger.info("    %s", text)
        experiment = self._left.pop(node.name, None)
        if experiment is None:
            return
        if store.taken() == self._taken:
            self._times[experiment].end(node.name, time.monotonic() - self._began)
        responses = outputs.get(f"{experiment}.responses")
        if isinstance(responses, pd.DataFrame):
            self._count(experiment, responses)


class RunSummaryHook:
    """Says at the end what came out and where it lies."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    @hook_impl
    def before_pipeline_run(self) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: CatalogProtocol) -> None:
        """Print the outcome and where it lies."""
        seconds = time.monotonic() - self._started
        made = {_experiment_of(node) for node in pipeline.nodes} - {None}
        folders = [
            folder
            for experiment in made
            for folder in _folders_of(_run_record(experiment, catalog).folder)
        ]
        took = progress.took(seconds, peak_memory_bytes(), progress.disk_used(folders))
        sys.stdout.write(summary.of_run(pipeline, catalog, took, housekeeping().print_tables))
        sys.stdout.flush()
