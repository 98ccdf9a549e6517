"""What a run will read from outside, checked before it loads a model or writes anything."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kedro.io import CatalogProtocol, DatasetError
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro.validation import DataValidationError, validate_dataset
from pydantic import BaseModel

from sami_pipeline import PROJECT_FOLDER
from sami_pipeline.engines import EngineParameters
from sami_pipeline.engines.registry import engine_kinds
from sami_pipeline.errors import InputError, one_line
from sami_pipeline.evaluation.asked import Known
from sami_pipeline.experiments.record import Experiment
from sami_pipeline.experiments.registry import experiments
from sami_pipeline.models.checkpoints import check_source
from sami_pipeline.models.devices import device_of
from sami_pipeline.models.prompts import PromptTemplate
from sami_pipeline.parameters import (
    ExperimentParameters,
    PrincipleWritingParameters,
)
from sami_pipeline.principles.constitutions import parse_principles
from sami_pipeline.principles.writing import WritingPrompt
from sami_pipeline.session import model_needs
from sami_pipeline.session.experiments import (
    experiment_parameters,
    principle_writing_parameters,
)
from sami_pipeline.vocabulary import RAW

logger = logging.getLogger(__name__)

# Raw files that are read late in a run, by the last part of their name in the catalog.
_TEMPLATES = ("generation_prompt", "training_prompt", "evaluation_prompt")


def check(pipeline: Pipeline, catalog: CatalogProtocol, *, only_missing_outputs: bool) -> None:
    """Check everything from outside that a pipeline's nodes will read, in a few seconds.

    Raw files are read by the very nodes that will read them again, and what these make is held to
    its schema; nothing is saved.

    Raises:
        InputError: one line naming the file, the field and the remedy.
        DatasetError: a file can't be read; see ``plain_message``.
    """
    read = {name: _template(name, catalog) for name in sorted(pipeline.inputs())}
    templates = {name: template for name, template in read.items() if template is not None}
    chat = any(template.kind == "chat" for template in templates.values())
    for experiment, parameters in _experiments(pipeline):
        device_of(parameters.training.device, f"{experiment.name}.training.device")
    for name, parameters in _groups(pipeline):
        for engine in _engines(parameters):
            _check_engine(engine)
        for model in parameters.imported_models:
            output = f"{name}.{model.name}_checkpoint"
            if output in pipeline.all_outputs() and not (
                only_missing_outputs and catalog.exists(output)
            ):
                check_source(
                    model.source,
                    PROJECT_FOLDER,
                    trust_remote_code=model.trust_remote_code,
                    chat=model.chat if chat else None,
                )
    made: dict[str, Any] = {}
    # What the nodes log belongs to the run itself.
    logging.disable(logging.INFO)
    try:
        for node in pipeline.nodes:
            if RAW in node.tags and not (
                only_missing_outputs and all(catalog.exists(output) for output in node.outputs)
            ):
                made |= _run(node, catalog)
    finally:
        logging.disable(logging.NOTSET)
    for name, experiment in experiments().items():
        tables = {
            dataset.removeprefix(f"{name}."): table
            for dataset, table in made.items()
            if dataset.startswith(f"{name}.")
        }
        if tables:
            experiment.check_inputs(experiment_parameters(name), tables)
    for experiment, parameters in _experiments(pipeline):
        _check_model_needs(experiment, parameters, templates, made, pipeline, catalog)
    logger.debug("Inputs are checked: parameters, raw files, models")


def plain_message(error: Exception) -> str:
    """Return the one line that an error of an input is to a user."""
    root: BaseException = error
    while isinstance(root, DatasetError) and root.__cause__ is not None:
        root = root.__cause__
    if isinstance(root, InputError):
        return one_line(str(root))
    if isinstance(error, OSError) and error.filename is not None:
        place = one_line(str(error.filename))
        return f"{place}: can't be read ({error.strerror}); correct the path"
    if isinstance(error, DataValidationError):
        reasons = [
            f"{f.column}: {f.check or f.message}" if f.column else str(f.check or f.message)
            for f in error.failures
        ] or [error.message]
        example = next((f.failure_examples[0] for f in error.failures if f.failure_examples), None)
        shown = "" if example is None else f", such as {str(example)[:60]!r}"
        return one_line(
            f"{error.dataset_name}: {reasons[0]}{shown}; correct what it is made from, or make it "
            "again"
        )
    text = str(error)
    place = re.search(r"path=(?:PurePosixPath\()?'?([^,')]+)", text)
    if root is not error and place is not None:
        reason = one_line(str(root)) or type(root).__name__
        text = f"{place.group(1)}: can't be read or written ({reason}); check or replace it"
    return one_line(text)


def _template(name: str, catalog: CatalogProtocol) -> PromptTemplate | None:
    short = name.rpartition(".")[2]
    if short in _TEMPLATES:
        return PromptTemplate.parse(_load(name, catalog), short)
    if short == "writing_prompt":
        WritingPrompt.parse(_load(name, catalog))
    if name == "write_principles.principle_files":
        files: Mapping[str, Callable[[], Any]] = _load(name, catalog)
        parse_principles({f"{file}.yml": load() for file, load in files.items()})
    return None


def _load(name: str, catalog: CatalogProtocol) -> Any:
    try:
        return catalog.load(name)
    except DatasetError as error:
        message = plain_message(error)
        raise InputError(message if name in message else f"{name}: {message}") from error


def _names(pipeline: Pipeline) -> set[str]:
    return {name.partition(".")[0] for name in pipeline.datasets()}


def _experiments(pipeline: Pipeline) -> Iterator[tuple[Experiment, ExperimentParameters]]:
    for name in sorted(_names(pipeline) & experiments().keys()):
        yield experiments()[name], experiment_parameters(name)


def _groups(
    pipeline: Pipeline,
) -> Iterator[tuple[str, ExperimentParameters | PrincipleWritingParameters]]:
    for experiment, parameters in _experiments(pipeline):
        yield experiment.name, parameters
    if "write_principles" in _names(pipeline):
        yield "write_principles", principle_writing_parameters("write_principles")


def _engines(parameters: BaseModel) -> Iterator[EngineParameters]:
    """Yield the engines that a group of parameters will open."""
    for name in type(parameters).model_fields:
        value = getattr(parameters, name)
        if isinstance(value, EngineParameters):
            yield value
        elif isinstance(value, BaseModel) and getattr(value, "is_model", True):
            yield from _engines(value)


def _check_engine(engine: EngineParameters) -> None:
    engine_kinds()[engine.kind].check(engine.settings)


def _run(node: Node, catalog: CatalogProtocol) -> dict[str, Any]:
    """Return what a node makes, held to its schemas; messages name the file and not its entry."""
    try:
        made = node.run({name: _load(name, catalog) for name in node.inputs})
    except InputError as error:
        raise InputError(_with_paths(str(error), node, catalog)) from error
    for name, table in made.items():
        validate_dataset(catalog, name, table, on="save").raise_if_failed()
    return made


def _with_paths(message: str, node: Node, catalog: CatalogProtocol) -> str:
    entry, separator, rest = message.partition(": ")
    for name in node.inputs:
        path = getattr(catalog.get(name), "_filepath", None)
        if separator and name.rpartition(".")[2] == entry and path is not None:
            return f"{path}: {rest}"
    return message


def _check_model_needs(
    experiment: Experiment,
    parameters: ExperimentParameters,
    templates: Mapping[str, PromptTemplate],
    made: Mapping[str, Any],
    pipeline: Pipeline,
    catalog: CatalogProtocol,
) -> None:
    def table(name: str) -> Any:
        name = f"{experiment.name}.{name}"
        if name in made or name not in pipeline.datasets():
            return made.get(name)
        return _load(name, catalog) if catalog.exists(name) else None

    own = {
        name.removeprefix(f"{experiment.name}."): template
        for name, template in templates.items()
        if name.startswith(f"{experiment.name}.")
    }
    outputs = pipeline.all_outputs()
    known = Known(own, table, makes=lambda name: f"{experiment.name}.{name}" in outputs)
    model_needs.check(experiment, parameters, known, PROJECT_FOLDER)
