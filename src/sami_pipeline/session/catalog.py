"""The catalog of a run: what is saved is saved whole, and what exists is still right."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kedro.io import DataCatalog, DatasetError
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro.validation import DataValidationError

from sami_pipeline import code_versions, files
from sami_pipeline.datasets.whole_files import written_whole
from sami_pipeline.errors import InputError, storage_fault, writing
from sami_pipeline.parameters import HousekeepingParameters
from sami_pipeline.session import missing_answers, provenance, sharing
from sami_pipeline.session.order import in_order

logger = logging.getLogger(__name__)

STATE = "run_state"
KEEP_TO_ITSELF = HousekeepingParameters(share_between_runs=False, keep_training_states=True)


class RunCatalog(DataCatalog):
    """Kedro's catalog, with promises about files that hold for every dataset in it.

    * A file that a node saves appears at once and whole, or an earlier one stays as it was.
    * Next to a run's results it is recorded what each output was made from (its provenance), after
      the output is whole. When a run goes on (``--only-missing-outputs``), one that lacks the
      record, or was made from something else, counts as missing; a plan says what and why.
    * What can't be written or read is said in one line with its place and the remedy.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take what Kedro's catalog takes."""
        super().__init__(*arguments, **options)
        self._origins: dict[str, provenance.Origin] = {}
        self._stale: dict[str, str | provenance.Change] = {}
        self._replaced: dict[Node, tuple[str, Callable[..., Any]]] = {}
        self._states: dict[str, _State] = {}

    def follow(
        self,
        pipeline: Pipeline,
        *,
        going_on: bool,
        housekeeping: HousekeepingParameters = KEEP_TO_ITSELF,
    ) -> None:
        """Record from now on what this pipeline's outputs are made from; ``release_nodes`` ends it.

        Args:
            pipeline: the nodes that are to run.
            going_on: outputs that are right already are kept.
            housekeeping: what is taken from other runs, and what is left of trainings.
        """
        again = housekeeping.completions == "ask_again"
        self._origins = provenance.origins(pipeline, self, self._recorded, ask_again=again)
        self._stale = {}
        if going_on:
            self._find_what_is_right(pipeline)
        if not housekeeping.keep_training_states:
            states = [state for node in pipeline.nodes for state in self._states_of(node)]
            self._states = {name: state for state in states for name in state.outputs}
        if housekeeping.share_between_runs:
            for node in pipeline.nodes:
                if not (going_on and all(map(self.exists, node.outputs))):
                    self._take_over(node)
        if going_on:
            for state in self._states.values():
                if all(map(self.exists, state.outputs)):
                    files.remove_folder(state.folder)
            for line in self._plan(pipeline):
                logger.info(line)

    def release_nodes(self) -> None:
        """Give nodes whose outputs were taken over their own functions back."""
        while self._replaced:
            node, (_, function) = self._replaced.popitem()
            _replace_function(node, function)

    def taken_from(self, node: Node) -> str | None:
        """Return the run whose outputs stand for a node's own, if there is one."""
        return self._replaced[node][0] if node in self._replaced else None

    def _take_over(self, node: Node) -> None:
        state = None if not node.outputs else self._state_folder(node.outputs[0])
        if state is None or not (taken := sharing.find(node, self, self._origins, state)):
            return
        run = next(iter(taken.values())).run
        logger.info("%s: taken over from the run %s, which has made the same", node.name, run)
        for name in taken:
            self._stale[name] = f"taken over from the run {run}"
        self._replaced[node] = run, node.func
        _replace_function(node, sharing.instead_of(node, taken))

    def _states_of(self, node: Node) -> list[_State]:
        return [
            _State(self.get(name).load(), tuple(node.outputs), set())
            for name in node.inputs
            if name.endswith(provenance.STATES)
        ]

    def _remove_finished_state(self, name: str) -> None:
        """Remove a training's states once all that it gave is saved and recorded."""
        state = self._states.get(name)
        if state is not None:
            state.saved.add(name)
            if state.saved == set(state.outputs):
                files.remove_folder(state.folder)

    def _find_what_is_right(self, pipeline: Pipeline) -> None:
        for name, origin in self._origins.items():
            if super().exists(name):
                fault = provenance.fault(self._recorded(name), origin, self[name])
                if fault:
                    self._stale[name] = fault
        come = missing_answers.ask_again(pipeline, self._missing, self.exists, self.load)
        self._stale |= dict.fromkeys(come, missing_answers.HAVE_COME)

    def _plan(self, pipeline: Pipeline) -> list[str]:
        """Return lines that say which nodes are kept, which run, and why."""
        running = {
            node.name: reason
            for node in pipeline.nodes
            if (reason := self._reason_to_run(node)) is not None
        }
        lines = [f"Plan: {len(pipeline.nodes) - len(running)} nodes are kept, {len(running)} run"]
        made = {
            output for node in pipeline.nodes if node.name in running for output in node.outputs
        }
        by_reason: dict[str, list[str]] = defaultdict(list)
        for name, reason in running.items():
            by_reason[provenance.in_words(reason, made)].append(name.rpartition(".")[2])
        for reason, names in by_reason.items():
            lines.append(f"Plan: {code_versions.listed(sorted(names), 8)}: {reason}")
        return lines

    def running(self, pipeline: Pipeline, *, going_on: bool) -> list[Node]:
        """Return the nodes that a run of this pipeline will run, in their order.

        Args:
            pipeline: what was asked for, after ``follow``.
            going_on: outputs that are right already are kept.
        """
        return [
            node
            for node in in_order(pipeline)
            if not going_on or self._reason_to_run(node) is not None
        ]

    def _reason_to_run(self, node: Node) -> str | provenance.Change | None:
        """Return why an output of a node is missing; what changed for itself comes first."""
        reasons = [
            self._stale.get(output, "not made yet")
            for output in node.outputs
            if not self.exists(output)
        ]
        changes = [reason for reason in reasons if isinstance(reason, provenance.Change)]
        return next(iter([*changes, *reasons]), None)

    def exists(self, ds_name: str) -> bool:
        """Return whether a dataset is there and, after ``follow``, as it would be made again."""
        return ds_name not in self._stale and super().exists(ds_name)

    def save(self, ds_name: str, data: Any) -> None:
        """Save whole or not at all, and record what it was made from."""
        dataset, record = self[ds_name], self._record(ds_name)
        with writing(provenance.place(dataset) or ds_name):
            if record is not None:
                record.unlink(missing_ok=True)  # what it says ends here
            if isinstance(data, sharing.TakenOver):
                data.link(Path(str(provenance.place(dataset))))
            else:
                with written_whole(dataset):
                    super().save(ds_name, data)
            if record is not None and self._is_made_by_its_code(ds_name):
                made = (
                    data.record
                    if isinstance(data, sharing.TakenOver)
                    else provenance.Record(
                        origin=self._origins[ds_name],
                        size=provenance.size(dataset),
                        missing_answers=missing_answers.missing_in(data),
                    )
                )
                files.write_text(record, made.model_dump_json())
                self._remove_finished_state(ds_name)
        self._stale.pop(ds_name, None)

    def load(self, ds_name: str, version: str | None = None) -> Any:
        """Load as Kedro does; a file that can't be read is named with the remedy."""
        try:
            return super().load(ds_name, version)
        except DataValidationError:
            raise
        except DatasetError as error:
            cause = _cause(error)
            if cause is None or isinstance(cause, InputError):
                raise
            made = ds_name in self._origins or self._recorded(ds_name) is not None
            remedy = (
                "remove it and go on with --only-missing-outputs, which makes it again"
                if made
                else "put a whole one there"
            )
            if isinstance(cause, ImportError):
                package = re.search(r"[Ii]mport (\w+)|named '(\w+)", str(cause))
                name = package[1] or package[2] if package else "that it asks for"
                remedy = f"pip install {name}, or save the file as CSV, JSON lines or parquet"
            what = storage_fault(cause) or (str(cause).splitlines() or [type(cause).__name__])[0]
            where = provenance.place(self[ds_name])
            raise DatasetError(f"{ds_name}: {where}: can't be read: {what}; {remedy}") from error

    def _is_made_by_its_code(self, name: str) -> bool:
        """Return whether the code that this process began with is still what is in the files."""
        changed = code_versions.project().changed(self._origins[name].code)
        if changed:
            logger.warning(
                "%s: %s changed while the run was under way; it will be made again",
                name, ", ".join(changed),
            )  # fmt: skip
        return not changed

    def _missing(self, name: str) -> int:
        """Return how many answers an output lacks that a server was asked for."""
        record = self._recorded(name)
        return 0 if record is None else record.missing_answers

    def _record(self, name: str) -> Path | None:
        """Return where it is recorded what an output was made from, if this run follows it."""
        return self._record_path(name) if name in self._origins else None

    def _recorded(self, name: str) -> provenance.Record | None:
        path = self._record_path(name)
        return None if path is None else provenance.read_record(path)

    def _record_path(self, name: str) -> Path | None:
        state = self._state_folder(name)
        return None if state is None else state / "provenance" / f"{name}.json"

    def _state_folder(self, name: str) -> Path | None:
        experiment, separator, _ = name.partition(".")
        if not separator or (state := self.get(f"{experiment}.{STATE}")) is None:
            return None
        return state.load()


def _replace_function(node: Node, function: Callable[..., Any]) -> None:
    _ = node.inputs  # Kedro clears what it keeps of them, which must be there
    node.func = function


@dataclass(frozen=True)
class _State:
    """States of a training, and what it gives; ``saved`` grows to ``outputs``."""

    folder: Path
    outputs: tuple[str, ...]
    saved: set[str]


def _cause(error: DatasetError) -> BaseException | None:
    """Return what made a dataset fail, or None where it says so itself."""
    cause: BaseException | None = error
    while isinstance(cause, DatasetError):
        cause = cause.__cause__
    return cause
