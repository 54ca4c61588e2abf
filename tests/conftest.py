"""What the tests share: the development images where they are there, drawn images everywhere."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from demo_images import SHAPES, draw_scene

# One thread per process: the suite runs on two cores, and determinism tests set their own.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real development images beside the repository; the test is skipped by name without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the development images in ../shared/data, which are not here")
    return SHARED_DATA


@pytest.fixture
def rng() -> np.random.Generator:
    """A fresh seeded numpy generator."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def drawn_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat folder of twelve drawn scenes, 320 x 240 JPEG. Read only: copy it before changing it."""
    folder = tmp_path_factory.mktemp("drawn")
    rng = np.random.default_rng(7)
    for index in range(12):
        scene = cv2.cvtColor(draw_scene(SHAPES[index % len(SHAPES)], rng), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(folder / f"scene{index:02d}.jpg"), scene)
    return folder
