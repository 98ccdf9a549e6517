"""Nodes of mt_bench_eval: models under test answer MT-Bench and are compared."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from sami_pipeline import PROJECT_FOLDER, figures, schemas
from sami_pipeline.engines import CompletionStore, complete, generate, open_model
from sami_pipeline.errors import InputError
from sami_pipeline.evaluation import (
    judge_quality,
    judge_requests,
    judges,
    length_control,
    mt_bench,
    mt_bench_answers,
    statistics,
)
from sami_pipeline.evaluation.checklist import judge_checklist
from sami_pipeline.evaluation.statistics import DESIRED
from sami_pipeline.inputs import answer_files
from sami_pipeline.models.checkpoints import Checkpoint
from sami_pipeline.models.prompts import PromptTemplate
from sami_pipeline.parameters import (
    EvaluationParameters,
    GenerationParameters,
    JudgeParameters,
    ModelJudgeParameters,
    ModelsParameters,
)
from sami_pipeline.pipelines import combine_replicates, combine_tables, with_seeds
from sami_pipeline.principles.constitutions import (
    desired_in_trained_wording,
    sample_constitutions,
)
from sami_pipeline.principles.statements import check_answers
from sami_pipeline.tables import StoredTable
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
        PROJECT_FOLDER / Path(models.answer_files[model]).expanduser(),
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


def tabulate_held_out_lengths(
    *responses: pd.DataFrame, replicates: Mapping[str, tuple[str, int]]
) -> pd.DataFrame:
    """Return the mean length of each model's responses to held-out queries.

    Args:
        responses: of each replicate.
        replicates: model and seed of every table, in the order of the tables.
    """
    together = (
        combine_replicates(*responses, replicates=replicates)
        if with_seeds(replicates)
        else combine_tables(*responses)
    )
    return statistics.response_lengths(together)


def judge_answers(
    checked: pd.DataFrame, models: ModelsParameters, judge: JudgeParameters
) -> pd.DataFrame:
    """Return the checklist judge's verdicts on every pair of models.

    There are none where no principle names a check; then another judge is needed.
    """
    if checked.empty:
        if judge.kind == "checklist":
            raise InputError(
                "judge.kind: the checklist has nothing to judge by, since no principle names a "
                "check; give principles checks, or choose pairwise, constitution or single"
            )
        return schemas.Verdicts.empty()
    return pd.concat(
        [
            judge_checklist(checked, model, opponent, models.lineage)
            for model, opponent in models.pairs()
        ],
        ignore_index=True,
    )


def ask_judge(
    answers: pd.DataFrame | StoredTable,
    questions: pd.DataFrame,
    constitutions: pd.DataFrame,
    judge_prompts: pd.DataFrame,
    models: ModelsParameters,
    parameters: ModelJudgeParameters,
    completions_folder: Path,
    checkpoint: Checkpoint | None = None,
) -> pd.DataFrame:
    """Return what the model that judges says of every pair of models' answers.

    Without a checkpoint the engine is a server.
    """
    questions = judge_requests.with_references(questions, parameters)
    planned = judges.plan_judgements(
        parameters.kind, answers, questions, constitutions, judge_prompts, models.pairs(),
        constrained=parameters.answer_format == "choice", orders=parameters.orders,
        seed=parameters.seed, repeats=parameters.repeats, lineage=models.lineage,
    )  # fmt: skip
    completions = complete(
        parameters.engine,
        checkpoint,
        judge_requests.judgement_requests(planned, parameters),
        seed=parameters.seed,
        description=f"Judge: {parameters.judge_name}",
        completions_folder=completions_folder,
    )
    return judge_requests.tabulate_judgements(planned, completions, parameters)


def ask_second_judge(
    answers: pd.DataFrame | StoredTable,
    questions: pd.DataFrame,
    constitutions: pd.DataFrame,
    judge_prompts: pd.DataFrame,
    models: ModelsParameters,
    parameters: JudgeParameters,
    completions_folder: Path,
    checkpoint: Checkpoint | None = None,
) -> pd.DataFrame:
    """Return what the second model that judges says of the same answers; see ``ask_judge``."""
    return ask_judge(
        answers, questions, constitutions, judge_prompts, models,
        parameters.by_place["judge.second"], completions_folder, checkpoint,
    )  # fmt: skip


def decide_verdicts(
    judgements: pd.DataFrame, models: ModelsParameters, parameters: JudgeParameters
) -> pd.DataFrame:
    """Return the verdict of each model that judges on every pair of answers."""
    return judge_requests.decide_verdicts(judgements, parameters, models.pairs(), models.lineage)


def tabulate_ratings(judgements: pd.DataFrame, parameters: JudgeParameters) -> pd.DataFrame:
    """Return mean ratings by model, constitution, category and turn."""
    return judge_requests.ratings(judgements, parameters)


def tabulate_win_rates(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return win rates by judge, constitution, turn and category with intervals over questions."""
    return statistics.win_rates(verdicts)


def tabulate_length_controlled(
    verdicts: pd.DataFrame, answers: pd.DataFrame | StoredTable, parameters: EvaluationParameters
) -> pd.DataFrame:
    """Return win rates with the length of the answers controlled, by judge and pair of models."""
    return length_control.length_controlled(
        verdicts, answers, resamples=parameters.resamples, seed=parameters.seed
    )


def tabulate_judge_quality(
    verdicts: pd.DataFrame,
    answers: pd.DataFrame | StoredTable,
    judgements: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return how far each judge agrees with the others, itself and the longer answer."""
    return judge_quality.judge_quality(verdicts, answers, judgements)


def tabulate_compliance(
    checked: pd.DataFrame, models: ModelsParameters
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return compliance by model, constitution, principle and category, and paired differences."""
    if checked.empty:
        return schemas.Compliance.empty(), schemas.ComplianceDifference.empty()
    return (
        statistics.compliance(checked, models.baseline, models.lineage),
        statistics.compliance_difference(checked, models.baseline, models.lineage),
    )


def tabulate_degeneration(answers: pd.DataFrame | StoredTable) -> pd.DataFrame:
    """Return degeneration rate, mean length and truncation by model, constitution and category."""
    return statistics.degeneration(answers)


def draw_win_rates(win_rates: pd.DataFrame) -> tuple[go.Figure, str]:
    """Return the figure of experiment 1, and the same as a standalone HTML page."""
    figure = figures.win_rates(win_rates)
    return figure, figures.standalone_html(figure)


def draw_compliance(compliance: pd.DataFrame) -> go.Figure:
    """Return compliance by principle for every model."""
    return figures.compliance(compliance)


def draw_questions(verdicts: pd.DataFrame) -> go.Figure:
    """Return how many statements two models follow on the same questions."""
    return figures.paired_questions(verdicts)


def draw_lengths(degeneration: pd.DataFrame) -> go.Figure:
    """Return the length of answers by model and constitution."""
    return figures.lengths(degeneration)


__all__ = [
    "answer_as",
    "ask_judge",
    "ask_second_judge",
    "check_answers",
    "constitute_questions",
    "decide_verdicts",
    "draw_compliance",
    "draw_lengths",
    "draw_questions",
    "draw_win_rates",
    "judge_answers",
    "read_answers_of",
    "respond_as",
    "tabulate_compliance",
    "tabulate_degeneration",
    "tabulate_held_out_lengths",
    "tabulate_judge_quality",
    "tabulate_length_controlled",
    "tabulate_ratings",
    "tabulate_win_rates",
]
