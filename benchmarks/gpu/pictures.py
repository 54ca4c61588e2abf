"""The images of the GPU's ten minutes: what `carry.sh` brought, or drawn scenes where it brought none.

As a program it makes all of them, while the first parts use the GPU; who wants them meanwhile waits.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from processes import started

HERE = Path(__file__).resolve().parent
CARRIED = HERE / "carried"
sys.path.append(str(HERE.parents[1] / "pipelines"))


def shards_for_speed(work: Path, *, few: bool) -> tuple[Path, str]:
    """(shards of photographs of some 640 x 480, where they are from): 2,048 images, each photograph many times."""
    with _alone(work / ".speed.lock"):
        return _shards_for_speed(work, few)


def imagenette(work: Path, *, few: bool) -> tuple[Path, Path, Path, int, str]:
    """(shards to train from, labelled images that vote, and that are judged, images in the shards, where they are from)."""
    with _alone(work / ".imagenette.lock"):
        return _imagenette(work, few)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _shards_for_speed(work: Path, few: bool) -> tuple[Path, str]:
    photographs = sorted((CARRIED / "photographs").glob("*.jpg"))
    folder, shards = work / "speed", work / "speed-shards"
    if not (shards / "manifest.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if photographs:
            for number in range(64 if few else 2048):
                shutil.copy(photographs[number % len(photographs)], folder / f"{number:05d}.jpg")
        else:
            from demo_images import write_scenes

            write_scenes(folder, per_class=4 if few else 170, seed=0, by_class=False)
        _mine(folder, shards, "naive", 64)
    return shards, "carried photographs" if photographs else "drawn scenes"


def _imagenette(work: Path, few: bool) -> tuple[Path, Path, Path, int, str]:
    train, val = CARRIED / "imagenette" / "train", CARRIED / "imagenette" / "val"
    if train.is_dir() and val.is_dir() and not few:
        source = "Imagenette, 128 px, as carried"
    else:
        train, val, source = work / "drawn" / "train", work / "drawn" / "val", "drawn scenes of six classes"
        if not (drawn := work / "drawn" / "done").exists():  # it may have been cut off before
            from demo_images import write_scenes

            shutil.rmtree(work / "drawn", ignore_errors=True)
            write_scenes(train, per_class=6 if few else 400, seed=1, by_class=True)
            write_scenes(val, per_class=3 if few else 100, seed=2, by_class=True)
            drawn.touch()
    shards = work / ("learning-shards-drawn" if train.parent.name == "drawn" else "learning-shards")
    if not (shards / "manifest.json").exists():
        try:
            _mine(train, shards, "selective-search" if _has("numba") else "naive", 32)
        except subprocess.CalledProcessError:  # a numba that does not go with this numpy; it has said so
            shutil.rmtree(shards, ignore_errors=True)
            _mine(train, shards, "naive", 32)
    # Who votes is read three times a run: some of them are enough to tell one network from another.
    voting = work / f"voting-{train.parent.name}"
    for folder in sorted(train.iterdir()):
        (voting / folder.name).mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir())[:200]:
            if not (goal := voting / folder.name / path.name).exists():
                shutil.copy(path, work / "half")
                (work / "half").replace(goal)  # whole or not at all
    manifest = json.loads((shards / "manifest.json").read_text())
    return shards, voting, val, manifest["totals"]["samples"], f"{source}; boxes: {manifest['parameters'].get('proposals')}"


def _has(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def _mine(images: Path, shards: Path, proposals: str, least: int) -> None:
    command = [sys.executable, "-m", "univip_stream", "mine", "--inline", "--src", str(images), "--out", str(shards)]
    command += ["--num-shards", "8", "--proposals", proposals, "--min-scale", str(least)]
    if status := started(command).wait():
        raise subprocess.CalledProcessError(status, command)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    arguments = parser.parse_args()
    os.nice(10)
    shards_for_speed(arguments.work, few=False)
    imagenette(arguments.work, few=False)
