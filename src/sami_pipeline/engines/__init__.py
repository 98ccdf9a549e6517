"""Text generation engines behind one small protocol. Never imports kedro or core."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from sami_pipeline.engines.base import (
    Completion,
    Engine,
    FinishReason,
    GenerationRequest,
    SamplingParameters,
)
from sami_pipeline.engines.generation import generate, model_fingerprint
from sami_pipeline.engines.parameters import (
    EngineParameters,
    OpenAIParameters,
    TransformersParameters,
    VllmParameters,
)
from sami_pipeline.engines.registry import ENGINES, engine_kinds
from sami_pipeline.engines.store import CompletionStore, completion_key
from sami_pipeline.errors import InputError
from sami_pipeline.models.checkpoints import Checkpoint
from sami_pipeline.models.prompts import ChatParameters

__all__ = [
    "Completion",
    "CompletionStore",
    "Engine",
    "EngineParameters",
    "FinishReason",
    "GenerationRequest",
    "OpenAIParameters",
    "SamplingParameters",
    "TransformersParameters",
    "VllmParameters",
    "code_not_used",
    "code_outside",
    "complete",
    "completion_key",
    "generate",
    "model_fingerprint",
    "open_engine",
    "open_model",
    "packages_outside",
    "release",
]


def open_engine(
    parameters: EngineParameters,
    model_folder: Path | None = None,
    *,
    trust_remote_code: bool = False,
    chat: ChatParameters | None = None,
) -> Engine:
    """Return an engine with the model of a Hugging Face folder loaded, or one that asks a server.

    Use it as ``with closing(open_engine(...)) as engine``, and give it to ``generate``.

    Args:
        parameters: which engine, and its settings.
        model_folder: a Hugging Face folder with safetensors; None for a server.
        trust_remote_code: let Python code run that the folder brings.
        chat: how its chat template is rendered; a server renders its own.

    Raises:
        InputError: a folder for a server, which has its model already, or none for another engine.
    """
    kind = engine_kinds()[parameters.kind]
    if kind.asks_server and model_folder is not None:
        raise InputError(
            f"engine.kind: {kind.name} asks a server and can't load {model_folder}; choose another "
            "kind for models of this project"
        )
    if not kind.asks_server and model_folder is None:
        raise InputError(
            f"engine.kind: {kind.name} needs a model folder; one that asks a server has none"
        )
    options = {"trust_remote_code": trust_remote_code, "chat": chat}
    return kind.open(parameters.settings, model_folder, **options)


def open_model(parameters: EngineParameters, checkpoint: Checkpoint | None = None) -> Engine:
    """Return an engine with a checkpoint loaded, trusted as the checkpoint is; None for a server.

    See ``open_engine``.
    """
    if checkpoint is None:
        return open_engine(parameters)
    return open_engine(
        parameters,
        checkpoint.folder,
        trust_remote_code=checkpoint.trust_remote_code,
        chat=checkpoint.chat,
    )


def complete(
    parameters: EngineParameters,
    checkpoint: Checkpoint | None,
    requests: Sequence[GenerationRequest],
    *,
    seed: int,
    description: str,
    completions_folder: Path,
) -> list[Completion]:
    """Open an engine, generate with it as ``generate`` does, keep all completions, and close it."""
    with closing(open_model(parameters, checkpoint)) as engine:
        return generate(
            engine,
            requests,
            seed=seed,
            description=description,
            store=CompletionStore(completions_folder),
        )


def release() -> None:
    """End what engines have left running for the next one, and give its memory back.

    Whatever else needs the memory calls it first: training does.
    """
    from sami_pipeline.engines import vllm_server

    vllm_server.release()


def code_not_used(chosen: Iterable[EngineParameters]) -> tuple[str, ...]:
    """Return the code of engines that none of these settings chooses; see ``code_versions.of``."""
    kinds = {engine.kind for engine in chosen}
    unused = [
        each for name, kind in engine_kinds().items() if name not in kinds for each in kind.own_code
    ]
    return (*unused, *([] if kinds else ["engines.parameters:EngineParameters"]))


def code_outside(chosen: Iterable[EngineParameters]) -> list[Callable[..., Engine]]:
    """Return what opens the chosen engines that were registered from outside this package.

    Those of this package are found by following the code; see ``code_versions.of``.
    """
    kinds = {engine.kind for engine in chosen}.difference(kind.name for kind in ENGINES)
    return [engine_kinds()[name].open for name in sorted(kinds)]


def packages_outside(chosen: Iterable[EngineParameters]) -> dict[str, str]:
    """Return versions of what engines compute with in separate environments."""
    settings: dict[str, list[Any]] = {}
    for engine in chosen:
        settings.setdefault(engine.kind, []).append(engine.settings)
    found: dict[str, str] = {}
    for name, own in settings.items():
        found |= engine_kinds()[name].packages(own)
    return found
