"""How much an experiment writes: what its nodes plan, counted from parameters and principles.

A dry run turns it into memory and time. That the counts are those of the nodes is tested against
the functions that plan the requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from sami_pipeline.engines import EngineParameters
from sami_pipeline.evaluation.judge_kinds import judge_kind
from sami_pipeline.evaluation.math_attempts import requests_per_problem
from sami_pipeline.evaluation.mt_bench import requests_per_question
from sami_pipeline.parameters import ExperimentParameters, JudgedParameters, MathParameters
from sami_pipeline.principles.constitutions import count_pairs

# What the instructions in a judge's prompt take; the longest of MT-Bench's has about 400.
_JUDGE_INSTRUCTIONS = 500
GSM8K_TEST_PROBLEMS = 1319


@dataclass(frozen=True)
class Writing:
    """Texts that one model writes in one stage.

    Attributes:
        stage: what for, such as "evaluation".
        model: name of the model; of one at a server, the server's.
        group: the parameters that hold engine and max_new_tokens.
        engine: what writes them.
        requests: how many texts.
        max_new_tokens: limit of each.
        template: of the prompt; "" for one that is no template of a question, such as a judge's.
        turns: questions in the longest prompt.
        more_tokens: of the longest prompt, beyond template, questions and constitution.
    """

    stage: str
    model: str
    group: str
    engine: EngineParameters
    requests: int
    max_new_tokens: int
    template: str
    turns: int = 1
    more_tokens: int = 0


@dataclass(frozen=True)
class Workload:
    """What an experiment trains on and has written after the training.

    Attributes:
        train: texts that the teacher writes to training queries.
        held_out: texts that it writes to queries that are held out.
        writings: by models under test and by a judge.
    """

    train: int
    held_out: int
    writings: tuple[Writing, ...]


def count_texts(
    parameters: ExperimentParameters, principles: pd.DataFrame, queries: Mapping[str, int]
) -> int:
    """Return how many responses are written to queries, one under each constitution.

    Args:
        parameters: of the experiment.
        principles: as from ``tabulate_principles``. A category that has none here, such as that
            of queries which are not known yet, is counted as the one that has most.
        queries: how many of each category.
    """
    constitutions = parameters.constitutions
    if constitutions.contrast != "pairs":
        return constitutions.n_constitutions * sum(queries.values())
    known = principles["category"].value_counts()
    texts = 0
    for category, count in queries.items():
        pairs = count_pairs(int(known.get(category, known.max())), constitutions.pairs_differ_in)
        # Where there are fewer pairs than asked for, all are taken.
        texts += 2 * min(constitutions.pairs_per_query, pairs) * count
    return texts


def judged(
    parameters: JudgedParameters,
    principles: pd.DataFrame,
    *,
    train: Mapping[str, int],
    held_out: Mapping[str, int],
    questions: int,
    turns: int,
) -> Workload:
    """Return the workload of an experiment whose answers are judged.

    Args:
        parameters: of the experiment.
        principles: as from ``tabulate_principles``.
        train: training queries of each category.
        held_out: queries of each category that are held out.
        questions: that models under test answer.
        turns: that each question has, of which no more are asked than ``evaluation.turns``.
    """
    settings, generation = parameters.evaluation, parameters.generation
    files, turns = parameters.models.answer_files, min(turns, settings.turns)
    models = [name for name in parameters.replicates_under_test() if name not in files]
    per_question = requests_per_question(settings, turns)
    train_texts = count_texts(parameters, principles, train)
    held_out_texts = count_texts(parameters, principles, held_out)
    writings = []
    for model in models:
        if held_out_texts:
            writings.append(
                Writing(
                    "held-out queries", model, "generation", settings.engine,
                    held_out_texts, generation.max_new_tokens, "training_prompt",
                )
            )  # fmt: skip
        writings.append(
            Writing(
                "evaluation", model, "evaluation", settings.engine, questions * per_question,
                settings.max_new_tokens, "evaluation_prompt", turns,
                (turns - 1) * settings.max_new_tokens,
            )
        )  # fmt: skip
    for place, judge in parameters.judge.by_place.items():
        kind = judge_kind(judge.kind)
        # A judge that sees the constitution is not asked about answers under none.
        bare = turns if kind.sees_constitution and settings.without_constitution else 0
        calls = kind.calls_an_answer(parameters.replicate_pairs(), judge.orders) * judge.repeats
        writings.append(
            Writing(
                "judge" if place == "judge" else "second judge",
                judge.judge_model, place, judge.engine,
                questions * (per_question - bare) * calls,
                1 if judge.answer_format == "choice" else judge.max_new_tokens,
                "", turns, _JUDGE_INSTRUCTIONS + kind.sides * turns * settings.max_new_tokens,
            )
        )  # fmt: skip
    return Workload(train_texts, held_out_texts, tuple(writings))


def attempted(parameters: MathParameters, principles: pd.DataFrame) -> Workload:
    """Return the workload of the math experiment."""
    settings, held_out = parameters.accuracy, parameters.generation.held_out_per_category
    problems = parameters.problems.test or GSM8K_TEST_PROBLEMS
    queries = parameters.generation.queries_per_category or parameters.problems.train
    return Workload(
        count_texts(parameters, principles, {"math": queries - held_out}),
        count_texts(parameters, principles, {"math": held_out}),
        tuple(
            Writing(
                "evaluation", model, "accuracy", settings.engine,
                problems * requests_per_problem(settings), settings.max_new_tokens,
                "evaluation_prompt",
            )
            for model in parameters.replicates_under_test()
        ),
    )  # fmt: skip
