"""Nodes of sami_generation: contrasting constitutions and a response under each."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd

from sami_pipeline.engines import Completion, GenerationRequest, complete
from sami_pipeline.inputs.problems import solution_by_stances
from sami_pipeline.models.checkpoints import Checkpoint
from sami_pipeline.models.prompts import PromptTemplate
from sami_pipeline.parameters import (
    ConstitutionsParameters,
    GenerationParameters,
    IterationsParameters,
)
from sami_pipeline.principles.constitutions import sample_constitutions
from sami_pipeline.training import responses
from sami_pipeline.training.data import mark_too_long

logger = logging.getLogger(__name__)


def constitute_queries(
    queries: pd.DataFrame, principles: pd.DataFrame, parameters: ConstitutionsParameters
) -> pd.DataFrame:
    """Return n contrasting constitutions for every query; see ``sample_constitutions``."""
    return sample_constitutions(
        queries,
        principles,
        n_constitutions=parameters.n_constitutions,
        seed=parameters.seed,
        contrast=parameters.contrast,
        pairs_per_query=parameters.pairs_per_query,
        pairs_differ_in=parameters.pairs_differ_in,
    )


def write_responses(
    queries: pd.DataFrame,
    constitutions: pd.DataFrame,
    template: dict[str, Any],
    parameters: GenerationParameters,
    iterations: IterationsParameters,
    completions_folder: Path,
    teacher: Checkpoint | None = None,
    *,
    iteration: int,
) -> pd.DataFrame:
    """Return the teacher's response to every chosen query under each of its constitutions.

    Without a teacher the engine is a server.
    """
    rows, requests = _planned(
        queries, constitutions, template, parameters, iterations.half(iteration)
    )
    completions = complete(
        iterations.generation_engine(parameters.engine, iteration),
        teacher,
        requests,
        seed=parameters.seed,
        description="Training responses",
        completions_folder=completions_folder,
    )
    return responses.with_completions(rows, completions)


def _planned(
    queries: pd.DataFrame,
    constitutions: pd.DataFrame,
    template: dict[str, Any],
    parameters: GenerationParameters,
    half: int | None,
) -> tuple[pd.DataFrame, list[GenerationRequest]]:
    """Return the rows of the table of generations, without responses, and a request for each."""
    prompt_template = PromptTemplate.parse(template, "generation_prompt")
    return responses.generation_requests(
        responses.choose_queries(queries, parameters, half),
        constitutions,
        prompt_template,
        parameters.sampling(prompt_template.stop),
    )


def copy_solutions(
    problems: pd.DataFrame,
    queries: pd.DataFrame,
    constitutions: pd.DataFrame,
    template: dict[str, Any],
    student: Checkpoint,
    parameters: GenerationParameters,
    iterations: IterationsParameters,
) -> pd.DataFrame:
    """Return the problems' own worked solutions, as each constitution wants them.

    They take the place of a stronger teacher in the first iteration; no model writes them.
    """
    rows, requests = _planned(queries, constitutions, template, parameters, iterations.half(1))
    encoder = student.load_encoder()
    known = problems.set_index("problem_id")
    completions = []
    for row, request in zip(rows.itertuples(index=False), requests, strict=True):
        problem = known.loc[row.query_id]
        text = solution_by_stances(problem["solution"], problem["answer"], json.loads(row.stances))
        prompt = encoder.encode(request.prompt)
        tokens = encoder.encode_response([prompt], text)
        completions.append(Completion(text, "stop", len(prompt.ids), len(tokens)))
    return responses.with_completions(rows, completions)


def measure_teacher(generations: pd.DataFrame, principles: pd.DataFrame) -> pd.DataFrame:
    """Return how far the teacher tells each principle from its antithesis, before training."""
    return responses.teacher_compliance(generations, principles)


def prepare_responses(
    generations: pd.DataFrame,
    principles: pd.DataFrame,
    template: dict[str, Any],
    student: Checkpoint,
    parameters: GenerationParameters,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the responses, marked usable or not and with their training prompts, and counts.

    Raises:
        InputError: no training query is usable.
    """
    prepared = responses.with_training_prompts(
        responses.mark_usable(generations, parameters),
        principles,
        PromptTemplate.parse(template, "training_prompt"),
        parameters.seed,
    )
    prepared = mark_too_long(prepared, student)
    counts = responses.count_statuses(prepared)
    logger.info("Queries by status: %s", counts.groupby("status")["queries"].sum().to_dict())
    for found in responses.shortage(counts):
        logger.warning("Training responses: %s", found)
    return prepared, counts
