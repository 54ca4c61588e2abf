"""Training from real shards beside the same step fed from memory: what the stream costs a GPU.

Prints images a second of both and their ratio, medians over rounds that alternate, and the step's rate beside 844 images/s, which
published ResNet-50 rates allow an ordinary trainer on one H200 (docs/log.md).

    python benchmarks/train_gpu.py --shards shards/ --batch-size 512 --workers 14
"""

import argparse
import itertools
import statistics
import tempfile
import threading
import time
from pathlib import Path

import torch

from univip_stream.distributed import ALONE
from univip_stream.methods import build_method, build_plan
from univip_stream.pretrain.optim import build_optimizer
from univip_stream.pretrain.recipes import recipe
from univip_stream.pretrain.settings import with_settings
from univip_stream.pretrain.train import pick_precision
from univip_stream.pretrain.update import Updates
from univip_stream.stream import Stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", help="any spec of shards; without it nothing is measured")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--steps", type=int, default=20, help="a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    if args.shards is None or (args.device == "cuda" and not torch.cuda.is_available()):
        print("nothing measured: it takes a GPU and --shards of real images")
        return
    device = torch.device(args.device)
    settings = [f"stream.batch_size={args.batch_size}", f"stream.workers={args.workers}", *args.set]
    config = with_settings(recipe("coco"), settings)
    plan = build_plan(config.method, config.views, config.augment)
    stream = Stream(args.shards, plan, config.stream, reuse=True)
    method = build_method(config.method, plan)
    method.to(device, memory_format=torch.channels_last)
    model = torch.compile(method) if config.compile else method
    updates = Updates(
        method, model, method, build_optimizer(method, config.optim), accumulate=1,
        precision=pick_precision(config.precision, device)[0], config=config.augment, regions=plan.regions,
        device=device, process=ALONE, run=Path(tempfile.mkdtemp()),
    )  # fmt: skip
    real = iter(stream)
    memory = itertools.repeat(next(real).to(device))
    nobody = threading.Event()

    def rate(batches) -> float:
        """Images a second over a round; the host looks once, at its end."""
        began = time.perf_counter()
        for step in range(args.steps):
            updates.gradient(batches, step)
            updates.apply(1e-3, 0.99)
        updates.look(nobody)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return args.steps * args.batch_size / (time.perf_counter() - began)

    rate(memory)  # kernels are chosen, memory is taken
    rates = {"memory": [], "shards": []}
    for _ in range(args.rounds):
        rates["memory"].append(rate(memory))
        rates["shards"].append(rate(real))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{config.method.backbone}, batch {args.batch_size}, {args.workers} workers, {device}, {updates.precision}")
    print(f"from memory {medians['memory']:8.1f} images/s   {medians['memory'] / 844:.2f} of 844")
    print(f"from shards {medians['shards']:8.1f} images/s   {medians['shards'] / medians['memory']:.2f} of memory")


if __name__ == "__main__":
    main()
