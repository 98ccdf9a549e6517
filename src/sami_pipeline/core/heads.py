"""Log-probabilities of given next tokens from hidden states, without keeping (tokens, vocabulary).

Only the positions that predict a response token reach the output head, and where even those are
many, their logits are built in chunks and rebuilt in the backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor

# Below this the plain path is fastest and its memory does not matter.
PLAIN_LOGITS_BYTES = 256 * 2**20
CHUNK_LOGITS_BYTES = 128 * 2**20


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
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
        chunk_tokens: tokens whose logits are held at once; None chooses by memory, and keeps
            everything when it is small.

    Returns:
        (N,) fp32 (or fp64), differentiable with respect to ``hidden``, ``weight`` and ``bias``.
    """
    if hidden.ndim != 2 or targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"expected hidden (N, H) and targets (N,), "
            f"got {tuple(hidden.shape)} and {tuple(targets.shape)}"
        )
    vocabulary = weight.shape[0]
    if chunk_tokens is None:
        bytes_per_token = 4 * vocabulary
        if len(targets) * bytes_per_token <= PLAIN_LOGITS_BYTES:
            chunk_tokens = max(1, len(targets))
        else:
            chunk_tokens = max(1, CHUNK_LOGITS_BYTES // bytes_per_token)
    if len(targets) <= chunk_tokens:
        return _plain(hidden, weight, targets, bias, softcap, scale)
    return torch.cat(
        [
            torch.utils.checkpoint.checkpoint(
                _plain, hidden[start:stop], weight, targets[start:stop], bias, softcap, scale,
                use_reentrant=False,
            )
            for start in range(0, len(targets), chunk_tokens)
            for stop in [start + chunk_tokens]
        ]
    )  # fmt: skip


def _plain(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    scale: float,
) -> Tensor:
    logits = F.linear(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if scale != 1.0:
        logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return -F.cross_entropy(logits, targets, reduction="none")
