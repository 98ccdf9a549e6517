"""Answers of models under test: to MT-Bench at each turn, and to held-out queries."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from sami_pipeline import schemas
from sami_pipeline.engines import Completion, GenerationRequest, SamplingParameters
from sami_pipeline.evaluation.mt_bench import FOLLOWED
from sami_pipeline.models.prompts import Prompt, PromptTemplate
from sami_pipeline.parameters import EvaluationParameters, GenerationParameters
from sami_pipeline.training.responses import with_completions


def turn_requests(
    rows: pd.DataFrame, template: PromptTemplate, parameters: EvaluationParameters
) -> tuple[pd.DataFrame, list[GenerationRequest]]:
    """Return the rows of one turn with their prompts, and one request for each.

    Args:
        rows: as from ``mt_bench.plan_first_turn`` or ``plan_second_turn``.
        template: how a question and a constitution become a prompt.
        parameters: temperatures by category and the limit of an answer.
    """
    prompts = [_prompt(template, row) for row in rows.itertuples(index=False)]
    temperatures = map(parameters.temperature_of, rows["category"])
    requests = [
        GenerationRequest(
            prompt,
            SamplingParameters(parameters.max_new_tokens, temperature, stop=template.stop),
            goes_on=turn < parameters.turns and constitution in FOLLOWED,
        )
        for prompt, temperature, turn, constitution in zip(
            prompts, temperatures, rows["turn"], rows["constitution"], strict=True
        )
    ]
    return rows.assign(prompt=[prompt.to_json() for prompt in prompts]), requests


def _prompt(template: PromptTemplate, row: Any) -> Prompt:
    constitution = row.text if isinstance(row.text, str) else None
    asked = {"constitution": constitution, "stances": json.loads(row.stances)}
    if row.turn == 1:
        return template.build([row.question], **asked)
    return template.build([row.first_question, row.question], [row.first_answer], **asked)


def held_out_requests(
    responses: pd.DataFrame, template: PromptTemplate, parameters: GenerationParameters
) -> tuple[pd.DataFrame, list[GenerationRequest]]:
    """Return the held-out queries under each constitution, and one request for each.

    Asked as a response is trained, and written as the teacher's were. All held-out queries are
    asked, also those whose responses by the teacher are no use.

    Args:
        responses: as from ``responses.with_training_prompts``.
        template: of the training prompts; gives the strings that end a response.
        parameters: how the training responses were written.
    """
    rows = responses[responses["split"] == "held_out"]
    rows = rows[["query_id", "category", "constitution_index", "constitution"]].assign(
        prompt=rows["training_prompt"]
    )
    sampling = parameters.sampling(template.stop)
    return rows, [GenerationRequest(Prompt.from_json(text), sampling) for text in rows["prompt"]]


def tabulate_held_out(
    model: str, rows: pd.DataFrame, completions: list[Completion]
) -> pd.DataFrame:
    """Return a model's own responses to the held-out queries, one row for each constitution."""
    table = with_completions(rows.assign(model=model), completions)
    return schemas.HeldOutResponses.tabulate(table)
