"""data_ingest: raw files become tables and model folders."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from sami_pipeline.parameters import ExperimentParameters, MtBenchParameters
from sami_pipeline.pipelines.data_ingest.nodes import (
    build_principles,
    build_queries,
    collect_problems,
    import_named_model,
    tidy_judge_prompts,
    tidy_questions,
)
from sami_pipeline.session.input_checks import RAW


def create_pipeline(experiment: ExperimentParameters) -> Pipeline:
    """Return the pipeline that imports models, principles, and what the models answer."""
    shared = Pipeline(
        [
            *(
                Node(
                    import_named_model(name),
                    inputs="params:models",
                    outputs=f"{name}_checkpoint",
                    name=f"import_{name}",
                )
                for name in experiment.models.sources
            ),
            Node(
                build_principles,
                inputs="principle_files",
                outputs="principles",
                name="build_principles",
                tags=RAW,
            ),
        ]
    )
    if isinstance(experiment, MtBenchParameters):
        return shared + _questions_and_queries(experiment)
    return shared + _problems()


def _questions_and_queries(experiment: MtBenchParameters) -> Pipeline:
    query_tables = {
        f"query_table_{category}": f"query_table_{category}"
        for category in sorted(experiment.queries.tables)
    }
    return Pipeline(
        [
            Node(
                tidy_questions,
                inputs=["question_file", "reference_file"],
                outputs="questions",
                name="tidy_questions",
                tags=RAW,
            ),
            Node(
                tidy_judge_prompts,
                inputs=["judge_prompt_file", "judge_prompt_files"],
                outputs="judge_prompts",
                name="tidy_judge_prompts",
                tags=RAW,
            ),
            Node(
                build_queries,
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


def _problems() -> Pipeline:
    return Pipeline(
        [
            Node(
                collect_problems,
                inputs="params:problems",
                outputs=["problems", "queries"],
                name="collect_problems",
                tags=RAW,
            ),
        ]
    )
