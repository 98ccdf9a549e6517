"""Logging steps where others look at them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from sami_pipeline.core import Grid, LoraParameters, SamiTrainingConfig, train_sami, training

pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")


def config(**changes) -> SamiTrainingConfig:
    plain = {"compute_dtype": "float32", "batch_size": 2, "trackers": ("tensorboard",)}
    return SamiTrainingConfig(**{**plain, **changes})


def scalars_of(folder: Path) -> pd.DataFrame:
    """What tensorboard reads from a folder: a column for each tag, a row for each step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = list(folder.rglob("events.out.tfevents.*"))
    columns: dict[str, dict[int, float]] = {}
    for path in sorted({file.parent for file in files}):
        events = EventAccumulator(str(path)).Reload()
        for tag in events.Tags()["scalars"]:
            column = columns.setdefault(tag, {})
            for event in events.Scalars(tag):
                assert event.step not in column, "a step was logged twice"
                column[event.step] = event.value
    return pd.DataFrame(columns).sort_index()


@pytest.fixture
def grids(random_grid) -> list[Grid]:
    return [random_grid(seed, 2) for seed in range(5)]


def test_tensorboard_reads_what_the_history_holds(tiny_model, grids, tmp_path):
    chosen = config(kl_beta=0.1, lora=LoraParameters(rank=2), max_steps=3, max_gradient_norm=None)
    history = train_sami(
        tiny_model("llama"), None, grids, chosen, tracker_folder=tmp_path, progress=False
    ).history
    scalars = scalars_of(tmp_path)
    assert scalars.index.tolist() == history["step"].tolist() == [1, 2, 3]
    assert sorted(scalars.columns) == sorted(history.columns.drop("step"))
    for name in scalars.columns:  # stored in fp32
        assert scalars[name].tolist() == pytest.approx(history[name].tolist(), rel=1e-6), name


def test_a_run_that_goes_on_logs_the_steps_that_it_takes(tiny_model, grids, tmp_path, monkeypatch):
    def train(folder: Path, **changes):
        chosen = config(save_state_every=1, **changes)
        return train_sami(
            tiny_model("llama"), None, grids, chosen, state_folder=tmp_path / "states",
            tracker_folder=folder, progress=False,
        )  # fmt: skip

    real = training.save_state

    def save_and_stop(folder, done, *rest, **options):
        real(folder, done, *rest, **options)
        if done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "save_state", save_and_stop)
        train(tmp_path / "first", trackers=())
    assert not (tmp_path / "first").exists(), "nothing is logged unless it is asked for"
    history = train(tmp_path / "second").history
    scalars = scalars_of(tmp_path / "second")
    assert history["step"].tolist() == [1, 2, 3]
    assert scalars.index.tolist() == [3]
    assert scalars["loss"][3] == pytest.approx(history["loss"][2], rel=1e-6)


def test_trackers_change_nothing_in_the_run(tiny_model, grids, tmp_path):
    logged, silent = (
        train_sami(
            tiny_model("llama"), None, grids, chosen, tracker_folder=tmp_path, progress=False
        )
        for chosen in (config(), config(trackers=()))
    )
    measured = ["tokens_per_second", "peak_memory_bytes"]
    pd.testing.assert_frame_equal(
        logged.history.drop(columns=measured), silent.history.drop(columns=measured)
    )
    for (name, weight), (_, other) in zip(
        logged.model.named_parameters(), silent.model.named_parameters(), strict=True
    ):
        assert weight.equal(other), name


def test_what_was_logged_before_a_run_raised_is_there(tiny_model, grids, tmp_path, monkeypatch):
    def rate(step: int, *rest) -> float:
        if step == 3:
            raise KeyError
        return 1e-3

    monkeypatch.setattr(training, "learning_rate_at", rate)
    chosen = config(batch_size=1, seed=1)
    with pytest.raises(KeyError):
        train_sami(
            tiny_model("llama"), None, grids, chosen, tracker_folder=tmp_path, progress=False
        )
    assert scalars_of(tmp_path).index.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("trackers", "folder", "message"),
    [(("tensorboards",), "logs", "tensorboards"), (("tensorboard",), None, "logging_dir")],
)
def test_a_tracker_that_cannot_log_is_refused_and_the_model_left_as_it_was(
    trackers, folder, message, tiny_model, grids, tmp_path
):
    model = tiny_model("llama")
    place = None if folder is None else tmp_path / folder
    with pytest.raises(ValueError, match=message):
        train_sami(
            model, None, grids, config(trackers=trackers), tracker_folder=place, progress=False
        )
    assert not model.training
    assert model.config._attn_implementation == "sdpa"


def test_a_tracker_whose_package_is_missing_is_refused(tiny_model, grids, tmp_path):
    from accelerate.tracking import get_available_trackers

    missing = {"wandb", "aim", "comet_ml", "dvclive", "swanlab"} - {
        str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()
    }
    name = sorted(missing)[0]
    with pytest.raises((ValueError, ImportError), match=name):
        train_sami(
            tiny_model("llama"), None, grids, config(trackers=(name,)), tracker_folder=tmp_path,
            progress=False,
        )  # fmt: skip
