"""Nodes of write_principles: a model writes principles and their antitheses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from sami_pipeline import PROJECT_FOLDER
from sami_pipeline.engines import CompletionStore, generate, open_model
from sami_pipeline.models.checkpoints import Checkpoint, LoadedModel, import_model
from sami_pipeline.parameters import PrincipleWritingParameters
from sami_pipeline.principles import writing
from sami_pipeline.principles.constitutions import parse_principles


def import_writer(parameters: PrincipleWritingParameters) -> Checkpoint | LoadedModel:
    """Return the model that writes, from the source that the parameters name."""
    imported = import_model(
        parameters.source, PROJECT_FOLDER, trust_remote_code=parameters.trust_remote_code
    )
    return replace(imported, chat=parameters.chat)


def write_principles(
    principle_files: dict[str, Callable[[], Any]],
    prompt: dict[str, Any],
    parameters: PrincipleWritingParameters,
    completions_folder: Path,
    checkpoint: Checkpoint | None = None,
) -> tuple[dict[str, dict[str, Any]], pd.DataFrame]:
    """Return a principles file for each category, and every answer of the model as a table.

    Without a checkpoint the engine is a server.
    """
    existing = parse_principles({f"{name}.yml": load() for name, load in principle_files.items()})
    store = CompletionStore(completions_folder)
    with closing(open_model(parameters.engine, checkpoint)) as engine:
        return writing.write_principles(
            {
                name: [
                    {"id": p.id, "principle": p.principle[0], "antithesis": p.antithesis[0]}
                    for p in file.principles
                ]
                for name, file in existing.items()
            },
            writing.WritingPrompt.parse(prompt),
            parameters,
            lambda requests: generate(
                engine, requests, seed=parameters.seed, description="Principles", store=store
            ),
            written_by=str(parameters.source or parameters.engine.served_model),
        )
