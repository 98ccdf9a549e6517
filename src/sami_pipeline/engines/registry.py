"""The list of engines; another one is a file in this folder, and a line here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sami_pipeline.engines import credentials
from sami_pipeline.engines.base import Engine
from sami_pipeline.engines.kinds import EngineKind, engine_kinds, register
from sami_pipeline.engines.parameters import (
    OpenAIParameters,
    TransformersParameters,
    VllmParameters,
)
from sami_pipeline.models.devices import device_of
from sami_pipeline.processes import need_process_groups

__all__ = ["ENGINES", "engine_kinds", "register"]


def _open_transformers(settings: TransformersParameters, folder: Path, **options: Any) -> Engine:
    from sami_pipeline.engines.transformers_engine import TransformersEngine

    return TransformersEngine(
        folder,
        device=settings.device,
        dtype=settings.dtype,
        batch_size=settings.batch_size,
        lanes=settings.lanes,
        kept_gib=settings.kept_gib,
        **options,
    )


def _check_transformers(settings: TransformersParameters) -> None:
    device_of(settings.device, "engine.transformers.device")


def _open_vllm(settings: VllmParameters, folder: Path, **options: Any) -> Engine:
    from sami_pipeline.engines.vllm_engine import VllmEngine

    return VllmEngine(folder, settings, **options)


def _check_vllm(settings: VllmParameters) -> None:
    from sami_pipeline.engines import vllm_server

    need_process_groups("engine.kind: vllm")
    vllm_server.interpreter(settings.python)


def _open_openai(settings: OpenAIParameters, folder: None, **options: Any) -> Engine:
    from sami_pipeline.engines.openai_engine import OpenAIEngine

    return OpenAIEngine(settings)


def _check_openai(settings: OpenAIParameters) -> None:
    credentials.api_key(settings.credentials, settings.api_key_variable)


ENGINES = (
    EngineKind(
        name="transformers",
        settings=TransformersParameters,
        open=_open_transformers,
        own_code=("engines.transformers_engine", "engines.parameters:TransformersParameters"),
        check=_check_transformers,
        at_once=lambda settings: settings.batch_size,
    ),
    EngineKind(
        name="vllm",
        settings=VllmParameters,
        open=_open_vllm,
        own_code=(
            "engines.vllm_engine", "engines.vllm_server", "engines.vllm_worker",
            "engines.parameters:VllmParameters",
        ),
        check=_check_vllm,
    ),
    EngineKind(
        name="openai",
        settings=OpenAIParameters,
        open=_open_openai,
        asks_server=True,
        own_code=(
            "engines.openai_engine", "engines.credentials", "engines.parameters:OpenAIParameters",
        ),
        check=_check_openai,
    ),
)  # fmt: skip

for _kind in ENGINES:
    register(_kind)
