"""What models will be asked, as far as it is known before anything is computed.

A teacher whose template fails or a judge whose context is too short would be found out after hours,
when the texts that it is to judge have been written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sami_pipeline.engines import EngineParameters
from sami_pipeline.evaluation import judges, mt_bench
from sami_pipeline.evaluation.judge_kinds import judge_kind
from sami_pipeline.models.prompts import Prompt, PromptTemplate
from sami_pipeline.parameters import (
    ExperimentParameters,
    JudgedParameters,
    MathParameters,
    ModelJudgeParameters,
)
from sami_pipeline.principles.constitutions import Use, format_constitution, sample_constitutions

_MOST_PROMPTS = 50


@dataclass(frozen=True)
class Asked:
    """What a model is asked in one of its roles.

    Attributes:
        model: who is asked, by its name in the parameters.
        role: the parameter that gives it the role.
        engine: what asks it; None is training.
        prompts: some, from the shortest to the longest.
        room: tokens of the response, and of earlier answers in the prompt at their longest.
        remedy: the parameter that makes room.
    """

    model: str
    role: str
    engine: EngineParameters | None
    prompts: Sequence[Prompt]
    room: int
    remedy: str


@dataclass(frozen=True)
class Known:
    """What is known of an experiment before it runs.

    Attributes:
        templates: prompt templates that the run reads, by their short names.
        table: gives a table of the experiment by name, or None where it is not known yet.
        makes: whether the run makes a dataset of the experiment.
    """

    templates: Mapping[str, PromptTemplate]
    table: Callable[[str], pd.DataFrame | None]
    makes: Callable[[str], bool]


def asked_in_training(parameters: ExperimentParameters, known: Known) -> Iterator[Asked]:
    """Yield what teacher and student read in every experiment."""
    models, generation = parameters.models, parameters.generation
    queries, principles = known.table("queries"), known.table("principles")
    if queries is None or principles is None:
        return
    written, trained = (
        known.templates.get(f"{name}_prompt") for name in ("generation", "training")
    )
    rows = _with_constitutions(queries.rename(columns={"query": "text"}), principles, "training")
    room = generation.max_new_tokens, "generation.max_new_tokens"
    if written is not None and known.makes("generations"):
        prompts = [written.build([row.text], constitution=row.rules) for row in rows]
        yield Asked(models.teacher, "models.teacher", generation.engine, prompts, *room)
    if trained is not None:
        prompts = [trained.build([row.text], constitution=row.rules) for row in rows]
        yield Asked(models.student, "models.student", None, prompts, *room)


def asked_and_judged(parameters: JudgedParameters, known: Known) -> Iterator[Asked]:
    """Yield what models under test and judges are asked where answers are judged."""
    evaluation, evaluated = parameters.evaluation, known.templates.get("evaluation_prompt")
    questions, principles = known.table("questions"), known.table("principles")
    if questions is None:
        return
    asked_first = mt_bench.asked_questions(questions, evaluation)
    turns_asked = range(1, int(asked_first["turn"].max()) + 1)
    for turn in turns_asked if evaluated is not None and principles is not None else ():
        turns = asked_first.groupby("question_id", sort=False)["question"].agg(list)
        each = asked_first.drop_duplicates("question_id").assign(text=list(turns))
        prompts = [
            evaluated.build(row.text[:turn], [""] * (turn - 1), row.rules)
            for row in _with_constitutions(each, principles, "evaluation")
            if len(row.text) >= turn
        ]
        room = turn * evaluation.max_new_tokens, "evaluation.max_new_tokens"
        for model in parameters.models.tested_checkpoints:
            yield Asked(model, "models.under_test", evaluation.engine, prompts, *room)
    prompts_table = known.table("judge_prompts")
    for place, judge in parameters.judge.by_place.items():
        if judge.model is None or prompts_table is None or not known.makes("judgements"):
            continue
        for prompts, room in _judged(judge, asked_first, prompts_table, evaluation.max_new_tokens):
            yield Asked(
                judge.model, f"{place}.model", judge.engine, prompts, room,
                "evaluation.max_new_tokens",
            )  # fmt: skip


def asked_to_attempt(parameters: MathParameters, known: Known) -> Iterator[Asked]:
    """Yield what models under test are asked where problems are attempted."""
    accuracy, evaluated = parameters.accuracy, known.templates.get("evaluation_prompt")
    problems, principles = known.table("problems"), known.table("principles")
    if problems is None or evaluated is None:
        return
    test = problems.loc[problems["split"] == "test", "question"].tolist()
    rules = None
    if principles is not None and accuracy.under_constitution:
        stances = [(name, "principle") for name in principles["principle"]]
        rules = format_constitution(stances, principles, "evaluation")
    prompts = [evaluated.build([text], constitution=rules) for text in _spread(test)]
    for model in parameters.models.under_test:
        yield Asked(
            model, "models.under_test", accuracy.engine, prompts, accuracy.max_new_tokens,
            "accuracy.max_new_tokens",
        )  # fmt: skip


def _with_constitutions(rows: pd.DataFrame, principles: pd.DataFrame, use: Use) -> list[Any]:
    """Return some rows, from the shortest text to the longest, each with its desired ``rules``.

    Args:
        rows: ``text, category``.
        principles: as from ``tabulate_principles``.
        use: whose wordings are taken.
    """
    chosen = _spread(list(rows.itertuples(index=False)), key=lambda row: len(str(row.text)))
    table = pd.DataFrame(chosen).assign(query_id=[str(number) for number in range(len(chosen))])
    made = sample_constitutions(
        table, principles, n_constitutions=2, seed=0, contrast="opposite", use=use
    )
    rules = made[made["constitution"] == "desired"].set_index("query_id")["text"]
    return list(table.assign(rules=table["query_id"].map(rules)).itertuples(index=False))


def _spread(items: list[Any], key: Callable[[Any], int] = len) -> list[Any]:
    """Return at most ``_MOST_PROMPTS`` of the items, from the shortest to the longest."""
    ordered = sorted(items, key=key)
    if len(ordered) <= _MOST_PROMPTS:
        return ordered
    step = (len(ordered) - 1) / (_MOST_PROMPTS - 1)
    return [ordered[round(number * step)] for number in range(_MOST_PROMPTS)]


def _judged(
    judge: ModelJudgeParameters, questions: pd.DataFrame, prompts: pd.DataFrame, answer: int
) -> Iterator[tuple[list[Prompt], int]]:
    """Yield what a judge is asked of empty answers at each turn, and the room that it needs.

    Args:
        judge: a model that judges.
        questions: ``question_id, category, turn, question, reference``.
        prompts: ``name, system_prompt, prompt_template``.
        answer: most tokens of an answer.
    """
    constrained = judge.answer_format == "choice"
    planned = judges.plan_blank(judge.kind, questions, prompts, constrained=constrained)
    verdict = 16 if constrained else judge.max_new_tokens
    sides = judge_kind(judge.kind).sides
    for turn, rows in planned.groupby("turn"):
        texts = _spread(rows["prompt"].drop_duplicates().tolist())
        yield [Prompt.from_json(text) for text in texts], verdict + sides * turn * answer
