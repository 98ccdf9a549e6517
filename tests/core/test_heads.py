"""Token log-probabilities from hidden states: chunked, plain and written out in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sami_pipeline.core import heads
from sami_pipeline.core.heads import token_logprobs

TOKENS, WIDTH, VOCABULARY = 11, 8, 23


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


@pytest.mark.parametrize("chunk_tokens", [None, 1, 3, 10, 11, 500])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("softcap", "scale"), [(None, 1.0), (2.0, 1.0), (None, 0.25), (2.0, 3.0)])
def test_values_and_gradients_equal_log_softmax_written_out(
    chunk_tokens, with_bias, softcap, scale
):
    hidden, weight, bias, targets = make_inputs()
    bias = bias if with_bias else None
    leaves = [leaf for leaf in (hidden, weight, bias) if leaf is not None]

    result = token_logprobs(
        hidden, weight, targets, bias=bias, softcap=softcap, scale=scale, chunk_tokens=chunk_tokens
    )
    gradients = torch.autograd.grad((uneven_weights() * result).sum(), leaves)
    expected = written_out(hidden, weight, targets, bias, softcap, scale)
    expected_gradients = torch.autograd.grad((uneven_weights() * expected).sum(), leaves)

    assert result.dtype == torch.float32
    assert (result <= 0).all()
    torch.testing.assert_close(result, expected.float(), rtol=1e-5, atol=1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)


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


def test_many_tokens_are_chunked_by_themselves_and_their_logits_never_kept(monkeypatch):
    hidden, weight, bias, targets = make_inputs()
    plain = token_logprobs(hidden, weight, targets, bias=bias)
    monkeypatch.setattr(heads, "PLAIN_LOGITS_BYTES", 4 * VOCABULARY * (TOKENS - 1))
    monkeypatch.setattr(heads, "CHUNK_LOGITS_BYTES", 4 * VOCABULARY * 2)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda saved: kept.append(saved.numel()) or saved, lambda saved: saved
    ):
        chunked = token_logprobs(hidden, weight, targets, bias=bias)
    torch.testing.assert_close(chunked, plain, rtol=1e-6, atol=1e-6)
    assert max(kept) <= weight.numel() < TOKENS * VOCABULARY


def test_one_token_larger_than_the_budget_still_passes(monkeypatch):
    hidden, weight, _, targets = make_inputs()
    expected = token_logprobs(hidden, weight, targets)
    monkeypatch.setattr(heads, "PLAIN_LOGITS_BYTES", 0)
    monkeypatch.setattr(heads, "CHUNK_LOGITS_BYTES", 1)
    torch.testing.assert_close(token_logprobs(hidden, weight, targets), expected)


@pytest.mark.parametrize(
    ("hidden_shape", "targets_shape"), [((2, 5, 8), (2, 5)), ((5, 8), (4,)), ((5, 8), (5, 1))]
)
def test_shapes_that_do_not_fit_are_refused(hidden_shape, targets_shape):
    with pytest.raises(ValueError, match="expected hidden"):
        token_logprobs(
            torch.zeros(hidden_shape), torch.zeros(9, 8), torch.zeros(targets_shape).long()
        )
