"""What a kind of engine is: everything that the project has to be told about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel


def _nothing(settings: Any) -> None:
    """Check nothing."""


@dataclass(frozen=True)
class Layout:
    """How an engine lays a model out, for a dry run.

    Attributes:
        at_once: the most texts that it writes at once.
        bytes_a_weight: of the model.
        split: GPUs that share one copy of the model.
        copies: of the model, each on other GPUs.
        memory_share: of each GPU that it takes, whatever it needs, with fewer texts at once where
            there is no room for all; None for one that takes what ``at_once`` texts need.
        remedy: what to change where a GPU has too little memory, with ``{group}`` for its settings,
            such as "lower {group}.batch_size".
        room: the same where its share of the memory leaves no room for a text.
    """

    at_once: int = 1
    bytes_a_weight: int = 2
    split: int = 1
    copies: int = 1
    memory_share: float | None = None
    remedy: str = "take a smaller model"
    room: str = "take a smaller model"


def _one_text(settings: Any) -> Layout:
    return Layout()


def _the_models(settings: Any) -> None:
    """Leave the context to the model."""


def _none(settings: Any) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class EngineKind:
    """A kind of engine.

    Attributes:
        name: in ``engine.kind``, and the group of ``engine`` with its settings.
        settings: the model of that group.
        open: makes the ``base.Engine`` of its settings and the folder of a model (None for one that
            asks a server), with ``trust_remote_code`` and ``chat``, see ``open_engine``.
        asks_server: it loads no model: the server has its own, whose name is ``settings.model``.
        own_code: what only this kind runs, as ``code_versions.of`` takes it; outputs that other
            kinds have written do not depend on it.
        check: raises InputError before a run, where the engine could not be opened.
        layout: how it lays a model out, for a dry run.
        context: the most tokens of prompt and response that its settings let a text have, under
            ``max_model_len``; None leaves it to the model.
        packages: versions of what it computes with in other environments, of the settings of every
            engine of this kind in a run.
    """

    name: str
    settings: type[BaseModel]
    open: Callable[..., Any]
    asks_server: bool = False
    own_code: tuple[str, ...] = ()
    check: Callable[[Any], None] = _nothing
    layout: Callable[[Any], Layout] = _one_text
    context: Callable[[Any], int | None] = _the_models
    packages: Callable[[Sequence[Any]], Mapping[str, str]] = _none


_KINDS: dict[str, EngineKind] = {}


def register(kind: EngineKind) -> None:
    """Add a kind of engine; one from outside this package before a session begins.

    Raises:
        ValueError: another one has its name.
    """
    if kind.name in _KINDS:
        raise ValueError(f"an engine is called {kind.name!r} already")
    _KINDS[kind.name] = kind


def engine_kinds() -> dict[str, EngineKind]:
    """Return all kinds by name."""
    return dict(_KINDS)
