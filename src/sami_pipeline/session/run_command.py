"""``kedro run``: Kedro's own command, with values as they are written and slips in one line."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

import click
import yaml
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.cli.utils import KedroCliError
from kedro.utils import load_obj
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sami_pipeline.errors import one_line
from sami_pipeline.session.command_line import CommandLineError

# Names of runs are texts: YAML reads 1.10 as 1.1 and 007 as 7.
_NAMES = ("run_name", "completions_of", "compare_runs.runs", "compare_runs.pooled")
# What begins a value that may hold commas.
_OPENS = ("[", "{", "'", '"')


def run_command() -> click.Command:
    """Return Kedro's command ``run``, which reads what is given to it as this project does."""
    readers = {"params": _read_parameters, "pipelines": _read_pipelines}
    command = copy.copy(kedro_run)
    command.__class__ = _RunCommand
    command.params = [copy.copy(option) for option in kedro_run.params]
    for option in command.params:
        option.callback = readers.get(str(option.name), option.callback)
    return command


class _RunCommand(click.Command):
    def invoke(self, ctx: click.Context) -> Any:
        """Run; what Kedro refuses itself is one line too."""
        _check_runner(ctx.params["runner"] or "SequentialRunner", ctx.params["runner_params"])
        try:
            return super().invoke(ctx)
        except CommandLineError:
            raise
        except KedroCliError as error:
            raise CommandLineError(one_line(error.message)) from error


def _read_parameters(ctx: click.Context, option: click.Parameter, value: Any) -> Any:
    """Return what ``--params`` gives: ``a.b=1,c=[x, y],d='1, 2'``.

    As Kedro reads it, but a value that begins with a bracket, a brace or a quote ends where it is
    closed, so that it may hold commas, and a name of a run is a text.
    """
    if not isinstance(value, str):
        return value  # the default, or from the file of --config
    items = []
    for name, text in _items(value):
        try:
            read = yaml.safe_load(text)
            # Texts of JSON are texts of YAML.
            items.append(f"{name}={_as_text(text, read) if name in _NAMES else text}")
            OmegaConf.from_dotlist(items[-1:])
        except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
            reason = getattr(error, "problem", None) or str(error)
            raise CommandLineError(
                f"--params: {one_line(name)}: its value can't be read ({one_line(reason)}); put it "
                "into quotes"
            ) from None
    return OmegaConf.to_container(OmegaConf.from_dotlist(items))


def _as_text(text: str, read: Any) -> str:
    if isinstance(read, list):
        return json.dumps(yaml.load(text, yaml.BaseLoader))  # noqa: S506 (texts alone)
    as_it_is = read is None or text.lstrip().startswith(_OPENS)
    return text if as_it_is else json.dumps(text.strip())


def _items(value: str) -> Iterator[tuple[str, str]]:
    pieces = value.split(",")
    while pieces:
        piece = pieces.pop(0)
        if not piece.strip():
            continue
        name, separator, text = piece.partition("=")
        name = name.strip()
        if not name or not separator:
            raise CommandLineError(
                f"--params: {one_line(piece.strip())!r}: must be NAME=VALUE; put a value with "
                "commas into quotes or brackets"
            )
        while text.lstrip().startswith(_OPENS) and not _is_closed(text):
            if not pieces:
                raise CommandLineError(
                    f"--params: {one_line(name)}: a bracket or a quote is not closed; close it, or "
                    "put the whole value into quotes"
                )
            text = f"{text},{pieces.pop(0)}"
        yield name, text


def _is_closed(text: str) -> bool:
    try:
        yaml.safe_load(text)
    except yaml.YAMLError:
        return False
    return True


def _read_pipelines(ctx: click.Context, option: click.Parameter, value: Any) -> list[str]:
    """Return the names that ``--pipelines`` gives."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if value and not any(names):
        raise CommandLineError("--pipelines: names none; leave it out to run all experiments")
    return [name for name in names or [] if name]


def _check_runner(name: str, parameters: Mapping[str, Any]) -> None:
    try:
        known = inspect.signature(load_obj(name, "kedro.runner")).parameters
    except (ImportError, AttributeError, ValueError):
        raise CommandLineError(
            f"--runner: {one_line(name)}: is no runner that can be loaded; leave it out, and "
            "nodes run one after another"
        ) from None
    if unknown := sorted(parameters.keys() - known.keys()):
        raise CommandLineError(
            f"--runner-params: {one_line(unknown[0])}: {one_line(name)} has no such parameter; it "
            f"has {', '.join(known)}"
        )
