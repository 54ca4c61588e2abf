"""Measures without labels: against plain loops, and at cases whose answer is known."""

import math

import numpy as np
import pytest

from univip_stream.probe.labelfree import alignment, lidar, rankme, spread, uniformity


def rng():
    return np.random.default_rng(0)


def test_rankme_counts_directions():
    basis = np.linalg.qr(rng().normal(size=(32, 32)))[0]
    for rank in (1, 5, 32):
        vectors = np.concatenate([basis[:rank], -basis[:rank]])  # every direction as strong as the others
        assert rankme(vectors) == pytest.approx(rank, rel=0.001)


def test_rankme_is_the_entropy_of_singular_values():
    vectors = rng().normal(size=(40, 12)) * np.linspace(1, 5, 12)
    sigma = np.sqrt(np.linalg.eigvalsh(vectors.T @ vectors))
    shares = [value / sum(sigma) + 1e-7 for value in sigma]
    assert rankme(vectors) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-6)


def test_lidar_counts_the_directions_that_tell_images_apart_and_not_those_in_which_views_differ():
    generator = rng()
    images = np.zeros((200, 1, 20))
    images[:, 0, :4] = generator.normal(size=(200, 4))
    noise = np.zeros((200, 8, 20))
    noise[..., 10:] = generator.normal(size=(200, 8, 10))
    found = lidar(images + noise)
    assert 3.5 < found < 5
    assert rankme((images + noise)[:, 0]) > 10  # which takes noise for knowledge


def test_lidar_by_plain_loops():
    generator = rng()
    views = generator.normal(size=(30, 4, 6)) + 2 * generator.normal(size=(30, 1, 6))
    scaled = views / np.mean([np.linalg.norm(view) for image in views for view in image])
    means = [sum(image) / 4 for image in scaled]
    middle = sum(means) / 30
    between = sum(np.outer(mean - middle, mean - middle) for mean in means) / 30
    within = (
        sum(np.outer(view - mean, view - mean) for image, mean in zip(scaled, means, strict=True) for view in image) / 120
    )
    within += 1e-4 * np.eye(6)
    # The same eigenvalues as W^-1/2 B W^-1/2 has.
    values = np.linalg.eigvals(np.linalg.inv(within) @ between).real
    shares = values / values.sum() + 1e-7
    assert lidar(views) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-6)


def test_alignment_and_uniformity_by_plain_loops():
    views = rng().normal(size=(7, 3, 5))
    unit = views / np.linalg.norm(views, axis=-1, keepdims=True)
    pairs = [((a - b) ** 2).sum() for image in unit for at, a in enumerate(image) for b in image[at + 1 :]]
    assert alignment(views) == pytest.approx(np.mean(pairs))
    first = unit[:, 0]
    others = [math.exp(-2 * ((a - b) ** 2).sum()) for at, a in enumerate(first) for b in first[at + 1 :]]
    assert uniformity(views[:, 0]) == pytest.approx(math.log(np.mean(others)))


def test_a_collapsed_network():
    same = np.ones((50, 3, 16))
    assert rankme(same[:, 0]) == pytest.approx(1, abs=0.001)
    assert alignment(same) == pytest.approx(0, abs=1e-9)
    assert uniformity(same[:, 0]) == pytest.approx(0, abs=1e-9)
    assert spread(same[:, 0]) == pytest.approx(0, abs=1e-9)
    assert spread(rng().normal(size=(5000, 16))) == pytest.approx(1, abs=0.02)
