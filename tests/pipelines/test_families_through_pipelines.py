"""Many families through the pipelines: responses, training and answers on tiny random models."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
import zoo
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from kedro.runner import SequentialRunner

from sami_pipeline.core import evaluate_grids
from sami_pipeline.datasets import CheckpointDataset
from sami_pipeline.engines import release
from sami_pipeline.parameters import (
    ConstitutionsParameters,
    EvaluationParameters,
    GenerationParameters,
    IterationsParameters,
    ModelsParameters,
    TrainingParameters,
)
from sami_pipeline.pipelines import bind, sami_generation, sami_training
from sami_pipeline.pipelines.data_ingest.nodes import import_named_model
from sami_pipeline.pipelines.mt_bench_eval.nodes.answering import respond_as
from sami_pipeline.principles.constitutions import tabulate_principles
from sami_pipeline.schemas import HeldOut, HeldOutResponses, History, ResponseCounts, Responses
from sami_pipeline.training.data import select_grids

FAMILIES = ["gpt2", "opt", "gemma2", "gemma3", "phi3", "mixtral", "gpt_oss", "mistral"]
GENERATION = {
    "queries_per_category": 5, "held_out_per_category": 2, "max_new_tokens": 12,
    "temperature": 1.0, "keep_degenerate": True,
}  # fmt: skip
SAMI = {"batch_size": 2, "epochs": 10, "learning_rate": 3e-3, "compute_dtype": "float32"}
RESULTS = (
    "responses", "response_counts", "sami_history", "sami_held_out", "own_responses",
)  # fmt: skip


class _Kept(MemoryDataset):
    """Can be looked at when the run is over."""

    def _release(self) -> None:
        pass


def _tables(principle_files) -> dict[str, pd.DataFrame]:
    queries = [
        {
            "query_id": f"q{i}",
            "category": "writing",
            "query": f"Why {i} </s><|end|>?",
            "source": "x",
        }
        for i in range(GENERATION["queries_per_category"])
    ]
    principles = tabulate_principles({"writing.yml": principle_files["writing.yml"]})
    return {"queries": pd.DataFrame(queries), "principles": principles}


def _pipeline() -> Pipeline:
    imported = Node(
        bind(import_named_model, name="student"),
        inputs="params:models",
        outputs="student_checkpoint",
    )
    answering = Node(
        bind(respond_as, model="sami"),
        inputs=["sami_checkpoint", "responses", "training_prompt", "params:generation",
                "params:evaluation", "completions"],
        outputs="own_responses",
    )  # fmt: skip
    written = Pipeline(
        sami_generation.create_pipeline(),
        inputs={"queries", "principles", "generation_prompt", "training_prompt", "completions",
                "student_checkpoint"} | {"teacher_checkpoint"},
        outputs={"generations", "responses", "response_counts", "constitutions"},
    )  # fmt: skip
    return Pipeline([imported, answering]) + written + sami_training.create_pipeline()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_writes_learns_and_answers(family, tmp_path, templates, principle_files):
    zoo.make(family, tmp_path / "source")
    template = templates["plain" if family == "opt" else "chat"].model_dump()
    parameters = {
        "models": ModelsParameters(
            sources={"student": f"folder:{tmp_path / 'source'}"}, student="student",
            teacher="student", under_test=("student", "sami"), baseline="student",
        ),
        "constitutions": ConstitutionsParameters(),
        "generation": GenerationParameters(**GENERATION),
        "iterations": IterationsParameters(),
        "training": TrainingParameters(sami=SAMI),
        "evaluation": EvaluationParameters(max_new_tokens=8),
    }  # fmt: skip
    student = CheckpointDataset(filepath=str(tmp_path / "student"))
    trained = CheckpointDataset(filepath=str(tmp_path / "sami"))
    catalog = DataCatalog(
        {f"params:{name}": MemoryDataset(value) for name, value in parameters.items()}
        | {name: MemoryDataset(table) for name, table in _tables(principle_files).items()}
        | {f"{use}_prompt": MemoryDataset(template) for use in ("generation", "training")}
        | {
            "completions": MemoryDataset(tmp_path / "completions"),
            "sami_training_state": MemoryDataset(tmp_path / "states"),
            "sami_trackers": MemoryDataset(tmp_path / "trackers"),
            "student_checkpoint": student,
            "teacher_checkpoint": student,
            "sami_checkpoint": trained,
        }
        | {name: _Kept() for name in RESULTS}
    )
    steps = _pipeline()
    SequentialRunner().run(steps.only_nodes_with_outputs("student_checkpoint"), catalog)
    SequentialRunner().run(steps - steps.only_nodes_with_outputs("student_checkpoint"), catalog)
    release()
    tables = {name: catalog.load(name) for name in RESULTS}
    for name, contract in (
        ("responses", Responses), ("response_counts", ResponseCounts), ("sami_history", History),
        ("sami_held_out", HeldOut), ("own_responses", HeldOutResponses),
    ):  # fmt: skip
        contract.validate(tables[name])
    responses, history = tables["responses"], tables["sami_history"]
    assert (responses["status"] == "usable").any()
    steps = len(history) // SAMI["epochs"]
    assert history["loss"].iloc[-steps:].mean() < history["loss"].iloc[:steps].mean()
    assert len(tables["own_responses"]) == 4
    # What is saved is what was measured, read as a user would read it.
    model, config = trained.load().load_model(torch.float32, "cpu"), parameters["training"].sami
    grids = select_grids(responses, "held_out", trained.load().load_encoder())
    measured = evaluate_grids(model, None, grids, config, progress=False).mean()
    table = tables["sami_held_out"].query("stage == 'after'").set_index("metric")["value"]
    for metric in ("loss", "mi_lower_bound", "response_tokens"):
        assert measured[metric] == pytest.approx(table[metric], rel=1e-5)
