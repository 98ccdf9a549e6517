"""One's own model, queries and principles: taught by SAMI, and asked whether it follows them."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from kedro.io import AbstractDataset
from kedro.pipeline import Node, Pipeline

from sami_pipeline import PROJECT_FOLDER, schemas
from sami_pipeline.datasets import PrinciplesSource, QueryTableFile
from sami_pipeline.errors import InputError
from sami_pipeline.evaluation import judges
from sami_pipeline.evaluation.asked import asked_and_judged
from sami_pipeline.evaluation.mt_bench import asked_questions
from sami_pipeline.evaluation.workload import Workload, judged
from sami_pipeline.experiments.record import Experiment
from sami_pipeline.inputs.answer_files import check_answer_files
from sami_pipeline.inputs.own_queries import read_queries, split_queries
from sami_pipeline.parameters import AlignParameters
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


def raw_files(parameters: AlignParameters) -> Mapping[str, AbstractDataset]:
    """Return the table of queries and the principles that the parameters name."""
    return {
        "query_table": QueryTableFile(parameters.queries, "align.queries", PROJECT_FOLDER),
        "principle_source": PrinciplesSource(
            parameters.principles, "align.principles", PROJECT_FOLDER
        ),
    }


def ingest(parameters: AlignParameters) -> Pipeline:
    """Return the nodes that read queries and principles, and a judge's prompts if it needs some."""
    reading = Node(
        nodes.read_own_queries,
        inputs=["query_table", "principle_source", "params:columns", "params:split"],
        outputs=["principles", "queries", "questions"],
        name="read_own_queries",
        tags=RAW,
    )
    prompts = Node(
        nodes.tidy_judge_prompts,
        inputs=["judge_prompt_file", "judge_prompt_files"],
        outputs="judge_prompts",
        name="tidy_judge_prompts",
        tags=RAW,
    )
    return Pipeline([reading, *([prompts] if parameters.judge.is_model else [])])


def check_inputs(parameters: AlignParameters, made: Mapping[str, pd.DataFrame]) -> None:
    """Check that somebody can judge, before anything is answered."""
    if "questions" in made:
        check_answer_files(parameters, made["questions"], made.get("principles"), PROJECT_FOLDER)
    if not parameters.judge.is_model:
        if "principles" in made and not made["principles"]["check"].str.len().any():
            raise InputError(
                "align.principles: no principle has a check, so the checklist has nothing to judge "
                "by; add check and antithesis_check to some, or let a model judge: "
                "align.judge.kind=constitution,align.judge.model=NAME (one of align.models.sources)"
            )
    elif {"judge_prompts", "questions"} <= made.keys():
        questions = asked_questions(made["questions"], parameters.evaluation)
        for judge in parameters.judge.by_place.values():
            judges.check_prompts(judge.kind, made["judge_prompts"], questions)


def workload(parameters: AlignParameters, principles: pd.DataFrame) -> Workload:
    """Return what is trained on and written.

    Queries that lie on another machine are not fetched; so many are assumed as ``split.most`` says.
    """
    table = raw_files(parameters)["query_table"]
    if isinstance(table, QueryTableFile) and not table.is_local:
        if parameters.split.most is None:
            raise InputError(
                f"align.split.most: say how many queries of {parameters.queries} are drawn, so "
                "that a dry run need not fetch them"
            )
        queries = pd.DataFrame(
            {"query_id": map(str, range(parameters.split.most)), "category": "", "query": ""}
        )
    else:
        queries = read_queries(table.load(), parameters.columns)
    trained, questions = split_queries(queries, parameters.split)
    asked = asked_questions(questions, parameters.evaluation)
    counts = {
        split: trained.loc[trained["split"] == split, "category"].value_counts().to_dict()
        for split in ("train", "held_out")
    }
    return judged(
        parameters,
        principles,
        **counts,
        questions=len(asked),
        turns=1,
    )


def principles_alone() -> Node:
    """Return the node that reads the principles without the queries, as for one category."""
    return Node(nodes.read_own_principles, inputs="principle_source", outputs="principles")


EXPERIMENT = Experiment(
    name="align",
    parameters=AlignParameters,
    subject=Subject(
        title="SAMI on your own queries and principles",
        answers="Answers to test queries",
        questions="Test queries asked",
        browser=judged_answers,
    ),
    ingest=ingest,
    evaluation=mt_bench_eval.create_pipeline,
    evaluation_name="mt_bench_eval",
    workload=workload,
    asked=asked_and_judged,
    principles_alone=principles_alone,
    headlines={
        "compliance": Headline(schemas.Compliance, overall_compliance),
        "steerability": Headline(steerability.Contract, overall_steerability),
        "win_rates": Headline(schemas.WinRates, overall_win_rates),
    },
    raw_files=raw_files,
    check_inputs=check_inputs,
)
