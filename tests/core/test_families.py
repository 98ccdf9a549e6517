"""Every family that transformers knows: exact against one call a cell, as a tree or as rows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from test_logprobs import gradients, one_cell_at_a_time, uneven
from torch import Tensor
from transformers import PreTrainedModel

from sami_pipeline.core import Grid, batched_grid_logprobs, grid_logprobs
from sami_pipeline.core.probe import traits_of

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import families

REFUSED = {"bert"}  # it sees what follows
FAMILIES = sorted(set(families.FAMILIES) - REFUSED)
TREES = 40


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_equal_one_call_a_cell(family, random_grid):
    model, grid = families.tiny_model(family), random_grid(1, 2)
    expected = one_cell_at_a_time(model, grid)
    expected_gradients = gradients(model, uneven(expected))
    actual = grid_logprobs(model, grid).sums
    found = gradients(model, uneven(actual))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    assert found.keys() == expected_gradients.keys()
    apart, norm = (
        torch.cat([change.flatten() for change in changes]).norm()
        for changes in (
            [found[name] - value for name, value in expected_gradients.items()],
            expected_gradients.values(),
        )
    )
    assert norm > 1e-2
    # Jamba's recurrence rounds more: each of the two is 0.8e-6 to 1.4e-6 from its gradient in fp64
    # (four grids), where both are the same to 3e-10; see the next test.
    assert apart <= (2e-6 if family == "jamba" else 1e-6) * norm


def test_jambas_gradients_in_fp64_differ_by_nothing_but_rounding(random_grid):
    model, grid = families.tiny_model("jamba").double(), random_grid(1, 2)
    model.set_experts_implementation("eager")  # torch's grouped products know no fp64
    expected = gradients(model, uneven(one_cell_at_a_time(model, grid)))
    found = gradients(model, uneven(grid_logprobs(model, grid).sums))
    apart, norm = (
        sum(gradient.norm() ** 2 for gradient in changes) ** 0.5
        for changes in ([found[n] - g for n, g in expected.items()], expected.values())
    )
    assert apart <= 1e-8 * norm


def test_most_families_share_the_prompt_and_the_page_says_which():
    page = (families.PROJECT / "docs" / "families.md").read_text("utf-8")
    assert page == families.page(), "write it again with `python benchmarks/families.py`"
    assert page.count("| tree |") >= TREES
    for family in REFUSED:
        assert f"| `{family}` | refused |" in page


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "granite", "mamba"])
def test_a_grid_is_exact_in_a_batch_of_rows_of_other_lengths(family, random_grid):
    model = families.tiny_model(family)
    grids = [random_grid(1, 2), Grid([[5]], [[6]]), random_grid(2, 3)]
    options = {"layout": "repeated", "pad_to_multiple": 32}
    together = batched_grid_logprobs(model, grids, **options)
    for grid, result in zip(grids, together, strict=True):
        torch.testing.assert_close(
            result.sums, one_cell_at_a_time(model, grid), rtol=1e-6, atol=1e-5
        )


# --- What the trial notices ---


def _broken(model: PreTrainedModel, change) -> PreTrainedModel:
    """Let a model's first layer of attention change its keywords or inputs."""
    layer = model.model.layers[0].self_attn
    forward = layer.forward
    layer.forward = lambda *args, **options: forward(*args, **change(dict(options)))
    return model


def test_a_window_that_is_longer_than_the_probe_and_not_handed_on_is_noticed():
    model = families.tiny_model("mistral")
    model.config.sliding_window = 4096
    assert traits_of(model).layout == "shared_prefix"

    class Config:  # the mask knows the window, and attention is never told of it
        sliding_window = None

        def __init__(self, config):
            self._config = config

        def __getattr__(self, name):
            return getattr(self._config, name)

    forgetful = families.tiny_model("mistral")
    forgetful.config.sliding_window = 4096
    for layer in forgetful.model.layers:
        layer.self_attn.config = Config(forgetful.config)
        type(layer.self_attn.config).sliding_window = property(lambda self: None)
    traits = traits_of(forgetful)
    assert traits.layout == "repeated"
    assert "otherwise than rows" in traits.reason


def test_a_layer_that_is_not_told_of_the_tree_is_noticed():
    def without_tree(options: dict) -> dict:
        options.pop("token_tree", None)
        return options

    traits = traits_of(_broken(families.tiny_model("llama"), without_tree))
    assert (traits.layout, traits.refusal) == ("repeated", None)
    assert "no token tree" in traits.reason


def test_a_layer_that_mixes_neighbours_in_the_row_gets_rows():
    model = families.tiny_model("llama")

    def mix(module: torch.nn.Module, given: tuple, output: Tensor) -> Tensor:
        return output + 0.1 * output.roll(1, dims=1) * (torch.arange(output.shape[1]) > 0)[:, None]

    model.model.layers[0].mlp.register_forward_hook(mix)
    traits = traits_of(model)
    assert (traits.layout, traits.refusal) == ("repeated", None)
    assert "otherwise than rows" in traits.reason


def test_a_model_that_sees_the_future_is_refused(random_grid):
    model = families.tiny_model("llama")
    model.model.layers[0].mlp.register_forward_hook(
        lambda module, given, output: output + output.mean(1, keepdim=True)
    )
    with pytest.raises(ValueError, match="no causal language model"):
        grid_logprobs(model, random_grid(1))


def test_a_gradient_that_differs_alone_is_noticed():
    class Severed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, hidden):
            ctx.one_row = len(hidden) == 1 and hidden.shape[1] > 12
            return hidden.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * (0.9 if ctx.one_row else 1.0)

    model = families.tiny_model("llama")
    model.model.layers[0].register_forward_hook(lambda module, given, output: Severed.apply(output))
    traits = traits_of(model)
    assert traits.layout == "repeated"
    assert "gradients" in traits.reason


def test_a_mask_of_a_layers_own_is_noticed_though_it_hides_nothing_yet(random_grid):
    """Doge's layers learn a mask, which is the same for all tokens before the first step."""
    model = families.tiny_model("doge")
    traits = traits_of(model)
    assert traits.layout == "repeated"
    assert "mask that a layer has made itself" in traits.reason
    grid = random_grid(1, 2)
    learnt = gradients(model, uneven(grid_logprobs(model, grid).sums))
    expected = gradients(model, uneven(one_cell_at_a_time(model, grid)))
    assert "model.layers.0.self_attn.A" in learnt
    assert learnt.keys() == expected.keys()


def test_a_head_that_is_more_than_a_linear_layer_computes_itself(random_grid):
    """Its factors begin alike, so that the logits alone would not show it."""
    model, grid = families.tiny_model("dory"), random_grid(3, 2)
    assert traits_of(model).logits is None
    learnt = gradients(model, uneven(grid_logprobs(model, grid).sums))
    assert learnt["lm_head.logit_scale"].norm() > 0


def test_logits_that_no_known_form_gives_are_the_models_own(random_grid):
    model, grid = families.tiny_model("llama"), random_grid(3, 2)
    bend = model.lm_head.register_forward_hook(lambda module, given, output: output.sin() * 3)
    assert traits_of(model).logits is None
    torch.testing.assert_close(
        grid_logprobs(model, grid).sums, one_cell_at_a_time(model, grid), rtol=1e-6, atol=1e-6
    )
    bend.remove()


def test_the_trial_leaves_the_model_as_it_was(random_grid):
    model = families.tiny_model("qwen3")
    model.train()
    model.model.layers[1].eval()
    model.model.norm.weight.requires_grad_(False)
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    before = {
        "modes": [module.training for module in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "config": model.config.to_dict(),
        "attention": model.config._attn_implementation,
        "random": torch.get_rng_state().tolist(),
        "windows": [getattr(m, "sliding_window", None) for m in model.modules()],
        "trained": [p.requires_grad for p in model.parameters()],
    }
    with torch.no_grad():
        grid_logprobs(model, random_grid(1))
    after = {
        "modes": [module.training for module in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "config": model.config.to_dict(),
        "attention": model.config._attn_implementation,
        "random": torch.get_rng_state().tolist(),
        "windows": [getattr(m, "sliding_window", None) for m in model.modules()],
        "trained": [p.requires_grad for p in model.parameters()],
    }
    assert after == before
    assert model.lm_head.weight.grad.equal(torch.ones_like(model.lm_head.weight))
    assert all(p.grad is None for n, p in model.named_parameters() if n != "lm_head.weight")


def test_a_model_is_tried_once(random_grid):
    model, calls = families.tiny_model("llama"), []
    model.register_forward_hook(lambda *_: calls.append(1))
    grid_logprobs(model, random_grid(1))
    first = len(calls)
    assert first > 1
    grid_logprobs(model, random_grid(1))
    assert len(calls) == first + 1


def test_a_grid_can_be_computed_where_gradients_are_off(random_checkpoint):
    """The probe takes gradients of its own; a caller who wants values alone must not disturb it."""
    grid = Grid([[5, 6, 7], [5, 8]], [[9, 10], [11]])
    expected = grid_logprobs(random_checkpoint.load_model(torch.float32, "cpu"), grid).means
    for without in (torch.inference_mode, torch.no_grad):
        model = random_checkpoint.load_model(torch.float32, "cpu")
        with without():
            torch.testing.assert_close(grid_logprobs(model, grid).means, expected.detach())
