"""One training on several processes: gloo on a CPU, real groups, the same loop."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import tasks
import torch
from safetensors import safe_open
from team import Team

from sami_pipeline.core import Grid, LoraParameters, SamiTrainingConfig
from sami_pipeline.core.distributed import Workers, current_workers
from sami_pipeline.core.packing import packed_length
from sami_pipeline.core.sft import SftObjective
from sami_pipeline.core.state import list_states

MEASURED = ["tokens_per_second", "peak_memory_bytes"]  # differ from run to run


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    members = Team(3, tmp_path_factory.mktemp("groups"))
    yield members
    members.end()


@pytest.fixture
def grids(random_grid) -> list[Grid]:
    # Batches of 4, 4 and 1: in the last, only one worker has a grid.
    return [random_grid(seed, 2) for seed in range(9)]


def config(**changes) -> SamiTrainingConfig:
    return SamiTrainingConfig(
        **{
            "compute_dtype": "float32",
            "learning_rate": 1e-3,
            "batch_size": 4,
            "grids_per_micro_batch": 1,
            "epochs": 2,
            "save_state_every": 1,
            "warmup_steps": 2,
            "schedule": "cosine",
            **changes,
        }
    )


def assert_same_training(actual, expected, tolerance=1e-5):
    """Histories and weights equal but for rounding."""
    (history, weights), (expected_history, expected_weights) = actual, expected
    pd.testing.assert_frame_equal(
        history.drop(columns=MEASURED),
        expected_history.drop(columns=MEASURED),
        rtol=tolerance,
        atol=tolerance,
    )
    assert weights.keys() == expected_weights.keys()
    for name, weight in expected_weights.items():
        torch.testing.assert_close(weights[name], weight, rtol=tolerance, atol=tolerance, msg=name)


def test_a_group_that_can_not_share_numbers_on_the_cpu_is_refused_by_name():
    import torch.distributed as dist

    dist.init_process_group("cuda:gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match=r'init_process_group\("cpu:gloo,cuda:nccl"\)'):
            current_workers()
    finally:
        dist.destroy_process_group()


WAYS = {
    "adamw": {},
    "rmsprop, micro-batches of 2": {"optimiser": "rmsprop", "grids_per_micro_batch": 2},
    "two_pass": {"memory": "two_pass"},
    "reduced once a step": {"reduce_every": "step"},
    "reduced once a step, two_pass": {"reduce_every": "step", "memory": "two_pass"},
    "kl": {"kl_beta": 0.3},
    "kl two_pass": {"kl_beta": 0.3, "memory": "two_pass"},
    "gradient checkpointing": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_two_workers_train_as_one_with_the_same_batch(way, team, grids):
    chosen = config(**WAYS[way])
    assert_same_training(team.run(2, tasks.train, grids, chosen), tasks.train(grids, chosen))


@pytest.mark.parametrize("size", [1, 2])
def test_two_workers_weigh_response_tokens_as_one_does(size, team, random_grid):
    sequences = []
    for seed in range(9):
        grid = random_grid(seed, 3)
        parts = grid.response_ids[: 1 + seed % 3]
        sequences.append(Grid(grid.prompt_ids[:1], [[token for part in parts for token in part]]))
    assert len({grid.response_tokens for grid in sequences}) > 2
    chosen, options = config(grids_per_micro_batch=size), {"objective": SftObjective()}
    assert_same_training(
        team.run(2, tasks.train, sequences, chosen, **options),
        tasks.train(sequences, chosen, **options),
    )


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"kl_beta": 0.3}),
        ("gemma3_text", {"weights": "bfloat16_remainder", "compute_dtype": "bfloat16"}),
        ("mixtral", {}),
    ],
)
def test_one_worker_alone_need_have_the_weights(family, changes, team, grids):
    chosen = config(epochs=1, **changes)
    both, one = (
        team.run(2, tasks.train, grids, chosen, family=family, only_first=only_first)
        for only_first in (False, True)
    )
    assert_same_training(one, both, 0.0)


@pytest.mark.parametrize("family", ["gemma3_text", "mixtral", "recurrent_gemma"])
def test_other_families_train_on_two_workers_too(family, team, grids):
    # With tied weights, with experts, and with a head whose logits the model makes itself.
    chosen = config(epochs=1)
    assert_same_training(
        team.run(2, tasks.train, grids, chosen, family=family),
        tasks.train(grids, chosen, family=family),
        1e-4,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"compute_dtype": "bfloat16"},
        {"weights": "bfloat16_remainder", "compute_dtype": "bfloat16"},
        {"weights": "bfloat16", "compute_dtype": "bfloat16"},
    ],
)
def test_in_16_bits_two_workers_stay_within_rounding_of_one(changes, team, grids):
    chosen = config(**{"learning_rate": 1e-4, **changes})
    history, _ = team.run(2, tasks.train, grids, chosen)
    expected, _ = tasks.train(grids, chosen)
    assert history["loss"].tolist() == pytest.approx(expected["loss"].tolist(), rel=0.05)
    assert history["weights_moved"].tolist() == pytest.approx(
        expected["weights_moved"].tolist(), abs=0.05
    )


@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 3), (1, 2), (3, 2)])
def test_a_state_goes_on_with_another_number_of_workers(before, after, team, grids, tmp_path):
    chosen = config()
    team.run(before, tasks.train, grids, chosen, tmp_path, stop_after=3)
    assert [state.name for state in list_states(tmp_path)] == ["step-00000002", "step-00000003"]
    resumed = team.run(after, tasks.train, grids, chosen, tmp_path)
    assert_same_training(resumed, tasks.train(grids, chosen))
    taken_before = json.loads((list_states(tmp_path)[-1] / "state.json").read_text())["history"]
    assert [row["step"] for row in taken_before] == [1, 2, 3, 4, 5, 6]
    assert [state.name for state in list_states(tmp_path)] == ["step-00000006"]


@pytest.mark.parametrize(
    "changes", [{}, {"weights": "bfloat16_remainder", "compute_dtype": "bfloat16"}]
)
def test_the_same_number_of_workers_goes_on_bit_by_bit(changes, team, grids, tmp_path):
    chosen = config(**changes)
    dropout = {"attention_dropout": 0.2}
    at_once = team.run(2, tasks.train, grids, chosen, tmp_path / "once", **dropout)
    team.run(2, tasks.train, grids, chosen, tmp_path / "twice", stop_after=3, **dropout)
    resumed = team.run(2, tasks.train, grids, chosen, tmp_path / "twice", **dropout)
    assert_same_training(resumed, at_once, 0)


def test_a_state_of_several_workers_is_safetensors_alone_and_in_pieces(team, grids, tmp_path):
    team.run(2, tasks.train, grids, config(), tmp_path, stop_after=2)
    state = list_states(tmp_path)[-1]
    files = sorted(path.name for path in state.iterdir())
    assert files[-1] == "state.json"
    assert all(name.endswith(".safetensors") for name in files[:-1])
    rows = 0
    for name in files[:-1]:
        with safe_open(state / name, "pt") as tensors:
            assert "lm_head.weight/exp_avg" in tensors.keys()  # noqa: SIM118 (not a mapping)
            rows += tensors.get_slice("lm_head.weight").get_shape()[0]
    assert rows == 101, "each row of the vocabulary is in one piece"
    assert len(files) == 3


def test_several_workers_go_on_while_their_state_is_written(team, grids, tmp_path):
    chosen = config(save_state_every=2, max_steps=4)
    before, after = team.run(2, tasks.train_while_a_state_is_written, grids, chosen, tmp_path)
    assert before == [], "the state of step 2 waits, and step 3 is taken"
    assert after == ["step-00000002"]
    # Its shards were copied before step 3 changed them.
    resumed, expected = (
        team.run(2, tasks.train, grids, chosen, folder) for folder in (tmp_path, None)
    )
    assert_same_training(resumed, expected, 0)


def test_workers_share_held_out_grids_and_all_get_all_rows(team, grids):
    expected = tasks.evaluate(grids, config())
    for count in (2, 3):
        measured = team.run(count, tasks.evaluate, grids[:7], config())
        pd.testing.assert_frame_equal(measured, expected[:7], rtol=1e-5)


def test_a_gradient_that_is_not_finite_stops_all_workers(team, grids):
    with pytest.raises(AssertionError, match="FloatingPointError: step 1: the gradient norm is"):
        team.run(2, tasks.train, grids, config(learning_rate=1e-3, nll_weight=1e38))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": LoraParameters(rank=2)}, "lora: is not there for several workers"),
        ({"compile_layers": True}, "compile_layers: is not there for several workers"),
    ],
)
def test_what_workers_cannot_follow_is_refused(changes, message, team, grids):
    assert message in team.run(2, tasks.refusal, grids, config(**changes))


def test_grids_of_unequal_numbers_are_refused_with_two_passes_alone(team, random_grid):
    unequal = [random_grid(0, 2), random_grid(1, 3)]
    two_pass = config(memory="two_pass")
    assert "equally many constitutions" in team.run(2, tasks.refusal, unequal, two_pass)
    assert_same_training(
        team.run(2, tasks.train, unequal, config()), tasks.train(unequal, config())
    )


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("grids_in_batch", [1, 2, 7, 8])
def test_all_workers_go_through_as_many_micro_batches_and_no_grid_twice(
    count, size, grids_in_batch, random_grid
):
    batch = [random_grid(seed, 2) for seed in range(grids_in_batch)]
    parts = [Workers(rank, count).micro_batches(batch, size) for rank in range(count)]
    assert len({len(part) for part in parts}) == 1
    used = [grid for part in parts for few in part for grid, weight in few if weight == 1]
    assert sorted(map(id, used)) == sorted(map(id, batch))
    assert all(1 <= len(few) <= size for part in parts for few in part)
    # What takes the most memory comes before there are gradients.
    sizes = [packed_length(grid) for few in parts[0] for grid, weight in few if weight == 1]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == max(map(packed_length, batch))


def test_configuration_comes_back_from_json():
    for chosen in (
        config(trackers=("tensorboard",)),
        config(lora=LoraParameters(target_modules=("q_proj",))),
    ):
        fields = json.loads(json.dumps(chosen.model_dump()))
        assert SamiTrainingConfig(**fields) == chosen
