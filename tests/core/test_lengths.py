"""Models whose positions end, or whose rotary frequencies depend on the longest row."""

from __future__ import annotations

import pytest
import torch
from test_logprobs import gradients, one_cell_at_a_time, uneven

from sami_pipeline.core import Grid, SamiTrainingConfig, batched_grid_logprobs, train_sami
from sami_pipeline.core.lengths import check_lengths, sides_of_original_context

LONGROPE = {
    "original_max_position_embeddings": 20,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 20,
        "short_factor": [1.0] * 4, "long_factor": [1.0, 1.5, 3.0, 9.0],
    },
}  # fmt: skip
DYNAMIC = {
    "max_position_embeddings": 20,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
}


def grid_of(prompts: list[int], responses: list[int]) -> Grid:
    generator = torch.Generator().manual_seed(sum(prompts) + sum(responses))

    def ids(length: int) -> list[int]:
        return torch.randint(3, 101, (length,), generator=generator).tolist()

    return Grid([ids(n) for n in prompts], [ids(n) for n in responses])


SHORT, LONG = grid_of([8, 9], [5, 9]), grid_of([16, 20], [9, 12])
MIXED = grid_of([8, 14], [5, 9])


@pytest.mark.parametrize("layout", ["shared_prefix", "repeated"])
def test_longrope_values_do_not_depend_on_the_neighbours(layout, tiny_model):
    model = tiny_model("phi3", **LONGROPE)
    grids = [SHORT, LONG, MIXED]
    expected = [one_cell_at_a_time(model, grid) for grid in grids]
    wanted = gradients(model, sum(uneven(sums) for sums in expected))
    results = batched_grid_logprobs(model, grids, layout=layout, pad_to_multiple=16)
    for result, sums, grid in zip(results, expected, grids, strict=True):
        torch.testing.assert_close(result.sums, sums, rtol=1e-4, atol=1e-4)
        assert result.token_counts.tolist() == [len(y) for y in grid.response_ids]
    found = gradients(model, sum(uneven(result.sums) for result in results))
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-4, name
    plain = tiny_model("phi3")
    assert (one_cell_at_a_time(plain, LONG) - expected[1]).abs().max() > 0.1, "the scaling bites"


def test_cells_are_parted_only_where_some_are_longer_than_the_original_context(tiny_model):
    config = tiny_model("phi3", **LONGROPE).config
    assert sides_of_original_context(config, [SHORT]) == [[]]
    assert sides_of_original_context(config, [LONG]) == [[]]
    assert sides_of_original_context(config, [MIXED]) == [
        [(0, 0, 0), (0, 0, 1), (0, 1, 0)], [(0, 1, 1)],
    ]  # fmt: skip
    assert sides_of_original_context(tiny_model("phi3").config, [SHORT, LONG]) == [None]


def test_dynamic_scaling_is_exact_within_its_context_and_refused_beyond(tiny_model):
    model = tiny_model("llama", **DYNAMIC)
    torch.testing.assert_close(
        batched_grid_logprobs(model, [SHORT])[0].sums,
        one_cell_at_a_time(model, SHORT), rtol=1e-4, atol=1e-4,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"grids\[1\]: .* 32 tokens.* 20"):
        batched_grid_logprobs(model, [SHORT, LONG])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_grid_beyond_the_models_positions_is_refused_before_training(family, tiny_model):
    model = tiny_model(family, max_position_embeddings=30)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r"grids\[1\]: .* 32 tokens, but the model has 30 "):
        train_sami(model, None, [SHORT, LONG], SamiTrainingConfig(), progress=False)
    assert all(p.equal(before[name]) for name, p in model.named_parameters())
    check_lengths(model.config, [SHORT, MIXED])


def test_a_model_whose_positions_are_not_counted_takes_any_length(tiny_model):
    check_lengths(tiny_model("bloom", max_position_embeddings=8).config, [LONG])
