"""Steps that are timed: a run's own `Updates`, fed from memory."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from part import Part

from univip_stream import transport
from univip_stream.distributed import ALONE
from univip_stream.methods import build_method, build_plan
from univip_stream.pretrain.config import PretrainConfig
from univip_stream.pretrain.optim import build_optimizer
from univip_stream.pretrain.pace import random_batch
from univip_stream.pretrain.recipes import recipe
from univip_stream.pretrain.settings import with_settings
from univip_stream.pretrain.train import pick_precision
from univip_stream.pretrain.update import Updates
from univip_stream.stream import Batch

_EAGER = transport._sinkhorn_by_plans
ORDINARY = 844
"""Images a second that published ResNet-50 rates allow an ordinary trainer of UniVIP on one H200 (docs/log.md)."""
GOALS = {"univip": 2000, "byol": 4000}
"""Images a second that we want of one H100: UniVIP with ResNet-50 and 2 x 224 + 4 x 96, BYOL with ResNet-18 and 2 x 128."""


def config_of(*settings: str) -> PretrainConfig:
    """The recipe `coco` with settings over it."""
    return with_settings(recipe("coco"), list(settings))


def updates_of(config: PretrainConfig, device: torch.device, compiled: str = "") -> Updates:
    """A run's step. `compiled`: "" not, "whole", "backbones" (each network's backbone by itself), "transport" (Eq. 7 alone:
    many small kernels of an eager step), or one of them and a mode of `torch.compile`."""
    torch.manual_seed(0)
    plan = build_plan(config.method, config.views, config.augment)
    method = build_method(config.method, plan)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    method.to(device, memory_format=layout)
    what, _, mode = compiled.partition(" ")
    model: Any = method
    # Code for a CPU takes minutes to generate: there the graphs run as they are.
    how: dict[str, Any] = {"mode": mode or None} if device.type == "cuda" else {"backend": "eager"}
    if what == "whole":
        model = torch.compile(method, **how)
    elif what == "backbones":
        for network in (method.online, getattr(method, "target", None)):
            if network is not None:
                network.backbone.compile(dynamic=False, **how)
    transport._sinkhorn_by_plans = torch.compile(_EAGER, dynamic=False, **how) if what == "transport" else _EAGER
    updates = Updates(
        method, model, method, build_optimizer(method, config.optim), accumulate=config.accumulate,
        precision=pick_precision(config.precision, device)[0], config=config.augment, regions=plan.regions,
        device=device, process=ALONE, run=Path(tempfile.mkdtemp()), channels_last=config.channels_last,
    )  # fmt: skip
    updates.compiled = what in ("whole", "backbones")  # the augmentations with it, as in a run
    return updates


def step_of(updates: Updates, batches: Iterator[Batch]) -> None:
    """One update, as a run makes it between two looks."""
    updates.gradient(batches, 0)
    updates.apply(1e-3, 0.99)
    updates._unseen.clear()


def rate(part: Part, config: PretrainConfig, compiled: str = "", *, steps: int = 10) -> dict[str, Any]:
    """Images a second of a step fed from pinned memory, median of three rounds, and seconds of the first step."""
    part.forget()
    updates = updates_of(config, part.device, compiled)
    batches = itertools.repeat(random_batch(config, part.device))
    start = time.perf_counter()
    step_of(updates, batches)
    part.wait()
    first = time.perf_counter() - start
    steps, rounds = (1, 1) if part.rehearse else (steps, 3)
    for _ in range(1 if part.rehearse else 3):
        step_of(updates, batches)
    part.wait()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(steps):
            step_of(updates, batches)
        launched = time.perf_counter() - start
        part.wait()
        taken.append(time.perf_counter() - start)
    seconds = statistics.median(taken) / steps
    images = config.stream.batch_size / seconds
    return {
        "images_per_second": round(images, 1), "of_goal": round(images / GOALS[config.method.name], 3),
        **({"of_ordinary": round(images / ORDINARY, 3)} if config.method.name == "univip" else {}),
        "step_ms": round(1e3 * seconds, 2),
        "host_ms": round(1e3 * launched / steps, 2), "first_step_s": round(first, 1),
        "precision": str(updates.precision).removeprefix("torch."), **part.peak(),
    }  # fmt: skip


def fitting(part: Part, config: PretrainConfig, work: Callable[[PretrainConfig], dict[str, Any]]) -> dict[str, Any]:
    """What `work` finds with a batch that fits the device's memory: the config's, or half of it as often as need be."""
    while True:
        batch = config.stream.batch_size
        try:
            return work(config) | {"batch": batch}
        except torch.OutOfMemoryError as error:
            if batch <= 16:
                raise
            print(f"   a batch of {batch} does not fit: {str(error).splitlines()[0]}", flush=True)
        part.forget()  # out here, where the error holds no tensors any more
        config = replace(config, stream=replace(config.stream, batch_size=batch // 2))


def small(config: PretrainConfig) -> PretrainConfig:
    """The same for a rehearsal."""
    return replace(
        config,
        method=replace(config.method, backbone="test_resnet", hidden=16, width=8),
        views=replace(config.views, scene_size=64, instance_size=32),
        stream=replace(config.stream, batch_size=4, workers=min(config.stream.workers, 1)),
    )
