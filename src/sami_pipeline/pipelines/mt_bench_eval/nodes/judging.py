"""Answers are judged: by the checklist, and by models that judge."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sami_pipeline import schemas
from sami_pipeline.engines import complete
from sami_pipeline.errors import InputError
from sami_pipeline.evaluation import judge_requests, judges
from sami_pipeline.evaluation.checklist import judge_checklist
from sami_pipeline.models.checkpoints import Checkpoint
from sami_pipeline.parameters import JudgeParameters, ModelJudgeParameters, ModelsParameters
from sami_pipeline.tables import StoredTable


def judge_answers(
    checked: pd.DataFrame, models: ModelsParameters, judge: JudgeParameters
) -> pd.DataFrame:
    """Return the checklist judge's verdicts on every pair of models.

    There are none where no principle names a check; then another judge is needed.
    """
    if checked.empty:
        if not judge.is_model:
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
