"""Models under test answer MT-Bench, and the held-out queries."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd

from sami_pipeline import PROJECT_FOLDER, files
from sami_pipeline.engines import CompletionStore, complete, generate, open_model
from sami_pipeline.evaluation import mt_bench, mt_bench_answers
from sami_pipeline.evaluation.statistics import DESIRED
from sami_pipeline.inputs import answer_files
from sami_pipeline.models.checkpoints import Checkpoint
from sami_pipeline.models.prompts import PromptTemplate
from sami_pipeline.parameters import EvaluationParameters, GenerationParameters, ModelsParameters
from sami_pipeline.principles.constitutions import desired_in_trained_wording, sample_constitutions
from sami_pipeline.training.responses import with_completions


def constitute_questions(
    questions: pd.DataFrame, principles: pd.DataFrame, parameters: EvaluationParameters
) -> pd.DataFrame:
    """Return the constitutions that questions are asked under: desired and, if so, others."""
    asked = mt_bench.asked_questions(questions, parameters)
    first_turns = asked[asked["turn"] == 1].rename(columns={"question_id": "query_id"})
    constitutions = sample_constitutions(
        first_turns,
        principles,
        n_constitutions=2,
        seed=parameters.seed,
        contrast=parameters.contrast,
        use="evaluation",
    )
    if not parameters.contrasting:
        constitutions = constitutions[constitutions["constitution"] == DESIRED]
    if parameters.trained_wording:
        trained = desired_in_trained_wording(first_turns, principles, seed=parameters.seed)
        constitutions = pd.concat([constitutions, trained])
    return constitutions.reset_index(drop=True)


def answer_as(
    checkpoint: Checkpoint,
    questions: pd.DataFrame,
    constitutions: pd.DataFrame,
    template: dict[str, Any],
    parameters: EvaluationParameters,
    completions_folder: Path,
    *,
    model: str,
) -> pd.DataFrame:
    """Return a model's answers to every question."""
    prompt_template = PromptTemplate.parse(template, "evaluation_prompt")
    store = CompletionStore(completions_folder)
    with closing(open_model(parameters.engine, checkpoint)) as engine:

        def answer_turn(rows: pd.DataFrame, description: str) -> pd.DataFrame:
            rows, requests = mt_bench_answers.turn_requests(rows, prompt_template, parameters)
            completions = generate(
                engine, requests, seed=parameters.seed, description=description, store=store
            )
            return with_completions(rows, completions).rename(columns={"response": "answer"})

        return mt_bench.answer_questions(
            model,
            mt_bench.asked_questions(questions, parameters),
            constitutions,
            answer_turn,
            without_constitution=parameters.without_constitution,
        )


def read_answers_of(
    student: Checkpoint,
    questions: pd.DataFrame,
    constitutions: pd.DataFrame,
    models: ModelsParameters,
    parameters: EvaluationParameters,
    *,
    model: str,
) -> pd.DataFrame:
    """Return a model's answers from a file, their tokens as the student's."""
    tokenizer = student.load_tokenizer()
    return answer_files.answers_from_file(
        model,
        PROJECT_FOLDER / files.from_home(models.answer_files[model]),
        mt_bench.asked_questions(questions, parameters),
        constitutions,
        without_constitution=parameters.without_constitution,
        count_tokens=lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
    )


def respond_as(
    checkpoint: Checkpoint,
    responses: pd.DataFrame,
    template: dict[str, Any],
    parameters: GenerationParameters,
    evaluation: EvaluationParameters,
    completions_folder: Path,
    *,
    model: str,
) -> pd.DataFrame:
    """Return a model's responses to the held-out queries."""
    prompt_template = PromptTemplate.parse(template, "training_prompt")
    rows, requests = mt_bench_answers.held_out_requests(responses, prompt_template, parameters)
    if not requests:
        return mt_bench_answers.tabulate_held_out(model, rows, [])
    completions = complete(
        evaluation.engine,  # generation's may be a server, which can't load a model
        checkpoint,
        requests,
        seed=parameters.seed,
        description=f"{model}: held-out queries",
        completions_folder=completions_folder,
    )
    return mt_bench_answers.tabulate_held_out(model, rows, completions)
