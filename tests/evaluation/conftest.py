"""Drawn classes that a random network can tell apart."""

import cv2
import numpy as np
import pytest


@pytest.fixture
def run(run_folder):
    """What is judged."""
    return run_folder


@pytest.fixture(scope="session")
def coloured(tmp_path_factory):
    """train/ and val/ of three classes that differ in colour, with noise: 12 and 6 images a class."""
    folder = tmp_path_factory.mktemp("coloured")
    rng = np.random.default_rng(5)
    for part, count in (("train", 12), ("val", 6)):
        for name, colour in (("blue", (200, 90, 60)), ("green", (70, 180, 80)), ("red", (60, 80, 200))):
            (folder / part / name).mkdir(parents=True)
            for at in range(count):
                image = np.clip(np.array(colour) + rng.normal(0, 50, (64, 80, 3)) + rng.normal(0, 20, 3), 0, 255)
                cv2.imwrite(str(folder / part / name / f"{name}{at:02d}.png"), image.astype(np.uint8))
    return folder
