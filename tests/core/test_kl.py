"""The KL divergence of grids against full logits of one model call per cell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sami_pipeline.core import (
    Grid,
    LoraParameters,
    Reference,
    SamiTrainingConfig,
    batched_grid_logprobs,
    grid_logprobs,
    sami_loss,
    train_sami,
)
from sami_pipeline.core.training import accumulate_gradients, prepared


def config(**changes) -> SamiTrainingConfig:
    plain = {"compute_dtype": "float32", "learning_rate": 3e-3, "grids_per_micro_batch": 2}
    return SamiTrainingConfig(**{**plain, "kl_beta": 0.5, **changes})


def kl_of_cells(model: PreTrainedModel, reference: PreTrainedModel, grid: Grid) -> Tensor:
    """(n_c, n_r): full logits of both models at the places that predict the response."""
    cells = []
    for prompt in grid.prompt_ids:
        for response in grid.response_ids:
            ids = torch.tensor([[*prompt, *response]])
            logp = model(input_ids=ids).logits[0].log_softmax(-1)
            with torch.no_grad():
                logq = reference(input_ids=ids).logits[0].log_softmax(-1)
            per_token = (logp.exp() * (logp - logq)).sum(-1)
            cells.append(per_token[len(prompt) - 1 : -1].mean())
    return torch.stack(cells).view(grid.shape)


def uneven(kl: Tensor) -> Tensor:
    return (torch.linspace(-1.0, 2.0, kl.numel(), dtype=kl.dtype).view_as(kl) * kl).sum()


def gradients(model: PreTrainedModel, scalar: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    scalar.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        size = max(1.0, gradient.abs().max().item())
        assert (actual[name] - gradient).abs().max() <= tolerance * size, name


@pytest.mark.parametrize("options", [{}, {"layout": "repeated"}, {"pad_to_multiple": 64}])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_kl_and_its_gradient_equal_those_of_full_logits(family, options, tiny_model, random_grid):
    model = tiny_model(family, torch.float64)
    other = tiny_model(family, torch.float64, seed=1)
    grids = [random_grid(1, 2, 3), random_grid(2, 3)]
    expected = [kl_of_cells(model, other, grid) for grid in grids]
    expected_gradients = gradients(model, sum(map(uneven, expected)))
    results = batched_grid_logprobs(model, grids, reference=Reference(other), **options)
    for result, cells in zip(results, expected, strict=True):
        torch.testing.assert_close(result.kl, cells, rtol=1e-9, atol=1e-9)
        assert (result.kl > 0.01).all()
    actual_gradients = gradients(model, sum(uneven(result.kl) for result in results))
    assert_close(actual_gradients, expected_gradients, 1e-9)
    assert all(p.grad is None for p in other.parameters())


# A head with bias, one with a scale, and one that makes its own logits.
@pytest.mark.parametrize("family", ["phi", "cohere", "granite", "recurrent_gemma"])
def test_kl_takes_every_kind_of_head(family, tiny_model, random_grid):
    model, other, grid = tiny_model(family), tiny_model(family, seed=1), random_grid(3, 2, 3)
    expected = kl_of_cells(model, other, grid)
    expected_gradients = gradients(model, uneven(expected))
    result = grid_logprobs(model, grid, reference=Reference(other))
    torch.testing.assert_close(result.kl, expected, rtol=1e-3, atol=1e-4)
    assert_close(gradients(model, uneven(result.kl)), expected_gradients, 1e-3)


def test_the_prompt_does_not_count(tiny_model):
    # A one-token response is predicted by the last token of the prompt, and by nothing else.
    model, other = tiny_model("llama", torch.float64), tiny_model("llama", torch.float64)
    with torch.no_grad():
        other.lm_head.weight[50] += 1.0
    short, long = Grid([[5, 6]], [[8]]), Grid([[5, 6]], [[8], [9, 10, 11]])
    one = grid_logprobs(model, short, reference=Reference(other)).kl
    two = grid_logprobs(model, long, reference=Reference(other)).kl
    torch.testing.assert_close(one[0, 0], two[0, 0], rtol=1e-9, atol=0)
    logp, logq = (
        m(input_ids=torch.tensor([[5, 6]])).logits[0, -1].log_softmax(-1) for m in (model, other)
    )
    expected = torch.nn.functional.kl_div(logq, logp, reduction="sum", log_target=True)
    torch.testing.assert_close(one[0, 0], expected, rtol=1e-9, atol=0)


def test_kl_from_itself_is_zero_and_so_is_its_gradient(tiny_model, random_grid):
    model = tiny_model("llama", torch.float64)
    kl = grid_logprobs(model, random_grid(4, 2), reference=Reference(model)).kl
    assert kl.abs().max() < 1e-12
    assert max(g.abs().max() for g in gradients(model, kl.sum()).values()) < 1e-9


def test_without_a_reference_there_is_no_kl(tiny_model, random_grid):
    assert grid_logprobs(tiny_model("llama"), random_grid(5)).kl is None


def test_the_context_of_the_reference_holds_while_it_computes_and_no_longer(
    tiny_model, random_grid
):
    model, grid = tiny_model("llama", torch.float64), random_grid(6, 2)

    @contextmanager
    def other_weights() -> Iterator[None]:
        assert not torch.is_grad_enabled()
        model.model.norm.weight.data.mul_(0.5)
        yield
        model.model.norm.weight.data.mul_(2.0)

    halved = tiny_model("llama", torch.float64)
    halved.model.norm.weight.data.mul_(0.5)
    plain = grid_logprobs(model, grid).sums
    expected = grid_logprobs(model, grid, reference=Reference(halved)).kl
    result = grid_logprobs(model, grid, reference=Reference(model, other_weights))
    torch.testing.assert_close(result.sums, plain, rtol=1e-12, atol=0)
    torch.testing.assert_close(result.kl, expected, rtol=1e-9, atol=1e-12)


# --- In training ---


@pytest.mark.parametrize("nll_weight", [0.0, 0.3])
@pytest.mark.parametrize("memory", ["single_pass", "two_pass"])
def test_the_gradient_is_that_of_the_loss_the_mean_kl_and_the_own_responses_nll(
    nll_weight, memory, tiny_model, random_grid
):
    model, other = tiny_model("llama", torch.float64), tiny_model("llama", torch.float64, seed=1)
    batch = [random_grid(0, 2), random_grid(1, 3)]
    losses, divergences, total = [], [], 0
    for grid in batch:
        means = grid_logprobs(model, grid).means
        losses.append(sami_loss(means))
        divergences.append(kl_of_cells(model, other, grid).mean())
        own = sum(means[i, i] for i in range(len(means))) / len(means)
        total = total + (losses[-1] + 0.5 * divergences[-1] - nll_weight * own) / 2
    expected = gradients(model, total)
    model.zero_grad(set_to_none=True)
    chosen = config(memory=memory, nll_weight=nll_weight)
    metrics = accumulate_gradients(model, batch, chosen, Reference(other))
    actual = {name: p.grad for name, p in model.named_parameters()}
    assert_close(actual, expected, 1e-9)
    # The loss is reported without the other terms.
    assert metrics["loss"] == pytest.approx(sum(loss.item() for loss in losses) / 2)
    assert metrics["kl"] == pytest.approx(sum(kl.item() for kl in divergences) / 2)


def test_two_passes_train_to_the_same_weights_as_one(tiny_model, random_grid):
    grids = [random_grid(seed, 2) for seed in range(4)]
    one, two = tiny_model("llama", torch.float32), tiny_model("llama", torch.float32)
    single = train_sami(one, None, grids, config(batch_size=2), progress=False).history
    double = train_sami(
        two, None, grids, config(batch_size=2, memory="two_pass"), progress=False
    ).history
    assert double["kl"].tolist() == pytest.approx(single["kl"].tolist(), rel=1e-3, abs=1e-6)
    assert single["kl"][1] > 1e-4
    for (name, weight), (_, other) in zip(
        one.named_parameters(), two.named_parameters(), strict=True
    ):
        torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("lora", [None, LoraParameters(rank=4)])
def test_kl_keeps_the_trained_model_closer_to_the_initial_one(lora, tiny_model, random_grid):
    grids = [random_grid(seed, 2) for seed in range(4)]

    def distance(beta: float) -> tuple[float, list[float]]:
        model, initial = tiny_model("llama"), tiny_model("llama")
        chosen = config(kl_beta=beta, batch_size=2, epochs=6, lora=lora)
        history = train_sami(model, None, grids, chosen, progress=False).history
        with torch.no_grad():
            kl = torch.stack([kl_of_cells(model, initial, grid).mean() for grid in grids])
        return kl.mean().item(), history["kl"].tolist()

    free, without = distance(0.0)
    held, reported = distance(5.0)
    assert held < 0.3 * free
    assert without == [0.0] * 12
    assert reported[0] == pytest.approx(0, abs=1e-6)
    assert max(reported) > 1e-4


def test_with_adapters_the_reference_is_the_model_without_them(tiny_model, random_grid):
    model, initial, grid = tiny_model("llama"), tiny_model("llama"), random_grid(7, 2)
    with prepared(model, config(lora=LoraParameters(rank=4))) as reference:
        assert reference.model is model, "no copy of the weights is made"
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
            expected = kl_of_cells(model, initial, grid)
        result = grid_logprobs(model, grid, reference=reference)
        assert (result.kl > 0.01).all()
        torch.testing.assert_close(result.kl, expected, rtol=1e-3, atol=1e-4)
        trained = gradients(model, result.kl.sum())
        assert trained
        assert all("lora" in name and g.abs().max() > 0 for name, g in trained.items())


def test_without_adapters_the_reference_is_a_copy_that_training_leaves_alone(
    tiny_model, random_grid
):
    model, grids = tiny_model("llama", attention_dropout=0.5), [random_grid(8, 2)]
    with prepared(model, config()) as reference:
        assert not reference.model.training
        before = {n: p.clone() for n, p in reference.model.named_parameters()}
        accumulate_gradients(model, grids, config(), reference)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        for name, parameter in reference.model.named_parameters():
            assert parameter.equal(before[name])
            assert not parameter.requires_grad
            assert parameter.grad is None
    with prepared(model, config(kl_beta=0.0)) as reference:
        assert reference is None


@pytest.mark.parametrize(
    ("weights", "family"),
    [
        *(("float32", family) for family in ("llama", "gpt2", "gemma3_text", "mixtral")),
        ("bfloat16", "llama"),
        ("bfloat16_remainder", "llama"),
    ],
)
def test_before_the_first_step_the_model_is_its_own_reference(
    weights, family, tiny_model, random_grid
):
    grids = [random_grid(9, 2, prompt_lengths=(90, 100))]
    chosen = config(weights=weights, compute_dtype="bfloat16", max_steps=1)
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = tiny_model(family, **(no_dropout if family == "gpt2" else {}))
    with torch.no_grad():  # half-way between two numbers of bf16, where roundings differ
        for parameter in model.parameters():
            parameter.copy_(((parameter.view(torch.int32) & ~0xFFFF) | 0x8000).view(torch.float32))
    history = train_sami(model, None, grids, chosen, progress=False).history
    assert history["kl"][0] == pytest.approx(0, abs=1e-6)


def test_the_reference_has_no_dropout_with_adapters_either(tiny_model, random_grid):
    chosen = config(lora=LoraParameters(rank=2), max_steps=1)
    model = tiny_model("llama", attention_dropout=0.4)
    with prepared(model, chosen) as reference:
        model.eval()
        expected = grid_logprobs(model, random_grid(10, 2)).sums
        model.train()
        with reference.context():
            actual = grid_logprobs(reference.model, random_grid(10, 2)).sums
    torch.testing.assert_close(actual, expected)


def test_the_reference_does_not_disturb_the_dropout_of_two_passes(tiny_model, random_grid):
    norms = []
    for beta in (0.0, 1e-12):
        chosen = config(lora=LoraParameters(rank=2), memory="two_pass", kl_beta=beta, max_steps=1)
        model = tiny_model("llama", attention_dropout=0.4)
        history = train_sami(model, None, [random_grid(11, 2)], chosen, progress=False).history
        norms.append(history["gradient_norm"][0])
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
