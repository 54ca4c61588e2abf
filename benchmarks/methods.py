"""What a step of every method costs beside BYOL's: same images, same backbone, views and heads of each paper.

Prints milliseconds a step, the ratio to BYOL's, trained parameters and pixels that go through a network for each image, medians
over rounds that alternate among the methods. The step is forward, backward, optimizer and moving average; augmentation is in it,
reading is not. Without --shards it draws images and mines them with random boxes.

    python benchmarks/methods.py [--shards shards/] [--backbone resnet18] [--batch-size 8] [--rounds 5]
"""

import argparse
import itertools
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch

from univip_stream.distributed import ALONE
from univip_stream.methods import METHODS, build_method, build_plan, method_class
from univip_stream.methods.orl.pairs import pairs_table, regions_of
from univip_stream.mining import MiningConfig, mine
from univip_stream.pretrain.optim import build_optimizer
from univip_stream.pretrain.recipes import recipe
from univip_stream.pretrain.settings import with_settings
from univip_stream.pretrain.update import Updates
from univip_stream.shards import expand_shards, open_index
from univip_stream.stream import Stream


def drawn_shards(folder: Path) -> Path:
    """Sixteen images of coloured rectangles, mined with random boxes."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for at in range(16):
        image = np.full((480, 640, 3), rng.integers(0, 255, 3), np.uint8)
        for x, y, w, h in rng.integers(0, 300, (12, 4)):
            image[y : y + h, x : x + w] = rng.integers(0, 255, 3)
        cv2.imwrite(str(folder / "images" / f"{at:02d}.jpg"), image)
    mine(MiningConfig(sources=(folder / "images",), out=folder / "shards", num_shards=1, proposals="naive", inline=True))
    return folder / "shards"


def some_pairs(shards: str, path: Path) -> Path:
    """Pairs of regions by chance: what they are changes no cost."""
    index = open_index(expand_shards(shards))
    others = [(at, (at + 1) % len(index)) for at in range(len(index))]
    rows = [(one, two, np.concatenate([regions_of(index, at)[:1] for at in (one, two)], axis=1)) for one, two in others]
    pq.write_table(pairs_table(index, rows, {}), path)
    return path


class Trained:
    """One method, ready to step."""

    def __init__(self, name: str, shards: str, pairs: Path, args: argparse.Namespace, scratch: Path):
        settings = [f"{key}={json.dumps(value)}" for key, value in method_class(name).settings.items()]
        settings += [
            f"method.name={name}",
            f"method.backbone={args.backbone}",
            f"stream.batch_size={args.batch_size}",
            "stream.workers=0",
        ]
        settings += [f"views.pairs={pairs}"] if name == "orl" else []
        config = with_settings(recipe("coco"), settings)
        plan = build_plan(config.method, config.views, config.augment)
        stream = Stream(shards, plan, config.stream)
        method = build_method(config.method, plan).to(memory_format=torch.channels_last)
        self.batches = itertools.repeat(next(iter(stream)))
        self.updates = Updates(
            method, method, method, build_optimizer(method, config.optim), accumulate=1, precision=torch.float32,
            config=config.augment, regions=plan.regions, device=torch.device("cpu"), process=ALONE, run=scratch,
        )  # fmt: skip
        self.trained = sum(parameter.numel() for parameter in method.online_parameters())
        self.inputs: list[int] = []
        self._count_pixels(method)
        self.seconds: list[float] = []

    def _count_pixels(self, method: torch.nn.Module) -> None:
        """Pixels that go through any backbone in one step, noted at its first convolution."""
        for module in method.modules():
            if isinstance(module, torch.nn.Conv2d) and module.in_channels == 3:
                module.register_forward_pre_hook(
                    lambda _, x: self.inputs.append(x[0].shape[0] * x[0].shape[2] * x[0].shape[3])
                )

    def step(self) -> None:
        self.inputs.clear()
        began = time.perf_counter()
        self.updates.gradient(self.batches, 0)
        self.updates.look(threading.Event())
        self.updates.apply(0.01, 0.99)
        self.seconds.append(time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", nargs="*", help="only these, and byol")
    args = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shards = args.shards or str(drawn_shards(folder))
        pairs = some_pairs(shards, folder / "pairs.parquet")
        methods = {name: Trained(name, shards, pairs, args, folder) for name in args.methods or METHODS}
        for round_ in range(args.rounds + 1):
            for method in methods.values():
                method.step()
                if round_ == 0:
                    method.seconds.clear()  # allocations and the like
    reference = methods["byol"].seconds
    print(f"{args.backbone}, {args.batch_size} images a step, fp32, {args.rounds} rounds, {torch.get_num_threads()} threads")
    print(f"{'method':10} {'ms a step':>10} {'of BYOL':>8} {'trained':>9} {'kilopixels an image':>20}")
    for name, method in sorted(methods.items(), key=lambda item: statistics.median(item[1].seconds)):
        seconds = statistics.median(method.seconds)
        kilopixels = sum(method.inputs) / args.batch_size / 1000
        ratio = statistics.median(own / byol for own, byol in zip(method.seconds, reference, strict=True))
        print(f"{name:10} {1000 * seconds:10.0f} {ratio:7.2f}x {method.trained / 1e6:8.1f}M {kilopixels:20.0f}")


if __name__ == "__main__":
    main()
