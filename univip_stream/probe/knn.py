"""k-nearest-neighbour classification on frozen features: a measure of progress that needs no training.

Shape letters: N images of the reference set, Q images to classify, D width of a feature, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from univip_stream.errors import InputError


@dataclass(frozen=True, kw_only=True)
class KnnConfig:
    """Weighted kNN as in Wu et al. 2018 (arXiv:1805.01978, section 3.4): a vote has the weight exp(cosine / temperature)."""

    k: int = 20
    """Neighbours that vote. 20 as in DINO (arXiv:2104.14294); fewer if the reference set is smaller."""
    temperature: float = 0.07
    """Temperature of the vote's weight, as in Wu et al. 2018; small values let the nearest decide."""


def classify(
    reference_ND: np.ndarray,
    labels_N: Sequence[str],
    queries_QD: np.ndarray,
    config: KnnConfig = KnnConfig(),
    *,
    queries_at_once: int = 1024,
) -> list[str]:
    """Return the label that each query's neighbours vote for.

    Args:
        reference_ND: features of the labelled images, float, N x D; any length, they are normalised here.
        labels_N: their labels.
        queries_QD: features to classify, Q x D.
        config: how many neighbours vote, and how.
        queries_at_once: rows of the similarity matrix held in memory.

    Returns:
        Q labels. Equal votes go to the label that sorts first.

    """
    if len(reference_ND) != len(labels_N):
        raise InputError(f"{len(reference_ND)} reference features but {len(labels_N)} labels; expected one a feature")
    if not len(reference_ND):
        raise InputError("the reference set is empty: kNN needs labelled images to vote")
    classes = sorted(set(labels_N))
    number_of = {label: number for number, label in enumerate(classes)}
    votes_for_N = torch.tensor([number_of[label] for label in labels_N])
    unit_ND = F.normalize(torch.as_tensor(reference_ND, dtype=torch.float32), dim=1)
    k = min(config.k, len(labels_N))

    answers: list[str] = []
    for start in range(0, len(queries_QD), queries_at_once):
        block = torch.as_tensor(queries_QD[start : start + queries_at_once], dtype=torch.float32)
        cosine_Qk, nearest_Qk = (F.normalize(block, dim=1) @ unit_ND.T).topk(k, dim=1)
        # exp((cosine - largest) / T) has the same ranking as exp(cosine / T) and cannot overflow.
        weight_Qk = ((cosine_Qk - cosine_Qk[:, :1]) / config.temperature).exp()
        score_QC = torch.zeros(len(block), len(classes)).scatter_add_(1, votes_for_N[nearest_Qk], weight_Qk)
        answers += [classes[number] for number in score_QC.argmax(dim=1).tolist()]
    return answers


def accuracy(answers: Sequence[str], labels: Sequence[str]) -> float:
    """Return the share of `answers` that equal `labels`, 0 to 1."""
    return float(np.mean([a == b for a, b in zip(answers, labels, strict=True)]))


def chance(labels: Sequence[str]) -> float:
    """Return the accuracy of always naming the most frequent label, 0 to 1: the floor of any classifier."""
    _, counts = np.unique(np.asarray(labels), return_counts=True)
    return float(counts.max() / counts.sum())
