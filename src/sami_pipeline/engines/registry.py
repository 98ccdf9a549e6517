"""The list of engines; another one is a file in this folder, and a line here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sami_pipeline.engines import credentials
from sami_pipeline.engines.base import Engine
from sami_pipeline.engines.kinds import EngineKind, Layout, engine_kinds, register
from sami_pipeline.engines.parameters import (
    OpenAIParameters,
    TransformersParameters,
    VllmParameters,
)
from sami_pipeline.models.devices import device_of
from sami_pipeline.processes import need_process_groups

# vLLM's default of max_num_seqs.
_VLLM_SEQUENCES = 256

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


def _layout_of_transformers(settings: TransformersParameters) -> Layout:
    return Layout(
        at_once=settings.batch_size,
        bytes_a_weight=4 if settings.dtype == "float32" else 2,
        remedy="lower {group}.batch_size, or use vllm",
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


def _layout_of_vllm(settings: VllmParameters) -> Layout:
    return Layout(
        at_once=_VLLM_SEQUENCES,
        split=settings.tensor_parallel_size,
        copies=settings.data_parallel_size,
        memory_share=settings.gpu_memory_utilization,
        remedy="raise {group}.tensor_parallel_size",
        room="raise tensor_parallel_size or gpu_memory_utilization",
    )


def _context_of_vllm(settings: VllmParameters) -> int | None:
    return settings.max_model_len


def _packages_of_vllm(settings: Sequence[VllmParameters]) -> Mapping[str, str]:
    from sami_pipeline.engines import vllm_server

    pythons = sorted({each.python or "" for each in settings})
    versions = [vllm_server.version(vllm_server.interpreter(each or None)) for each in pythons]
    return {"vllm": " and ".join(each.strip() for each in versions)}


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
        layout=_layout_of_transformers,
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
        layout=_layout_of_vllm,
        context=_context_of_vllm,
        packages=_packages_of_vllm,
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
