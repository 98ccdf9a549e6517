"""The files of conf/, checked before Kedro makes a catalog and parameters of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedro.config import AbstractConfigLoader, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from sami_pipeline import PROJECT_FOLDER
from sami_pipeline.errors import InputError, one_line
from sami_pipeline.inputs import yaml_files

# What Kedro's settings give the loader, and whoever reads conf/ without a session.
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "merge_strategy": {"parameters": "soft", "globals": "soft", "mlflow": "soft"},
}

_LAYERS = PROJECT_FOLDER / "data"


def read_files(loader: AbstractConfigLoader) -> dict[Path, Any]:
    """Return what the files of the base and the run's environment hold, by path, each by itself.

    Kedro's loader reads them too: OmegaConfigLoader opens, merges and resolves the files of a part
    in one call, and only its private methods would take what is read here. It says neither the file
    nor the line of some faults, takes a date for one, and spreads aliases without a limit.

    Raises:
        InputError: one line with the file and the line; never what stands there, it may be a key.
    """
    source = Path(loader.conf_source)
    files: dict[Path, Any] = {}
    if not source.is_dir():
        return files  # an archive, or a place that only Kedro can read
    for environment in dict.fromkeys((loader.base_env, loader.env or loader.default_run_env)):
        folder = source / environment
        if not folder.is_dir():
            if environment == loader.default_run_env and loader.env is None:
                continue
            known = sorted(path.name for path in source.iterdir() if path.is_dir())
            raise InputError(f"{folder}: the environment does not exist; known: {', '.join(known)}")
        for path in sorted(folder.rglob("*")):
            if path.suffix not in (".yml", ".yaml", ".json"):
                continue
            if path.is_symlink() and not path.exists():
                raise InputError(f"{path}: is a link that leads nowhere; correct or remove it")
            if path.is_file():
                files[path] = yaml_files.parse(path.read_bytes(), str(path))
    return files


def read(loader: AbstractConfigLoader, files: Mapping[Path, Any]) -> Mapping[str, Any]:
    """Return the parameters, with those of the command line, once all of conf/ can be read.

    Args:
        loader: of the run.
        files: as from ``read_files``.

    Raises:
        InputError: a key stands in two files, a reference leads nowhere, or the like.
    """
    found: dict[str, Any] = {}
    for part in ("globals", "parameters", "catalog", "credentials"):
        try:
            found[part] = loader[part]
        except MissingConfigException:
            found[part] = {}
        except TypeError as error:
            place = _conflict(files) or f"{loader.conf_source}: {part}"
            raise InputError(
                f"{place}: holds a list or a value where another environment has fields with "
                "values; write it alike"
            ) from error
        except (OmegaConfBaseException, ValueError, RecursionError) as error:
            # What stands in credentials is nobody's business.
            reason = "can't be read" if part == "credentials" else one_line(str(error))
            raise InputError(f"{loader.conf_source}: {part}: {reason}") from error
        if not isinstance(found[part], Mapping):
            raise InputError(f"{loader.conf_source}: {part}: must hold names with values")
        loader[part] = found[part]  # Kedro takes it from here instead of reading it again
    for group, values in found["credentials"].items():
        if not isinstance(values, Mapping):
            raise InputError(
                f"{loader.conf_source}: credentials: {one_line(str(group))}: must be a group of "
                "names with values, such as api_key"
            )
    return found["parameters"]


def _conflict(files: Mapping[Path, Any]) -> str | None:
    """Return the file and the name that can't be merged with what an earlier file has there."""
    merged: dict[str, Any] = {}
    for path, content in files.items():
        if isinstance(content, Mapping) and (name := _merge(merged, content)) is not None:
            return f"{path}: {name}"
    return None


def _merge(merged: dict[str, Any], content: Mapping[str, Any]) -> str | None:
    for name, value in content.items():
        there = merged.setdefault(name, {} if isinstance(value, Mapping) else value)
        if isinstance(there, Mapping) != isinstance(value, Mapping) and None not in (there, value):
            return str(name)
        if isinstance(there, dict) and isinstance(value, Mapping):
            inner = _merge(there, value)
            if inner is not None:
                return f"{name}.{inner}"
    return None


def unreached(loader: AbstractConfigLoader, files: Mapping[Path, Any]) -> dict[str, str]:
    """Return what is wrong with datasets that an environment's catalog means to set and does not.

    A name goes before a pattern. Where the base names ``mt_bench.generation_prompt``, the entry
    ``"{experiment}.generation_prompt"`` of an environment reaches the other experiments alone.

    Args:
        loader: of the run.
        files: as from ``read_files``.

    Returns:
        By the dataset's name one line that names the files, the entries and the remedy.
    """
    base, own = Path(loader.conf_source) / loader.base_env, {}
    named, patterns = {}, set()
    for path, content in files.items():
        inside = path.relative_to(loader.conf_source).parts[1:]
        if not isinstance(content, Mapping) or not any(p.startswith("catalog") for p in inside):
            continue
        if path.is_relative_to(base):
            patterns.update(name for name in content if "{" in str(name))
            named.update(dict.fromkeys((name for name in content if "{" not in str(name)), path))
        else:
            own.update(dict.fromkeys(content, path))
    return {
        name: f"{own[pattern]}: {pattern!r} does not reach {name}, which {place} names; add an "
        f"entry {name} to {own[pattern].name}, with what it is to be here"
        for pattern in own.keys() & patterns
        for name, place in named.items()
        if name not in own and re.fullmatch(re.sub(r"\\{.*?\\}", ".+", re.escape(pattern)), name)
    }


def refuse_patterns(*folders: Path | str) -> None:
    """Refuse folders whose path Kedro would read as a pattern, in which it finds no files.

    Raises:
        InputError: one has a bracket or a brace in it.
    """
    for folder in folders:
        if found := set("[]{}") & set(str(folder)):
            raise InputError(
                f"{folder}: the path holds {' '.join(sorted(found))}, which Kedro reads as a "
                "pattern; move the project, or what --conf-source names, to a path without"
            )


def run_names(loader: AbstractConfigLoader) -> dict[str, Any]:
    """Return the name of the run and the run whose completions it takes up, if it is given."""
    given = dict(loader.runtime_params or {})
    return {"run_name": loader["globals"].get("run_name")} | {
        name: given[name] for name in ("run_name", "completions_of") if name in given
    }


def refuse_links(names: Mapping[str, Any]) -> None:
    """Refuse runs whose folder in a layer is a link: what lies behind it would be overwritten.

    Raises:
        InputError: one is; the layers themselves may be links.
    """
    for field, name in names.items():
        for layer in sorted(_LAYERS.glob("0[2-8]_*")):
            folder = layer / str(name)
            if folder.is_symlink():
                raise InputError(
                    f"{field}: {folder} is a link; a run writes into its own folder: choose "
                    "another name, or remove the link"
                )
