"""What models will be asked, held against their templates and contexts before anything is computed.

A teacher whose template fails or a judge whose context is too short would be found out after hours,
when the texts that it is to judge have been written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sami_pipeline.engines import EngineParameters
from sami_pipeline.errors import InputError
from sami_pipeline.evaluation import judges, mt_bench
from sami_pipeline.evaluation.judge_kinds import judge_kind
from sami_pipeline.models import hub
from sami_pipeline.models.checkpoints import (
    ModelSource,
    check_gguf,
    load_gguf_tokenizer,
    load_tokenizer,
)
from sami_pipeline.models.prompts import ChatParameters, Prompt, PromptTemplate
from sami_pipeline.models.tokens import TextEncoder
from sami_pipeline.parameters import (
    ExperimentParameters,
    JudgedParameters,
    MathParameters,
    ModelJudgeParameters,
)
from sami_pipeline.principles.constitutions import Use, format_constitution, sample_constitutions

_MOST_PROMPTS = 50
# More than any chat template writes around a conversation of a few turns, in bytes.
_AROUND = 2000


@dataclass(frozen=True)
class Asked:
    """What a model is asked in one of its roles.

    Attributes:
        role: the parameter that gives it the role.
        engine: what asks it; None is training.
        prompts: some, from the shortest to the longest.
        room: tokens of the response, and of earlier answers in the prompt at their longest.
        remedy: the parameter that makes room.
    """

    role: str
    engine: EngineParameters | None
    prompts: Sequence[Prompt]
    room: int
    remedy: str


def check(
    experiment: str,
    parameters: ExperimentParameters,
    templates: Mapping[str, PromptTemplate],
    table: Callable[[str], pd.DataFrame | None],
    makes: Callable[[str], bool],
    project_folder: Path,
) -> None:
    """Check that each model from outside can be asked what it will be asked.

    Args:
        experiment: its name.
        parameters: its own.
        templates: prompt templates that the run reads, by their short names.
        table: gives a table of the experiment by name, or None where it is not known yet.
        makes: whether the run makes a dataset of the experiment.
        project_folder: what relative paths are relative to.

    Raises:
        InputError: a model has no chat template for a chat prompt, its template fails, or most of
            its prompts leave no room in its context.
    """
    for model, asked in _asked(parameters, templates, table, makes):
        source = parameters.models.sources.get(model)
        if source is None or not asked.prompts or model in parameters.models.trust_remote_code:
            continue  # trained here, or its tokenizer would run code
        try:
            _check(source, asked, parameters.models.chat, project_folder)
        except InputError as error:
            raise InputError(f"{experiment}.{asked.role}: {model}: {error}") from error


def _asked(
    parameters: ExperimentParameters,
    templates: Mapping[str, PromptTemplate],
    table: Callable[[str], pd.DataFrame | None],
    makes: Callable[[str], bool],
) -> Iterator[tuple[str, Asked]]:
    models, generation = parameters.models, parameters.generation
    queries, principles, questions = (table(n) for n in ("queries", "principles", "questions"))
    written, trained, evaluated = (
        templates.get(f"{name}_prompt") for name in ("generation", "training", "evaluation")
    )
    if queries is not None and principles is not None:
        rows = _with_constitutions(
            queries.rename(columns={"query": "text"}), principles, "training"
        )
        room = generation.max_new_tokens
        remedy = "generation.max_new_tokens"
        if written is not None and makes("generations"):
            prompts = [written.build([row.text], constitution=row.rules) for row in rows]
            asked = Asked("models.teacher", generation.engine, prompts, room, remedy)
            yield models.teacher, asked
        if trained is not None:
            prompts = [trained.build([row.text], constitution=row.rules) for row in rows]
            yield models.student, Asked("models.student", None, prompts, room, remedy)
    if isinstance(parameters, JudgedParameters) and questions is not None:
        evaluation = parameters.evaluation
        remedy = "evaluation.max_new_tokens"
        asked_first = mt_bench.asked_questions(questions, evaluation)
        turns_asked = range(1, int(asked_first["turn"].max()) + 1)
        for turn in turns_asked if evaluated is not None and principles is not None else ():
            turns = asked_first.groupby("question_id", sort=False)["question"].agg(list)
            known = asked_first.drop_duplicates("question_id").assign(text=list(turns))
            prompts = [
                evaluated.build(row.text[:turn], [""] * (turn - 1), row.rules)
                for row in _with_constitutions(known, principles, "evaluation")
                if len(row.text) >= turn
            ]
            room = turn * evaluation.max_new_tokens
            asked = Asked("models.under_test", evaluation.engine, prompts, room, remedy)
            yield from ((model, asked) for model in models.tested_checkpoints)
        prompts_table = table("judge_prompts")
        for place, judge in parameters.judge.by_place.items():
            if judge.model is None or prompts_table is None or not makes("judgements"):
                continue
            yield from (
                (judge.model, Asked(f"{place}.model", judge.engine, prompts, room, remedy))
                for prompts, room in _judged(
                    judge, asked_first, prompts_table, evaluation.max_new_tokens
                )
            )
    problems = table("problems")
    if isinstance(parameters, MathParameters) and problems is not None and evaluated is not None:
        test = problems[problems["split"] == "test"].rename(columns={"question": "text"})
        rules = None
        if principles is not None and parameters.accuracy.under_constitution:
            stances = [(name, "principle") for name in principles["principle"]]
            rules = format_constitution(stances, principles, "evaluation")
        prompts = [
            evaluated.build([text], constitution=rules) for text in _spread(test["text"].tolist())
        ]
        accuracy = parameters.accuracy
        asked = Asked(
            "models.under_test", accuracy.engine, prompts, accuracy.max_new_tokens,
            "accuracy.max_new_tokens",
        )  # fmt: skip
        yield from ((model, asked) for model in models.under_test)


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


def _check(source: ModelSource, asked: Asked, chat: ChatParameters, project_folder: Path) -> None:
    path: Path | None = project_folder / source.location
    if source.kind == "gguf":
        header = check_gguf(path)
        by_template = any(prompt.messages for prompt in asked.prompts)
        if by_template and not header.values.get("tokenizer.chat_template"):
            raise InputError(
                f"{path}: the tokenizer has no chat template; choose a plain prompt template for "
                "this model"
            )
        _check_lengths(asked, header.context, lambda: TextEncoder(load_gguf_tokenizer(path), chat))
        return
    if source.kind == "hub":
        path = hub.cached(source.location)
    if source.kind == "random" or path is None or not path.is_dir():
        return
    encoder = TextEncoder(load_tokenizer(path), chat)
    encoder.render(asked.prompts[0])
    _check_lengths(asked, _context(path), lambda: encoder)


def _check_lengths(
    asked: Asked, context: int | None, open_encoder: Callable[[], TextEncoder]
) -> None:
    """Refuse where most prompts leave no room.

    A token has at least one byte: where the bytes fit, none is counted.
    """
    engine = asked.engine
    if engine is not None and engine.kind == "vllm" and engine.vllm.max_model_len is not None:
        context = min(context or engine.vllm.max_model_len, engine.vllm.max_model_len)
    if context is None:
        return
    longest = max(len(prompt.to_json().encode()) for prompt in asked.prompts)
    if longest + _AROUND + asked.room <= context:
        return
    encoder = open_encoder()
    lengths = sorted(len(encoder.encode(prompt).ids) for prompt in asked.prompts)
    if (needed := lengths[len(lengths) // 2] + asked.room) > context:
        raise InputError(
            f"its context of {context} tokens is too short: half of what it is asked needs "
            f"{needed} and more, {asked.room} of them for what is written at most; lower "
            f"{asked.remedy}, or take a model with a longer context"
        )


def _context(folder: Path) -> int | None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return getattr(config.get_text_config(), "max_position_embeddings", None)
