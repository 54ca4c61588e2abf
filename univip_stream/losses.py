"""The three losses of UniVIP: one small function for each equation, with the paper's letters.

Letters: B images in the batch, K instances of an image, M and N instances as suppliers and demanders (both K), D features.
o are predictions of the online network f, t are projections of the target network g; f_o and f_t are those of the two scenes.

Every function computes in float32 (float64 for float64 inputs) even under autocast, and detaches its targets. Products are
elementwise products and sums instead of matrix products, which may be reduced to bf16 or TF32; the tensors are tiny.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from univip_stream.shapes import Float
from univip_stream.transport import sinkhorn


def scene_loss(
    prediction_1: Float[Tensor, "B D"],
    prediction_2: Float[Tensor, "B D"],
    target_1: Float[Tensor, "B D"],
    target_2: Float[Tensor, "B D"],
) -> Float[Tensor, ""]:
    """Return the loss of scene-scene similarity, the mean over the batch, between -2 and 2.

    Eq. 2: L(x1, x2) = -<f(x1), g(x2)> / (|f(x1)| |g(x2)|)
    Eq. 3: L_scene = L(s1, s2) + L(s2, s1)
    """
    loss_B = -_cosine(prediction_1, target_2.detach()) - _cosine(prediction_2, target_1.detach())
    return loss_B.mean()


def scene_instance_loss(
    aggregate: Float[Tensor, "B D"], target_1: Float[Tensor, "B D"], target_2: Float[Tensor, "B D"]
) -> Float[Tensor, ""]:
    """Return the loss of scene-instance affinity, the mean over the batch, between -2 and 2.

    `aggregate` is I, the aggregate of an image's instances (Eq. 4, `methods.univip`).

    Eq. 5: L_affinity(s, I) = -<I, g(s)> / (|I| |g(s)|)
    Eq. 6: L_scene-instance = L_affinity(s1, I) + L_affinity(s2, I)
    """
    loss_B = -_cosine(aggregate, target_1.detach()) - _cosine(aggregate, target_2.detach())
    return loss_B.mean()


def instance_loss(
    online: Float[Tensor, "B K D"],
    target: Float[Tensor, "B K D"],
    online_scene_1: Float[Tensor, "B D"],
    online_scene_2: Float[Tensor, "B D"],
    target_scene_1: Float[Tensor, "B D"],
    target_scene_2: Float[Tensor, "B D"],
    *,
    epsilon: float = 0.1,
    iterations: int = 50,
    mass: float = 1.0,
    through_plan: bool = False,
) -> Float[Tensor, ""]:
    """Return the loss of instance-instance discrimination, the mean over the batch, between -`mass` and `mass`.

    Eq. 11: L_instance(O, T) = -sum_mn y_mn <o_m, t_n> / (|o_m| |t_n|), with y the plan of Eq. 7 to 10.

    The plan is a constant, as in OTA (Ge et al. 2021): the gradient passes only through the cosines, to `online`. With
    `through_plan` it also passes through cost, supply and demand, as in DeepEMD (Zhang et al. 2020); targets stay constant.

    Args:
        online: predictions o of the instances.
        target: projections t of the instances.
        online_scene_1: prediction of the first scene view.
        online_scene_2: prediction of the second scene view.
        target_scene_1: projection of the first scene view.
        target_scene_2: projection of the second scene view.
        epsilon: entropic regularisation of the plan, in units of cost.
        iterations: Sinkhorn iterations.
        mass: sum of the plan.
        through_plan: let the gradient pass through the plan.

    """
    cosines_BMN = instance_cosines(online, target.detach())
    with torch.set_grad_enabled(through_plan and torch.is_grad_enabled()):
        plan_BMN = sinkhorn(
            transport_cost(cosines_BMN),
            supply(online, target_scene_1.detach(), target_scene_2.detach()),
            demand(target.detach(), online_scene_1, online_scene_2),
            epsilon,
            iterations,
            mass=mass,
            differentiable=through_plan,
        )
    return -(plan_BMN * cosines_BMN).sum((-2, -1)).mean()


def instance_cosines(online: Float[Tensor, "B M D"], target: Float[Tensor, "B N D"]) -> Float[Tensor, "B M N"]:
    """Return the cosine <o_m, t_n> / (|o_m| |t_n|) of every pair, as in Eq. 8 and 11."""
    return _cosine(online.unsqueeze(-2), target.unsqueeze(-3))


def transport_cost(cosines: Float[Tensor, "B M N"]) -> Float[Tensor, "B M N"]:
    """Return the cost of Eq. 8: c_mn = 1 - <o_m, t_n> / (|o_m| |t_n|), from the cosines."""
    return 1 - cosines


def supply(
    online: Float[Tensor, "B M D"], target_scene_1: Float[Tensor, "B D"], target_scene_2: Float[Tensor, "B D"]
) -> Float[Tensor, "B M"]:
    """Return the supply of Eq. 9: b_m = max(o_m . (f_t1 + f_t2) / 2, 0). The features are not normalised."""
    return _relevance(online, target_scene_1, target_scene_2)


def demand(
    target: Float[Tensor, "B N D"], online_scene_1: Float[Tensor, "B D"], online_scene_2: Float[Tensor, "B D"]
) -> Float[Tensor, "B N"]:
    """Return the demand of Eq. 10: a_n = max(t_n . (f_o1 + f_o2) / 2, 0). The features are not normalised."""
    return _relevance(target, online_scene_1, online_scene_2)


def _relevance(
    instances: Float[Tensor, "B K D"], scene_1: Float[Tensor, "B D"], scene_2: Float[Tensor, "B D"]
) -> Float[Tensor, "B K"]:
    """Return the common form of Eq. 9 and 10: the dot product of an instance and the mean of the two scenes, at least 0."""
    mean_B1D = ((_full(scene_1) + _full(scene_2)) / 2).unsqueeze(-2)
    return (_full(instances) * mean_B1D).sum(-1).relu()


def _cosine(x: Float[Tensor, "*#batch D"], y: Float[Tensor, "*#batch D"]) -> Float[Tensor, "*batch"]:
    """Return the cosine of the angle between vectors along the last axis; 0 where one of them is zero."""
    return (F.normalize(_full(x), dim=-1) * F.normalize(_full(y), dim=-1)).sum(-1)


def _full(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the tensor in float32; a float64 tensor stays float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
