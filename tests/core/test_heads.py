"""Token log-probabilities and KL from hidden states, against the same written out in fp64."""

from __future__ import annotations

import importlib.util
from importlib import metadata

import pytest
import torch
from torch import Tensor

from sami_pipeline.core import heads
from sami_pipeline.core.heads import token_kl, token_logprobs, token_logprobs_and_kl

TOKENS, WIDTH, VOCABULARY = 11, 8, 23

needs_torch_head = pytest.mark.skipif(
    not hasattr(torch.nn.functional, "linear_cross_entropy"),
    reason="this torch has no linear_cross_entropy (torch 2.13 or newer has)",
)
needs_liger = pytest.mark.skipif(
    not torch.cuda.is_available()
    or any(importlib.util.find_spec(name) is None for name in ("triton", "liger_kernel")),
    reason="Liger's kernel needs a GPU and the packages triton and liger-kernel",
)


def make_inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    return leaf(TOKENS, WIDTH), leaf(VOCABULARY, WIDTH), leaf(VOCABULARY), targets


def uneven_weights() -> Tensor:
    return torch.linspace(-2, 3, TOKENS)


def written_out(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    scale: float,
) -> Tensor:
    logits = hidden.double() @ weight.double().T
    if bias is not None:
        logits = logits + bias.double()
    logits = scale * logits
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(-1)[torch.arange(len(targets)), targets]


def assert_equals_written_out(options: dict, head: dict, tolerance: float = 1e-5) -> None:
    """Compare values and gradients, every token with another weight in the scalar."""
    hidden, weight, bias, targets = make_inputs()
    bias = bias if options.pop("with_bias") else None
    leaves = [leaf for leaf in (hidden, weight, bias) if leaf is not None]

    result = token_logprobs(hidden, weight, targets, bias=bias, **options, **head)
    gradients = torch.autograd.grad((uneven_weights() * result).sum(), leaves)
    expected = written_out(hidden, weight, targets, bias, options["softcap"], options["scale"])
    expected_gradients = torch.autograd.grad((uneven_weights() * expected).sum(), leaves)

    assert result.dtype == torch.float32
    assert (result <= 0).all()
    torch.testing.assert_close(result, expected.float(), rtol=tolerance, atol=tolerance)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(
            gradient, expected_gradient, rtol=10 * tolerance, atol=10 * tolerance
        )


@pytest.mark.parametrize("cached_rows", [4, 32])
@pytest.mark.parametrize("chunk_tokens", [None, 1, 3, 10, 11, 500])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("softcap", "scale"), [(None, 1.0), (2.0, 1.0), (None, 0.25), (2.0, 3.0)])
def test_values_and_gradients_equal_log_softmax_written_out(
    cached_rows, chunk_tokens, with_bias, softcap, scale, monkeypatch
):
    monkeypatch.setattr(heads, "CACHED_ROWS", cached_rows)
    options = {"with_bias": with_bias, "softcap": softcap, "scale": scale}
    assert_equals_written_out(options, {"head": "chunked", "chunk_tokens": chunk_tokens})


@needs_torch_head
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_head_of_torch_computes_the_same(with_bias):
    options = {"with_bias": with_bias, "softcap": None, "scale": 1.0}
    assert_equals_written_out(options, {"head": "torch"})


@needs_liger
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_head_of_liger_computes_the_same(with_bias, softcap):
    hidden, weight, bias, targets = (t.detach().cuda() for t in make_inputs())
    leaves = [
        t.requires_grad_() for t in ([hidden, weight, bias] if with_bias else [hidden, weight])
    ]
    options = {"bias": bias if with_bias else None, "softcap": softcap}
    gradients = {}
    for head in ("liger", "chunked"):
        result = token_logprobs(hidden, weight, targets, head=head, **options)
        gradients[head] = torch.autograd.grad((uneven_weights().cuda() * result).sum(), leaves)
    for gradient, expected in zip(*gradients.values(), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("head", ["chunked", pytest.param("torch", marks=needs_torch_head)])
def test_gradients_in_bf16_are_as_close_as_bf16_allows(head):
    hidden, weight, _, targets = make_inputs(torch.bfloat16)
    result = token_logprobs(hidden, weight, targets, head=head)
    assert result.dtype == torch.float32
    expected = written_out(hidden, weight, targets, None, None, 1.0)
    assert (result - expected).abs().max() < 0.05
    gradients = torch.autograd.grad((uneven_weights() * result).sum(), (hidden, weight))
    exact = torch.autograd.grad((uneven_weights() * expected).sum(), (hidden, weight))
    for gradient, value in zip(gradients, exact, strict=True):
        assert gradient.dtype == torch.bfloat16
        assert (gradient.double() - value).norm() < 0.01 * value.double().norm()


def test_many_chunks_of_bf16_do_not_round_away_each_others_gradients():
    # 1000 tokens push the same weights the same way: a sum in bf16 would stand still at 256.
    hidden = torch.ones(1000, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(1000, dtype=torch.long)
    result = token_logprobs(hidden, weight, targets, bias=bias, head="chunked", chunk_tokens=1)
    for gradient in torch.autograd.grad(result.sum(), (weight, bias)):
        assert gradient.flatten().tolist() == [500.0, -500.0]


@pytest.mark.parametrize(
    "trained", [(True, False, False), (False, True, False), (False, False, True)]
)
def test_a_frozen_part_gets_no_gradient_and_changes_none(trained):
    full = make_inputs()
    expected = torch.autograd.grad(token_logprobs(*full[:2], full[3], bias=full[2]).sum(), full[:3])
    some = [t.detach().requires_grad_(wanted) for t, wanted in zip(full[:3], trained, strict=True)]
    token_logprobs(some[0], some[1], full[3], bias=some[2], chunk_tokens=3).sum().backward()
    for leaf, gradient, wanted in zip(some, expected, trained, strict=True):
        assert (leaf.grad is not None) == wanted
        if wanted:
            torch.testing.assert_close(leaf.grad, gradient, rtol=1e-4, atol=1e-4)


def test_autocast_chooses_the_dtype_of_the_products_and_not_that_of_the_gradients():
    hidden, weight, bias, targets = make_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = token_logprobs(hidden, weight, targets, bias=bias)
    rounded = [t.bfloat16() for t in (hidden, weight)]
    expected = token_logprobs(*rounded, targets, bias=bias.bfloat16())
    assert result.equal(expected)
    assert not result.equal(token_logprobs(hidden, weight, targets, bias=bias))
    for gradient in torch.autograd.grad(result.sum(), (hidden, weight, bias)):
        assert gradient.dtype == torch.float32


@pytest.mark.parametrize("chunk_tokens", [None, 4])
def test_an_fp64_model_keeps_fp64(chunk_tokens):
    hidden, weight, bias, targets = make_inputs(torch.float64)
    result = token_logprobs(hidden, weight, targets, bias=bias, chunk_tokens=chunk_tokens)
    expected = written_out(hidden, weight, targets, bias, None, 1.0)
    torch.testing.assert_close(result, expected, rtol=1e-13, atol=1e-13)


def test_the_softmax_of_a_bf16_model_is_taken_in_fp32():
    hidden, weight, _, targets = make_inputs(torch.bfloat16)
    result = token_logprobs(hidden, weight, targets)
    logits = torch.nn.functional.linear(hidden, weight)  # rounded to bf16 by the product alone
    expected = logits.double().log_softmax(-1)[torch.arange(TOKENS), targets]
    torch.testing.assert_close(result, expected.float(), rtol=1e-5, atol=1e-5)


def test_scale_comes_before_softcap():
    hidden = torch.tensor([[1.0]])
    weight = torch.tensor([[1.0], [0.0]])
    result = token_logprobs(hidden, weight, torch.tensor([0]), softcap=1.0, scale=100.0)
    # tanh(100) = 1 against 0, and not 100 · tanh(1).
    assert result.item() == pytest.approx(-0.3132617, abs=1e-6)


def kept_sizes(compute) -> list[int]:
    """How many numbers each tensor has that is kept for the backward pass."""
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda saved: kept.append(saved.numel()) or saved, lambda saved: saved
    ):
        compute()
    return kept


def test_many_tokens_are_chunked_by_themselves_and_their_logits_never_kept(monkeypatch):
    hidden, weight, bias, targets = make_inputs()
    sizes = []

    def compute():
        result = token_logprobs(hidden, weight, targets, bias=bias)
        return result, *torch.autograd.grad((uneven_weights() * result).sum(), (hidden, weight))

    plain = compute()
    assert VOCABULARY * TOKENS in kept_sizes(compute), "few logits are kept"
    monkeypatch.setattr(heads, "KEPT_LOGITS_BYTES", 4 * VOCABULARY * TOKENS - 1)
    monkeypatch.setattr(heads, "CHUNK_TOKENS", 2)
    linear = torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional, "linear",
        lambda rows, *rest: sizes.append(len(rows)) or linear(rows, *rest),
    )  # fmt: skip
    for actual, expected in zip(compute(), plain, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert sizes == [2, 2, 2, 2, 2, 1] * 2, "once forward and once backward"
    assert max(kept_sizes(compute)) <= weight.numel() < TOKENS * VOCABULARY


# --- Which head ---


@needs_torch_head
def test_auto_takes_the_own_head_on_a_cpu(monkeypatch):
    hidden, weight, _, targets = make_inputs()
    monkeypatch.setattr(heads, "_torch_cross_entropy", None)  # calling it would fail
    assert token_logprobs(hidden, weight, targets).shape == (TOKENS,)
    with pytest.raises(TypeError):
        token_logprobs(hidden, weight, targets, head="torch")


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ("torch", {"softcap": 2.0}, "head: 'torch' takes no soft cap and no scale"),
        ("torch", {"scale": 2.0}, "head: 'torch' takes no soft cap and no scale"),
        ("liger", {"scale": 2.0}, "head: 'liger' takes no scale"),
    ],
)
def test_a_head_that_cannot_compute_these_logits_is_refused(head, options, message):
    hidden, weight, _, targets = make_inputs()
    with pytest.raises(ValueError, match=message):
        token_logprobs(hidden, weight, targets, head=head, **options)


def test_a_head_that_is_not_installed_is_refused_with_what_it_needs(monkeypatch):
    hidden, weight, _, targets = make_inputs()

    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(ValueError, match="head: 'liger' needs the package liger-kernel"):
        token_logprobs(hidden, weight, targets, head="liger")
    for old in ("0.8.4", "0.7.10", "0.8.4.dev1"):
        monkeypatch.setattr(metadata, "version", lambda name, old=old: old)
        with pytest.raises(ValueError, match=rf"needs liger-kernel 0.8.5 or newer, and {old} is"):
            token_logprobs(hidden, weight, targets, head="liger")
    monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy", raising=False)
    with pytest.raises(ValueError, match="head: 'torch' needs linear_cross_entropy"):
        token_logprobs(hidden, weight, targets, head="torch")


@pytest.mark.parametrize(
    ("hidden_shape", "targets_shape"), [((2, 5, 8), (2, 5)), ((5, 8), (4,)), ((5, 8), (5, 1))]
)
def test_shapes_that_do_not_fit_are_refused(hidden_shape, targets_shape):
    with pytest.raises(ValueError, match="expected hidden"):
        token_logprobs(
            torch.zeros(hidden_shape), torch.zeros(9, 8), torch.zeros(targets_shape).long()
        )


# --- KL ---


@pytest.mark.parametrize("chunk_tokens", [1, 4, 256])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("softcap", "scale"), [(None, 1.0), (2.0, 1.0), (2.0, 0.25)])
def test_kl_and_its_gradients_equal_those_written_out(chunk_tokens, with_bias, softcap, scale):
    hidden, weight, bias, _ = make_inputs(torch.float64)
    other = [t.detach().roll(1, 0).requires_grad_() for t in (hidden, weight, bias)]
    leaves = [hidden, weight, bias] if with_bias else [hidden, weight]

    def written(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        logits = scale * (hidden @ weight.T + (bias if with_bias else 0))
        return (softcap * torch.tanh(logits / softcap) if softcap else logits).log_softmax(-1)

    logp, logq = written(hidden, weight, bias), written(*other)
    expected = (logp.exp() * (logp - logq)).sum(-1)
    actual = token_kl(
        hidden, weight, *other[:2], bias=bias if with_bias else None,
        reference_bias=other[2] if with_bias else None,
        softcap=softcap, scale=scale, chunk_tokens=chunk_tokens,
    )  # fmt: skip
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    assert (actual > 0.01).all()
    gradients = torch.autograd.grad(
        (uneven_weights() * actual).sum(), [*leaves, *other], allow_unused=True
    )
    exact = torch.autograd.grad((uneven_weights() * expected).sum(), leaves)
    assert gradients[len(leaves) :] == (None,) * 3, "nothing flows into the reference"
    for gradient, value in zip(gradients, exact, strict=False):
        torch.testing.assert_close(gradient, value, rtol=1e-9, atol=1e-9)


def test_kl_from_itself_is_zero_and_so_is_its_gradient():
    hidden, weight, bias, _ = make_inputs()
    kl = token_kl(hidden, weight, hidden, weight, bias=bias, reference_bias=bias)
    assert kl.abs().max() < 1e-6
    for gradient in torch.autograd.grad(kl.sum(), (hidden, weight, bias)):
        assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("chunk_tokens", [None, 1, 4])
@pytest.mark.parametrize(("softcap", "scale"), [(None, 1.0), (2.0, 0.25)])
def test_both_at_once_are_what_each_is_alone_and_so_are_their_gradients(
    chunk_tokens, softcap, scale
):
    hidden, weight, bias, targets = make_inputs(torch.float64)
    options = {"bias": bias, "softcap": softcap, "scale": scale, "chunk_tokens": chunk_tokens}
    other = {"reference_bias": bias.detach().roll(1)}
    reference = (hidden.detach().roll(1, 0), weight.detach().roll(1, 0))

    def derived(logprobs: Tensor | None, kl: Tensor | None) -> list[Tensor]:
        loss = 0.0 if logprobs is None else (uneven_weights() * logprobs).sum()
        loss = loss + (0.0 if kl is None else (uneven_weights().flip(0) * kl).sum())
        return [part for part in (logprobs, kl) if part is not None] + list(
            torch.autograd.grad(loss, (hidden, weight, bias))
        )

    logprobs, *of_logprobs = derived(token_logprobs(hidden, weight, targets, **options), None)
    kl, *of_kl = derived(None, token_kl(hidden, weight, *reference, **options, **other))
    both = token_logprobs_and_kl(hidden, weight, targets, *reference, **options, **other)
    expected = [logprobs, kl, *(a + b for a, b in zip(of_logprobs, of_kl, strict=True))]
    for actual, value in zip(derived(*both), expected, strict=True):
        torch.testing.assert_close(actual, value, rtol=1e-10, atol=1e-12)


def test_the_reference_costs_one_product_more_forward_and_none_backward(monkeypatch):
    hidden, weight, _, targets = make_inputs()
    reference = (hidden.detach().roll(1, 0), weight.detach().roll(1, 0))
    products = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional, "linear",
        lambda rows, *rest: products.append(len(rows)) or linear(rows, *rest),
    )  # fmt: skip
    logprobs, kl = token_logprobs_and_kl(hidden, weight, targets, *reference)
    (logprobs.sum() + kl.sum()).backward()
    assert products == [TOKENS] * 2


def test_a_kl_that_nothing_depends_on_costs_no_product_backward(monkeypatch):
    hidden, weight, _, targets = make_inputs()
    reference = (hidden.detach().roll(1, 0), weight.detach().roll(1, 0))
    logprobs, _ = token_logprobs_and_kl(hidden, weight, targets, *reference, chunk_tokens=2)
    multiplied = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional, "linear",
        lambda rows, by, bias: multiplied.append(by) or linear(rows, by, bias),
    )  # fmt: skip
    logprobs.sum().backward()
    assert multiplied
    assert all(torch.equal(by, weight) for by in multiplied)


def test_kl_keeps_no_logits():
    hidden, weight, _, _ = make_inputs()
    sizes = kept_sizes(lambda: token_kl(hidden, weight, hidden.roll(1), weight, chunk_tokens=2))
    assert max(sizes) <= weight.numel() < TOKENS * VOCABULARY


@pytest.mark.parametrize(("chunk_tokens", "held"), [(None, False), (3, True)])
def test_weights_of_the_reference_are_held_only_where_its_logits_are_computed_again(
    chunk_tokens, held
):
    hidden, reference_hidden = torch.randn(2, 7, 4)
    weight, reference_weight = torch.randn(11, 4), torch.randn(11, 4)
    logprobs, _ = token_logprobs_and_kl(
        hidden.requires_grad_(), weight, torch.arange(7), reference_hidden, reference_weight,
        chunk_tokens=chunk_tokens,
    )  # fmt: skip
    saved = [each for each in logprobs.grad_fn.saved_tensors if each is not None]
    assert any(each.data_ptr() == reference_weight.data_ptr() for each in saved) is held
