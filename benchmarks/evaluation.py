"""What a linear probe over five learning rates costs, beside one pass of the backbone and one classifier, in one run.

Each round makes features of all training images once, then trains one classifier on them, then five side by side; seconds, medians
over rounds. The ratio is (pass + five classifiers) / (pass + one).

    python benchmarks/evaluation.py [--images 400] [--size 96] [--rounds 3]
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from univip_stream.evaluation.linear import PROTOCOLS, linear
from univip_stream.evaluation.subject import Subject
from univip_stream.methods import UniVIPConfig
from univip_stream.networks import build_backbone
from univip_stream.pretrain import PretrainConfig
from univip_stream.probe.features import extract
from univip_stream.probe.labelled import LabelledSource

CLASSES = 10


def draw(folder: Path, images: int) -> None:
    """Noise with a colour for each class."""
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        (folder / str(label)).mkdir(parents=True)
        colour = rng.uniform(60, 200, 3)
        for at in range(images // CLASSES):
            picture = np.clip(colour + rng.normal(0, 60, (160, 200, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / str(label) / f"{label}-{at}.jpg"), picture)


def seconds(work) -> float:
    """Of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    config = PretrainConfig(method=UniVIPConfig(backbone="resnet50"))
    subject = Subject(run="drawn", backbone=build_backbone("resnet50").eval(), config=config, size=args.size)
    device = torch.device("cpu")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        draw(folder / "train", args.images)
        draw(folder / "val", args.images // 4)
        train, val = LabelledSource(str(folder / "train")), LabelledSource(str(folder / "val"))
        five = PROTOCOLS["features"]
        one = type(five)(**{**five.__dict__, "rates": five.rates[:1]})

        def probe(protocol, cache: Path) -> None:
            linear(subject, train, val, protocol, cache=cache, device=device)

        kept = folder / "kept"
        probe(one, kept)  # the features of both sources are there from now on
        taken: dict[str, list[float]] = {"pass": [], "one": [], "five": []}
        for _ in range(args.rounds):
            taken["pass"].append(
                seconds(
                    lambda: extract(
                        subject.backbone, train, size=args.size, pixels=subject.config.augment, batch_size=64, device=device
                    )
                )
            )
            taken["one"].append(seconds(lambda: probe(one, kept)))
            taken["five"].append(seconds(lambda: probe(five, kept)))
    median = {name: statistics.median(values) for name, values in taken.items()}
    print(
        f"resnet50, {args.images} training images of {args.size} px, {five.epochs} epochs of the classifiers, {args.rounds} rounds"
    )
    print(
        f"one pass of the backbone {median['pass']:.2f} s; one classifier {median['one']:.2f} s; five {median['five']:.2f} s"
    )
    ratio = (median["pass"] + median["five"]) / (median["pass"] + median["one"])
    print(f"five rates cost {ratio:.2f} of one pass and one classifier (aim: at most 1.2)")


if __name__ == "__main__":
    main()
