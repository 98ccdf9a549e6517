"""What each output of a run was made from, so that a run goes on with what is still right.

Kedro's ``--only-missing-outputs`` asks whether a file exists. Here an output counts as there only
if it was finished, is as long as it was, and would be made from the same again: the parameters that
its node reads, the code that its node reaches and the packages that compute there
(``code_versions``), the raw files, and what its inputs in turn were made from.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from sami_pipeline import PROJECT_FOLDER, code_versions, engines, files
from sami_pipeline.code_versions import CodeVersion, listed
from sami_pipeline.datasets import WorkingFolder
from sami_pipeline.engines import EngineParameters

if TYPE_CHECKING:
    from kedro.io import AbstractDataset, CatalogProtocol
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node

# What datasets draw for kedro-viz is no part of what they hold.
_PREVIEWS = ("figures",)
COMPLETIONS = ".completions"
STATES = "_training_state"
_ASKED_AGAIN = "asked again"
_HASH_LENGTH = 32
# What stands before a path in sources of models and problems.
_SOURCES = ("gguf", "folder", "answers", "gsm8k", "math")
# Of files that a parameter names, larger ones count by the time of their last change.
_LARGEST_HASHED = 2**24


class Origin(BaseModel):
    """What an output is made from, as hashes and versions, so that a difference can be named.

    Attributes:
        parameters: of its node, by name; "node" has how inputs and values are given to it.
        code: by module, what its node reaches there.
        packages: versions of those that compute.
        inputs: raw files, and the origins of what other nodes make, by the dataset's name.
        texts: of a node that asks engines, whether all are asked again by present code.
    """

    model_config = ConfigDict(extra="forbid")

    parameters: dict[str, str]
    code: dict[str, str]
    packages: dict[str, str]
    inputs: dict[str, str]
    texts: str = ""

    @property
    def digest(self) -> str:
        """One hash of all."""
        return _digest(self)

    def changed_since(self, earlier: Origin) -> Change:
        """Return in what an earlier origin differs."""
        code = CodeVersion(self.code, self.packages)
        return Change(
            _differing(self.parameters, earlier.parameters),
            tuple(code.changed_since(CodeVersion(earlier.code, earlier.packages))),
            _differing(self.inputs, earlier.inputs),
            self.texts != earlier.texts,
        )


class Change(NamedTuple):
    """In what two origins differ.

    Attributes:
        parameters: by name.
        code: modules, and packages with both versions.
        inputs: datasets.
        texts: whether one has texts that are asked again and the other not.
    """

    parameters: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    texts: bool = False


class Record(BaseModel):
    """An output that was finished.

    Attributes:
        origin: what it was made from.
        size: of its files together, in bytes.
        missing_answers: that a server did not give; an output with some is not complete.
    """

    origin: Origin
    size: int
    missing_answers: int = 0


def origins(
    pipeline: Pipeline,
    catalog: CatalogProtocol,
    recorded: Callable[[str], Record | None],
    *,
    ask_again: bool = False,
) -> dict[str, Origin]:
    """Return what each output of a pipeline is to be made from.

    Args:
        pipeline: the nodes that are to run.
        catalog: holds its inputs and parameters.
        recorded: what is known of an output of an earlier run, which a part of the pipeline takes
            as it is.
        ask_again: texts of earlier code are asked again.
    """
    found: dict[str, Origin] = {}

    def origin_of(name: str) -> str:
        if name in found:
            return found[name].digest
        record = recorded(name)
        return record.origin.digest if record else _content(catalog.get(name))

    for node in pipeline.nodes:
        if not node.outputs:
            continue  # such as a dry run, which needs none of the packages that would compute
        parameters = {name: catalog.get(name).load() for name in node.inputs if _is_parameter(name)}
        code = code_of(node, catalog, parameters.values())
        origin = Origin(
            parameters={name.removeprefix("params:"): _of(v) for name, v in parameters.items()}
            | {"node": _digest([node._inputs, node._outputs, _bound(node.func)])},
            code=dict(code.modules),
            packages=dict(code.packages),
            inputs={name: origin_of(name) for name in node.inputs if name not in parameters},
        )
        if any(name.endswith(COMPLETIONS) for name in node.inputs):
            origin = origin.model_copy(update={"texts": _texts(origin, node, recorded, ask_again)})
        found |= dict.fromkeys(node.outputs, origin)
    return found


def _texts(
    origin: Origin, node: Node, recorded: Callable[[str], Record | None], ask_again: bool
) -> str:
    """Return which texts a node's outputs are made from.

    What was once made of texts that were asked again stays right when they are taken up later.
    """
    if ask_again:
        return _ASKED_AGAIN
    again = origin.model_copy(update={"texts": _ASKED_AGAIN})
    known = [record.origin for name in node.outputs if (record := recorded(name)) is not None]
    return _ASKED_AGAIN if again in known else ""


def code_of(node: Node, catalog: CatalogProtocol, parameters: Iterable[Any]) -> CodeVersion:
    """Return the version of the code that a node reaches, and its datasets and their schemas.

    Engines that its parameters do not choose are left out.
    """
    chosen = list(_engines([*parameters, _bound(node.func)]))
    without = engines.code_not_used(chosen)
    datasets = {
        name: catalog.get(name) for name in (*node.inputs, *node.outputs) if not _is_parameter(name)
    }
    # Of datasets that follow a pattern they are known once those are made.
    validators = getattr(catalog, "validators", {})
    function = code_versions.of(node.func, *engines.code_outside(chosen), without=without)
    stored = code_versions.of(
        *datasets.values(),
        *(_class_path(validators[name]) for name in datasets if name in validators),
        without=(*_PREVIEWS, *without),
    )
    return (function | stored).with_packages(engines.packages_outside(chosen))


def _class_path(validator: str | Mapping[str, Any]) -> str:
    return validator if isinstance(validator, str) else str(validator["class"])


def _engines(value: Any) -> Iterator[EngineParameters]:
    """Yield the settings of engines within parameters."""
    if isinstance(value, EngineParameters):
        yield value
    elif isinstance(value, BaseModel):
        yield from _engines([getattr(value, name) for name in type(value).model_fields])
    elif isinstance(value, Mapping):
        yield from _engines(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _engines(each)


def fault(record: Record | None, wanted: Origin, dataset: AbstractDataset) -> str | Change | None:
    """Return why an output that exists is to be made again, or None where it is right."""
    if record is None:
        return "not known to be finished"
    if wanted != record.origin:
        return wanted.changed_since(record.origin)
    return None if size(dataset) == record.size else "cut short or changed since"


def in_words(reason: str | Change, made: Collection[str]) -> str:
    """Return a reason for making an output again.

    Args:
        reason: as from ``fault``.
        made: outputs that are made in the same run.
    """
    if isinstance(reason, str):
        return reason
    parts = []
    if reason.parameters:
        names = [name for name in reason.parameters if name != "node"]
        parts.append(f"parameters changed ({', '.join(names)})" if names else "its wiring changed")
    if reason.texts:
        parts.append("texts of earlier code are asked again")
    if reason.code:
        parts.append(f"code changed ({listed(reason.code)})")
    raw = [name.rpartition(".")[2] for name in reason.inputs if name not in made]
    if raw:
        parts.append(f"inputs changed ({listed(raw)})")
    return "; ".join(parts) or "what they are made from is made again"


def size(dataset: AbstractDataset) -> int:
    """Return the size of a dataset's local files together, in bytes."""
    return size_of(_files(dataset))


def size_of(files: Iterable[Path]) -> int:
    """Return the size of files together, in bytes."""
    return sum(path.stat().st_size for path in files)


def read_record(path: Path) -> Record | None:
    """Return the record in a file, or None where there is none that can be read."""
    try:
        return Record.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def place(dataset: AbstractDataset) -> str | None:
    """Return where a dataset lies, or None for one that is in memory."""
    for name in ("_filepath", "_folder", "_path"):
        if (path := getattr(dataset, name, None)) is not None:
            return str(path)
    return None


def _is_parameter(name: str) -> bool:
    return name.startswith("params:") or name == "parameters"


def _bound(function: Callable[..., Any]) -> Any:
    """Return the values that a node's function was made with."""
    if isinstance(function, partial):
        return [_bound(function.func), list(function.args), dict(function.keywords)]
    if inspect.ismethod(function):
        return _bound(function.__func__)
    return inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}


def _differing(new: Mapping[str, str], old: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(name for name in sorted({*new, *old}) if new.get(name) != old.get(name))


def _content(dataset: AbstractDataset) -> str:
    """Return a hash of a raw input's files.

    Of a folder that nodes write into, and of what lies on another machine, only the place counts.
    """
    if isinstance(dataset, WorkingFolder) or getattr(dataset, "_protocol", "file") != "file":
        return "" if isinstance(dataset, WorkingFolder) else str(place(dataset))
    return _digest([(path.name, _file_hash(path)) for path in _files(dataset)])


def _files(dataset: AbstractDataset) -> list[Path]:
    where = place(dataset)
    if where is None or getattr(dataset, "_protocol", "file") != "file":
        return []
    path = Path(where)
    if path.is_file():
        return [path]
    suffix = getattr(dataset, "_filename_suffix", "")  # of a PartitionedDataset
    return sorted(each for each in path.rglob(f"*{suffix}") if each.is_file())


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of(parameter: Any) -> str:
    """Return a hash of a parameter and of the local files that it names.

    Other weights under the name of the old ones, or another file of problems, are another input.
    """
    named = sorted({file for text in _strings(parameter) for file in _named_files(text)})
    return _digest([parameter, named] if named else parameter)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _strings(each)


def _named_files(text: str) -> Iterator[tuple[str, int, str]]:
    """Yield the name, size and version of each file that a text names by path."""
    kind, separator, location = text.partition(":")
    path = location if separator and kind in _SOURCES else text
    if "/" not in path or "://" in path or not path.isprintable():
        return
    places = [path.replace("{split}", split) for split in ("train", "test")]
    for place in {PROJECT_FOLDER / files.from_home(each) for each in places}:
        try:
            below = place.rglob("*") if place.is_dir() else [place]
        except OSError:
            continue  # a text with a slash that is no path
        for file in below:
            if file.is_file() and ".git" not in file.parts:
                status = file.stat()
                version = (
                    str(status.st_mtime_ns)
                    if status.st_size > _LARGEST_HASHED
                    else _file_hash(file)
                )
                yield str(file), status.st_size, version


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_LENGTH]


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    return getattr(value, "__qualname__", None) or str(value)
