"""data_ingest: raw files become tables and model folders."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from sami_pipeline.parameters import ExperimentParameters
from sami_pipeline.pipelines.data_ingest.nodes import (
    build_principles,
    build_queries,
    import_named_model,
    tidy_judge_prompts,
    tidy_questions,
)


def create_pipeline(experiment: ExperimentParameters) -> Pipeline:
    """Return the pipeline that imports the experiment's models, questions and principles."""
    query_tables = {
        f"query_table_{category}": f"query_table_{category}"
        for category in sorted(experiment.queries.tables)
    }
    return Pipeline(
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
                tidy_questions,
                inputs=["question_file", "reference_file"],
                outputs="questions",
                name="tidy_questions",
            ),
            Node(
                tidy_judge_prompts,
                inputs="judge_prompt_file",
                outputs="judge_prompts",
                name="tidy_judge_prompts",
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
            ),
            Node(
                build_principles,
                inputs="principle_files",
                outputs="principles",
                name="build_principles",
            ),
        ]
    )
