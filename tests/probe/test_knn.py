"""kNN agrees with scikit-learn's, and says so where it cannot vote."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from univip_stream.errors import InputError
from univip_stream.probe.knn import KnnConfig, accuracy, chance, classify


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (50, 1.0)])
def test_knn_answers_as_scikit_learn_with_the_same_weights(rng, k, temperature):
    centres = rng.normal(size=(5, 16))
    labels = rng.integers(0, 5, 200)
    reference = centres[labels] + rng.normal(size=(200, 16))
    queries = centres[rng.integers(0, 5, 80)] + rng.normal(size=(80, 16))
    names = [f"class{label}" for label in labels]

    peer = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / temperature))
    expected = peer.fit(reference, names).predict(queries)
    answers = classify(reference, names, queries, KnnConfig(k=k, temperature=temperature), queries_at_once=33)
    assert answers == list(expected)


def test_the_length_of_a_feature_does_not_matter(rng):
    reference, queries = rng.normal(size=(40, 8)), rng.normal(size=(10, 8))
    labels = [str(i % 4) for i in range(40)]
    scale = rng.uniform(0.1, 10, (40, 1))
    assert classify(reference * scale, labels, queries * 7) == classify(reference, labels, queries)


def test_more_neighbours_than_images_is_all_images(rng):
    reference = rng.normal(size=(6, 8))
    assert classify(reference, list("aaabbb"), reference, KnnConfig(k=100, temperature=0.01)) == list("aaabbb")


def test_features_without_labels_are_refused(rng):
    with pytest.raises(InputError, match="4 reference features but 3 labels"):
        classify(rng.normal(size=(4, 8)), ["a", "b", "c"], rng.normal(size=(2, 8)))
    with pytest.raises(InputError, match="empty"):
        classify(np.empty((0, 8)), [], rng.normal(size=(2, 8)))


def test_chance_is_the_share_of_the_most_frequent_label():
    assert chance(["a", "b", "b", "c"]) == 0.5
    assert accuracy(["a", "b"], ["a", "c"]) == 0.5
