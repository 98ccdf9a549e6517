"""Nodes of math_accuracy: models under test attempt the problems and are compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from sami_pipeline import figures
from sami_pipeline.engines import complete
from sami_pipeline.evaluation import math_attempts
from sami_pipeline.models.checkpoints import Checkpoint
from sami_pipeline.models.prompts import PromptTemplate
from sami_pipeline.parameters import AccuracyParameters


def attempt_as(
    checkpoint: Checkpoint,
    problems: pd.DataFrame,
    principles: pd.DataFrame,
    template: dict[str, Any],
    parameters: AccuracyParameters,
    completions_folder: Path,
    *,
    model: str,
) -> pd.DataFrame:
    """Return the greedy and the sampled attempts of a model at every test problem."""
    prompt_template = PromptTemplate.parse(template, "evaluation_prompt")
    rows, requests = math_attempts.attempt_requests(
        problems, principles, prompt_template, parameters
    )
    completions = complete(
        parameters.engine,
        checkpoint,
        requests,
        seed=parameters.seed,
        description=f"{model}: attempts",
        completions_folder=completions_folder,
    )
    return math_attempts.tabulate_attempts(model, rows, completions)


def draw_accuracy(
    accuracy: pd.DataFrame, parameters: AccuracyParameters, models: Sequence[str] = ()
) -> tuple[go.Figure, go.Figure]:
    """Return accuracy by model, and by number of attempts; for models see `model_colours`."""
    shown = (accuracy, parameters.published, models)
    return figures.accuracy(*shown), figures.accuracy_by_attempts(*shown)
