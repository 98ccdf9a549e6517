"""Attempts at math problems: how models are asked, and what is read from their answers."""

from __future__ import annotations

from typing import Any

import pandas as pd

from sami_pipeline import schemas
from sami_pipeline.engines import Completion, GenerationRequest, SamplingParameters
from sami_pipeline.evaluation import math_answers, math_readings
from sami_pipeline.evaluation.math_accuracy import GREEDY
from sami_pipeline.models.prompts import PromptTemplate
from sami_pipeline.parameters import AccuracyParameters
from sami_pipeline.principles.constitutions import format_constitution


def requests_per_problem(parameters: AccuracyParameters) -> int:
    """Return how many attempts a model has at a problem: the samples, and a greedy one."""
    return parameters.samples + 1


def attempt_requests(
    problems: pd.DataFrame,
    principles: pd.DataFrame,
    template: PromptTemplate,
    parameters: AccuracyParameters,
) -> tuple[pd.DataFrame, list[GenerationRequest]]:
    """Return one row and one request for each attempt at each test problem.

    Every model is asked alike, zero-shot, under the desired constitution or under none. Attempt 0
    is greedy, 1 … n are sampled.
    """
    test = problems[problems["split"] == "test"]
    desired = [(name, "principle") for name in principles["principle"]]
    asked: dict[str, Any] = {}
    if parameters.under_constitution:
        text = format_constitution(desired, principles, "evaluation")
        asked = {"constitution": text, "stances": desired}
    rows, requests = [], []
    for problem in test.itertuples(index=False):
        prompt = template.build([problem.question], **asked)
        for attempt in range(parameters.samples + 1):
            rows.append(
                {
                    "problem_id": problem.problem_id,
                    "attempt": attempt,
                    "reference": problem.answer,
                    "prompt": prompt.to_json(),
                }
            )
            temperature = 0.0 if attempt == GREEDY else parameters.temperature
            sampling = SamplingParameters(
                parameters.max_new_tokens, temperature, parameters.top_p, template.stop
            )
            requests.append(GenerationRequest(prompt, sampling, sample=attempt))
    return pd.DataFrame(rows), requests


def tabulate_attempts(
    model: str, rows: pd.DataFrame, completions: list[Completion]
) -> pd.DataFrame:
    """Return the table of attempts, with every way of reading an answer side by side.

    ``answer`` is what a careful reader takes, ``reading`` where it stood
    (`math_readings.read_answer`), and ``correct`` judges it; the other readings are kept too.
    """
    texts = [completion.text for completion in completions]

    def read(extract) -> list[str]:
        return [extract(text) or "" for text in texts]

    readings = [math_readings.read_answer(text) for text in texts]
    answers = [reading.answer for reading in readings]
    strict = read(math_answers.strict_answer)

    def judged(answers: list[str]) -> list[bool]:
        pairs = zip(answers, rows["reference"], strict=True)
        return [math_answers.same_number(answer, reference) for answer, reference in pairs]

    table = rows.assign(
        model=model,
        text=texts,
        answer=answers,
        reading=[reading.place for reading in readings],
        strict=strict,
        flexible=read(math_answers.flexible_answer),
        published=read(math_answers.published_answer),
        correct=judged(answers),
        strict_correct=judged(strict),
        harness_strict=read(math_answers.harness_answer),
        harness_flexible=read(math_answers.harness_flexible_answer),
        finish_reason=[completion.finish_reason for completion in completions],
        prompt_tokens=[completion.prompt_tokens for completion in completions],
        completion_tokens=[completion.completion_tokens for completion in completions],
    )
    return schemas.Attempts.tabulate(table)
