"""Drawn classes that a random network can tell apart, and drawn objects in boxes."""

import json

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


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Four images of 96 x 80 with a bright rectangle each, and COCO's annotations of them; the last has none."""
    folder = tmp_path_factory.mktemp("detection")
    rng = np.random.default_rng(2)
    content = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "bar"}, {"id": 9, "name": "block"}]}
    for at in range(4):
        image = rng.integers(0, 60, (80, 96, 3), dtype=np.uint8)
        content["images"].append({"id": 100 + at, "file_name": f"{at}.png", "width": 96, "height": 80})
        if at < 3:
            x, y, w, h = 10 + 8 * at, 12, 40, 40 if at % 2 else 20
            image[y : y + h, x : x + w] = 230
            outline = [x, y, x + w, y, x + w, y + h, x, y + h]
            content["annotations"].append(
                {"id": at + 1, "image_id": 100 + at, "category_id": 9 if at % 2 else 7, "bbox": [x, y, w, h], "area": w * h,
                 "iscrowd": 0, "segmentation": [outline]}
            )  # fmt: skip
        cv2.imwrite(str(folder / f"{at}.png"), image)
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder
