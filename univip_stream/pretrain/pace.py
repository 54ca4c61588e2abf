"""How many images a second a run's own step makes, fed from memory: measured before the run begins, for recipe `auto`."""

import itertools
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from univip_stream.augment import draw
from univip_stream.distributed import ALONE
from univip_stream.methods import build_method, build_plan
from univip_stream.pretrain.config import PretrainConfig
from univip_stream.pretrain.hardware import pick_precision
from univip_stream.pretrain.optim import build_optimizer
from univip_stream.pretrain.update import Updates
from univip_stream.stream import Batch

_STEPS = 3
"""Steps that are timed, after one that is not."""


def images_per_second(config: PretrainConfig, device: torch.device) -> float:
    """Images a second of a step: augmentation, forward, backward and update. What reading costs comes beside it, in workers."""
    generator = torch.get_rng_state()
    try:
        updates = _updates(config, device)
        batches = itertools.repeat(random_batch(config, device))
        taken = []
        for _ in range(_STEPS + 1):
            began = time.perf_counter()
            updates.gradient(batches, 0)
            updates.apply(0.0, 1.0)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - began)
    finally:
        torch.set_rng_state(generator)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return config.stream.batch_size / statistics.median(taken[1:])


def random_batch(config: PretrainConfig, device: torch.device) -> Batch:
    """Make a batch of random pixels, in the form that the stream gives."""
    images, plan = config.stream.batch_size // config.accumulate, build_plan(config.method, config.views, config.augment)
    rng = np.random.default_rng(0)

    def pixels(*shape: int) -> torch.Tensor:
        side = shape[-1]
        return torch.from_numpy(rng.integers(0, 256, (*shape[:-1], side, side, 3), np.uint8)).movedim(-1, -3)

    def draws(*shape: int) -> torch.Tensor:
        rows = [draw(rng, config.augment, number % 2) for number in range(int(np.prod(shape)))]
        return torch.from_numpy(np.stack(rows).reshape(*shape, -1))

    own = {name: cut for name, cut in plan.cuts.items() if not cut.again}
    batch = Batch(
        cuts=plan.cuts,
        pixels={name: pixels(*cut.layout(images), cut.size) for name, cut in own.items()},
        draws={name: draws(*cut.layout(images)) for name, cut in plan.cuts.items()},
        windows={name: torch.zeros(*cut.layout(images), 4, dtype=torch.int32) for name, cut in own.items()},
        facts={name: torch.zeros(images, *shape) for name, shape in plan.facts.items()},
        filled=torch.zeros(images, dtype=torch.int32), positions=torch.arange(images), keys=[""] * images,
        sources=[""] * images, labels=[None] * images, skipped=[],
    )  # fmt: skip
    return batch.pin_memory() if device.type == "cuda" else batch


def _updates(config: PretrainConfig, device: torch.device) -> Updates:
    plan = build_plan(config.method, config.views, config.augment)
    method = build_method(replace(config.method, pretrained=False), plan)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    method.to(device, memory_format=layout)  # type: ignore[call-overload]
    return Updates(
        method, method, method, build_optimizer(method, config.optim), accumulate=config.accumulate,
        precision=pick_precision(config.precision, device)[0], config=config.augment, regions=plan.regions,
        device=device, process=ALONE, run=Path(tempfile.gettempdir()), channels_last=config.channels_last,
    )  # fmt: skip
