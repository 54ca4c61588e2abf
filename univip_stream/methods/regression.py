"""BYOL's loss, as later methods use it.

Letters: N vectors, D their width.
"""

from torch import Tensor

from univip_stream.methods.contrast import unit
from univip_stream.shapes import Float


def regression_loss(predictions: Float[Tensor, "N D"], targets: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Return the loss of BYOL's Eq. 2 (Grill et al. 2020, arXiv:2006.07733), mean over the vectors; 0 to 4.

        L(q, z) = |q / |q| - z / |z||^2 = 2 - 2 <q, z> / (|q| |z|)

    UniVIP's Eq. 2 has -<q, z> / (|q| |z|): half of its gradient. No gradient reaches the targets. In float32 or better.
    """
    return 2 - 2 * (unit(predictions) * unit(targets).detach()).sum(-1).mean()


def symmetric_loss(
    predictions_1: Float[Tensor, "N D"],
    predictions_2: Float[Tensor, "N D"],
    targets_1: Float[Tensor, "N D"],
    targets_2: Float[Tensor, "N D"],
) -> Float[Tensor, ""]:
    """Return the loss if each view predicts the other's target: L(q_1, z_2) + L(q_2, z_1); 0 to 8."""
    return regression_loss(predictions_1, targets_2) + regression_loss(predictions_2, targets_1)
