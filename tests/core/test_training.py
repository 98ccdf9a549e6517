"""The SAMI training loop: gradients, schedules, numbers that stay put, and killed runs."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from sami_pipeline.core import (
    Grid,
    SamiTrainingConfig,
    StateMismatchError,
    TextGrid,
    batched_grid_logprobs,
    evaluate_grids,
    grid_accuracy,
    grid_logprobs,
    mi_lower_bound,
    sami_loss,
    train_sami,
)
from sami_pipeline.core.state import list_states, save_state
from sami_pipeline.core.training import (
    accumulate_gradients,
    batch_schedule,
    learning_rate_at,
)

HISTORY = [
    "step", "loss", "row_accuracy", "column_accuracy", "mi_lower_bound", "response_tokens",
    "gradient_norm", "learning_rate", "weights_moved", "tokens_per_second", "peak_memory_bytes",
]  # fmt: skip
MEASURED = ["tokens_per_second", "peak_memory_bytes"]  # differ from run to run


def config(**changes) -> SamiTrainingConfig:
    return SamiTrainingConfig(
        **{
            "compute_dtype": "float32",
            "learning_rate": 3e-3,
            "batch_size": 2,
            "grids_per_micro_batch": 2,
            **changes,
        }
    )


def gradients_of(model, grids, settings_) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    model.zero_grad(set_to_none=True)
    metrics = accumulate_gradients(model, grids, settings_)
    return {name: p.grad.clone() for name, p in model.named_parameters()}, metrics


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_close(actual, expected, tolerance):
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=tolerance, atol=tolerance)


@pytest.fixture
def grids(random_grid) -> list[Grid]:
    return [random_grid(seed, 2) for seed in range(5)]


# --- Gradients ---


def test_gradient_is_that_of_the_mean_loss_over_the_batch(tiny_model, random_grid):
    model = tiny_model("llama", torch.float64)
    batch = [random_grid(0, 2), random_grid(1, 3), random_grid(2, 2)]
    losses = [sami_loss(grid_logprobs(model, grid).means) for grid in batch]
    torch.stack(losses).mean().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    actual, metrics = gradients_of(model, batch, config(grids_per_micro_batch=2))
    assert_close(actual, expected, 1e-9)
    assert metrics["loss"] == pytest.approx(sum(loss.item() for loss in losses) / 3)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gemma2"])
def test_eight_micro_batches_of_one_equal_one_of_eight(family, tiny_model, random_grid):
    dtype, tolerance = (torch.float32, 1e-4) if family == "gemma2" else (torch.float64, 1e-9)
    model = tiny_model(family, dtype)
    batch = [random_grid(seed, 2 + seed % 2) for seed in range(8)]
    one, one_metrics = gradients_of(model, batch, config(grids_per_micro_batch=1))
    for size in (3, 8):
        many, metrics = gradients_of(model, batch, config(grids_per_micro_batch=size))
        assert_close(many, one, tolerance)
        assert metrics == pytest.approx(one_metrics, rel=1e-5)


@pytest.mark.parametrize("length_normalise", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_two_passes_equal_one(family, length_normalise, tiny_model, random_grid):
    dtype, tolerance = (torch.float32, 1e-4) if family == "gemma2" else (torch.float64, 1e-9)
    model = tiny_model(family, dtype)
    batch = [random_grid(0, 3), random_grid(1, 2)]
    chosen = config(length_normalise=length_normalise)
    one, one_metrics = gradients_of(model, batch, chosen)
    two, two_metrics = gradients_of(model, batch, dataclasses.replace(chosen, memory="two_pass"))
    assert_close(two, one, tolerance)
    assert two_metrics == pytest.approx(one_metrics, rel=1e-5)


def test_two_passes_equal_one_under_autocast_that_the_caller_began(tiny_model, random_grid):
    # Autocast remembers its bf16 copies of the weights: those of a pass without gradients must
    # not be used in the pass with them.
    model, batch = tiny_model("llama"), [random_grid(0, 2)]
    chosen = config(compute_dtype="bfloat16")
    one, _ = gradients_of(model, batch, chosen)
    two_pass = dataclasses.replace(chosen, memory="two_pass")
    two, _ = gradients_of(model, batch, two_pass)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nested, _ = gradients_of(model, batch, two_pass)
    for name, gradient in one.items():
        size = gradient.norm()
        assert (two[name] - gradient).norm() < 0.1 * size, name
        assert (nested[name] - gradient).norm() < 0.1 * size, name


def test_both_passes_see_the_same_dropout(tiny_model, random_grid):
    model = tiny_model("llama", torch.float64, attention_dropout=0.4).train()
    grid = random_grid(0, 3)
    torch.manual_seed(5)
    rows = [grid_logprobs(model, Grid([p], grid.response_ids)).means for p in grid.prompt_ids]
    loss = sami_loss(torch.cat(rows))
    loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    torch.manual_seed(5)
    actual, metrics = gradients_of(model, [grid], config(memory="two_pass"))
    assert metrics["loss"] == pytest.approx(loss.item())
    assert_close(actual, expected, 1e-9)


def test_length_normalisation_chooses_what_the_loss_is_taken_on(tiny_model, random_grid):
    model, grid = tiny_model("llama"), random_grid(3, 2)
    result = grid_logprobs(model, grid)
    for normalise, logprobs in ((True, result.means), (False, result.sums)):
        _, metrics = gradients_of(model, [grid], config(length_normalise=normalise))
        assert metrics["loss"] == pytest.approx(sami_loss(logprobs).item(), rel=1e-4)
        # The bound is taken on sums whatever the loss is taken on.
        assert metrics["mi_lower_bound"] == pytest.approx(
            mi_lower_bound(result.sums).item(), rel=1e-4
        )


def test_gradients_left_by_the_caller_do_not_leak_into_the_first_step(tiny_model, grids):
    clean, left = tiny_model("llama"), tiny_model("llama")
    (1e3 * grid_logprobs(left, grids[0]).sums.sum()).backward()
    expected = train_sami(clean, None, grids, config(max_steps=1), progress=False)
    actual = train_sami(left, None, grids, config(max_steps=1), progress=False)
    assert actual.history["gradient_norm"][0] == expected.history["gradient_norm"][0]


# --- The run ---


@pytest.mark.parametrize("optimiser", ["adamw", "rmsprop"])
def test_over_fitting_a_few_grids_makes_the_diagonal_win(optimiser, tiny_model, grids):
    model = tiny_model("llama")
    result = train_sami(
        model, None, grids, config(epochs=12, optimiser=optimiser), progress=False
    )
    history = result.history
    assert result.model is model
    assert not model.training
    assert history["loss"].iloc[0] > 0.5
    assert history["loss"].iloc[-3:].max() < 0.1
    for logprobs in batched_grid_logprobs(model, grids):
        assert grid_accuracy(logprobs.means) == (1.0, 1.0)
        assert (logprobs.means.diagonal() > logprobs.means.flip(0).diagonal()).all()


def test_history_has_a_row_for_every_step_and_no_gap(tiny_model, grids):
    history = train_sami(
        tiny_model("llama"), None, grids, config(epochs=2), progress=False
    ).history
    assert sorted(history.columns) == sorted(HISTORY)
    assert history["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert history.notna().all().all()
    assert history[["row_accuracy", "column_accuracy", "weights_moved"]].stack().between(0, 1).all()
    assert (history[["gradient_norm", *MEASURED]] > 0).all().all()


def test_history_holds_the_metrics_before_the_step(tiny_model, grids):
    model, untouched = tiny_model("llama"), tiny_model("llama")
    history = train_sami(
        model, None, grids, config(batch_size=5, max_steps=1), progress=False
    ).history
    held_out = evaluate_grids(untouched, None, grids, config(), progress=False)
    assert len(held_out) == len(grids)
    for column in ("loss", "row_accuracy", "column_accuracy", "mi_lower_bound", "response_tokens"):
        assert history[column][0] == pytest.approx(held_out[column].mean(), rel=1e-4), column
    mean_length = [grid.response_tokens / len(grid.response_ids) for grid in grids]
    assert held_out["response_tokens"].tolist() == pytest.approx(mean_length)


def test_evaluation_leaves_the_model_as_it_was(tiny_model, grids):
    model = tiny_model("llama")
    before = weights_of(model)
    first = evaluate_grids(model, None, grids, config(), progress=False)
    second = evaluate_grids(model, None, grids, config(), progress=False)
    pd.testing.assert_frame_equal(first, second)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


def test_clipping_bounds_the_step_and_reports_the_norm_before_it(tiny_model, grids):
    # One RMSprop step from a zero state divides by |gradient|, so look at the gradient itself:
    # AdamW's first moment after one step is (1 − β1) · the clipped gradient.
    def run(clip):
        model = tiny_model("llama")
        history = train_sami(
            model,
            None,
            grids,
            config(max_steps=1, batch_size=5, max_gradient_norm=clip),
            progress=False,
        ).history
        return history["gradient_norm"][0], weights_of(model)

    norm, free = run(None)
    clipped_norm, clipped = run(norm / 1e12)
    assert norm == clipped_norm
    moved = sum((free[n] - w).abs().sum() for n, w in weights_of(tiny_model("llama")).items())
    held = sum((clipped[n] - w).abs().sum() for n, w in weights_of(tiny_model("llama")).items())
    assert 0 < held < 0.1 * moved  # Adam's ε is no longer negligible beside such a gradient


def test_text_grids_are_tokenised_and_trained_with_their_end_token(tiny_model, border_tokenizer):
    text = TextGrid(["ab", "abab"], ["cd", "efef"], ended=[True, True])
    model = tiny_model("llama")
    with_end = evaluate_grids(model, border_tokenizer, [text], config(), progress=False)
    without = evaluate_grids(
        model, border_tokenizer, [text], config(train_on_eos=False), progress=False
    )
    assert with_end["response_tokens"][0] == without["response_tokens"][0] + 1
    as_text = train_sami(model, border_tokenizer, [text], config(), progress=False)
    as_ids = train_sami(
        tiny_model("llama"), None, [text.tokenise(border_tokenizer)], config(), progress=False
    )
    assert as_text.history["loss"][0] == as_ids.history["loss"][0] == with_end["loss"][0]


def test_gradient_checkpointing_trains_to_the_same_weights(tiny_model, grids):
    plain, recomputed = tiny_model("llama"), tiny_model("llama")
    train_sami(plain, None, grids, config(), progress=False)
    train_sami(recomputed, None, grids, config(gradient_checkpointing=True), progress=False)
    assert_close(weights_of(recomputed), weights_of(plain), 1e-5)


def test_frozen_weights_stay_and_may_be_16_bit(tiny_model, grids):
    model = tiny_model("llama")
    embedding = model.get_input_embeddings()
    embedding.requires_grad_(False)
    before = embedding.weight.clone()
    train_sami(model, None, grids, config(max_steps=2), progress=False)
    assert torch.equal(embedding.weight, before)


@pytest.mark.parametrize("part", ["weights", "loss"])
def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step(part, tiny_model, grids):
    model = tiny_model("llama")
    with torch.no_grad():
        if part == "weights":
            model.lm_head.weight[3, 0] = torch.nan
        else:
            model.model.norm.weight.fill_(torch.inf)
    before = weights_of(model)
    with pytest.raises(FloatingPointError, match="step 1: the gradient norm is"):
        train_sami(model, None, grids, config(), progress=False)
    for name, weight in before.items():
        torch.testing.assert_close(
            dict(model.named_parameters())[name], weight, rtol=0, atol=0, equal_nan=True
        )


def test_what_cannot_be_trained_on_is_refused(tiny_model):
    with pytest.raises(ValueError, match="grids: there is nothing"):
        train_sami(tiny_model("llama"), None, [], config())
    square, oblong = Grid([[5], [6]], [[7], [8]]), Grid([[5], [6]], [[7], [8], [9]])
    with pytest.raises(ValueError, match=r"grids\[1\]: 2 prompts and 3 responses"):
        train_sami(tiny_model("llama"), None, [square, oblong], config())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_that_are_not_fp32_are_refused_with_the_remedy(dtype, tiny_model, grids):
    with pytest.raises(ValueError, match=r"embed_tokens.weight is torch.*dtype=torch.float32"):
        train_sami(tiny_model("llama", dtype), None, grids, config())


# --- Precision of the update ---


def test_small_updates_move_fp32_weights_and_round_away_in_bf16(tiny_model, grids):
    rate = 5e-7
    model = tiny_model("llama")
    history = train_sami(
        model,
        None,
        grids,
        config(epochs=2, learning_rate=rate, compute_dtype="bfloat16"),
        progress=False,
    ).history
    assert (history["weights_moved"] > 0.75).all()

    # The published trainer's way: the same steps on bf16 weights.
    rounded = tiny_model("llama", torch.bfloat16)
    before = weights_of(rounded)
    optimiser = torch.optim.AdamW(rounded.parameters(), lr=rate, weight_decay=0.0)
    for batch in batch_schedule(len(grids), config(epochs=2)):
        optimiser.zero_grad()
        accumulate_gradients(rounded, [grids[index] for index in batch], config())
        optimiser.step()
    moved = [(before[name] != p).flatten() for name, p in rounded.named_parameters()]
    assert torch.cat(moved).float().mean() < 0.01


def test_weights_moved_is_zero_when_updates_round_away(tiny_model, grids):
    # Far below fp32's last bit: the diagnosis must say so.
    history = train_sami(
        tiny_model("llama"), None, grids, config(learning_rate=1e-14), progress=False
    ).history
    assert (history["weights_moved"] < 0.02).all()


# --- Schedules ---


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 4), st.integers(0, 9))
def test_every_grid_is_used_once_in_every_epoch(count, batch_size, epochs, seed):
    chosen = config(batch_size=batch_size, epochs=epochs, seed=seed)
    batches = batch_schedule(count, chosen)
    per_epoch = math.ceil(count / batch_size)
    assert len(batches) == per_epoch * epochs
    for epoch in range(epochs):
        part = batches[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert Counter(i for batch in part for i in batch) == Counter(range(count))
        assert all(len(batch) == batch_size for batch in part[:-1])
    assert batches == batch_schedule(count, chosen)


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    first, second = (batch_schedule(20, config(batch_size=20, epochs=2, seed=s)) for s in (0, 1))
    assert first != second
    assert first[0] != first[1]
    assert first[0] != list(range(20))
    assert batch_schedule(20, config(batch_size=20, epochs=5, seed=0))[:2] == first


def test_max_steps_cuts_the_schedule_and_never_lengthens_it():
    everything = batch_schedule(5, config(epochs=2))
    assert batch_schedule(5, config(epochs=2, max_steps=4)) == everything[:4]
    assert batch_schedule(5, config(epochs=2, max_steps=400)) == everything


def test_learning_rate_warms_up_and_then_follows_its_schedule():
    def rates(schedule):
        chosen = config(learning_rate=1.0, warmup_steps=2, schedule=schedule)
        return [learning_rate_at(step, 6, chosen) for step in range(6)]

    assert rates("constant") == pytest.approx([0.5, 1, 1, 1, 1, 1])
    assert rates("linear") == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])
    assert rates("cosine") == pytest.approx([0.5, 1, 1, 0.8535534, 0.5, 0.1464466])


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(["constant", "linear", "cosine"]),
    st.integers(0, 12),
    st.integers(1, 12),
)
def test_learning_rate_stays_above_zero_and_at_most_the_peak(schedule, warmup, total):
    chosen = config(learning_rate=0.1, warmup_steps=warmup, schedule=schedule)
    for step in range(total):
        assert 0 < learning_rate_at(step, total, chosen) <= 0.1


def test_the_scheduled_learning_rate_is_the_one_that_is_used(tiny_model, grids):
    chosen = config(warmup_steps=2, schedule="linear", epochs=2)
    history = train_sami(tiny_model("llama"), None, grids, chosen, progress=False).history
    expected = [learning_rate_at(step, 6, chosen) for step in range(6)]
    assert history["learning_rate"].tolist() == expected
    # AdamW's first step moves every weight by the learning rate.
    slow = config(learning_rate=1e-3, warmup_steps=10, max_steps=1)
    model, before = tiny_model("llama"), weights_of(tiny_model("llama"))
    train_sami(model, None, grids, slow, progress=False)
    largest = max((p - before[n]).abs().max().item() for n, p in model.named_parameters())
    assert largest == pytest.approx(1e-4, rel=0.05)


# --- Numbers that stay put ---

PINNED = {
    "adamw": {"loss": [], "gradient_norm": []},
    "rmsprop": {"loss": [], "gradient_norm": []},
}


@pytest.mark.parametrize("optimiser", ["adamw", "rmsprop"])
def test_trajectory_is_the_one_written_down(optimiser, tiny_model, grids):
    chosen = config(
        optimiser=optimiser,
        learning_rate=1e-3,
        max_steps=5,
        epochs=2,
        warmup_steps=2,
        schedule="cosine",
        weight_decay=0.01,
    )
    history = train_sami(tiny_model("llama"), None, grids, chosen, progress=False).history
    for column, pinned in PINNED[optimiser].items():
        assert history[column].tolist() == pytest.approx(pinned, rel=1e-4), column


# --- States ---


def assert_same_run(actual, expected):
    """Weights bit-equal and histories equal, except in what a clock or the machine measures."""
    for (name, weight), (_, other) in zip(
        actual.model.named_parameters(), expected.model.named_parameters(), strict=True
    ):
        assert torch.equal(weight, other), name
    pd.testing.assert_frame_equal(
        actual.history.drop(columns=MEASURED),
        expected.history.drop(columns=MEASURED),
        check_exact=True,
    )


def resumable(**changes) -> SamiTrainingConfig:
    return config(
        epochs=4,
        save_state_every=1,
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=3,
        **changes,
    )


@pytest.mark.parametrize("optimiser", ["adamw", "rmsprop"])
def test_killed_runs_end_in_the_same_weights_and_history(
    optimiser, tiny_model, grids, tmp_path
):
    # With dropout, so that the state of the random numbers must come back too.
    chosen = resumable(optimiser=optimiser)
    tiny_model("llama", attention_dropout=0.2).save_pretrained(tmp_path / "model")
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(chosen)))
    (tmp_path / "grids.json").write_text(json.dumps([dataclasses.asdict(g) for g in grids]))
    killed = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("train_and_kill.py")), str(tmp_path), "4"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert killed.returncode == 0, killed.stderr
    steps = [int(line.split()[0]) for line in killed.stdout.splitlines()]
    assert "killed" in killed.stdout, killed.stdout
    assert steps == sorted(steps)
    assert steps[0] > 0

    def run(folder):
        torch.manual_seed(1)
        model = tiny_model("llama", attention_dropout=0.2)
        return train_sami(model, None, grids, chosen, state_folder=folder, progress=False)

    assert_same_run(run(tmp_path / "states"), run(None))


@pytest.fixture
def stopped(tiny_model, grids, tmp_path) -> Path:
    """The states of a run of twelve steps that stopped after its sixth."""

    class Stopped(Exception):
        pass

    class StopsAfterSix(list):
        """The grids of a run, which break off when the seventh step asks for its batch."""

        asked = 0

        def __getitem__(self, index):
            self.asked += 1
            if self.asked > 11:  # epochs of 2 + 2 + 1 grids: six steps take 12 − 2 + … grids
                raise Stopped
            return super().__getitem__(index)

    raise NotImplementedError
