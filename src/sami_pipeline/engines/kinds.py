"""What a kind of engine is: everything that the project has to be told about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel


def _nothing(settings: Any) -> None:
    """Check nothing."""


def _one(settings: Any) -> int:
    return 1


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
        at_once: how many texts it writes at once, for a dry run.
    """

    name: str
    settings: type[BaseModel]
    open: Callable[..., Any]
    asks_server: bool = False
    own_code: tuple[str, ...] = ()
    check: Callable[[Any], None] = _nothing
    at_once: Callable[[Any], int] = _one


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
