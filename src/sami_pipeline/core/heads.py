"""Log-probabilities of given next tokens from hidden states, without (tokens, vocabulary) in fp32.

Only the positions that predict a response token reach the output head. Three implementations
compute the same: the project's own, torch's ``linear_cross_entropy`` and Liger's Triton kernel.
"""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Head = Literal["auto", "chunked", "torch", "liger"]

# Logits up to this size, in the dtype of the matrix product, are kept for the backward pass;
# above it they are computed again, one chunk at a time.
KEPT_LOGITS_BYTES = 256 * 2**20
CHUNK_TOKENS = 1024
# Rows whose softmax is taken at once on a CPU, so that their fp32 logits stay in its cache: of
# 1000 tokens over 49,152 words this took 0.59 s where whole chunks took 0.77 s.
CACHED_ROWS = 32


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    head: Head = "auto",
    chunk_tokens: int | None = None,
) -> Tensor:
    """Return log softmax(head(hidden))[target] for each token, in nats.

    Matrix products run in the dtype of ``hidden`` (or of autocast), the softmax in
    fp32, or fp64 for an fp64 model.

    Args:
        hidden: (N, H) final hidden states, already normalised.
        weight: (V, H) output embedding.
        targets: (N,) int64 token ids.
        bias: (V,) or None.
        softcap: ``softcap · tanh(logits / softcap)`` as in Gemma 2, or None.
        scale: factor on the logits (Cohere, Granite).
        head: "chunked" is the project's own and takes everything; "torch" is
            ``torch.nn.functional.linear_cross_entropy`` (torch ≥ 2.13); "liger" needs a GPU and
            the package liger-kernel. "auto" takes torch's on a GPU where it can, else
            "chunked": on a CPU torch's was 15 times slower (2.13, 400 tokens, 49,152 words).
            Where a KL term is wanted too, "auto" is "chunked" on every device, since that alone
            takes both from one product.
        chunk_tokens: tokens whose logits are computed at once by "chunked"; None keeps all
            logits if they are small, and else takes 1024.

    Returns:
        (N,) fp32 (or fp64), differentiable with respect to ``hidden``, ``weight`` and ``bias``, by
        "chunked" in one backward pass: a second one through the same values may raise.

    Raises:
        ValueError: the shapes do not fit, or the chosen head can't compute this model's logits.
    """
    if hidden.ndim != 2 or targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"expected hidden (N, H) and targets (N,), "
            f"got {tuple(hidden.shape)} and {tuple(targets.shape)}"
        )
    plain_logits = softcap is None and scale == 1.0
    if head == "auto":
        has_torch = hasattr(F, "linear_cross_entropy") and plain_logits and bias is None
        head = "torch" if hidden.is_cuda and has_torch else "chunked"
    hidden, weight, bias = _in_matmul_dtype(hidden, weight, bias)
    if head == "torch":
        if not plain_logits:
            raise ValueError("head: 'torch' takes no soft cap and no scale; choose 'chunked'")
        return -_torch_cross_entropy(hidden, weight, targets, bias)
    if head == "liger":
        if scale != 1.0:
            raise ValueError("head: 'liger' takes no scale; choose 'chunked'")
        return -_liger_cross_entropy(hidden, weight, targets, bias, softcap)
    logprobs, _ = _chunked(
        (hidden, weight, bias), targets, (None, None, None), softcap, scale, chunk_tokens
    )
    return logprobs


def token_logprobs_and_kl(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    reference_hidden: Tensor,
    reference_weight: Tensor,
    *,
    bias: Tensor | None = None,
    reference_bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return ``token_logprobs`` and ``token_kl`` from the same logits.

    Both together take the policy's product with the output embedding once instead of three
    times, forward and backward.

    Args:
        hidden: (N, H) the policy's final hidden states.
        weight: (V, H) the policy's output embedding.
        targets: (N,) int64 token ids.
        reference_hidden: (N, H') those of the reference; nothing flows back into it.
        reference_weight: (V, H').
        bias: (V,) or None.
        reference_bias: (V,) or None.
        softcap: see ``token_logprobs``; the same for both models.
        scale: see ``token_logprobs``; the same for both models.
        chunk_tokens: see ``token_logprobs``.

    Returns:
        Twice (N,) fp32 (or fp64), nats; the second is not negative but for rounding.
    """
    policy = _in_matmul_dtype(hidden, weight, bias)
    with torch.no_grad():
        reference = _in_matmul_dtype(reference_hidden, reference_weight, reference_bias)
    return _chunked(policy, targets, reference, softcap, scale, chunk_tokens)


def token_kl(
    hidden: Tensor,
    weight: Tensor,
    reference_hidden: Tensor,
    reference_weight: Tensor,
    *,
    bias: Tensor | None = None,
    reference_bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk_tokens: int | None = None,
) -> Tensor:
    """Return KL(policy ‖ reference) over the vocabulary for each token, in nats.

    Args:
        hidden: (N, H) the policy's final hidden states.
        weight: (V, H) the policy's output embedding.
        reference_hidden: (N, H') those of the reference; nothing flows back into it.
        reference_weight: (V, H').
        bias: (V,) or None.
        reference_bias: (V,) or None.
        softcap: see ``token_logprobs``; the same for both.
        scale: see ``token_logprobs``; the same for both.
        chunk_tokens: see ``token_logprobs``.

    Returns:
        (N,) fp32 (or fp64), not negative but for rounding.
    """
    unread = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    return token_logprobs_and_kl(
        hidden, weight, unread, reference_hidden, reference_weight,
        bias=bias, reference_bias=reference_bias, softcap=softcap, scale=scale,
        chunk_tokens=chunk_tokens,
    )[1]  # fmt: skip


def _in_matmul_dtype(
    hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast as autocast would, since it does not reach into autograd functions of one's own."""
    device = hidden.device.type
    dtype = hidden.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _adjusted(products: Tensor, softcap: float | None, scale: float) -> Tensor:
    logits = products.to(torch.promote_types(products.dtype, torch.float32))
    if scale != 1.0:
        logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits


def _torch_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None
) -> Tensor:
    if not hasattr(F, "linear_cross_entropy"):
        raise ValueError(
            f"head: 'torch' needs linear_cross_entropy, which torch {torch.__version__} lacks; "
            "choose 'chunked'"
        )
    # On a CPU only "accurate" avoids an emulated 16-bit product that is 20 times slower.
    policy = "auto" if hidden.is_cuda else "accurate"
    options = torch.nn.LinearCrossEntropyOptions(acc_policy=policy)
    with torch.autocast(hidden.device.type, enabled=False):
        losses = F.linear_cross_entropy(
            hidden, weight, targets, linear_bias=bias, reduction="none", options=options
        )
    return losses.to(torch.promote_types(losses.dtype, torch.float32))


def _liger_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, softcap: float | None
) -> Tensor:
    try:
        installed = metadata.version("liger-kernel")
    except metadata.PackageNotFoundError as error:
        raise ValueError("head: 'liger' needs the package liger-kernel (0.8.5 or newer)") from error
    if [int(part) for part in re.findall(r"\d+", installed)[:3]] < [0, 8, 5]:
        raise ValueError(
            f"head: 'liger' needs liger-kernel 0.8.5 or newer, and {installed} is installed"
        )
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(
        reduction="none", softcap=softcap, accum_dtype=torch.float32
    )
    return loss(weight, hidden, targets, bias)


def _chunked(
    policy: tuple[Tensor, Tensor, Tensor | None],
    targets: Tensor,
    reference: tuple[Tensor, Tensor, Tensor | None] | tuple[None, None, None],
    softcap: float | None,
    scale: float,
    chunk_tokens: int | None,
) -> tuple[Tensor, Tensor | None]:
    """Return log-probabilities and, with a reference, the KL from it; (N,) each."""
    weights = [weight for weight in (policy[1], reference[1]) if weight is not None]
    row_bytes = sum(weight.shape[0] * weight.element_size() for weight in weights)
    keep = chunk_tokens is None and len(targets) * row_bytes <= KEPT_LOGITS_BYTES
    settings = (softcap, scale, chunk_tokens or CHUNK_TOKENS, keep)
    return _ChunkedHead.apply(*policy, targets, *reference, *settings)


class _ChunkedHead(torch.autograd.Function):
    """Log-probabilities of targets, and the KL from a reference, chunk by chunk.

    The backward pass needs the logits once, in the dtype of the matrix product: kept, or computed
    again. With p = softmax(logits) and q that of the reference,
    ``d log p[target] / d logits = onehot − p`` and ``d KL / d logits = p (log p − log q − KL)``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        reference_hidden: Tensor | None,
        reference_weight: Tensor | None,
        reference_bias: Tensor | None,
        softcap: float | None,
        scale: float,
        chunk_tokens: int,
        keep_logits: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = torch.empty(len(targets), dtype=dtype, device=hidden.device)
        normalisers = torch.empty_like(logprobs)
        has_reference = reference_weight is not None
        divergences = torch.empty_like(logprobs) if has_reference else None
        reference_normalisers = torch.empty_like(logprobs) if has_reference else None
        kept = []
        for start in range(0, len(targets), chunk_tokens):
            part = slice(start, start + chunk_tokens)
            products = F.linear(hidden[part], weight, bias)
            kept += [products] if keep_logits else []
            if has_reference:
                others = F.linear(reference_hidden[part], reference_weight, reference_bias)
                kept += [others] if keep_logits else []
            for rows, chosen in _row_blocks(start, products):
                logits = _adjusted(products[rows], softcap, scale)
                normalisers[chosen] = logits.logsumexp(-1)
                picked = logits.gather(1, targets[chosen, None])[:, 0]
                logprobs[chosen] = picked - normalisers[chosen]
                if has_reference:
                    logq = _adjusted(others[rows], softcap, scale)
                    reference_normalisers[chosen] = logq.logsumexp(-1)
                    logq = logq - reference_normalisers[chosen, None]
                    logp = logits - normalisers[chosen, None]
                    divergences[chosen] = logp.exp().mul_(logp - logq).sum(-1)
        again = (None,) * 3 if keep_logits else (reference_hidden, reference_weight, reference_bias)
        ctx.save_for_backward(
            hidden, weight, bias, targets, *again, normalisers, reference_normalisers, divergences,
            *kept,
        )  # fmt: skip
        ctx.settings = (softcap, scale, chunk_tokens)
        return logprobs, divergences

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_logprobs: Tensor | None, of_kl: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, *reference = ctx.saved_tensors[:7]
        normalisers, reference_normalisers, divergences, *kept = ctx.saved_tensors[7:]
        softcap, scale, chunk_tokens = ctx.settings
        if of_logprobs is None:
            of_logprobs = torch.zeros_like(normalisers)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        # A sum over chunks in 16 bits would round away what later chunks add; one needs no sum.
        sums = torch.promote_types(weight.dtype, torch.float32)
        several = len(targets) > chunk_tokens
        d_weight = torch.zeros_like(weight, dtype=sums) if wants_weight and several else None
        d_bias = torch.zeros_like(bias, dtype=sums) if wants_bias else None
        for start in range(0, len(targets), chunk_tokens):
            part = slice(start, start + chunk_tokens)
            products = kept.pop(0) if kept else F.linear(hidden[part], weight, bias)
            others = kept.pop(0) if kept and divergences is not None else None
            if others is None and of_kl is not None:
                others = F.linear(reference[0][part], *reference[1:])
            # In the place of the logits, block by block: they are the largest tensor of a step.
            d_products = products
            for rows, chosen in _row_blocks(start, products):
                logits = _adjusted(products[rows], softcap, scale)
                logp = logits - normalisers[chosen, None]
                slope = logp.exp()
                if of_kl is None:
                    slope *= -of_logprobs[chosen, None]
                else:
                    logq = _adjusted(others[rows], softcap, scale)
                    logq = logq - reference_normalisers[chosen, None]
                    by_kl = logp.sub_(logq).sub_(divergences[chosen, None])
                    slope *= by_kl.mul_(of_kl[chosen, None]).sub_(of_logprobs[chosen, None])
                slope.scatter_add_(1, targets[chosen, None], of_logprobs[chosen, None])
                if softcap is not None:
                    slope *= 1 - (logits / softcap) ** 2
                d_products[rows] = slope if scale == 1.0 else slope * scale
            if d_hidden is not None:
                d_hidden[part] = d_products @ weight
            if d_weight is not None:
                d_weight += d_products.T @ hidden[part]
            elif wants_weight:
                d_weight = d_products.T @ hidden
            if d_bias is not None:
                d_bias += d_products.sum(0, dtype=sums)
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            *(None,) * 8,
        )


def _row_blocks(start: int, products: Tensor) -> list[tuple[slice, slice]]:
    """Return the row blocks of a chunk's products, with their places among all tokens."""
    size = len(products) if products.is_cuda else CACHED_ROWS
    return [
        (slice(first, last), slice(start + first, start + last))
        for first in range(0, len(products), size)
        for last in [min(first + size, len(products))]
    ]
