"""Mining end to end (read, decode, propose, filter, hash, write): the default engine against OpenCV Fast in the same run.

    python benchmarks/mining.py                               # images drawn here
    python benchmarks/mining.py --images coco/val2017

Both mine the same images into shards in this process, one thread, taken in turn for every few images; medians of the images'
times. Then what an image costs at each step, and what reading and decoding alone costs: what bounds the pipeline.
"""

import argparse
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from univip_stream.boxes import BoxFilter
from univip_stream.images import read_picture
from univip_stream.mining import MiningConfig, mine
from univip_stream.proposals import propose

ENGINES = ("selective-search", "opencv-fast")


def draw(folder: Path, count: int) -> list[Path]:
    """Scenes of 640 x 480 as JPEG."""
    from selective_search import drawn_images

    paths = []
    for name, image in drawn_images(count).items():
        paths.append(folder / f"{name.replace(' ', '')}.jpg")
        cv2.imwrite(str(paths[-1]), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return paths


def mined(paths: list[Path], engine: str) -> float:
    """Seconds an image of a job over links to these files."""
    with tempfile.TemporaryDirectory() as place:
        source = Path(place, "source")
        source.mkdir()
        for path in paths:
            (source / path.name).symlink_to(path.resolve())
        began = time.perf_counter()
        mine(MiningConfig(sources=(source,), out=Path(place, "out"), num_shards=1, proposals=engine, inline=True))
        return (time.perf_counter() - began) / len(paths)


def steps(paths: list[Path]) -> dict[str, float]:
    """Median milliseconds of an image at each step."""
    times: dict[str, list[float]] = {"read and decode": [], "propose": [], "filter": []}
    for path in paths:
        began = time.perf_counter()
        pixels = read_picture(path.read_bytes()).pixels
        decoded = time.perf_counter()
        boxes = propose(pixels)
        proposed = time.perf_counter()
        BoxFilter()(boxes)
        ended = time.perf_counter()
        for name, seconds in zip(times, (decoded - began, proposed - decoded, ended - proposed), strict=True):
            times[name].append(seconds * 1e3)
    return {name: float(np.median(values)) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of images; drawn ones without it")
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--at-once", type=int, default=16, help="images of a turn")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as place:
        paths = sorted(options.images.glob("*.jpg")) if options.images else draw(Path(place), options.count)
        paths = paths[: options.count]
        for engine in ENGINES:
            mined(paths[:1], engine)  # compile, start OpenCV's process
        turns = [paths[at : at + options.at_once] for at in range(0, len(paths), options.at_once)]
        # The fast one three times a turn, for a steadier median.
        seconds = {engine: [] for engine in ENGINES}
        for turn in turns:
            seconds["selective-search"].append(float(np.median([mined(turn, "selective-search") for _ in range(3)])))
            seconds["opencv-fast"].append(mined(turn, "opencv-fast"))
        print(f"{len(paths)} images, one process, milliseconds an image, medians")
        for engine in ENGINES:
            print(f"  mine --inline --proposals {engine:20}{np.median(seconds[engine]) * 1e3:9.1f}")
        ratio = np.median(np.array(seconds["opencv-fast"]) / np.array(seconds["selective-search"]))
        print(f"  ratio {ratio:.0f}")
        whole, parts = np.median(seconds["selective-search"]) * 1e3, steps(paths)
        for name, value in parts.items():
            print(f"    {name:20}{value:6.2f}")
        print(f"    {'hash, write, the job':20}{whole - sum(parts.values()):6.2f}")


if __name__ == "__main__":
    main()
