"""The demo's images: photographs that scikit-image ships, and scenes of several objects of a known class, drawn here.

Run as a script, it writes both:

    python pipelines/demo_images.py OUT

    OUT/mine/photos/*.png|jpg          sixteen photographs
    OUT/mine/scenes/NNNN.jpg           drawn scenes of all classes to pre-train on
    OUT/probe/{train,val}/<class>/*.jpg   other scenes by class, to evaluate the representation on

The class of a scene is the kind of its objects, a shape with a surface of its own: a disc is plain, a square is striped, and
so on. Colours, size, number, place, direction and background are random, so neither colour nor layout reveals the class.
"""

import sys
from pathlib import Path

import cv2
import numpy as np

SHAPES = ("disc", "square", "triangle", "star", "cross", "ring")

# These are in scikit-image's wheel; the other images of skimage.data would have to be downloaded.
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png",
               "motorcycle_right.png", "retina.jpg", "rocket.jpg", "brick.png", "camera.png", "coins.png", "grass.png",
               "gravel.png", "page.png", "text.png")  # fmt: skip


def draw_scene(shape: str, rng: np.random.Generator, width: int = 320, height: int = 240) -> np.ndarray:
    """Draw a scene of 4 to 7 objects of one shape on a textured background: uint8, height x width x 3, RGB."""
    image = background(rng, width, height)
    for _ in range(int(rng.integers(4, 8))):
        radius = int(rng.integers(min(width, height) // 9, min(width, height) // 4))
        centre = rng.integers([radius, radius], [width - radius, height - radius])
        mask = np.zeros((height, width), np.uint8)
        _fill_shape(mask, shape, centre, radius, angle=float(rng.uniform(0, 2 * np.pi)))
        first, second = _two_colours(rng)
        blend = _surface(shape, width, height, rng)[..., None]
        painted = np.clip(first * blend + second * (1 - blend) + rng.normal(0, 6, image.shape), 0, 255)
        soft = cv2.GaussianBlur(mask, (0, 0), 0.8)[..., None] / 255.0
        image = image * (1 - soft) + painted * soft
    return image.astype(np.uint8)


def background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Draw a smooth random texture in two random colours: float64, height x width x 3."""
    coarse = rng.random((int(rng.integers(3, 9)), int(rng.integers(3, 9)))).astype(np.float32)
    blend = np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)[..., None]
    first, second = _two_colours(rng)
    return np.clip(first * blend + second * (1 - blend) + rng.normal(0, 4, (height, width, 1)), 0, 255)


def _two_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a darker and a lighter muted colour, in either order: float64, 3 each. Bright ones would dominate the features."""
    dark, light = rng.uniform(20, 110) + rng.normal(0, 18, 3), rng.uniform(140, 235) + rng.normal(0, 18, 3)
    return (dark, light) if rng.random() < 0.5 else (light, dark)


def _surface(shape: str, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Return the share of a shape's first colour at each pixel of the image, 0 to 1: float64, height x width."""
    turn, period = rng.uniform(0, 2 * np.pi), rng.uniform(7, 11)
    y, x = np.mgrid[:height, :width]
    along = (x * np.cos(turn) + y * np.sin(turn)) * 2 * np.pi / period
    across = (y * np.cos(turn) - x * np.sin(turn)) * 2 * np.pi / period
    match shape:
        case "square":  # stripes
            mix = np.sin(along) > 0
        case "triangle":  # checks
            mix = np.sin(along) * np.sin(across) > 0
        case "star":  # dots
            mix = np.sin(along) + np.sin(across) > 1
        case "cross":  # patches
            coarse = rng.random((height // 6, width // 6)).astype(np.float32)
            mix = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) > 0.5
        case "ring":  # waves
            mix = 0.5 + 0.5 * np.sin(along + 2 * np.sin(across / 2))
        case _:  # plain
            mix = np.ones((height, width))
    return np.asarray(mix, float)


def _fill_shape(mask: np.ndarray, shape: str, centre: np.ndarray, radius: int, angle: float) -> None:
    """Paint one shape of `radius` pixels around `centre` (x, y) into `mask` with 255."""
    if shape in ("disc", "ring"):
        x, y = int(centre[0]), int(centre[1])
        cv2.circle(mask, (x, y), radius, 255, -1, cv2.LINE_AA)
        if shape == "ring":
            cv2.circle(mask, (x, y), radius // 2, 0, -1, cv2.LINE_AA)
        return
    if shape == "cross":
        arm = 0.36
        corners = [(1, arm), (arm, arm), (arm, 1), (-arm, 1), (-arm, arm), (-1, arm)]
        outline = np.array(corners + [(-x, -y) for x, y in corners], float)
    else:
        points, inner = {"square": (4, None), "triangle": (3, None), "star": (5, 0.4)}[shape]
        turns = np.arange(points if inner is None else 2 * points) / (points if inner is None else 2 * points)
        reach = np.ones(len(turns)) if inner is None else np.where(np.arange(len(turns)) % 2, inner, 1.0)
        outline = np.stack([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], 1) * reach[:, None]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    cv2.fillPoly(mask, [np.round(outline @ turn.T * radius + centre).astype(np.int32)], 255, cv2.LINE_AA)


def write_scenes(folder: Path, per_class: int, seed: int, *, by_class: bool) -> int:
    """Write `per_class` scenes of every shape as JPEG, in one folder for each class or all in one; return their number."""
    rng = np.random.default_rng(seed)
    for index in range(per_class * len(SHAPES)):
        shape = SHAPES[index % len(SHAPES)]
        target = folder / shape if by_class else folder
        target.mkdir(parents=True, exist_ok=True)
        path = target / f"{index:04d}.jpg"
        scene = cv2.cvtColor(draw_scene(shape, rng), cv2.COLOR_RGB2BGR)
        if not cv2.imwrite(str(path), scene, [cv2.IMWRITE_JPEG_QUALITY, 92]):
            raise OSError(f"could not write {path}")
    return per_class * len(SHAPES)


def write_photographs(folder: Path) -> int:
    """Copy the photographs that the installed scikit-image contains into `folder`; return their number."""
    import skimage

    folder.mkdir(parents=True, exist_ok=True)
    shipped = [Path(skimage.__file__).parent / "data" / name for name in PHOTOGRAPHS]
    found = [path for path in shipped if path.is_file()]
    for path in found:
        (folder / path.name).write_bytes(path.read_bytes())
    return len(found)


def main(out: Path) -> None:
    """Write all images of the demo below `out`."""
    photographs = write_photographs(out / "mine" / "photos")
    scenes = write_scenes(out / "mine" / "scenes", per_class=40, seed=0, by_class=False)
    probe = write_scenes(out / "probe" / "train", per_class=20, seed=1, by_class=True)
    probe += write_scenes(out / "probe" / "val", per_class=40, seed=2, by_class=True)
    print(f"{photographs} photographs and {scenes} drawn scenes to mine, {probe} labelled scenes to probe: {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
