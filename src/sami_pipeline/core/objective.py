"""The SAMI objective on a grid of log-probabilities, and what is reported with it.

A grid L holds ``L[i, j] = log p(response j | query, constitution i)``. Response j was written
under constitution j, so the matching pairs lie on the diagonal.

Sources: SAMI, arXiv 2404.14313; the InfoNCE bound with a tractable conditional, Poole et al. 2019,
arXiv 1905.06922, equation 12.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class GridAccuracy(NamedTuple):
    """Shares of rows and of columns whose largest entry is the matching one, each in [0, 1]."""

    row: float
    column: float


def _check_square(logprobs: Tensor) -> int:
    if logprobs.ndim != 2 or logprobs.shape[0] != logprobs.shape[1]:
        raise ValueError(
            f"logprobs: expected a square grid (n_constitutions, n_responses), "
            f"got shape {tuple(logprobs.shape)}"
        )
    if logprobs.shape[0] < 2:
        raise ValueError("logprobs: a grid needs at least 2 constitutions to tell apart")
    return logprobs.shape[0]


def sami_loss(logprobs: Tensor) -> Tensor:
    """Return the two-sided SAMI loss of one grid, in nats.

    ``½ · (CE(rows, I) + CE(columns, I))`` (arXiv 2404.14313, section 3). The row term asks which
    response belongs to this constitution; the column term asks which constitution wrote this
    response.

    Args:
        logprobs: (n, n) floating-point log-probabilities in nats, rows are constitutions and
            columns are responses; length-normalised (means over tokens) as published, or sums.

    Returns:
        A scalar of the dtype of ``logprobs``, differentiable. ``log n`` for a constant grid.

    Raises:
        ValueError: the grid is not square or has fewer than two rows.
    """
    size = _check_square(logprobs)
    target = torch.arange(size, device=logprobs.device)
    return 0.5 * (F.cross_entropy(logprobs, target) + F.cross_entropy(logprobs.T, target))


def sami_loss_gradient(logprobs: Tensor) -> Tensor:
    """Return d ``sami_loss`` / d ``logprobs`` in closed form.

    ``(softmax over each row + softmax over each column − 2 I) / (2 n)``. With it the gradient of
    a grid is a weighted sum of per-response log-likelihood gradients, which can be taken row by
    row in constant memory (GradCache, arXiv 2101.06983).

    Args:
        logprobs: (n, n) log-probabilities in nats.

    Returns:
        (n, n) weights of the same dtype, detached.
    """
    size = _check_square(logprobs)
    detached = logprobs.detach()
    identity = torch.eye(size, dtype=detached.dtype, device=detached.device)
    return (detached.softmax(dim=1) + detached.softmax(dim=0) - 2 * identity) / (2 * size)


def mi_lower_bound(summed_logprobs: Tensor) -> Tensor:
    """Return a lower bound on what the responses tell of their constitution, in nats.

    ``log n − CE(columns, I)``: Poole et al. 2019, equation 12, with the model as the tractable
    conditional. A column's softmax is a classifier that says which of the grid's n constitutions a
    response was written under, and the mean over grids that it was not trained on bounds
    I(constitution; response) *of the responses that it is given*, the teacher's, and not of those
    that the model itself would write. That holds for any classifier, so for one on
    length-normalised log-probabilities too. Summed ones are taken here since they are the model's
    own posterior; which of the two bounds is tighter depends on the model. The rows give no
    bound: they compare all responses of a grid at once, which tells more than one response does.

    Args:
        summed_logprobs: (n, n) log-probabilities in nats, summed over response tokens.

    Returns:
        A scalar tensor in nats, at most ``log n``; negative when the model is worse than chance.
    """
    size = _check_square(summed_logprobs)
    target = torch.arange(size, device=summed_logprobs.device)
    return math.log(size) - F.cross_entropy(summed_logprobs.T, target)


def grid_accuracy(logprobs: Tensor) -> GridAccuracy:
    """Return how often the matching entry is the largest of its row and of its column.

    A tie of k entries that includes the matching one counts 1/k, the expectation under a random
    choice, so that an untrained, constant grid scores 1/n and not 1.

    Args:
        logprobs: (n, n) log-probabilities in nats.
    """
    row, column = matching_shares(logprobs)
    return GridAccuracy(row=row.item(), column=column.item())


def matching_shares(logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two numbers of ``grid_accuracy`` as fp64 scalars that are not read yet."""
    _check_square(logprobs)

    def share(dim: int) -> Tensor:
        is_best = logprobs == logprobs.amax(dim=dim, keepdim=True)
        credit = is_best.diagonal().double() / is_best.sum(dim=dim).double()
        return credit.mean()

    return share(1), share(0)
