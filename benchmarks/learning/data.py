"""The images of the protocol, made from nothing but seeds and Imagenette: drawn scenes, composed scenes, single photographs.

Every picture is a pure function of its number, so the same images come about wherever they are made.
"""

import hashlib
import json
import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2] / "pipelines"))
from demo_images import background, write_scenes

SIDE = 256
"""Of a composed picture, pixels."""
COMPOSED = 4000
"""How many there are."""
PHOTOGRAPHS = (3, 5)
"""Fewest and most photographs in one."""
SIDES = (80, 144)
"""Smallest and largest side of a pasted photograph, pixels."""
APART = 0.15
"""Greatest share of a photograph that an earlier one may cover."""
_TRIES = 200

Box = tuple[int, int, int, int]


def make(name: str, work: Path, imagenette: Path | None) -> Path:
    """Make the images of a set below `work`, if they are not there; return the folder to mine.

    Raises:
        SystemExit: Imagenette is needed and not there; it says where to get it.

    """
    folder = work / name
    done = folder / ".made"
    if not done.exists():
        if name == "drawn":
            write_scenes(folder / "images", per_class=160, seed=0, by_class=False)
            write_scenes(folder / "probe" / "train", per_class=60, seed=1, by_class=True)
            write_scenes(folder / "probe" / "val", per_class=200, seed=2, by_class=True)
        else:
            train = photographs(imagenette, "train")
            if name == "composed":
                compose(train, folder / "images")
            elif name == "tuning":
                _split(train, folder / "probe")
            elif name == "single":
                _linked(train, folder / "images")
        done.write_text("")
    return folder / "images"


def photographs(imagenette: Path | None, split: str) -> list[Path]:
    """Imagenette's images of a split, in the order of their names."""
    found = sorted((imagenette / split).glob("*/*")) if imagenette is not None else []
    if not found:
        sys.exit(
            f"error: {imagenette}/{split} holds no class folders; --imagenette names a folder with train/ and val/ of Imagenette "
            "(fastai/imagenette, 9,469 and 3,925 images), at 128 x 128 pixels here"
        )
    return found


def compose(train: list[Path], out: Path) -> None:
    """Write the composed pictures, and where each photograph is, as COCO JSON: `../annotations/instances_images.json`."""
    out.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    classes = sorted({path.parent.name for path in train})
    for number in range(COMPOSED):
        picture, boxes, which = composed(number, train)
        name = f"{number:06d}.jpg"
        if not cv2.imwrite(str(out / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 92]):
            sys.exit(f"error: could not write {out / name}")
        images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
        for box, photograph in zip(boxes, which, strict=True):
            category = classes.index(train[photograph].parent.name)
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number, "category_id": category + 1, "bbox": list(box),
                    "area": box[2] * box[3], "iscrowd": 0,
                }
            )  # fmt: skip
    said = {
        "info": {"description": "composed of Imagenette's photographs"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, 1)],
    }
    target = out.parent / "annotations" / "instances_images.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(said))


def composed(number: int, train: list[Path]) -> tuple[np.ndarray, list[Box], list[int]]:
    """One picture of several photographs at random places and sizes over a textured ground.

    Args:
        number: of the picture; all chance comes from it.
        train: the photographs to take from.

    Returns:
        uint8, SIDE x SIDE x 3, BGR; x, y, w, h of each photograph; which they are.

    """
    rng = np.random.Generator(np.random.Philox(key=[2026, number]))
    picture = background(rng, SIDE, SIDE).astype(np.uint8)
    boxes: list[Box] = []
    which: list[int] = []
    wanted = int(rng.integers(PHOTOGRAPHS[0], PHOTOGRAPHS[1] + 1))
    for _ in range(_TRIES):
        if len(boxes) == wanted:
            break
        w, h = (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, 2))
        w = int(np.clip(w, h * 3 // 4, h * 4 // 3))
        box = (int(rng.integers(SIDE - w + 1)), int(rng.integers(SIDE - h + 1)), w, h)
        if any(_covered(box, other) > APART or _covered(other, box) > APART for other in boxes):
            continue
        photograph = int(rng.integers(len(train)))
        pixels = cv2.imread(str(train[photograph]))
        if pixels is None:
            sys.exit(f"error: {train[photograph]} cannot be read")
        picture[box[1] : box[1] + h, box[0] : box[0] + w] = cv2.resize(pixels, (w, h), interpolation=cv2.INTER_AREA)
        boxes.append(box)
        which.append(photograph)
    return picture, boxes, which


def _covered(box: Box, other: Box) -> float:
    """Share of `box` that `other` covers."""
    w = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    h = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    return max(w, 0) * max(h, 0) / (box[2] * box[3])


def _linked(train: list[Path], out: Path) -> None:
    """The photographs without their classes, by link."""
    out.mkdir(parents=True, exist_ok=True)
    for path in train:
        link = out / f"{path.parent.name}-{path.name}"
        if not link.exists():
            link.symlink_to(path.resolve())


def _split(train: list[Path], out: Path) -> None:
    """Training photographs in two parts to choose settings by, a third to be classified by two: by a hash of their names."""
    for path in train:
        third = hashlib.sha256(path.name.encode()).digest()[0] % 3 == 0
        link = out / ("val" if third else "train") / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(path.resolve())
