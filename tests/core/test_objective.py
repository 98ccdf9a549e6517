"""The SAMI loss, its gradient, the MI bound and the accuracies of a grid."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sami_pipeline.core import grid_accuracy, mi_lower_bound, sami_loss, sami_loss_gradient

# Rows are constitutions, columns are responses. Neither is symmetric, and rows and columns give
# different numbers, so that a transposed grid cannot pass.
TWO = [[-1.0, -3.0], [-2.0, -0.5]]
THREE = [[-1.0, -2.0, -4.0], [-3.0, -0.5, -1.5], [-2.5, -1.0, -2.0]]

grids = st.integers(2, 5).flatmap(
    lambda n: st.lists(
        st.lists(st.floats(-60, 0, width=32), min_size=n, max_size=n), min_size=n, max_size=n
    )
)
few = settings(deadline=None, max_examples=60)


def tensor(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def naive_cross_entropy(scores: list[float], right: int) -> float:
    highest = max(scores)
    return highest + math.log(sum(math.exp(s - highest) for s in scores)) - scores[right]


def naive_loss(rows: list[list[float]]) -> float:
    n = len(rows)
    by_row = sum(naive_cross_entropy(rows[i], i) for i in range(n)) / n
    by_column = sum(naive_cross_entropy([rows[i][j] for i in range(n)], j) for j in range(n)) / n
    return (by_row + by_column) / 2


def test_loss_of_a_two_by_two_grid_worked_by_hand():
    # row 0: log(1 + e^-2) = 0.126928     row 1: log(1 + e^-1.5) = 0.201413
    # column 0: log(1 + e^-1) = 0.313262  column 1: log(1 + e^-2.5) = 0.078889
    assert sami_loss(tensor(TWO)).item() == pytest.approx(0.1801232, abs=1e-7)


def test_loss_of_a_three_by_three_grid_worked_by_hand():
    # row 1: log(e^-1 + e^-2 + e^-4) + 1 = 0.349012, then 0.371539 and 1.464369
    # column 1: log(e^-1 + e^-3 + e^-2.5) + 1 = 0.306356, then 0.604131 and 1.023909
    assert sami_loss(tensor(THREE)).item() == pytest.approx(0.6865526, abs=1e-7)


def test_gradient_of_a_two_by_two_grid_worked_by_hand():
    # At L[0, 0]: (σ(2) + σ(1) − 2) / 4 = (0.880797 + 0.731059 − 2) / 4
    # At L[0, 1]: (σ(−2) + σ(−2.5)) / 4 = (0.119203 + 0.075858) / 4
    # At L[1, 0]: (σ(−1.5) + σ(−1)) / 4 = (0.182426 + 0.268941) / 4
    # At L[1, 1]: (σ(1.5) + σ(2.5) − 2) / 4 = (0.817574 + 0.924142 − 2) / 4
    expected = tensor([[-0.0970360, 0.0487653], [0.1128418, -0.0645710]])
    torch.testing.assert_close(sami_loss_gradient(tensor(TWO)), expected, rtol=0, atol=1e-6)


@few
@given(grids)
def test_loss_is_the_mean_of_row_and_column_cross_entropies(rows):
    assert sami_loss(tensor(rows)).item() == pytest.approx(naive_loss(rows), abs=1e-9)


@few
@given(grids, st.randoms(use_true_random=False))
def test_loss_does_not_depend_on_the_order_of_the_constitutions(rows, order):
    grid = tensor(rows)
    permutation = list(range(len(rows)))
    order.shuffle(permutation)
    permuted = grid[permutation][:, permutation]
    torch.testing.assert_close(sami_loss(permuted), sami_loss(grid))
    torch.testing.assert_close(
        sami_loss_gradient(permuted), sami_loss_gradient(grid)[permutation][:, permutation]
    )
    torch.testing.assert_close(mi_lower_bound(permuted), mi_lower_bound(grid))


@few
@given(grids)
def test_loss_treats_rows_and_columns_alike(rows):
    grid = tensor(rows)
    torch.testing.assert_close(sami_loss(grid.T), sami_loss(grid))
    torch.testing.assert_close(sami_loss_gradient(grid.T), sami_loss_gradient(grid).T)


def test_permuting_only_the_responses_changes_the_loss():
    assert sami_loss(tensor(TWO)[:, [1, 0]]) > sami_loss(tensor(TWO)) + 1


@pytest.mark.parametrize("n", [2, 3, 7])
def test_a_constant_grid_has_loss_log_n_and_no_information(n):
    constant = torch.full((n, n), -12.5, dtype=torch.float64)
    assert sami_loss(constant).item() == pytest.approx(math.log(n), abs=1e-12)
    assert mi_lower_bound(constant).item() == pytest.approx(0, abs=1e-12)


@few
@given(grids)
def test_raising_a_matching_pair_lowers_the_loss_and_a_foreign_one_raises_it(rows):
    grid = tensor(rows)
    gradient = sami_loss_gradient(grid)
    foreign = ~torch.eye(len(rows), dtype=torch.bool)
    assert (gradient.diagonal() <= 0).all()
    assert (gradient[foreign] >= 0).all()
    assert sami_loss(grid + torch.eye(len(rows))) <= sami_loss(grid)


@few
@given(grids)
def test_closed_form_gradient_equals_autograd(rows):
    grid = tensor(rows).requires_grad_()
    (expected,) = torch.autograd.grad(sami_loss(grid), grid)
    gradient = sami_loss_gradient(grid)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    assert not gradient.requires_grad


@few
@given(grids)
def test_adding_a_constant_to_the_whole_grid_changes_nothing(rows):
    grid = tensor(rows)
    torch.testing.assert_close(sami_loss(grid - 100), sami_loss(grid))
    assert abs(sami_loss_gradient(grid).sum().item()) < 1e-12


def test_summed_log_probabilities_of_long_responses_stay_finite():
    grid = torch.tensor([[-3000.0, -9000.0], [-8000.0, -2500.0]], requires_grad=True)
    loss = sami_loss(grid)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(grid.grad).all()
    assert sami_loss(grid.T.flip(0)).item() == pytest.approx(5750)


def test_mi_bound_of_a_two_by_two_grid_worked_by_hand():
    # log 2 − (0.313262 + 0.078889) / 2; over the rows it would be 0.528977.
    assert mi_lower_bound(tensor(TWO)).item() == pytest.approx(0.4970718, abs=1e-6)
    # log 3 − (0.306356 + 0.604131 + 1.023909) / 3; over the rows it would be 0.370306.
    assert mi_lower_bound(tensor(THREE)).item() == pytest.approx(0.4538138, abs=1e-6)


def test_mi_bound_reaches_log_n_when_every_response_names_its_constitution():
    assert mi_lower_bound(200 * torch.eye(5)).item() == pytest.approx(math.log(5), abs=1e-6)


def test_mi_bound_normalises_over_constitutions_and_not_over_responses():
    # A response that is long or rare is unlikely under every constitution: no information.
    by_response = torch.tensor([[-100.0, -5.0], [-100.0, -5.0]])
    assert mi_lower_bound(by_response).item() == pytest.approx(0, abs=1e-6)
    # A constitution that makes every response likelier wins both columns: worse than chance.
    assert mi_lower_bound(by_response.T).item() < -40


@few
@given(grids)
def test_mi_bound_is_at_most_log_n(rows):
    assert mi_lower_bound(tensor(rows)).item() <= math.log(len(rows)) + 1e-12


def _expected(value, p_one_given: tuple[float, float], scores: Tensor) -> float:
    """Return the mean of a value of the grid over all binary responses to two constitutions.

    Response j is 1 with ``p_one_given[j]``; ``scores[i, y]`` is what constitution i gives to y.
    """
    total = 0.0
    for ys in itertools.product((0, 1), repeat=2):
        weight = math.prod(p if y else 1 - p for y, p in zip(ys, p_one_given, strict=True))
        total += weight * value(scores[:, list(ys)]).item()
    return total


def _binary_entropy(p: float) -> float:
    return -sum(q * math.log(q) for q in (p, 1 - p))


@few
@given(
    st.tuples(st.floats(0.05, 0.95), st.floats(0.05, 0.95)),
    st.lists(st.floats(-9, 9), min_size=4, max_size=4),
)
def test_columns_bound_the_mutual_information_of_the_responses_under_any_scores(p, scores):
    # Whatever the scores are: sums, means over tokens, or those of another model.
    truth = _binary_entropy(sum(p) / 2) - sum(map(_binary_entropy, p)) / 2
    bound = _expected(mi_lower_bound, p, tensor([scores[:2], scores[2:]]))
    assert bound <= truth + 1e-9
    own = tensor([[math.log(1 - q), math.log(q)] for q in p])
    assert _expected(mi_lower_bound, p, own) == pytest.approx(truth, abs=1e-9), "its own posterior"


def test_rows_are_no_bound_on_the_mutual_information():
    p = (0.7, 0.3)
    own = tensor([[math.log(1 - q), math.log(q)] for q in p])
    truth = math.log(2) - _binary_entropy(0.3)
    by_rows = _expected(lambda grid: mi_lower_bound(grid.T), p, own)
    assert truth == pytest.approx(0.0823, abs=1e-4)
    assert by_rows == pytest.approx(0.1189, abs=1e-4), "two responses tell more than one"


def test_accuracy_counts_rows_and_columns_apart():
    # THREE: rows 0 and 1 are right, row 2 prefers response 1; columns 0 and 1 are right,
    # column 2 prefers constitution 1.
    assert grid_accuracy(tensor(THREE)) == pytest.approx((2 / 3, 2 / 3))
    # Both rows prefer response 1, both columns prefer their own constitution.
    accuracy = grid_accuracy(tensor([[-2.0, -1.0], [-3.0, -0.5]]))
    assert (accuracy.row, accuracy.column) == (0.5, 1.0)


def test_ties_share_the_credit():
    assert grid_accuracy(torch.zeros(4, 4)) == (0.25, 0.25)
    tied = tensor([[-1.0, -1.0, -2.0], [-3.0, -0.5, -0.7], [-2.0, -0.2, -0.2]])
    # rows: a half, one, a half; columns: one, none (0.2 is the largest), one
    assert grid_accuracy(tied) == pytest.approx((2 / 3, 2 / 3))


@pytest.mark.parametrize("function", [sami_loss, sami_loss_gradient, mi_lower_bound, grid_accuracy])
@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (4,), (2, 2, 2), (1, 1), (0, 0)])
def test_only_square_grids_of_two_and_more_are_taken(function, shape):
    with pytest.raises(ValueError, match="logprobs: "):
        function(torch.zeros(shape))
