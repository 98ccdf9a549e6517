"""What each output of a run was made from, so that a run goes on with what is still right.

Kedro's ``--only-missing-outputs`` asks whether a file exists. Here an output counts as there only
if it was finished, is as long as it was, and would be made from the same again: the parameters that
its node reads, the project's code, the raw files, and what its inputs in turn were made from.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from sami_pipeline.datasets import WorkingFolder

if TYPE_CHECKING:
    from kedro.io import AbstractDataset, CatalogProtocol
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node

SOURCE = Path(__file__).parents[1]


class Origin(BaseModel):
    """What an output is made from, as hashes, so that a difference can be named.

    Attributes:
        parameters: of its node.
        code: of the project.
        inputs: raw files, and the origins of what other nodes make.
    """

    parameters: str
    code: str
    inputs: str

    def changed_since(self, earlier: Origin) -> list[str]:
        """Return the names of the parts in which an earlier origin differs."""
        return [part for part, value in self if getattr(earlier, part) != value]


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
    pipeline: Pipeline, catalog: CatalogProtocol, recorded: Callable[[str], Record | None]
) -> dict[str, Origin]:
    """Return what each output of a pipeline is to be made from.

    Args:
        pipeline: the nodes that are to run.
        catalog: holds its inputs and parameters.
        recorded: what is known of an output of an earlier run, which a part of the pipeline takes
            as it is.
    """
    found: dict[str, Origin] = {}

    def origin_of(name: str) -> str:
        if name in found:
            return found[name].model_dump_json()
        record = recorded(name)
        return record.origin.model_dump_json() if record else _content(catalog.get(name))

    for node in pipeline.nodes:
        parameters = {name: catalog.get(name).load() for name in node.inputs if _is_parameter(name)}
        inputs = {name: origin_of(name) for name in node.inputs if name not in parameters}
        origin = Origin(
            parameters=_digest([parameters, _bound(node)]), code=_code(), inputs=_digest(inputs)
        )
        found |= dict.fromkeys(node.outputs, origin)
    return found


def fault(record: Record | None, wanted: Origin, dataset: AbstractDataset) -> str | None:
    """Return why an output that exists is to be made again, or None where it is right."""
    if record is None:
        return "not known to be finished"
    changed = wanted.changed_since(record.origin)
    if changed:
        return f"{' and '.join(changed)} changed"
    return None if size(dataset) == record.size else "cut short or changed since"


def size(dataset: AbstractDataset) -> int:
    """Return the size of a dataset's local files together, in bytes."""
    return sum(path.stat().st_size for path in _files(dataset))


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


def _bound(node: Node) -> dict[str, Any]:
    """Return the values that a node's function was made with."""
    return inspect.getclosurevars(node.func).nonlocals if inspect.isfunction(node.func) else {}


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


@cache
def _code() -> str:
    """Return a hash of the package: its modules, and the templates of the report."""
    files = [
        path
        for path in sorted(SOURCE.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]
    return _digest([(str(path.relative_to(SOURCE)), _file_hash(path)) for path in files])


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return getattr(value, "__qualname__", None) or str(value)
