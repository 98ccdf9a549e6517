"""Judgements: how a model that judges is asked, and what is read from its answers."""

from __future__ import annotations

import logging

import pandas as pd

from sami_pipeline import schemas
from sami_pipeline.engines import Completion, GenerationRequest, SamplingParameters
from sami_pipeline.evaluation import judges, mt_bench
from sami_pipeline.evaluation.judge_kinds import judge_kind
from sami_pipeline.evaluation.seeds import (
    Lineage,
    labelled,
    labelled_pairs,
    seed_columns,
    unlabelled,
)
from sami_pipeline.evaluation.verdict_parser import CONTRADICTORY, INVALID, NO_VERDICT, TIE
from sami_pipeline.models.prompts import Prompt
from sami_pipeline.parameters import JudgeParameters, ModelJudgeParameters

logger = logging.getLogger(__name__)


def with_references(questions: pd.DataFrame, parameters: ModelJudgeParameters) -> pd.DataFrame:
    """Return the questions with the reference answers that the parameters choose; log which."""
    wrong = sorted(mt_bench.WRONG_REFERENCES & set(questions["question_id"]))
    if parameters.references == "published":
        if wrong:
            logger.warning(
                "Judge: GPT-4's references are shown, which are wrong for %d questions: %s",
                len(wrong), ", ".join(wrong),
            )  # fmt: skip
        return mt_bench.with_published_references(questions)
    if wrong:
        logger.info(
            "Judge: GPT-4's references of %d questions are wrong (FastChat's pull request 3158) "
            "and not shown, the question file's own stand in their place: %s",
            len(wrong), ", ".join(wrong),
        )  # fmt: skip
    return questions


def judgement_requests(
    planned: pd.DataFrame, parameters: ModelJudgeParameters
) -> list[GenerationRequest]:
    """Return one request for each planned call; see ``judges.plan_judgements``."""
    if parameters.answer_format == "choice":
        choices = judge_kind(parameters.kind).constrained.choices
        # No choice has more tokens than characters.
        sampling = SamplingParameters(max(map(len, choices)), choices=choices)
    else:
        sampling = SamplingParameters(parameters.max_new_tokens, parameters.temperature)
    return [
        GenerationRequest(Prompt.from_json(prompt), sampling, sample)
        for prompt, sample in zip(planned["prompt"], planned["sample"], strict=True)
    ]


def tabulate_judgements(
    planned: pd.DataFrame,
    completions: list[Completion],
    parameters: ModelJudgeParameters,
) -> pd.DataFrame:
    """Return the planned calls with what the judge wrote and the verdict in it.

    A call without a verdict, be it because the prompt was too long or because a server failed, is
    "invalid", and one with two different ones "contradictory"; the log counts them, the first by
    finish reason. Where the kind allows ties of unanswered questions alone, those are ties.
    """
    constrained = parameters.answer_format == "choice"
    table = planned.assign(
        judge=parameters.judge_name,
        judge_model=parameters.judge_model,
        text=[completion.text for completion in completions],
        verdict=[
            judges.read_verdict(
                parameters.kind,
                completion.text,
                constrained=constrained,
                truncated=completion.finish_reason == "length",
            )
            for completion in completions
        ],
        prompt_tokens=[completion.prompt_tokens for completion in completions],
        completion_tokens=[completion.completion_tokens for completion in completions],
        finish_reason=[completion.finish_reason for completion in completions],
    )
    if judge_kind(parameters.kind).ties == "unanswered":
        table["verdict"] = table["verdict"].replace(TIE, INVALID).where(table["answered"], TIE)
    unread = table[table["verdict"].isin(NO_VERDICT)]
    logger.info("Judge: %d of %d calls gave no verdict", len(unread), len(table))
    contradictory = unread["verdict"] == CONTRADICTORY
    if contradictory.any():
        logger.warning("Judge: %d calls gave two different verdicts", contradictory.sum())
    for reason, count in unread.loc[~contradictory, "finish_reason"].value_counts().items():
        logger.warning("Judge: %d calls without a verdict ended with %r", count, reason)
    return schemas.Judgements.tabulate(table)


def decide_verdicts(
    judgements: pd.DataFrame,
    parameters: JudgeParameters,
    pairs: list[tuple[str, str]],
    lineage: Lineage | None = None,
) -> pd.DataFrame:
    """Return each judge's verdict on every pair of answers that its judgements amount to.

    Where they name training seeds, on every pair of replicates that are compared (``seeds``). Of a
    call's repeats the majority counts, and a call without a verdict as the parameters say.
    """
    decided = []
    for judge in parameters.by_place.values():
        own = judgements[judgements["judge"] == judge.judge_name]
        decided.append(_decide(own.reset_index(drop=True), judge, pairs, lineage or {}))
    return pd.concat(decided, ignore_index=True)


def ratings(judgements: pd.DataFrame, parameters: JudgeParameters) -> pd.DataFrame:
    """Return the mean ratings by the judges that rate; see ``judges.ratings``."""
    tables = []
    for judge in parameters.by_place.values():
        if judge_kind(judge.kind).rates:
            own = judgements[judgements["judge"] == judge.judge_name]
            tables.append(judges.ratings(judges.combine_repeats(own, judge.kind)))
    return pd.concat(tables, ignore_index=True)


def _decide(
    judgements: pd.DataFrame,
    parameters: ModelJudgeParameters,
    pairs: list[tuple[str, str]],
    lineage: Lineage,
) -> pd.DataFrame:
    judgements = judges.combine_repeats(judgements, parameters.kind)
    if parameters.no_verdict == "tie":
        verdicts = judgements["verdict"]
        judgements = judgements.assign(verdict=verdicts.mask(verdicts.isin(NO_VERDICT), TIE))
    decide = judge_kind(parameters.kind).decide
    if not seed_columns(judgements):
        return decide(judgements, pairs)
    replicates = labelled_pairs(judgements, pairs, lineage)
    return unlabelled(decide(labelled(judgements), replicates))
