"""Text generation engines behind one small protocol. Never imports kedro or core."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt

from sami_pipeline.engines.base import (
    Completion,
    Engine,
    GenerationRequest,
    SamplingParameters,
)

__all__ = [
    "Completion",
    "Engine",
    "EngineParameters",
    "GenerationRequest",
    "SamplingParameters",
    "open_engine",
]


class EngineParameters(BaseModel):
    """Which engine generates, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["transformers"] = "transformers"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    batch_size: PositiveInt = 64


def open_engine(parameters: EngineParameters, model_folder: Path) -> Engine:
    """Return an engine with the model of a Hugging Face folder loaded."""
    from sami_pipeline.engines.transformers_engine import TransformersEngine

    return TransformersEngine(
        model_folder, dtype=parameters.dtype, batch_size=parameters.batch_size
    )
