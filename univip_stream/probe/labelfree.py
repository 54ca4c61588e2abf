"""Measures of a representation that need no labels: how many directions it uses, how it spreads, how it holds views together.

What each says of a network that was trained is another question; docs/results.md has how their order of runs agrees with kNN.

Shape letters: N images, Q views of an image, D width of a feature.
"""

import numpy as np

_EPSILON = 1e-7


def rankme(vectors_ND: np.ndarray) -> float:
    """Effective rank of features: exp of the entropy of their singular values, 1 to min(N, D).

    RankMe (Garrido et al. 2023, arXiv:2210.02885, Eq. 1 and 2): p_k = sigma_k / sum(sigma) + 1e-7. Features are taken as they are,
    not centred.
    """
    return _effective_rank(np.linalg.svd(np.asarray(vectors_ND, np.float64), compute_uv=False))


def lidar(vectors_NQD: np.ndarray, delta: float = 1e-4) -> float:
    """Effective rank of what tells images apart, against how an image's own views differ: 1 to min(N - 1, D).

    LiDAR (Thilak et al. 2024, arXiv:2312.04000, Eq. 1 to 6): eigenvalues of W^-1/2 B W^-1/2, with B the covariance of the images'
    means and W the mean covariance of an image's views plus delta on the diagonal; then as RankMe. Features are taken to unit mean
    length first, so that delta means the same for every network.
    """
    views = np.asarray(vectors_NQD, np.float64)
    views = views / np.linalg.norm(views, axis=-1).mean()
    means_ND = views.mean(axis=1)
    centred_ND = means_ND - means_ND.mean(axis=0)
    inner = (views - means_ND[:, None]).reshape(-1, views.shape[-1])
    between = centred_ND.T @ centred_ND / len(centred_ND)
    within = inner.T @ inner / len(inner) + delta * np.eye(views.shape[-1])
    values, directions = np.linalg.eigh(within)
    root = directions @ np.diag(values**-0.5) @ directions.T
    return _effective_rank(np.clip(np.linalg.eigvalsh(root @ between @ root), 0, None))


def alignment(vectors_NQD: np.ndarray) -> float:
    """Mean squared distance of two views of an image on the unit sphere: 0 alike, 2 unrelated.

    Wang and Isola 2020 (arXiv:2005.10242), Eq. 1 of section 4.1 with alpha 2; mean over all pairs of views.
    """
    unit_NQD = _unit(vectors_NQD)
    Q = unit_NQD.shape[1]
    sums_ND = unit_NQD.sum(axis=1)
    # |a - b|^2 = 2 - 2 a.b, and the sum over pairs of a.b is (|sum|^2 - Q) / 2.
    cosines_N = ((sums_ND**2).sum(axis=-1) - Q) / (Q * (Q - 1))
    return float(2 - 2 * cosines_N.mean())


def uniformity(vectors_ND: np.ndarray) -> float:
    """Log of the mean Gaussian potential of two images on the unit sphere: 0 all alike, -4 evenly spread.

    Wang and Isola 2020 (arXiv:2005.10242), section 4.1 with t 2.
    """
    unit_ND = _unit(vectors_ND)
    squared = np.clip(2 - 2 * unit_ND @ unit_ND.T, 0, None)[np.triu_indices(len(unit_ND), 1)]
    return float(np.log(np.exp(-2 * squared).mean()))


def spread(vectors_ND: np.ndarray) -> float:
    """Standard deviation of unit features, mean over their dimensions, times sqrt(D): about 1 spread, 0 collapsed."""
    unit_ND = _unit(vectors_ND)
    return float(unit_ND.std(axis=0).mean() * unit_ND.shape[-1] ** 0.5)


def _unit(vectors: np.ndarray) -> np.ndarray:
    wide = np.asarray(vectors, np.float64)
    unit: np.ndarray = wide / np.clip(np.linalg.norm(wide, axis=-1, keepdims=True), 1e-12, None)
    return unit


def _effective_rank(values: np.ndarray) -> float:
    shares = values / max(values.sum(), 1e-300) + _EPSILON
    return float(np.exp(-(shares * np.log(shares)).sum()))
