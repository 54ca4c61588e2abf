"""A VOCdevkit of VOC2007 in miniature: two classes by colour, drawn, with lists, annotations and images."""

import cv2
import numpy as np

COLOURS = {"cat": (200, 90, 60), "dog": (60, 80, 200)}


def voc07(folder, each=4, side=48):
    """Write trainval and test with `each` images of each class, and one whose dog is difficult; return the devkit."""
    rng = np.random.default_rng(8)
    root = folder / "VOC2007"
    for part in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / part).mkdir(parents=True)
    number = 0
    for part in ("trainval", "test"):
        stems = []
        for name, hard in [*((name, 0) for name in COLOURS for _ in range(each)), ("dog", 1)]:
            number += 1
            stems.append(f"{number:06d}")
            image = np.clip(rng.normal(40, 20, (side, side + 16, 3)), 0, 255)
            image[8:-8, 12:-12] = np.clip(np.array(COLOURS[name]) + rng.normal(0, 30, (side - 16, side - 8, 3)), 0, 255)
            cv2.imwrite(str(root / "JPEGImages" / f"{stems[-1]}.jpg"), image.astype(np.uint8))
            (root / "Annotations" / f"{stems[-1]}.xml").write_text(
                f"<annotation><size><width>{side + 16}</width><height>{side}</height></size><object><name>{name}</name>"
                f"<difficult>{hard}</difficult><bndbox><xmin>13</xmin><ymin>9</ymin><xmax>{side + 4}</xmax><ymax>{side - 8}</ymax>"
                "</bndbox></object></annotation>"
            )
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return folder
