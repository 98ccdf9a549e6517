"""SAMI's objective on held-out queries: computed once of the same model, and the same numbers."""

import pandas as pd
import pytest
import torch
from test_training_data import response_rows

from sami_pipeline.core import SamiTrainingConfig, evaluate_grids
from sami_pipeline.datasets import CheckpointDataset
from sami_pipeline.models.checkpoints import Checkpoint, LoadedModel
from sami_pipeline.parameters import TrainingParameters
from sami_pipeline.training import held_out
from sami_pipeline.training.data import measured_training, select_grids


@pytest.fixture
def computed(monkeypatch):
    """Return the stages that were computed, from the beginning of a test on."""
    stages = []

    def counting(*inputs, description, **options):
        stages.append(description.rpartition(" ")[2])
        return evaluate_grids(*inputs, description=description, **options)

    monkeypatch.setattr(held_out, "_measured", {})
    monkeypatch.setattr("sami_pipeline.core.evaluate_grids", counting)
    return stages


def training(student: Checkpoint, responses: pd.DataFrame, change: float = 0.0, **sami):
    """Let weights change as training would, and return the model and its held-out table."""
    parameters = TrainingParameters(sami=SamiTrainingConfig(**sami), device="cpu")
    with measured_training("sft", student, responses, parameters) as begun, torch.no_grad():
        for weight in begun.model.parameters():
            weight += change
    return begun, begun.held_out.set_index(["stage", "metric"])["value"]


def test_what_one_training_ends_with_the_next_begins_with(random_checkpoint, tmp_path, computed):
    responses = response_rows()
    begun, first = training(random_checkpoint, responses, 0.01)
    dataset = CheckpointDataset(filepath=str(tmp_path / "sft"))
    dataset.save(LoadedModel(begun.model, begun.tokenizer))
    assert computed == ["before", "after"]
    _, second = training(dataset.load(), responses, -0.02)
    assert computed == ["before", "after", "after"]
    assert second["before"].equals(first["after"])
    # To the last digit what a process computes that knows nothing.
    encoder = random_checkpoint.load_encoder()
    grids = select_grids(responses, "held_out", encoder)
    model = dataset.load().load_model(torch.float32, "cpu")
    fresh = evaluate_grids(model, None, grids, SamiTrainingConfig(), progress=False)
    assert second["before"]["loss"] == fresh["loss"].mean()
    assert second["before"]["loss"] != first["before"]["loss"]


def test_the_student_of_several_trainings_is_measured_once(random_checkpoint, computed):
    responses = response_rows()
    training(random_checkpoint, responses, 0.01)
    training(random_checkpoint, responses, 0.02, learning_rate=1e-3)
    assert computed == ["before", "after", "after"]


@pytest.mark.parametrize("what", ["weights", "held-out queries", "settings"])
def test_what_has_changed_is_measured_again(what, random_checkpoint, tmp_path, computed):
    responses, student, settings = response_rows(), random_checkpoint, {}
    begun, _ = training(student, responses)
    assert computed == ["before"], "nothing was trained"
    if what == "weights":
        with torch.no_grad():  # the last bit of one weight
            weight = begun.model.get_input_embeddings().weight
            weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf))
        dataset = CheckpointDataset(filepath=str(tmp_path / "changed"))
        dataset.save(LoadedModel(begun.model, begun.tokenizer))
        student = dataset.load()
    elif what == "settings":
        settings = {"length_normalise": False}
    else:
        responses.loc[responses["query_id"] == "b", "response"] += "!"
    training(student, responses, **settings)
    assert computed == ["before", "before"]


def test_first_results_are_shown_once_at_the_step_that_is_asked_for(
    random_checkpoint, computed, caplog
):
    responses = response_rows()
    parameters = TrainingParameters(device="cpu", held_out_after_steps=2)
    with (
        caplog.at_level("INFO", "sami_pipeline.training.data"),
        measured_training("sami", random_checkpoint, responses, parameters) as begun,
        torch.no_grad(),
    ):
        for steps in (1, 2, 3):
            for weight in begun.model.parameters():
                weight += 0.01
            begun.after_step(begun.model, steps)
    assert computed == ["before", "steps", "after"]
    (line,) = [message for message in caplog.messages if "after 2 steps" in message]
    before = begun.held_out.set_index(["stage", "metric"])["value"]["before"]
    assert f"MI lower bound {before['mi_lower_bound']:.2f} to " in line
    assert f"row accuracy {before['row_accuracy']:.2f} to " in line
    assert line.startswith("sami after 2 steps, n = 1 held-out query")
