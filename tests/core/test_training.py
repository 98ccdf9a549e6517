"""The SAMI training loop: gradients, schedules, numbers that stay put, and killed runs."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_logprobs import gradients, one_cell_at_a_time, uneven
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

import sami_pipeline.core
from sami_pipeline.core import (
    Grid,
    LoraParameters,
    SamiTrainingConfig,
    StateMismatchError,
    TextGrid,
    batched_grid_logprobs,
    evaluate_grids,
    grid_accuracy,
    grid_logprobs,
    mi_lower_bound,
    sami_loss,
    state,
    train_sami,
    training,
    tree_attention,
)
from sami_pipeline.core.logprobs import choose_layout
from sami_pipeline.core.optimisers import build_optimiser
from sami_pipeline.core.packing import packed_length
from sami_pipeline.core.state import fingerprint, list_states, load_latest_state, save_state
from sami_pipeline.core.training import (
    accumulate_gradients,
    batch_schedule,
    learning_rate_at,
    prepared,
)

HISTORY = [
    "step", "loss", "row_accuracy", "column_accuracy", "mi_lower_bound", "kl",
    "response_tokens", "gradient_norm", "learning_rate", "weights_moved", "tokens_per_second",
    "peak_memory_bytes",
]  # fmt: skip
MEASURED = ["tokens_per_second", "peak_memory_bytes"]  # differ from run to run

needs_torch_head = pytest.mark.skipif(
    not hasattr(torch.nn.functional, "linear_cross_entropy"),
    reason="this torch has no linear_cross_entropy (torch 2.13 or newer has)",
)


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
    two, two_metrics = gradients_of(model, batch, chosen.replaced(memory="two_pass"))
    assert_close(two, one, tolerance)
    assert two_metrics == pytest.approx(one_metrics, rel=1e-5)


def test_two_passes_equal_one_under_autocast_that_the_caller_began(tiny_model, random_grid):
    # Autocast remembers its bf16 copies of the weights: those of a pass without gradients must
    # not be used in the pass with them.
    model, batch = tiny_model("llama"), [random_grid(0, 2)]
    chosen = config(compute_dtype="bfloat16")
    one, _ = gradients_of(model, batch, chosen)
    two_pass = chosen.replaced(memory="two_pass")
    two, _ = gradients_of(model, batch, two_pass)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nested, _ = gradients_of(model, batch, two_pass)
    for name, gradient in one.items():
        size = gradient.norm()
        assert (two[name] - gradient).norm() < 0.1 * size, name
        assert (nested[name] - gradient).norm() < 0.1 * size, name


def test_no_number_is_read_before_the_last_gradient_of_a_step(tiny_model, random_grid):
    """Reading one waits for a GPU, which has nothing to do meanwhile."""
    names: list[str] = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    model, batch = tiny_model("llama"), [random_grid(seed, 2) for seed in range(3)]
    choose_layout(model)
    with Names():
        accumulate_gradients(model, batch, config(grids_per_micro_batch=1))
    last = max(
        place for place, name in enumerate(names) if name == "aten::embedding_dense_backward"
    )
    assert "aten::_local_scalar_dense" in names[last:]
    assert "aten::_local_scalar_dense" not in names[:last]


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


def test_ids_may_be_lists_tuples_or_arrays(tiny_model, random_grid):
    grid = random_grid(0, 2)
    alike = [
        Grid([kind(prompt) for prompt in grid.prompt_ids], [kind(y) for y in grid.response_ids])
        for kind in (list, tuple, np.array)
    ]
    history = train_sami(tiny_model("llama"), None, alike, config(), progress=False).history
    assert history["step"].tolist() == [1, 2]


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
    result = train_sami(model, None, grids, config(epochs=12, optimiser=optimiser), progress=False)
    history = result.history
    assert result.model is model
    assert not model.training
    assert history["loss"].iloc[:3].mean() > 0.5
    assert history["loss"].iloc[-3:].max() < 0.1
    for logprobs in batched_grid_logprobs(model, grids):
        assert grid_accuracy(logprobs.means) == (1.0, 1.0)
        assert (logprobs.means.diagonal() > logprobs.means.flip(0).diagonal()).all()


def test_history_has_a_row_for_every_step_and_no_gap(tiny_model, grids):
    history = train_sami(tiny_model("llama"), None, grids, config(epochs=2), progress=False).history
    assert sorted(history.columns) == sorted(HISTORY)
    assert history["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert (history["kl"] == 0).all()
    assert history.notna().all().all()
    assert history[["row_accuracy", "column_accuracy", "weights_moved"]].stack().between(0, 1).all()
    assert (history[["gradient_norm", *MEASURED]] > 0).all().all()


def test_freed_memory_is_given_back_before_a_step_longer_than_all_before(tiny_model, monkeypatch):
    events, lengths, take_step = [], [], training._take_step

    def step(model, optimiser, batch, *rest):
        events.append("step")
        lengths.append(packed_length(batch[0]))
        return take_step(model, optimiser, batch, *rest)

    monkeypatch.setattr(training, "_take_step", step)
    monkeypatch.setattr(training, "give_back_freed_memory", lambda: events.append("given back"))
    grids = [Grid([[3, 4], [5]], [[6] * length, [7]]) for length in range(1, 7)]
    train_sami(tiny_model("llama"), None, grids, config(epochs=2, batch_size=1), progress=False)
    expected = []
    for number, length in enumerate(lengths):
        longer = not number or length > max(lengths[:number])
        expected += ["given back", "step"] if longer else ["step"]
    assert events == expected
    assert 1 < events.count("given back") < 6


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
    # AdamW forgets the scale of its first gradient, unless its ε outweighs it.
    assert held < 0.1 * moved


@pytest.mark.parametrize("optimiser", ["adamw", "rmsprop"])
def test_weight_decay_is_the_one_asked_for_and_none_by_default(optimiser, tiny_model, grids):
    def after_one_step(**changes):
        model = tiny_model("llama")
        chosen = config(optimiser=optimiser, learning_rate=1e-3, max_steps=1, **changes)
        train_sami(model, None, grids, chosen, progress=False)
        return weights_of(model)

    start, plain = weights_of(tiny_model("llama")), after_one_step()
    assert_close(after_one_step(weight_decay=0.0), plain, 0)
    decayed = after_one_step(weight_decay=50.0)
    if optimiser == "adamw":  # decoupled: the weights shrink by learning rate times decay
        assert_close(decayed, {n: plain[n] - 1e-3 * 50 * w for n, w in start.items()}, 1e-5)
    else:
        assert not torch.equal(decayed["lm_head.weight"], plain["lm_head.weight"])


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
    no_end = config(train_on_eos=False)
    untaught = train_sami(tiny_model("llama"), border_tokenizer, [text], no_end, progress=False)
    assert untaught.history["response_tokens"][0] == without["response_tokens"][0]


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
    with pytest.raises(ValueError, match=r"grids\[0\]: holds the token 101, .* has 101 tokens"):
        train_sami(tiny_model("llama"), None, [Grid([[5], [101]], [[7], [8]])], config())
    with pytest.raises(ValueError, match=r"grids\[0\]: must be a Grid or a TextGrid, got str"):
        train_sami(tiny_model("llama"), None, ["What?"], config())
    with pytest.raises(ValueError, match=r"tokenizer: grids\[0\] is text"):
        train_sami(tiny_model("llama"), None, [TextGrid(["a"], ["b"], [True])], config())
    with pytest.raises(ValueError, match="config: must be a SamiTrainingConfig, got dict"):
        train_sami(tiny_model("llama"), None, [square], {"epochs": 1})


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
        assert 0 < learning_rate_at(step, total, chosen) <= 0.1 * (1 + 1e-12)


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

# (learning rate, losses, gradient norms). If a change of the code moves them, say why it should.
PINNED = {
    "adamw": (
        1e-3,
        [0.3283674, 1.470311, 0.6077445, 0.07092001, 0.1309682],
        [4.315594, 23.57353, 18.64611, 0.9296936, 3.20486],
    ),
    "rmsprop": (
        1e-4,
        [0.3283674, 1.480647, 0.6311621, 0.2311113, 0.1900583],
        [4.315594, 23.62826, 19.78764, 3.249519, 4.593534],
    ),
}


@pytest.mark.parametrize("optimiser", ["adamw", "rmsprop"])
def test_trajectory_is_the_one_written_down(optimiser, tiny_model, grids):
    learning_rate, losses, gradient_norms = PINNED[optimiser]
    chosen = config(
        optimiser=optimiser,
        learning_rate=learning_rate,
        max_steps=5,
        epochs=2,
        warmup_steps=2,
        schedule="cosine",
        weight_decay=0.01,
    )
    history = train_sami(tiny_model("llama"), None, grids, chosen, progress=False).history
    assert history["loss"].tolist() == pytest.approx(losses, rel=1e-4)
    assert history["gradient_norm"].tolist() == pytest.approx(gradient_norms, rel=1e-4)


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
    schedule = {"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 3}
    return config(**{"epochs": 2, "save_state_every": 1, **schedule, **changes})


@pytest.fixture
def run(tiny_model, grids):
    """Train as ``resumable`` has it, with dropout, so that random numbers must come back too."""

    def train(folder: Path | None, after_step=None, **changes):
        model = tiny_model("llama", attention_dropout=0.2)
        torch.manual_seed(1)
        return train_sami(
            model, None, grids, resumable(**changes), state_folder=folder, progress=False,
            after_step=after_step,
        )  # fmt: skip

    return train


def test_a_model_that_is_measured_between_steps_is_trained_the_same(run, grids):
    seen = []

    def measure(model, steps):
        seen.append((steps, evaluate_grids(model, None, grids, resumable(), progress=False)))
        assert not model.training

    measured = run(None, after_step=measure)
    assert_same_run(measured, run(None))
    assert [steps for steps, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[0][1]["loss"].mean() > seen[-1][1]["loss"].mean()


class Interrupted(Exception):
    pass


@contextmanager
def interruption_after(step: int) -> Iterator[None]:
    """Let a run stop as soon as its state after ``step`` steps is on the disk."""

    def save_and_stop(folder, done, *rest, **options):
        save_state(folder, done, *rest, **options)
        if done == step:
            raise Interrupted

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(training, "save_state", save_and_stop)
        yield


@pytest.mark.parametrize(
    ("optimiser", "how", "kills"), [("adamw", "randomly", 5), ("rmsprop", "at-file-change", 16)]
)
def test_killed_runs_end_in_the_same_weights_and_history(
    optimiser, how, kills, run, tiny_model, grids, tmp_path
):
    chosen = {"optimiser": optimiser, "epochs": 15}
    tiny_model("llama", attention_dropout=0.2).save_pretrained(tmp_path / "model")
    fields = resumable(**chosen).model_dump()
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "grids.json").write_text(json.dumps([dataclasses.asdict(g) for g in grids]))
    killed = subprocess.run(
        [sys.executable, Path(__file__).with_name("train_and_kill.py"), tmp_path, how, str(kills)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert killed.returncode == 0, killed.stderr
    steps = [int(line.split()[-1]) for line in killed.stdout.splitlines()]
    assert len(steps) > 1, "fewer than two runs were killed"
    assert 0 < steps[0] < 45
    assert steps == sorted(set(steps)), "every run goes on from where the last one was"

    assert_same_run(run(tmp_path / "states", **chosen), run(None, **chosen))
    assert not list((tmp_path / "states").glob(".*"))


def test_a_run_goes_on_from_its_last_whole_state(run, tmp_path):
    finished = run(None)
    with interruption_after(5):
        run(tmp_path)
    changed_history = json.loads((tmp_path / "step-00000005" / "state.json").read_text())
    changed_history["history"][0]["tokens_per_second"] = -1.0
    (tmp_path / "step-00000005" / "state.json").write_text(json.dumps(changed_history))
    resumed = run(tmp_path)
    assert_same_run(resumed, finished)
    assert resumed.history["tokens_per_second"][0] == -1, "the first steps were not taken again"
    assert resumed.history.dtypes.equals(finished.history.dtypes)


def test_a_finished_run_is_not_repeated(run, tmp_path):
    finished = run(tmp_path)
    again = run(tmp_path)
    assert_same_run(again, finished)
    assert again.history["tokens_per_second"].equals(finished.history["tokens_per_second"])


def test_how_often_states_are_saved_does_not_change_the_run(run, tmp_path):
    often, seldom = run(tmp_path / "a"), run(tmp_path / "b", save_state_every=4)
    assert_same_run(often, seldom)
    assert_same_run(often, run(None, save_state_every=0))
    for folder in ("a", "b"):
        names = [state.name for state in list_states(tmp_path / folder)]
        assert names == ["step-00000006"], "the end of a run is saved too, and alone is kept"
    # A state written under one rhythm serves a run with another.
    with interruption_after(4):
        run(tmp_path / "c", save_state_every=4)
    resumed = run(tmp_path / "c", save_state_every=1)
    assert_same_run(resumed, often)


def test_states_are_saved_by_time_too(run, tmp_path, monkeypatch):
    clock, saved = [0.0], []

    def save(folder: Path, done: int, *rest, **options) -> None:
        saved.append(done)
        save_state(folder, done, *rest, **options)

    def now() -> float:
        clock[0] += 10.0
        return clock[0]

    monkeypatch.setattr(training, "save_state", save)
    monkeypatch.setattr(training.time, "monotonic", now)
    # Looked at once a step, and once more where a state was saved: 10 s apart.
    run(tmp_path / "both", save_state_every=4, save_state_minutes=0.5)
    assert saved == [3, 4, 6]
    saved.clear()
    run(tmp_path / "time", save_state_every=0, save_state_minutes=100)
    assert saved == [6], "the last state alone"
    saved.clear()
    run(tmp_path / "none", save_state_every=0)
    assert saved == []


def test_a_state_is_written_while_the_training_goes_on(run, tmp_path, monkeypatch):
    steps, wrote, go_on = [], threading.Event(), threading.Event()
    real, take_step = state._write_tensors, training._take_step

    def slow(folder: Path, weights: dict, *rest) -> None:
        wrote.set()
        assert go_on.wait(60)
        real(folder, weights, *rest)

    def step(*inputs):
        row = take_step(*inputs)
        steps.append(row["step"])
        if row["step"] == 4:
            assert wrote.wait(60)
            assert not list_states(tmp_path)
            go_on.set()
        return row

    monkeypatch.setattr(state, "_write_tensors", slow)
    monkeypatch.setattr(training, "_take_step", step)
    # As on a GPU, and with several workers on a CPU.
    monkeypatch.setattr(training, "_takes_a_copy", lambda *_: True)
    run(tmp_path, save_state_every=2, max_steps=4)
    assert steps == [1, 2, 3, 4]
    assert [path.name for path in list_states(tmp_path)] == ["step-00000004"]


def test_one_process_on_a_cpu_writes_its_states_without_a_copy_of_them(run, tmp_path, monkeypatch):
    written, real = [], state._write_tensors

    def write(folder: Path, weights: dict, *rest) -> None:
        written.append({name: tensor.data_ptr() for name, tensor in weights.items()})
        real(folder, weights, *rest)

    monkeypatch.setattr(state, "_write_tensors", write)
    result = run(tmp_path, save_state_every=2, max_steps=4)
    own = {name: tensor.data_ptr() for name, tensor in result.model.named_parameters()}
    assert written == [own, own]


def test_a_state_that_can_not_be_written_ends_the_training(run, tmp_path, monkeypatch):
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "_write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path)
    assert not list_states(tmp_path)


def test_a_state_is_used_even_by_a_run_that_saves_none(run, tmp_path):
    finished = run(tmp_path)
    again = run(tmp_path, save_state_every=0)
    assert again.history["tokens_per_second"].equals(finished.history["tokens_per_second"])


def test_two_states_are_kept_and_nothing_in_them_is_pickled(run, tmp_path):
    with interruption_after(5):
        run(tmp_path)
    assert [state.name for state in list_states(tmp_path)] == ["step-00000004", "step-00000005"]
    files = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    names = {"model.safetensors", "optimiser.safetensors", "state.json"}
    assert files == {Path(f"step-0000000{step}") / name for step in (4, 5) for name in names}
    for path in tmp_path.rglob("*.safetensors"):
        assert load_file(path)  # refuses anything but a header and raw numbers
    for module in Path(sami_pipeline.core.__file__).parent.glob("*.py"):
        unpickles = re.search(r"import pickle|torch\.(load|save)\b|joblib", module.read_text())
        assert not unpickles, module


def test_the_end_of_a_run_is_kept_without_what_only_further_steps_would_need(run, tmp_path):
    finished = run(tmp_path)
    (state,) = list_states(tmp_path)
    weights = sum(parameter.numel() for parameter in finished.model.parameters())
    assert sum(t.numel() for t in load_file(state / "model.safetensors").values()) <= weights
    assert [*load_file(state / "optimiser.safetensors")] == ["rng/0"]
    assert_same_run(run(tmp_path), finished)


def test_an_abandoned_temporary_folder_is_ignored_and_removed(run, tmp_path):
    finished = run(None)
    with interruption_after(5):
        run(tmp_path)
    abandoned = tmp_path / ".step-00000006.4242"
    abandoned.mkdir()
    (abandoned / "model.safetensors").write_bytes(b"half a fi")
    assert_same_run(run(tmp_path), finished)
    assert not abandoned.exists()


def test_a_state_of_another_run_is_refused_and_the_part_named(run, tiny_model, grids, tmp_path):
    with interruption_after(5):
        run(tmp_path)

    def train(model, some_grids, chosen):
        train_sami(model, None, some_grids, chosen, state_folder=tmp_path, progress=False)

    same = tiny_model("llama", attention_dropout=0.2)
    with pytest.raises(StateMismatchError, match=r"\(parameters changed\)"):
        train(same, grids, resumable(seed=3))
    with pytest.raises(StateMismatchError, match=r"\(training data changed\)"):
        train(same, grids[::-1], resumable())
    other = [*grids[:-1], Grid(grids[-1].prompt_ids, grids[-1].response_ids[::-1])]
    with pytest.raises(StateMismatchError, match=r"\(training data changed\)"):
        train(same, other, resumable())
    with pytest.raises(StateMismatchError, match=r"\(initial model changed\)"):
        train(tiny_model("llama", seed=9, attention_dropout=0.2), grids, resumable())
    with pytest.raises(StateMismatchError, match=r"\(initial model changed\)"):
        train(tiny_model("llama", attention_dropout=0.1), grids, resumable())
    with pytest.raises(StateMismatchError, match="initial model, training data changed"):
        train(tiny_model("qwen3"), other, resumable())
    assert len(list_states(tmp_path)) == 2, "a refused run leaves the states alone"


def test_the_state_of_other_code_is_refused_or_if_finished_discarded(
    run, tmp_path, sources, caplog
):
    caplog.set_level("INFO")
    with interruption_after(3):
        run(tmp_path)
    sources("core/objective.py", "def sami_loss(", "# a comment\ndef sami_loss(")
    sources("core/objective.py", "0.5 * (F.cross", "-0.5 * (F.cross")
    with pytest.raises(
        StateMismatchError, match=r"step-\d+: .*\(code of core.objective changed\); delete"
    ):
        run(tmp_path)
    shutil.rmtree(tmp_path)
    run(tmp_path)
    sources("core/objective.py", "-0.5 * (F.cross", "-0.25 * (F.cross")
    before = caplog.text.count("Going on")
    run(tmp_path)
    assert "is discarded, its training starts over: code of core.objective changed" in caplog.text
    assert caplog.text.count("Going on") == before


def test_the_state_of_another_run_that_came_to_its_end_makes_room(run, tmp_path):
    run(tmp_path)
    assert_same_run(run(tmp_path, seed=3), run(None, seed=3))


@pytest.mark.parametrize("field", SamiTrainingConfig.model_fields)
def test_every_parameter_that_changes_what_is_computed_belongs_to_the_run(field, tiny_model, grids):
    other = {"optimiser": "rmsprop", "schedule": "linear", "memory": "two_pass",
             "compute_dtype": "float32", "max_steps": 7, "length_normalise": False,
             "train_on_eos": False, "gradient_checkpointing": True, "compile_layers": True,
             "weights": "bfloat16", "optimiser_state": "bfloat16", "head": "torch",
             "attention": "flex_attention", "lora": LoraParameters(rank=2),
             "trackers": ("tensorboard",), "adamw_betas": (0.9, 0.95),
             "reduce_every": "step"}  # fmt: skip
    needed = {"optimiser_state": {"weights": "bfloat16_remainder"}}
    model = tiny_model("llama")
    chosen = config(compute_dtype="bfloat16", **needed.get(field, {}))
    changed = chosen.replaced(**{field: other.get(field, 9)})
    assert chosen != changed
    same = fingerprint(model, grids, chosen) == fingerprint(model, grids, changed)
    assert same == (field in ("save_state_every", "save_state_minutes", "trackers"))


def test_every_parameter_of_the_adapters_belongs_to_the_run(tiny_model, grids):
    model = tiny_model("llama")
    adapters = [
        LoraParameters(), LoraParameters(rank=2), LoraParameters(alpha=2.0),
        LoraParameters(dropout=0.1), LoraParameters(target_modules=("q_proj",)),
        LoraParameters(experts=True), LoraParameters(frozen_weights="bfloat16"),
    ]  # fmt: skip
    chosen = [config(lora=lora, compute_dtype="bfloat16") for lora in adapters]
    runs = {fingerprint(model, grids, each)["parameters"] for each in chosen}
    assert len(runs) == len(adapters)


def test_what_a_model_computes_belongs_to_the_run_and_where_it_lay_does_not(
    tiny_model, grids, tmp_path
):
    def initial(model) -> str:
        return fingerprint(model, grids, config())["initial model"]

    model = tiny_model("mistral")
    first = initial(model)
    for name, value in (("sliding_window", 5), ("attention_dropout", 0.1), ("rms_norm_eps", 1e-3)):
        other = tiny_model("mistral")
        setattr(other.config, name, value)
        assert initial(other) != first, name
    model.save_pretrained(tmp_path / "elsewhere")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "elsewhere", dtype=torch.float32)
    assert initial(loaded) == first
    grid_logprobs(model, grids[0])
    assert initial(model) == first, "a model that was evaluated before is the same"


def test_the_same_ids_in_other_containers_are_the_same_data(tiny_model, grids):
    model = tiny_model("llama")
    tuples = [
        Grid(tuple(map(tuple, g.prompt_ids)), tuple(map(np.array, g.response_ids))) for g in grids
    ]
    assert fingerprint(model, tuples, config()) == fingerprint(model, grids, config())


# --- Every kind of weights ---

WAYS = {
    "float32": {},
    "float32 rmsprop two_pass": {"optimiser": "rmsprop", "memory": "two_pass"},
    "bfloat16": {"weights": "bfloat16"},
    "bfloat16_remainder": {"weights": "bfloat16_remainder"},
    "bfloat16_remainder rmsprop": {"weights": "bfloat16_remainder", "optimiser": "rmsprop"},
    "bfloat16_remainder, rounded state": {
        "weights": "bfloat16_remainder",
        "optimiser_state": "bfloat16",
    },
    "lora with dropout": {"lora": LoraParameters(rank=2, dropout=0.3)},
    "kl": {"kl_beta": 0.3},
    "kl, lora with dropout": {"kl_beta": 0.3, "lora": LoraParameters(rank=2, dropout=0.3)},
    "kl, bfloat16_remainder": {"kl_beta": 0.3, "weights": "bfloat16_remainder"},
}


@pytest.mark.parametrize("way", WAYS)
def test_three_steps_and_three_more_are_six_steps_bit_by_bit(way, run, tmp_path):
    chosen = {"compute_dtype": "bfloat16", "save_state_every": 1, **WAYS[way]}
    with interruption_after(3):
        run(tmp_path / "twice", **chosen)
    first_half = list_states(tmp_path / "twice")[-1]
    assert first_half.name == "step-00000003"
    saved = json.loads((first_half / "state.json").read_text())["history"]
    for folder in ("once", "twice"):
        with interruption_after(5):
            run(tmp_path / folder, **chosen)
    # Also what no weight shows yet: moments, remainders, random numbers.
    for name in ("model.safetensors", "optimiser.safetensors"):
        one, two = (load_file(tmp_path / f / "step-00000005" / name) for f in ("once", "twice"))
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert torch.equal(value, two[key]), key
    assert len(two) > 1
    at_once, resumed = (run(tmp_path / folder, **chosen) for folder in ("once", "twice"))
    assert_same_run(resumed, at_once)
    assert resumed.history["step"].tolist() == [1, 2, 3, 4, 5, 6]
    clock = resumed.history["tokens_per_second"].tolist()
    assert clock[:3] == [row["tokens_per_second"] for row in saved], "they were not taken again"


def test_the_random_numbers_of_a_gpu_come_back(tiny_model, tmp_path, monkeypatch):
    restored = []
    state = torch.arange(16, dtype=torch.uint8)
    model = tiny_model("llama")
    optimiser = torch.optim.AdamW(model.parameters())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *device: state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda new, *device: restored.append(new))
    save_state(tmp_path, 1, model, optimiser, [], {})
    assert load_latest_state(tmp_path, model, optimiser, {})[0] == 1
    assert [new.tolist() for new in restored] == [state.tolist()]
    # A machine without a GPU can go on too.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load_latest_state(tmp_path, model, optimiser, {})[0] == 1
    assert len(restored) == 1


@pytest.fixture
def compiling(monkeypatch) -> Callable[[str], None]:
    """Compile with another backend, from an empty cache."""

    def use(backend: str) -> None:
        torch._dynamo.reset()
        counters.clear()
        compile_module = torch.nn.Module.compile
        monkeypatch.setattr(
            torch.nn.Module, "compile",
            lambda self, **options: compile_module(self, backend=backend, **options),
        )  # fmt: skip

    return use


@pytest.mark.parametrize(
    ("family", "recomputed"), [("llama", False), ("mistral", True)], ids=["kept", "recomputed"]
)
def test_compiled_layers_train_to_the_same_weights(
    family, recomputed, tiny_model, grids, compiling
):
    # Traced into graphs as ever, but these run operation by operation: turning them into machine
    # code takes a C++ compiler 20 s.
    compiling("aot_eager")
    plain, compiled = (tiny_model(family, num_hidden_layers=1) for _ in range(2))
    for model, compile_layers in ((plain, False), (compiled, True)):
        assert counters["stats"]["unique_graphs"] == 0
        chosen = config(compile_layers=compile_layers, gradient_checkpointing=recomputed)
        train_sami(model, None, grids, chosen, progress=False)
    for name, weight in weights_of(plain).items():
        if not torch.allclose(weights_of(compiled)[name], weight, rtol=1e-5, atol=1e-5):
            pytest.fail(f"{name} was trained to other weights")
    assert all(layer._compiled_call_impl is None for layer in compiled.model.layers)
    assert not any(layer.gradient_checkpointing for layer in compiled.model.layers)
    # One graph whatever the lengths, and nothing left out.
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_layers_that_can_not_be_told_are_not_left_uncompiled_in_silence(grids):
    sizes = {"vocab_size": 512, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    family = AutoConfig.for_model("gpt_neox_japanese", **sizes)
    model = AutoModelForCausalLM.from_config(family)
    with pytest.raises(ValueError, match="the layers of GPTNeoXJapaneseForCausalLM"):
        train_sami(model, None, grids, config(compile_layers=True), progress=False)


@pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++")),
    reason="layers are compiled by a C++ compiler, and neither c++ nor g++ is installed",
)
def test_compiled_layers_that_are_recomputed_equal_one_call_a_cell(
    tiny_model, random_grid, compiling, monkeypatch
):
    compiling("inductor")
    model, grid = tiny_model("llama", num_hidden_layers=1), random_grid(1, 2)
    expected = one_cell_at_a_time(model, grid)
    expected_gradients = gradients(model, uneven(expected))
    assert choose_layout(model)[0] == "shared_prefix"
    attended = []
    attend = tree_attention._segment_by_segment
    monkeypatch.setattr(
        tree_attention, "_segment_by_segment",
        lambda *states, **options: attended.append(1) or attend(*states, **options),
    )  # fmt: skip
    with prepared(model, config(compile_layers=True, gradient_checkpointing=True)):
        with torch.no_grad():
            unrecorded = grid_logprobs(model, grid).sums
        assert len(attended) == 1
        actual = grid_logprobs(model, grid).sums
        assert len(attended) == 2
        found = gradients(model, uneven(actual))
        # The layer was computed again, and attention once more for its gradient.
        assert len(attended) == 4
    assert counters["stats"]["unique_graphs"] == 2, "one with gradients and one without"
    assert not counters["graph_break"]
    for values in (actual, unrecorded):
        torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-6)
    assert found.keys() == expected_gradients.keys()
    one, other = (
        torch.cat([gradient.flatten() for gradient in each.values()])
        for each in (found, expected_gradients)
    )
    assert (one - other).norm() <= 1e-6 * other.norm()


@pytest.mark.parametrize("head", ["chunked", pytest.param("torch", marks=needs_torch_head)])
def test_the_head_does_not_change_what_is_learnt(head, tiny_model, grids):
    histories = [
        train_sami(tiny_model("llama"), None, grids, config(head=chosen), progress=False).history
        for chosen in ("auto", head)
    ]
    for name in ("loss", "gradient_norm"):
        assert histories[1][name].tolist() == pytest.approx(histories[0][name].tolist(), rel=1e-3)


def test_the_configured_head_and_padding_reach_the_model(tiny_model, grids, monkeypatch):
    seen = []
    real = training.batched_grid_logprobs
    monkeypatch.setattr(
        training, "batched_grid_logprobs",
        lambda *inputs, **options: seen.append(options) or real(*inputs, **options),
    )  # fmt: skip
    chosen = config(head="chunked", pad_to_multiple=32, max_steps=1)
    train_sami(tiny_model("llama"), None, grids, chosen, progress=False)
    assert [(options["head"], options["pad_to_multiple"]) for options in seen] == [("chunked", 32)]


def test_training_leaves_torchs_random_numbers_as_they_were(tiny_model, grids):
    model = tiny_model("llama", attention_dropout=0.2)
    before = torch.get_rng_state()
    train_sami(model, None, grids, config(max_steps=1), progress=False)
    assert torch.get_rng_state().equal(before)


def test_adamw_has_the_betas_and_epsilon_asked_for(tiny_model):
    chosen = config(adamw_betas=(0.8, 0.95), adamw_epsilon=1e-6)
    for weights in ("float32", "bfloat16"):
        model = tiny_model("llama")
        settings_ = chosen.replaced(weights=weights, compute_dtype="bfloat16")
        defaults = build_optimiser(model, settings_).defaults
        assert (defaults["betas"], defaults["eps"]) == ((0.8, 0.95), 1e-6)


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_training_leaves_the_model_as_it_found_it(attention, raises, tiny_model, grids):
    model = tiny_model("llama", attention=attention)
    if raises:
        with torch.no_grad():
            model.lm_head.weight[3, 0] = torch.nan
    chosen = config(gradient_checkpointing=True, lora=LoraParameters(rank=2), max_steps=1)
    with pytest.raises(FloatingPointError) if raises else nullcontext():
        train_sami(model, None, grids, chosen, progress=False)
    assert model.config._attn_implementation == attention
    assert not model.training
    assert not any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in model.parameters()) or raises


def test_flex_attention_is_switched_on_for_training_and_off_again(tiny_model, grids):
    model = tiny_model("llama")
    with prepared(model, config(attention="flex_attention")):
        assert model.config._attn_implementation == "flex_attention"
        assert choose_layout(model)[0] == "shared_prefix"
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(KeyError), prepared(model, config(attention="flex_attention")):
        raise KeyError
    assert model.config._attn_implementation == "sdpa"
