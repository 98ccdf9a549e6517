"""Model folders that another run has made from exactly the same are linked, not made again.

Importing a large model copies it, and training it takes hours. Where another run's records say that
all outputs of a node were made from the same, whole and of the same length, its files are taken
over as hard links: they take no more room, and removing one run leaves the other's. Other
tables are made in seconds, and texts are shared by their requests (``engines.store``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sami_pipeline import files
from sami_pipeline.datasets import CheckpointDataset
from sami_pipeline.session import provenance

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline.node import Node

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TakenOver:
    """What a node gives instead of its output: the same, made by another run.

    Attributes:
        run: the other run's name.
        place: of its file or folder.
        record: what the other run has recorded.
    """

    run: str
    place: Path
    record: provenance.Record

    def link(self, place: Path) -> None:
        """Let the same files stand at another place, at once and whole."""
        if self.place.is_dir():
            with files.whole_folder(place) as partial:
                for source in sorted(p for p in self.place.rglob("*") if p.is_file()):
                    target = partial / source.relative_to(self.place)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    files.link_or_copy(source, target)
        else:
            with files.whole_file(place) as partial:
                files.link_or_copy(self.place, partial)


def find(
    node: Node,
    catalog: CatalogProtocol,
    origins: Mapping[str, provenance.Origin],
    state: Path,
) -> dict[str, TakenOver]:
    """Return the outputs of a node that makes a model folder, as one other run has made them all.

    Args:
        node: whose outputs are wanted.
        catalog: has their places.
        origins: what each is to be made from.
        state: this run's folder of records, ``data/LAYER/RUN/EXPERIMENT/.state``.
    """
    datasets = {name: catalog.get(name) for name in node.outputs}
    if not any(isinstance(dataset, CheckpointDataset) for dataset in datasets.values()):
        return {}
    state = state.absolute()
    experiment, run, data = state.parent.name, state.parents[1].name, state.parents[3]
    for records in sorted(state.parents[2].glob(f"*/{experiment}/{state.name}/provenance")):
        other = records.parents[2].name
        if other == run:
            continue
        found = {}
        for name, dataset in datasets.items():
            record = provenance.read_record(records / f"{name}.json")
            place = _place_in(other, run, data, provenance.place(dataset))
            if record is None or place is None or record.origin != origins[name]:
                break
            if provenance.size_of(_files(place)) != record.size:
                break
            found[name] = TakenOver(other, place, record)
        if len(found) == len(datasets):
            return found
    return {}


def _place_in(other: str, run: str, data: Path, place: str | None) -> Path | None:
    """Return where another run has what lies at a place of this one: ``data/LAYER/RUN/…``."""
    path = Path(place or "").absolute()
    if place is None or not path.is_relative_to(data):
        return None
    layer, name, *rest = path.relative_to(data).parts
    return data / layer / other / Path(*rest) if name == run and rest else None


def _files(place: Path) -> list[Path]:
    return [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]


def instead_of(node: Node, taken: Mapping[str, TakenOver]) -> Callable[..., Any]:
    """Return a function that gives what was taken over in the form that the node gives it."""

    def take_over(*_: Any, **__: Any) -> Any:
        if isinstance(node._outputs, str):
            return taken[node._outputs]
        if isinstance(node._outputs, dict):
            return {key: taken[name] for key, name in node._outputs.items()}
        return tuple(taken[name] for name in node.outputs)

    return take_over
