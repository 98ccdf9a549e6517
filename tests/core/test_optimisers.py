"""Optimisers whose updates 16-bit weights do not lose."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sami_pipeline.core import SamiTrainingConfig, optimisers, train_sami
from sami_pipeline.core.optimisers import (
    RemainderOptimiser,
    build_optimiser,
    join_float32,
    round_stochastically,
    sample_weights,
    split_float32,
)

OPTIMISERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3, weight_decay=0.1),
}


def bits(value: Tensor) -> Tensor:
    """The bits, so that 0 and -0 are told apart."""
    return value.detach().contiguous().view(torch.int32)


def float_of(pattern: int) -> float:
    return struct.unpack("<f", struct.pack("<I", pattern))[0]


# Every finite pattern, with those whose lower half decides a tie or a carry well represented.
patterns = st.builds(
    lambda upper, lower: upper << 16 | lower,
    st.integers(0, 0xFFFF).filter(lambda upper: upper & 0x7F80 != 0x7F80),
    st.one_of(st.sampled_from([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]), st.integers(0, 0xFFFF)),
)


# --- Two halves ---


@settings(deadline=None, max_examples=300)
@given(st.lists(patterns, min_size=1, max_size=50))
def test_the_two_halves_are_the_nearest_bf16_and_what_it_lacks(drawn):
    value = torch.tensor([p - (1 << 32) if p >= 1 << 31 else p for p in drawn], dtype=torch.int64)
    value = value.to(torch.int32).view(torch.float32)
    assert value.isfinite().all()
    weight, remainder = split_float32(value)
    assert (weight.dtype, remainder.dtype) == (torch.bfloat16, torch.int16)
    assert bits(join_float32(weight, remainder)).equal(bits(value))
    # No other bf16 is nearer; between two at the same distance either will do.
    for exact, half in zip(value.double().tolist(), weight, strict=True):
        if half.isfinite():
            neighbours = half.view(torch.int16) + torch.tensor([-1, 0, 1], dtype=torch.int16)
            near = neighbours.view(torch.bfloat16).double()
            assert abs(exact - half.double()) <= (near[near.isfinite()] - exact).abs().min()
        else:
            assert exact == pytest.approx(3.4e38 if exact > 0 else -3.4e38, rel=0.01)


@pytest.mark.parametrize(
    "pattern",
    [
        0x00000000, 0x80000000,  # 0 and -0
        0x00000001, 0x80000001, 0x007FFFFF, 0x807FFFFF,  # subnormal
        0x3F808000, 0xBF808000, 0x3F818000, 0xBF818000,  # halfway between two bf16
        0x3F7FFFFF, 0xBF7FFFFF,  # carries into the exponent
        0x7F7FFFFF, 0xFF7FFFFF,  # the largest: the bf16 half is infinite
    ],
)  # fmt: skip
def test_numbers_at_the_edges_come_back_bit_by_bit(pattern):
    value = torch.tensor([float_of(pattern)])
    assert bits(join_float32(*split_float32(value))).equal(bits(value))


def test_any_shape_and_stride_is_split():
    value = torch.randn(4, 6, 2).transpose(0, 1)
    weight, remainder = split_float32(value)
    assert weight.shape == value.shape
    assert join_float32(weight, remainder).equal(value)


# --- Stochastic rounding ---


def test_stochastic_rounding_keeps_the_mean_and_takes_only_the_two_neighbours():
    torch.manual_seed(0)
    # One third and nine tenths of the way from one bf16 to the next, of both signs.
    below, above = 1.0, 1.0 + 2**-7
    for share in (1 / 3, 0.9):
        for sign in (1, -1):
            value = torch.full((40_000,), sign * (below + share * (above - below)))
            rounded = round_stochastically(value)
            assert rounded.dtype == torch.bfloat16
            assert set(rounded.float().tolist()) == {sign * below, sign * above}
            upwards = (rounded.float().abs() == above).double().mean()
            # Five standard deviations of the mean of so many draws.
            assert upwards == pytest.approx(share, abs=5 * 0.5 / 200)


def test_stochastic_rounding_leaves_what_bf16_can_hold():
    value = torch.tensor([0.0, -0.0, 1.0, -1.5, 2.0**-130, 3e38]).bfloat16().float()
    for seed in range(20):
        torch.manual_seed(seed)
        assert bits(round_stochastically(value).float()).equal(bits(value))


def test_a_mean_that_moves_slowly_stands_still_without_stochastic_rounding():
    # A second moment of AdamW: 0.999 of the old. To nearest, no step changes a bf16 at all.
    torch.manual_seed(0)
    start = torch.full((2000,), 1.0)
    nearest, random = start.bfloat16(), start.bfloat16()
    for _ in range(500):
        nearest = (0.999 * nearest.float()).bfloat16()
        random = round_stochastically(0.999 * random.float())
    assert nearest.equal(start.bfloat16())
    assert random.float().mean() == pytest.approx(0.999**500, rel=0.02)


# --- Updates ---


def twins(seed: int = 0) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=generator) for shape in ((7, 5), (11,), (1,))]
    return tuple([nn.Parameter(v.clone()) for v in values] for _ in range(2))


def take_steps(
    optimiser: RemainderOptimiser,
    other: torch.optim.Optimizer,
    ours: list[nn.Parameter],
    theirs: list[nn.Parameter],
    steps: int = 20,
) -> None:
    """Let both take the same steps: gradients that bf16 can hold, a learning rate that changes."""
    generator = torch.Generator().manual_seed(9)
    for step in range(steps):
        for optimised in (optimiser, other):
            for group in optimised.param_groups:
                group["lr"] = 1e-3 * (step + 1)
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            gradient = torch.randn(a.shape, generator=generator).bfloat16()
            # A parameter may have no gradient in some step.
            a.grad, b.grad = (None, None) if step == 3 and index == 1 else (
                gradient, gradient.float(),
            )  # fmt: skip
        optimiser.step()
        other.step()


@pytest.mark.parametrize("slice_size", [2**24, 4])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_updates_are_those_of_fp32_weights_bit_by_bit(name, slice_size, monkeypatch):
    monkeypatch.setattr(optimisers, "_SLICE", slice_size)
    ours, theirs = twins()
    optimiser, other = RemainderOptimiser(ours, OPTIMISERS[name]), OPTIMISERS[name](theirs)
    take_steps(optimiser, other, ours, theirs)
    start = twins()[0]
    for parameter, expected, first in zip(ours, theirs, start, strict=True):
        whole = optimiser.whole(parameter, slice(None)).view_as(expected)
        assert bits(whole).equal(bits(expected))
        assert (whole - first).abs().min() > 1e-4, "every weight was updated"
        assert parameter.dtype == torch.bfloat16
        assert (parameter.float() - expected).abs().max() <= 2**-8 * expected.abs().max()
        state = optimiser.state[parameter]
        for key, value in other.state[expected].items():
            assert torch.equal(state[key], value), key
            assert state[key].shape == value.shape


@pytest.mark.parametrize("name", OPTIMISERS)
def test_moments_in_bf16_change_little(name):
    torch.manual_seed(0)
    ours, theirs = twins()
    start = twins()[0]
    optimiser = RemainderOptimiser(ours, OPTIMISERS[name], torch.bfloat16)
    other = OPTIMISERS[name](theirs)
    take_steps(optimiser, other, ours, theirs)
    for parameter, expected, first in zip(ours, theirs, start, strict=True):
        whole = optimiser.whole(parameter, slice(None)).view_as(expected)
        assert (whole - expected).norm() < 0.02 * (expected - first).norm()
        assert not whole.equal(expected)
        moments = {k: v.dtype for k, v in optimiser.state[parameter].items() if v.ndim}
        moments.pop("remainder")
        assert moments
        assert set(moments.values()) == {torch.bfloat16}


def test_a_bf16_parameter_starts_without_remainder():
    parameter = nn.Parameter(torch.randn(5).bfloat16())
    before = parameter.detach().clone()
    optimiser = RemainderOptimiser([parameter], OPTIMISERS["adamw"])
    assert parameter.equal(before)
    assert not optimiser.state[parameter]["remainder"].any()


def test_a_state_is_restored_as_it_was_and_not_in_the_dtype_of_the_weights():
    def build() -> tuple[nn.Parameter, RemainderOptimiser]:
        generator = torch.Generator().manual_seed(0)
        weight = nn.Parameter(torch.randn(50, generator=generator))
        return weight, RemainderOptimiser([weight], OPTIMISERS["adamw"])

    weight, optimiser = build()
    weight.grad = torch.ones_like(weight)
    optimiser.step()
    other, restored = build()
    other.data = weight.data.clone()
    restored.load_state_dict(optimiser.state_dict())
    for name, value in optimiser.state[weight].items():
        assert restored.state[other][name].dtype == value.dtype, name
        assert torch.equal(restored.state[other][name], value), name
    assert torch.equal(restored.whole(other, slice(None)), optimiser.whole(weight, slice(None)))


def test_a_parameter_without_gradient_is_left_alone():
    parameter = nn.Parameter(torch.randn(5))
    optimiser = RemainderOptimiser([parameter], OPTIMISERS["adamw"])
    before = optimiser.whole(parameter, slice(None))
    optimiser.step()
    assert optimiser.whole(parameter, slice(None)).equal(before)
    assert set(optimiser.state[parameter]) == {"remainder"}


# --- In training ---


def config(**changes) -> SamiTrainingConfig:
    return SamiTrainingConfig(**{"batch_size": 2, "epochs": 2, "learning_rate": 5e-7, **changes})


@pytest.mark.parametrize("optimiser", ["adamw", "rmsprop"])
def test_only_pure_bf16_loses_most_updates_at_the_published_learning_rate(
    optimiser, tiny_model, random_grid
):
    grids = [random_grid(seed, 2) for seed in range(4)]
    moved, dtypes = {}, {}
    for weights in ("float32", "bfloat16_remainder", "bfloat16"):
        model = tiny_model("llama")
        chosen = config(weights=weights, optimiser=optimiser)
        history = train_sami(model, None, grids, chosen, progress=False).history
        moved[weights] = history["weights_moved"]
        dtypes[weights] = {p.dtype for p in model.parameters()}
    assert (moved["float32"] > 0.75).all()
    assert (moved["bfloat16_remainder"] > 0.75).all()
    assert (moved["bfloat16"] < 0.02).all()
    assert dtypes == {
        "float32": {torch.float32},
        "bfloat16_remainder": {torch.bfloat16},
        "bfloat16": {torch.bfloat16},
    }


@pytest.mark.parametrize("weights", ["float32", "bfloat16_remainder", "bfloat16"])
def test_every_mode_learns(weights, tiny_model, random_grid):
    grids = [random_grid(seed, 2) for seed in range(4)]
    chosen = config(weights=weights, learning_rate=3e-3, epochs=10)
    history = train_sami(tiny_model("llama"), None, grids, chosen, progress=False).history
    assert history["loss"].iloc[:2].mean() > 0.3
    assert history["loss"].iloc[-2:].max() < 0.15


def test_remainders_train_to_almost_the_weights_of_fp32(tiny_model, random_grid):
    # Many small steps: what bf16 rounds away in each would add up to most of the way.
    grids = [random_grid(seed, 2) for seed in range(4)]
    start = dict(tiny_model("llama").named_parameters())

    def way(weights: str) -> Tensor:
        model = tiny_model("llama")
        chosen = config(weights=weights, learning_rate=2e-4, epochs=6)
        train_sami(model, None, grids, chosen, progress=False)
        ways = [(p.float() - start[n]).flatten() for n, p in model.named_parameters()]
        return torch.cat(ways).detach()

    expected = way("float32")
    similarity = {
        weights: torch.cosine_similarity(way(weights), expected, dim=0).item()
        for weights in ("bfloat16_remainder", "bfloat16")
    }
    # The bf16 half of the start is already rounded, which the comparison counts as a way.
    assert similarity["bfloat16_remainder"] > 0.7
    assert similarity["bfloat16"] < similarity["bfloat16_remainder"] - 0.1


@pytest.mark.parametrize(
    ("weights", "optimiser", "kind"),
    [
        ("float32", "adamw", torch.optim.AdamW),
        ("bfloat16", "rmsprop", torch.optim.RMSprop),
        ("bfloat16_remainder", "adamw", RemainderOptimiser),
    ],
)
def test_the_optimiser_asked_for_is_built_over_what_is_trained(
    weights, optimiser, kind, tiny_model
):
    model = tiny_model("llama")
    model.get_input_embeddings().requires_grad_(False)
    built = build_optimiser(model, config(weights=weights, optimiser=optimiser, weight_decay=0.25))
    assert type(built) is kind
    assert built.param_groups[0]["lr"] == 5e-7
    trained = [p for p in model.parameters() if p.requires_grad]
    assert [id(p) for p in built.param_groups[0]["params"]] == [id(p) for p in trained]
    if kind is not RemainderOptimiser:
        assert built.param_groups[0]["weight_decay"] == 0.25
        # One kernel for all weights, or one weight after the other: never a copy of all of them.
        assert built.defaults["fused" if kind is torch.optim.AdamW else "foreach"] is (
            kind is torch.optim.AdamW
        )


def test_the_sample_of_weights_is_spread_and_in_fp32():
    parameters = [nn.Parameter(torch.arange(100.0)), nn.Parameter(torch.tensor([[7.0]]))]
    expected = [*range(0, 100, 10), 7]
    plain = sample_weights(torch.optim.AdamW(parameters), 10)
    assert plain.tolist() == expected
    # Numbers that bf16 cannot hold: the sample is of the whole weights.
    parameters[0].data += 2.0**-10
    remainder = RemainderOptimiser(parameters, OPTIMISERS["adamw"])
    assert sample_weights(remainder, 10).tolist() == [*(x + 2.0**-10 for x in expected[:-1]), 7]


def test_frozen_fp32_weights_can_stand_beside_remainders(tiny_model, random_grid):
    model = tiny_model("llama")
    model.get_input_embeddings().requires_grad_(False)
    train_sami(model, None, [random_grid(0)], config(weights="bfloat16_remainder"), progress=False)
