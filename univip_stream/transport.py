"""Entropic optimal transport (paper section 3.4, Eq. 7), solved for a whole batch of small problems at once.

Letters, as in the paper: B batch, M suppliers (rows), N demanders (columns).
"""

import torch
from torch import Tensor

from univip_stream.shapes import Float

_LOG_ZERO = -1e30
"""Logarithm of a share of 0."""


def sinkhorn(
    cost: Float[Tensor, "B M N"],
    rows: Float[Tensor, "B M"],
    columns: Float[Tensor, "B N"],
    epsilon: float = 0.1,
    iterations: int = 50,
    *,
    mass: float = 1.0,
    differentiable: bool = False,
) -> Float[Tensor, "B M N"]:
    """Return the plan y of Eq. 7 by Sinkhorn-Knopp iterations: how much each row ships to each column, at little cost.

    Eq. 7 requires that rows and columns have the same sum, which dot products after a ReLU do not have. So each is scaled to
    sum to `mass`; weights that are all zero become uniform. The last update is for the columns: their sums are exact up to
    rounding, those of the rows as close as `iterations` allow.

    The computation is in the log domain and in float32 (float64 for float64 inputs), even under autocast. Weights that are
    not finite give a plan of NaN, so that a broken model is noticed.

    Args:
        cost: cost of shipping from each row to each column.
        rows: supply b, weights of at least 0 on any scale.
        columns: demand a, weights of at least 0 on any scale.
        epsilon: entropic regularisation, in units of cost.
        iterations: number of Sinkhorn iterations.
        mass: sum of the plan.
        differentiable: whether the plan carries the gradient of the unrolled iterations with respect to cost, rows and
            columns.

    """
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
        # On a GPU each of some 800 operations on a few numbers is a kernel launch; on a CPU they are cheaper than softmaxes.
        solve = _sinkhorn_by_plans if cost.is_cuda and not torch.is_grad_enabled() else _sinkhorn
        return solve(cost, rows, columns, epsilon, iterations, mass)


def _sinkhorn(cost: Tensor, rows: Tensor, columns: Tensor, epsilon: float, iterations: int, mass: float) -> Tensor:
    dtype = torch.promote_types(cost.dtype, torch.float32)
    # The batch is the last axis: K is small, and sums over it then run along whole vectors of problems instead of four
    # numbers.
    log_kernel_MNB = (cost.to(dtype) / -epsilon).permute(1, 2, 0).contiguous()
    log_rows_M1B = _log_shares(rows.to(dtype)).T.contiguous().unsqueeze(1)
    log_columns_1NB = _log_shares(columns.to(dtype)).T.contiguous().unsqueeze(0)
    u_M1B, v_1NB = torch.zeros_like(log_rows_M1B), torch.zeros_like(log_columns_1NB)
    for _ in range(iterations):
        u_M1B = log_rows_M1B - _logsumexp_(log_kernel_MNB + v_1NB, 1)
        v_1NB = log_columns_1NB - _logsumexp_(log_kernel_MNB + u_M1B, 0)
    return ((log_kernel_MNB + u_M1B + v_1NB).exp() * mass).permute(2, 0, 1)


def _sinkhorn_by_plans(cost: Tensor, rows: Tensor, columns: Tensor, epsilon: float, iterations: int, mass: float) -> Tensor:
    """Return the plan of `_sinkhorn`, up to rounding, by scaling the plan itself: 4 kernels for an iteration instead of 16.

    A softmax over a row removes the row's earlier factor, so only the plan is kept. It is as close to the plan in float64 as
    that of `_sinkhorn`.
    """
    dtype = torch.promote_types(cost.dtype, torch.float32)
    log_plan_MNB = (cost.to(dtype) / -epsilon).permute(1, 2, 0).contiguous()
    # A softmax of only -inf would be NaN. The exponential of this number is 0 too.
    log_rows_M1B = _log_shares(rows.to(dtype)).clamp_min(_LOG_ZERO).T.contiguous().unsqueeze(1)
    log_columns_1NB = _log_shares(columns.to(dtype)).clamp_min(_LOG_ZERO).T.contiguous().unsqueeze(0)
    for _ in range(iterations):
        log_plan_MNB = log_plan_MNB.log_softmax(1).add_(log_rows_M1B)
        log_plan_MNB = log_plan_MNB.log_softmax(0).add_(log_columns_1NB)
    return (log_plan_MNB.exp_() * mass).permute(2, 0, 1)


def _log_shares(weights: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """Return the logarithms of the weights scaled to sum to 1: -inf for a zero, uniform if all are zero."""
    # Divide by the largest first: the sum of large weights must not overflow.
    largest_B1 = weights.amax(-1, keepdim=True)
    scaled = torch.where(largest_B1 == 0, 1.0, weights / torch.where(largest_B1 == 0, 1.0, largest_B1))
    shares = scaled / scaled.sum(-1, keepdim=True)
    # Zeros are treated separately: the gradient of the logarithm would be infinite, and that of the ReLU before it 0.
    return torch.where(shares == 0, -torch.inf, torch.where(shares == 0, 1.0, shares).log())


def _logsumexp_(values: Float[Tensor, "M N B"], axis: int) -> Float[Tensor, "m n B"]:
    """Return torch.logsumexp(keepdim=True) in fewer kernels, for slices with a finite value; the input is overwritten.

    Every slice has one: the shares sum to 1, so some row and some column have a finite logarithm.
    """
    if values.requires_grad:
        return torch.logsumexp(values, axis, keepdim=True)
    largest = values.amax(axis, keepdim=True)
    return values.sub_(largest).exp_().sum(axis, keepdim=True).log_().add_(largest)
