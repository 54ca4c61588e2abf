"""The three losses of UniVIP, one small function per equation, with the paper's letters.

Letters: B batch, K instances an image, M and N instances seen as suppliers and demanders (both K), D features.
o are predictions of the online network f, t projections of the target network g; f_o and f_t the same of the two scenes.

Every function computes in float32 (float64 for float64 inputs), whatever autocast says, and detaches its targets.
Products are elementwise and summed, not matrix products: these are tiny, and matrix products may be cut to bf16 or TF32.
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
    """Scene-scene similarity, mean over the batch; between -2 and 2.

    Eq. 2: L(x1, x2) = -<f(x1), g(x2)> / (|f(x1)| |g(x2)|)
    Eq. 3: L_scene = L(s1, s2) + L(s2, s1)
    """
    loss_B = -_cosine(prediction_1, target_2.detach()) - _cosine(prediction_2, target_1.detach())
    return loss_B.mean()


def scene_instance_loss(
    aggregate: Float[Tensor, "B D"], target_1: Float[Tensor, "B D"], target_2: Float[Tensor, "B D"]
) -> Float[Tensor, ""]:
    """Scene-instance affinity of the instances' aggregate I (Eq. 4, `methods.univip`), mean over the batch; -2 to 2.

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
    """Instance-instance discrimination, mean over the batch; between -`mass` and `mass`.

    Eq. 11: L_instance(O, T) = -sum_mn y_mn <o_m, t_n> / (|o_m| |t_n|), with y the plan of Eq. 7 to 10.

    The plan is a constant, as in OTA (Ge et al. 2021): the gradient reaches only the cosines, and of these only `online`. With
    `through_plan` it also passes through cost, supply and demand, as in DeepEMD (Zhang et al. 2020); targets stay constants.
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
    """<o_m, t_n> / (|o_m| |t_n|) of every pair, as in Eq. 8 and 11."""
    return _cosine(online.unsqueeze(-2), target.unsqueeze(-3))


def transport_cost(cosines: Float[Tensor, "B M N"]) -> Float[Tensor, "B M N"]:
    """Eq. 8: c_mn = 1 - <o_m, t_n> / (|o_m| |t_n|)."""
    return 1 - cosines


def supply(
    online: Float[Tensor, "B M D"], target_scene_1: Float[Tensor, "B D"], target_scene_2: Float[Tensor, "B D"]
) -> Float[Tensor, "B M"]:
    """Eq. 9: b_m = max(o_m . (f_t1 + f_t2) / 2, 0), of the features as they are, not normalised."""
    return _relevance(online, target_scene_1, target_scene_2)


def demand(
    target: Float[Tensor, "B N D"], online_scene_1: Float[Tensor, "B D"], online_scene_2: Float[Tensor, "B D"]
) -> Float[Tensor, "B N"]:
    """Eq. 10: a_n = max(t_n . (f_o1 + f_o2) / 2, 0), of the features as they are, not normalised."""
    return _relevance(target, online_scene_1, online_scene_2)


def _relevance(
    instances: Float[Tensor, "B K D"], scene_1: Float[Tensor, "B D"], scene_2: Float[Tensor, "B D"]
) -> Float[Tensor, "B K"]:
    """The common form of Eq. 9 and 10: what an instance has in common with the mean of the two scenes."""
    mean_B1D = ((_full(scene_1) + _full(scene_2)) / 2).unsqueeze(-2)
    return (_full(instances) * mean_B1D).sum(-1).relu()


def _cosine(x: Float[Tensor, "*#batch D"], y: Float[Tensor, "*#batch D"]) -> Float[Tensor, "*batch"]:
    """Cosine of the angle between vectors along the last axis; 0 where one of them is zero."""
    return (F.normalize(_full(x), dim=-1) * F.normalize(_full(y), dim=-1)).sum(-1)


def _full(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The tensor in float32, or in float64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
