"""Several linear classifiers side by side on the same features: one for each learning rate, at the cost of one pass.

Shape letters: B images of a batch, D width of a feature, C classes, R classifiers.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from univip_stream.distributed import Process, summed_over_ranks


class Heads(nn.Module):
    """R independent linear layers, each trained with its own rate: B x D features to R x B x C logits.

    Args:
        width: D.
        classes: C.
        count: R.
        normalise: whether to standardise the features over the batch first, without learnt scale and shift, as ORL does.

    """

    def __init__(self, width: int, classes: int, count: int, *, normalise: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False) if normalise else nn.Identity()
        # The papers' initialisation for linear probes: weights of 0.01, no offset.
        self.weights = nn.ParameterList(torch.randn(classes, width) * 0.01 for _ in range(count))
        self.offsets = nn.ParameterList(torch.zeros(classes) for _ in range(count))

    def forward(self, features_BD: Tensor) -> Tensor:
        features = self.norm(features_BD)
        pairs = zip(self.weights, self.offsets, strict=True)
        return torch.stack([F.linear(features, weight, offset) for weight, offset in pairs])

    def groups(self, rates: Sequence[float], weight_decay: float) -> list[dict[str, object]]:
        """Return an optimizer's parameter groups: classifier r with learning rate rates[r]."""
        pairs = zip(self.weights, self.offsets, rates, strict=True)
        return [
            {"params": [weight, offset], "lr": rate, "peak": rate, "weight_decay": weight_decay}
            for weight, offset, rate in pairs
        ]


class LayerHeads(nn.Module):
    """R linear layers on each of L pooled maps, ORL's `MultiClsHead`: B x D flat maps to (L R) x B x C logits, layer by layer.

    Each map is normalised over the batch and its places, channel by channel, without learnt scale and shift, and flattened.

    Args:
        shapes: channels and places of each map.
        classes: C.
        count: R.

    """

    def __init__(self, shapes: Sequence[tuple[int, int]], classes: int, count: int) -> None:
        super().__init__()
        self.shapes = list(shapes)
        self.norms = nn.ModuleList(nn.BatchNorm1d(channels, affine=False) for channels, _ in shapes)
        self.layers = nn.ModuleList(Heads(channels * places, classes, count) for channels, places in shapes)

    @property
    def weights(self) -> list[nn.Parameter]:
        """The weights of all linear layers, in the order of the logits."""
        return [weight for layer in self.layers for weight in layer.weights]  # type: ignore[union-attr,misc]

    def forward(self, maps_BD: Tensor) -> Tensor:
        parts = maps_BD.split([channels * places for channels, places in self.shapes], dim=1)  # type: ignore[no-untyped-call]
        return torch.cat(
            [
                layer(norm(part.unflatten(1, shape)).flatten(1))
                for part, shape, norm, layer in zip(parts, self.shapes, self.norms, self.layers, strict=True)
            ]
        )

    def groups(self, rates: Sequence[float], weight_decay: float) -> list[dict[str, object]]:
        """Return an optimizer's parameter groups, in the order of the logits."""
        return [group for layer in self.layers for group in layer.groups(rates, weight_decay)]  # type: ignore[operator,union-attr]


def loss_of(logits_RBC: Tensor, classes_B: Tensor) -> Tensor:
    """Return the sum of the classifiers' mean cross-entropies, so that each gets the gradient it would get alone."""
    count = len(logits_RBC)
    return F.cross_entropy(logits_RBC.flatten(0, 1), classes_B.repeat(count), reduction="mean") * count


class Tally:
    """Counts right answers, for R classifiers at once."""

    def __init__(self, count: int) -> None:
        self.right = torch.zeros(2, count, dtype=torch.float64)
        self.seen = 0

    def add(self, logits_RBC: Tensor, classes_B: Tensor) -> None:
        """Count the right answers of a batch."""
        best = logits_RBC.topk(min(5, logits_RBC.shape[-1]), dim=-1).indices
        hit = best == classes_B[None, :, None]
        self.right += torch.stack([hit[..., 0].sum(1), hit.any(-1).sum(1)]).double().cpu()
        self.seen += len(classes_B)

    def over_ranks(self, device: torch.device, process: Process) -> "Tally":
        """Replace the counts by their sums over all processes, and return self."""
        counts = torch.cat([self.right.flatten(), torch.tensor([float(self.seen)], dtype=torch.float64)])
        summed = summed_over_ranks(counts.to(device), process).cpu()
        self.right, self.seen = summed[:-1].reshape(2, -1), int(summed[-1])
        return self

    def top1(self) -> list[float]:
        """Return, for each classifier, the share of images whose class got the largest logit."""
        return (self.right[0] / max(self.seen, 1)).tolist()

    def top5(self) -> list[float]:
        """Return, for each classifier, the share of images whose class is among the five largest logits."""
        return (self.right[1] / max(self.seen, 1)).tolist()
