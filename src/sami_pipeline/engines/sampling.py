"""Drawing the next token of many rows, each by its own temperature and its own random numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from sami_pipeline.engines.base import SamplingParameters

_BLOCK = 256


def uniform_numbers(seed: int, prompt: Sequence[int], sample: int, count: int) -> np.ndarray:
    """Return one number in [0, 1) for each token of a response, float64.

    They depend on the seed, the prompt and the sample's number alone, so a response does not depend
    on what else is asked, or on what was drawn before.

    Args:
        seed: of the run.
        prompt: token ids.
        sample: number of the response to this prompt.
        count: how many; fewer are the first ones of more.
    """
    digest = hashlib.sha256(repr((seed, list(prompt), sample)).encode()).digest()
    # Counter-based (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16]))).random(count)


def draw_tokens(
    logits: torch.Tensor, samplings: Sequence[SamplingParameters], uniforms: Sequence[float]
) -> list[int]:
    """Return the next token of every row.

    Temperature 0 takes the likeliest. Otherwise the token is the inverse of the cumulated
    probabilities at the row's number.

    Args:
        logits: (rows, vocabulary).
        samplings: how each row is drawn.
        uniforms: a number in [0, 1) for each row; greedy rows ignore theirs.
    """
    logits = logits.float()
    tokens = logits.argmax(-1).tolist()
    drawn = [i for i, sampling in enumerate(samplings) if sampling.temperature > 0]
    if drawn:
        chosen = logits if len(drawn) == len(samplings) else logits[drawn]
        numbers = torch.tensor([uniforms[i] for i in drawn], dtype=torch.float64)
        sampled = _inverse(_weights(chosen, [samplings[i] for i in drawn]), numbers)
        for i, token in zip(drawn, sampled.tolist(), strict=True):
            tokens[i] = token
    return tokens


def _weights(logits: torch.Tensor, samplings: Sequence[SamplingParameters]) -> torch.Tensor:
    """Return probabilities up to a factor for each row, fp32; 0 outside the nucleus."""
    weights = logits.to(torch.float32, copy=True)
    weights -= weights.amax(-1, keepdim=True)
    temperatures = torch.tensor([each.temperature for each in samplings], device=logits.device)
    weights.div_(temperatures[:, None]).exp_()
    for row, sampling in enumerate(samplings):
        if sampling.top_p < 1:
            weights[row] = _nucleus(weights[row], sampling.top_p)
    return weights


def _nucleus(weights: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return the weights of the likeliest tokens that reach ``top_p`` together, 0 for others.

    Args:
        weights: (vocabulary,) probabilities up to a factor.
        top_p: a token stays if those above it hold less than this share (arXiv 1904.09751).
    """
    total = weights.sum(dtype=torch.float64)
    count = min(64, len(weights))
    while True:
        largest, tokens = weights.topk(count)
        above = largest.double().cumsum(0) - largest.double()
        if above[-1] >= top_p * total or count == len(weights):
            break
        count = min(8 * count, len(weights))
    kept = above < top_p * total
    kept[0] = True
    return torch.zeros_like(weights).index_put_((tokens[kept],), largest[kept])


def _inverse(weights: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Return the tokens at which the cumulated weights first exceed a share of their sum.

    Cumulated in two steps, blocks of tokens and tokens of a block, so that one pass over all
    weights is enough; sums are in float64.

    Args:
        weights: (rows, vocabulary), at least 0.
        numbers: (rows,) shares in [0, 1), float64.
    """
    rows, vocabulary = weights.shape
    padding = -vocabulary % _BLOCK
    if padding:
        weights = torch.nn.functional.pad(weights, (0, padding))
    blocks = weights.view(rows, -1, _BLOCK)
    cumulated = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    target = numbers.to(weights.device)[:, None] * cumulated[:, -1:]
    block = torch.searchsorted(cumulated, target, right=True).clamp_(max=blocks.shape[1] - 1)
    before = torch.where(block > 0, cumulated.gather(1, (block - 1).clamp_(min=0)), 0.0)
    inside = blocks[torch.arange(rows, device=weights.device), block[:, 0]]
    token = torch.searchsorted(inside.double().cumsum(-1), target - before, right=True)
    token.clamp_(max=_BLOCK - 1)
    # Rounding of the sums may lead one step past the last token that has a weight.
    token = torch.where(inside.gather(1, token) > 0, token, inside.argmax(-1, keepdim=True))
    return (block * _BLOCK + token)[:, 0]
