"""Experiment 1 of arXiv 2410.01704: SAMI and its baselines, compared on MT-Bench."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from kedro.pipeline import Node, Pipeline

from sami_pipeline import PROJECT_FOLDER, schemas
from sami_pipeline.evaluation import judges
from sami_pipeline.evaluation.asked import asked_and_judged
from sami_pipeline.evaluation.mt_bench import asked_questions, with_published_references
from sami_pipeline.evaluation.statistics import MT_BENCH_CATEGORIES
from sami_pipeline.evaluation.workload import Workload, judged
from sami_pipeline.experiments.record import Experiment
from sami_pipeline.inputs.answer_files import check_answer_files
from sami_pipeline.parameters import MtBenchParameters
from sami_pipeline.pipelines import mt_bench_eval
from sami_pipeline.pipelines.data_ingest import nodes
from sami_pipeline.reporting.answers import judged_answers
from sami_pipeline.reporting.comparison import (
    Headline,
    overall_compliance,
    overall_steerability,
    overall_win_rates,
)
from sami_pipeline.reporting.run import Subject
from sami_pipeline.result_tables import steerability
from sami_pipeline.vocabulary import RAW

_QUESTIONS = 10  # MT-Bench's own, of each category


def ingest(parameters: MtBenchParameters) -> Pipeline:
    """Return the nodes that make MT-Bench's questions and the training queries."""
    query_tables = {
        f"query_table_{name}": f"query_table_{name}" for name in sorted(parameters.queries.tables)
    }
    return Pipeline(
        [
            Node(
                nodes.tidy_questions,
                inputs=["question_file", "reference_file"],
                outputs="questions",
                name="tidy_questions",
                tags=RAW,
            ),
            Node(
                nodes.tidy_judge_prompts,
                inputs=["judge_prompt_file", "judge_prompt_files"],
                outputs="judge_prompts",
                name="tidy_judge_prompts",
                tags=RAW,
            ),
            Node(
                nodes.build_queries,
                inputs={
                    "specifications": "query_templates",
                    "parameters": "params:queries",
                    **query_tables,
                },
                outputs="queries",
                name="build_queries",
                tags=RAW,
            ),
        ]
    )


def check_inputs(parameters: MtBenchParameters, made: Mapping[str, pd.DataFrame]) -> None:
    """Check that the judge can be asked about the questions, before anything is answered."""
    if "questions" in made:
        check_answer_files(parameters, made["questions"], made.get("principles"), PROJECT_FOLDER)
    if {"judge_prompts", "questions"} <= made.keys():
        questions = asked_questions(made["questions"], parameters.evaluation)
        for judge in parameters.judge.by_place.values():
            published = judge.references == "published"
            shown = with_published_references(questions) if published else questions
            judges.check_prompts(judge.kind, made["judge_prompts"], shown)


def workload(parameters: MtBenchParameters, principles: pd.DataFrame) -> Workload:
    """Return what is trained on and written: queries of eight categories, ten questions of each."""
    generation, chosen = parameters.generation, parameters.generation.queries_per_category
    queries = parameters.queries.most
    if chosen is not None:
        queries = dict.fromkeys(MT_BENCH_CATEGORIES, chosen)
    held_out = dict.fromkeys(queries, generation.held_out_per_category)
    return judged(
        parameters,
        principles,
        train={category: count - held_out[category] for category, count in queries.items()},
        held_out=held_out,
        questions=len(MT_BENCH_CATEGORIES)
        * (parameters.evaluation.questions_per_category or _QUESTIONS),
        turns=2,
    )


EXPERIMENT = Experiment(
    name="mt_bench",
    parameters=MtBenchParameters,
    subject=Subject(
        title="SAMI on MT-Bench",
        answers="Answers to MT-Bench",
        questions="MT-Bench questions asked",
        browser=judged_answers,
    ),
    ingest=ingest,
    evaluation=mt_bench_eval.create_pipeline,
    evaluation_name="mt_bench_eval",
    workload=workload,
    asked=asked_and_judged,
    categories=MT_BENCH_CATEGORIES,
    headlines={
        "compliance": Headline(schemas.Compliance, overall_compliance),
        "steerability": Headline(steerability.Contract, overall_steerability),
        "win_rates": Headline(schemas.WinRates, overall_win_rates),
    },
    check_inputs=check_inputs,
)
