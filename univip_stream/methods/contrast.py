"""Shared by contrastive methods: two losses, gathering vectors over ranks, and a queue of earlier keys.

Letters: B images of this rank, G images of all ranks, N queries, Q keys of the queue, D width of a vector.

Everything is float32 (float64 for float64), whatever autocast says.
"""

from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from univip_stream.shapes import Float


def nt_xent(first: Float[Tensor, "B D"], second: Float[Tensor, "B D"], temperature: float) -> Float[Tensor, ""]:
    """Return SimCLR's loss of two views, the mean over both views of this rank's images; the negatives are those of all ranks.

    Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, arXiv:2002.05709, Eq. 1:

        l(i, j) = -log( exp(sim(z_i, z_j) / t) / sum_{k != i} exp(sim(z_i, z_k) / t) )

    with sim the cosine, (i, j) the two views of an image and k every other view of the batch. The gradient reaches the
    vectors of other ranks: the mean of the ranks' gradients is the gradient of the loss of one process with all images.
    """
    with torch.autocast(first.device.type, enabled=False):
        z1_BD, z2_BD = unit(first), unit(second)
        z_AD = torch.cat([gathered(z1_BD), gathered(z2_BD)])  # the first views of all ranks, then the second
        count, total = len(z1_BD), len(z_AD) // 2
        mine = torch.arange(count, device=z1_BD.device) + rank() * count
        own, other = torch.cat([mine, mine + total]), torch.cat([mine + total, mine])
        logits_NA = torch.cat([z1_BD, z2_BD]) @ z_AD.T / temperature
        logits_NA = logits_NA.scatter(1, own[:, None], float("-inf"))
        return F.cross_entropy(logits_NA, other)


def info_nce(
    queries: Float[Tensor, "N D"], positives: Float[Tensor, "N D"], negatives: Float[Tensor, "Q D"], temperature: float
) -> Float[Tensor, ""]:
    """Return MoCo's loss, the mean over the queries.

    He et al., Momentum Contrast for Unsupervised Visual Representation Learning, arXiv:1911.05722, Eq. 1:

        L_q = -log( exp(q . k+ / t) / (exp(q . k+ / t) + sum_{k in queue} exp(q . k / t)) )

    Queries and keys are of length 1. No gradient reaches keys and queue.

    Args:
        queries: q, normalised here.
        positives: k+ of each query, normalised here.
        negatives: keys of the queue, already of length 1.
        temperature: t.

    """
    with torch.autocast(queries.device.type, enabled=False):
        q_ND = unit(queries)
        positive_N1 = (q_ND * unit(positives).detach()).sum(-1, keepdim=True)
        logits = torch.cat([positive_N1, q_ND @ negatives.detach().to(q_ND.dtype).T], dim=1) / temperature
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


class Queue(nn.Module):
    """The last Q keys of all ranks; the oldest are overwritten first. It starts with random unit vectors, as in MoCo's code.

    Keys and position are buffers: they are saved with the weights, and a resumed run has exactly the same.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.keys: Tensor
        self.place: Tensor
        self.register_buffer("keys", F.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def now(self) -> Float[Tensor, "Q D"]:
        """Return a copy of the current keys, because backward still uses them after the next keys are added."""
        return self.keys.clone()

    @torch.no_grad()
    def push(self, keys: Float[Tensor, "B D"]) -> None:
        """Add the keys of all ranks, normalised here, in the order of the ranks."""
        size = len(self.keys)
        new = all_of(unit(keys).to(self.keys.dtype))[-size:]
        where = (self.place + torch.arange(len(new), device=new.device)) % size
        self.keys.index_copy_(0, where, new)
        self.place.copy_((self.place + len(new)) % size)


def unit(vectors: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """Return the vectors scaled to length 1, in float32 or better."""
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)


def rank() -> int:
    """Return the rank of this process; 0 if it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def gathered(vectors: Float[Tensor, "B D"]) -> Float[Tensor, "G D"]:
    """Return the vectors of all ranks, in the order of the ranks; gradients go back to the rank that a vector came from."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return vectors
    return cast(Tensor, _Gather.apply(vectors))  # type: ignore[no-untyped-call]


def all_of(vectors: Float[Tensor, "B D"]) -> Float[Tensor, "G D"]:
    """Return the vectors of all ranks, in the order of the ranks, without gradient."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return vectors
    parts = [torch.empty_like(vectors) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, vectors.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """`all_of` with a gradient: the sum of all ranks' gradients of this rank's vectors."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        ctx.count = len(vectors)
        return all_of(vectors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        summed = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed[rank() * ctx.count : (rank() + 1) * ctx.count]
