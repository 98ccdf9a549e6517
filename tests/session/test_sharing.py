"""What another run has made from the same is linked; states of finished trainings are removed."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from kedro.pipeline import Node, Pipeline
from kedro.runner import SequentialRunner

from sami_pipeline.models.checkpoints import ModelSource, import_model
from sami_pipeline.parameters import HousekeepingParameters
from sami_pipeline.session.catalog import RunCatalog

pytestmark = pytest.mark.filterwarnings("ignore:One or more dataset names contain")
ENTRIES = {
    "x.run_state": {"type": "WorkingFolder", "filepath": "08_reporting/RUN/x/.state"},
    "x.m_training_state": {"type": "WorkingFolder", "filepath": "06_models/RUN/x/m_states"},
    "x.model": {"type": "CheckpointDataset", "filepath": "06_models/RUN/x/model"},
    "x.history": {"type": "pandas.ParquetDataset", "filepath": "06_models/RUN/x/history.parquet"},
}
SHARED = HousekeepingParameters()
calls: list[int] = []


def train(states: Path, seed: int):
    calls.append(seed)
    states.mkdir(parents=True, exist_ok=True)
    (states / "step-1").write_text("state")
    return import_model(ModelSource.model_validate(f"random:{seed}"), Path()), pd.DataFrame(
        {"seed": [seed]}
    )


def run(folder: Path, name: str, seed: int = 1, housekeeping=SHARED, going_on: bool = False):
    """Run the one node as Kedro would, and return the catalog and whether the node ran itself."""
    entries = {
        key: {
            "type": kind if "." in (kind := entry["type"]) else f"sami_pipeline.datasets.{kind}",
            "filepath": str(folder / "data" / entry["filepath"].replace("RUN", name)),
        }
        for key, entry in ENTRIES.items()
    }
    catalog = RunCatalog.from_config(entries)
    catalog["params:seed"] = seed
    node = Node(
        train, ["x.m_training_state", "params:seed"], ["x.model", "x.history"], name="train"
    )
    pipeline = Pipeline([node])
    before = len(calls)
    catalog.follow(pipeline, going_on=going_on, housekeeping=housekeeping)
    SequentialRunner().run(pipeline, catalog, only_missing_outputs=going_on)
    catalog.release_nodes()
    assert node.func is train
    return catalog, len(calls) > before


def weights(folder: Path, name: str) -> Path:
    return folder / "data" / "06_models" / name / "x" / "model" / "model.safetensors"


@pytest.mark.parametrize("going_on", [False, True])
def test_a_model_that_another_run_made_from_the_same_is_linked(tmp_path, going_on):
    assert run(tmp_path, "a")[1]
    catalog, ran = run(tmp_path, "b", going_on=going_on)
    assert not ran
    assert weights(tmp_path, "b").samefile(weights(tmp_path, "a"))
    shutil.rmtree(weights(tmp_path, "a").parents[2])
    assert catalog.load("x.history")["seed"].tolist() == [1]
    assert catalog.load("x.model").load_model.__self__.size_bytes > 0
    # It counts as made: nothing runs when the run goes on.
    assert not run(tmp_path, "b", going_on=True)[1]


def test_what_is_not_the_same_or_not_whole_is_made(tmp_path):
    run(tmp_path, "a")
    assert run(tmp_path, "b", seed=2)[1]
    assert not weights(tmp_path, "b").samefile(weights(tmp_path, "a"))
    history = weights(tmp_path, "a").parents[1] / "history.parquet"
    history.write_bytes(history.read_bytes()[:-1])
    assert run(tmp_path, "c")[1]


def test_sharing_can_be_switched_off(tmp_path):
    run(tmp_path, "a")
    assert run(tmp_path, "b", housekeeping=HousekeepingParameters(share_between_runs=False))[1]
    assert not weights(tmp_path, "b").samefile(weights(tmp_path, "a"))


def test_states_of_a_finished_training_are_removed_or_kept(tmp_path):
    def states(name: str) -> Path:
        return tmp_path / "data" / "06_models" / name / "x" / "m_states"

    keep = HousekeepingParameters(keep_training_states=True, share_between_runs=False)
    run(tmp_path, "a", housekeeping=keep)
    assert (states("a") / "step-1").is_file()
    run(tmp_path, "a", going_on=True)
    assert not states("a").exists(), "also when the run only goes on"
    run(tmp_path, "b", seed=3)
    assert not states("b").exists()
    assert list(states("b").parent.glob(".*")) == []
