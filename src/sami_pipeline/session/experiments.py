"""The experiments' parameters, which decide the graph before any node runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from sami_pipeline import PROJECT_FOLDER
from sami_pipeline.errors import InputError, first_fault, one_line
from sami_pipeline.experiments.registry import experiments
from sami_pipeline.parameters import (
    CompareRunsParameters,
    DryRunParameters,
    ExperimentParameters,
    HousekeepingParameters,
    PrincipleWritingParameters,
    PublishedParameters,
    RunParameters,
)

# The groups of parameters besides the experiments'; another pipeline's are added here.
_OTHER_GROUPS: dict[str, type[BaseModel]] = {
    "compare_runs": CompareRunsParameters,
    "write_principles": PrincipleWritingParameters,
    "published": PublishedParameters,
    "dry_run_assumptions": DryRunParameters,
}

if TYPE_CHECKING:
    from kedro.io import AbstractDataset

_Model = TypeVar("_Model", bound=BaseModel)

_active_parameters: Mapping[str, Any] | None = None


class ParameterError(InputError):
    """A parameter is wrong; the message names it and the remedy."""


def groups() -> dict[str, type[BaseModel]]:
    """Return the model of every group of the parameters, the experiments' first."""
    return {name: experiment.parameters for name, experiment in experiments().items()} | (
        _OTHER_GROUPS
    )


def activate(parameters: Mapping[str, Any]) -> None:
    """Let the graph follow these parameters: those of the run's environment and command line."""
    global _active_parameters
    _active_parameters = parameters


def check(parameters: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Check every group of the parameters and the names of runs.

    Args:
        parameters: by group, with what the command line adds at the top level.
        run: ``run_name`` and, where it is given, ``completions_of``.

    Raises:
        ParameterError: a group is unknown, or something in one is wrong.
    """
    known = [*groups(), *RunParameters.model_fields, "dry_run"]
    for name in parameters:
        if name not in known:
            raise ParameterError(
                f"conf/*/parameters, --params: {one_line(str(name))}: is no group that is known "
                f"here; known: {', '.join(known)}"
            )
    try:
        RunParameters.model_validate(
            {**_housekeeping(parameters), **run, "seeds": parameters.get("seeds")}
        )
    except ValidationError as error:
        raise ParameterError(f"conf/*/globals, --params: {first_fault(error)}") from error
    for name, model in groups().items():
        if name in parameters:
            _validated(name, model, _with_seeds(name, parameters))


def experiment_parameters(name: str) -> ExperimentParameters:
    """Return the checked parameters of an experiment.

    Before a run has activated its own (as in ``kedro registry list``) they are those of the base
    environment.

    Raises:
        ParameterError: one line with the full name of the first wrong parameter.
    """
    return _checked(name, experiments()[name].parameters)


def raw_files() -> dict[str, AbstractDataset]:
    """Return the raw files that parameters name and not the catalog, by full name."""
    return {
        f"{name}.{dataset}": file
        for name, experiment in experiments().items()
        for dataset, file in experiment.raw_files(experiment_parameters(name)).items()
    }


def principle_writing_parameters(name: str) -> PrincipleWritingParameters:
    """Return the checked parameters of the principle writer; see ``experiment_parameters``."""
    return _checked(name, PrincipleWritingParameters)


def housekeeping() -> HousekeepingParameters:
    """Return what this run takes from earlier ones and what it leaves."""
    return HousekeepingParameters.model_validate(_housekeeping(_active_parameters or {}))


def _housekeeping(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: parameters[name] for name in HousekeepingParameters.model_fields
            if name in parameters}  # fmt: skip


def is_dry_run() -> bool:
    """Return whether this run is only to say what it would need: ``--params dry_run=true``.

    Raises:
        ParameterError: dry_run is neither true nor false.
    """
    wanted = (_active_parameters or {}).get("dry_run", False)
    if not isinstance(wanted, bool):
        raise ParameterError(f"--params: dry_run: must be true or false, got {wanted!r}")
    return wanted


def _checked(name: str, model: type[_Model]) -> _Model:
    parameters = _active_parameters if _active_parameters is not None else _base_parameters()
    if name not in parameters:
        raise ParameterError(f"conf/*/parameters: the group {name!r} is missing")
    return _validated(name, model, _with_seeds(name, parameters))


def _with_seeds(name: str, parameters: Mapping[str, Any]) -> Any:
    """Return a group of parameters; an experiment's with the seeds that are given for all.

    They are no part of what a node reads, so that a run with more seeds keeps what it has.
    """
    group, seeds = parameters[name], parameters.get("seeds")
    if seeds is None or name not in experiments() or not isinstance(group, Mapping):
        return group
    if (own := group.get("seeds")) not in (None, seeds):
        raise ParameterError(
            f"--params: seeds: is {one_line(str(seeds))}, and {name}.seeds is "
            f"{one_line(str(own))}; give one of them"
        )
    return {**group, "seeds": seeds}


def _validated(name: str, model: type[_Model], value: Any) -> _Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        fault = first_fault(error)
        whole = not error.errors()[0]["loc"] and not re.match(r"[a-z_][\w.]*: ", fault)
        joined = f"{name}: {fault}" if whole else f"{name}.{fault}"
        raise ParameterError(f"conf/*/parameters: {joined}") from error


def _base_parameters() -> Mapping[str, Any]:
    from kedro.config import OmegaConfigLoader

    from sami_pipeline.session.configuration import CONFIG_LOADER_ARGS

    loader = OmegaConfigLoader(str(PROJECT_FOLDER / "conf"), env="base", **CONFIG_LOADER_ARGS)
    return loader["parameters"]
