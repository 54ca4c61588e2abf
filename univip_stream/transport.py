"""Entropic optimal transport (paper section 3.4, Eq. 7), solved for a whole batch of small problems at once.

Letters, as in the paper: B batch, M suppliers (rows), N demanders (columns).
"""

import torch
from torch import Tensor

from univip_stream.shapes import Float


@torch.no_grad()
def sinkhorn(
    cost: Float[Tensor, "B M N"],
    rows: Float[Tensor, "B M"],
    columns: Float[Tensor, "B N"],
    epsilon: float = 0.1,
    iterations: int = 50,
    *,
    mass: float = 1.0,
) -> Float[Tensor, "B M N"]:
    """Return the plan y of Eq. 7 by Sinkhorn-Knopp iterations: what each row ships to each column, at little cost.

    `rows` (supply b) and `columns` (demand a) are weights >= 0 on any scale. Eq. 7 wants both to sum to the same, which
    relu'd dot products do not: each is scaled to sum to `mass`, and weights that are all zero become uniform.
    `epsilon` is the entropic regularisation in units of cost. The last update is the columns': they are met to rounding,
    the rows as closely as `iterations` allow.

    The computation is in the log domain and in float32 (float64 for float64 inputs) whatever the inputs or autocast. The
    plan carries no gradient. Weights that are not finite give a plan of NaN, so that a broken model is seen, not hidden.
    """
    dtype = torch.promote_types(cost.dtype, torch.float32)
    log_kernel_BMN = cost.to(dtype) / -epsilon
    log_rows_BM1 = _log_shares(rows.to(dtype)).unsqueeze(-1)
    log_columns_B1N = _log_shares(columns.to(dtype)).unsqueeze(-2)
    v_B1N = torch.zeros_like(log_columns_B1N)
    u_BM1 = torch.zeros_like(log_rows_BM1)
    for _ in range(iterations):
        u_BM1 = log_rows_BM1 - _logsumexp(log_kernel_BMN + v_B1N, -1)
        v_B1N = log_columns_B1N - _logsumexp(log_kernel_BMN + u_BM1, -2)
    return (log_kernel_BMN + u_BM1 + v_B1N).exp() * mass


def _log_shares(weights: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """Logarithms of the weights scaled to sum to 1: -inf for a zero, uniform where all are zero."""
    # By the largest first: the sum of large weights must not overflow.
    largest_B1 = weights.amax(-1, keepdim=True)
    scaled = torch.where(largest_B1 == 0, 1.0, weights / largest_B1)
    return (scaled / scaled.sum(-1, keepdim=True)).log()


def _logsumexp(values: Float[Tensor, "B M N"], axis: int) -> Float[Tensor, "B m n"]:
    """torch.logsumexp(keepdim=True) for slices with at least one finite value, in fewer kernels.

    There always is one: the shares sum to 1, so some row and some column have a finite logarithm.
    """
    largest = values.amax(axis, keepdim=True)
    return (values - largest).exp_().sum(axis, keepdim=True).log_().add_(largest)
