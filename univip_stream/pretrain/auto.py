"""The recipe `auto`: settings from the images and the machine, each with its reason.

The rules are told in docs/reference/auto.md, with where their numbers come from. `choose` is a pure function of what it is given;
what a step takes is measured by `pace`.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from univip_stream.errors import UsageError, counted
from univip_stream.pretrain.config import FEWEST_MEASURED

FULL_SIZE = 224
"""Side of the paper's scene views, pixels; its instances have 96 of it."""
PAPERS_EPOCHS = 800
"""On COCO's 118,287 images."""
LEAST_UPDATES = 5_000
"""Fewer seldom change much (docs/how-to/own-photographs.md)."""
CPU_SECONDS = 3600.0
"""How long a run on CPUs is to take where nobody says."""
MEASURED = 256
"""Images that measures without labels look at, at most."""
LEAST_MEASURED = 32
"""Fewer say little of a run, where there are more."""
MEASURING = 0.1
"""Share of a run's time that its measures may take."""
_A_LOOK = 0.5
"""What a look at an image costs, in images of training: five forward passes (it, and four views) of about eleven. An image of
training costs 3.64 of a supervised one (docs/how-to/own-photographs.md), which is a forward pass and a backward one, worth two."""
_MIB = 1 << 20
_BYTES_OF = {"resnet50": 120 * _MIB, "resnet18": 33 * _MIB, "resnet10t": 26 * _MIB}
"""What a network keeps for its gradient, bytes an image: two views of 224 pixels, four instances of 96, bf16 (counted tensors)."""
_FIXED = 1 << 30
"""Weights, gradients, momentum and libraries, bytes."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """What is known of a set of images."""

    count: int
    short_side: int
    """Median of the shorter sides, pixels."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What is known of a machine."""

    device: Literal["cpu", "cuda"]
    memory: int
    """Bytes that a run may use: of the GPU, or of the main memory."""
    cpus: int
    """That this process may use."""
    gpus: int = 1
    """That train together."""


@dataclass(frozen=True)
class ChosenSetting:
    """A setting and why it has its value."""

    key: str
    value: str
    """As after --set."""
    why: str

    @property
    def text(self) -> str:
        """Return the choice as `--set` takes it."""
        return f"{self.key}={self.value}"


def choose(
    images: Images, machine: Machine, *, seconds: float | None = None, rate: Callable[[list[str]], float] | None = None
) -> list[ChosenSetting]:
    """Choose network, resolution, batch, learning rate and length.

    Args:
        images: that are trained on.
        machine: that trains.
        seconds: that the run may take; None is an hour on CPUs, and the paper's number of epochs on GPUs.
        rate: measures the images a second that a step with these settings makes; None where the length is not to depend on it.

    Raises:
        UsageError: fewer than two images, or not a moment's time.

    """
    if images.count < 2:
        raise UsageError(f"{counted(images.count, 'image')}: too few to train on")
    if seconds is not None and seconds < 1:
        raise UsageError(f"--time of {seconds:g} s; expected at least a second, such as 30m or 2h")
    on_gpu = machine.device == "cuda"
    made: list[ChosenSetting] = []

    def add(key: str, value: object, why: str) -> None:
        made.append(ChosenSetting(key, str(value).lower() if isinstance(value, bool) else str(value), why))

    backbone, why = _network(images, on_gpu)
    add("method.backbone", backbone, why)
    scene, why = _side(images, on_gpu)
    add("views.scene_size", scene, why)
    instance = max(32, round(scene * 96 / FULL_SIZE / 32) * 32)
    add("views.instance_size", instance, "the paper's share of a scene, 96 of 224, in multiples of 32")
    if images.short_side < 192:
        add(
            "views.min_scale",
            32,
            f"half of the paper's 64 px, because images of {images.short_side} px have few such overlaps",
        )
    batch, parts, why = _batch(images, machine, backbone, scene, instance)
    add("stream.batch_size", batch, why)
    if parts > 1:
        add("accumulate", parts, f"in {parts} parts, which fit {machine.memory / (1 << 30):.0f} GiB")
    if on_gpu:
        add("optim.lr", f"{0.2 * batch / 256:g}", f"the paper's 0.2 for 256 images, for {batch}")
        add("ema", 0.99, "the paper's")
    else:
        add("method.hidden", 512, "narrow heads: on a CPU the paper's 4,096 cost more than this network")
        add("method.width", 128, "as the heads")
        add(
            "optim.lr",
            f"{0.04 * batch / 256:g}",
            "the best of ten tried with such a network (docs/results.md), for this batch",
        )
        add("ema", 0.996, "the best of those")
    workers = min(8, max(1, machine.cpus // machine.gpus - 1)) if machine.cpus > 1 else 0
    add("stream.workers", workers, f"of {counted(machine.cpus, 'CPU')}")
    _length(add, made, images, batch, on_gpu, seconds, rate)
    return made


def _network(images: Images, on_gpu: bool) -> tuple[str, str]:
    if not on_gpu:
        return "resnet10t", "small enough for CPUs"
    if images.count < 10_000:
        return "resnet18", "a quarter of ResNet-50's cost, for under 10,000 images"
    return "resnet50", "the paper's"


def _side(images: Images, on_gpu: bool) -> tuple[int, str]:
    if not on_gpu:
        return 64, "small scenes: on a CPU, more images seen are worth more than more pixels (docs/results.md)"
    side = min(FULL_SIZE, max(64, images.short_side // 32 * 32))
    return side, "the paper's" if side == FULL_SIZE else f"images have {images.short_side} px, in multiples of 32"


def bytes_of_an_image(backbone: str, scene: int, instance: int, *, full_precision: bool) -> int:
    """Return the memory that an image of a batch takes during a step, in bytes: counted at the paper's sizes, scaled by pixels."""
    pixels = (2 * scene**2 + 4 * instance**2) / (2 * FULL_SIZE**2 + 4 * 96**2)
    return math.ceil(_BYTES_OF[backbone] * pixels * (2 if full_precision else 1))


def _batch(images: Images, machine: Machine, backbone: str, scene: int, instance: int) -> tuple[int, int, str]:
    """Images of an update, parts that it is computed in, and why."""
    most = 512 if machine.device == "cuda" else 64
    # Eight updates an epoch, but never so few images that batch statistics are noise.
    floor = 1 << int(math.log2(min(32, images.count)))
    wanted = max(floor, min(most, 1 << max(1, int(math.log2(max(2, images.count / 8))))))
    own = bytes_of_an_image(backbone, scene, instance, full_precision=machine.device == "cpu")
    fitting = max(2, (machine.memory - _FIXED) // own)
    parts = 1
    while wanted / machine.gpus / parts > fitting and wanted / machine.gpus / parts >= 4:
        parts *= 2
    if wanted == most:
        why = "the paper's" if machine.device == "cuda" else "enough statistics for a small network"
    else:
        why = f"eight updates an epoch of {images.count} images, but 32 images at least where there are so many"
    return wanted, parts, why


def _length(
    add: Callable[[str, object, str], None], made: list[ChosenSetting], images: Images, batch: int, on_gpu: bool,
    seconds: float | None, rate: Callable[[list[str]], float] | None,
) -> None:  # fmt: skip
    found = None if rate is None else rate([choice.text for choice in made])
    budget = seconds if seconds is not None else None if on_gpu else CPU_SECONDS
    wanted, why = _papers_length(images)
    if budget is not None and found is not None:
        fitting = budget * found / images.count
        fitting -= _A_LOOK * _looks(images.count, round(fitting * images.count / batch), batch).looked_at / images.count
        if seconds is not None or fitting < wanted:
            why = f"what {_said(budget)} allow at {found:.0f} images a second, measured, with looks at what is learned"
            wanted = min(PAPERS_EPOCHS, fitting)
            if fitting > PAPERS_EPOCHS:
                why = f"the paper's {PAPERS_EPOCHS}; {_said(budget)} would allow {fitting:.0f}"
    epochs = max(float(f"{wanted:.3g}"), 0.01)
    add("epochs", f"{epochs:g}", why)
    add("optim.warmup_epochs", f"{min(4.0, epochs / 10):g}", "the paper's 4, or a tenth of the run")
    updates = max(1, round(epochs * images.count / batch))
    every = max(1, min(1000, round(60 * found / batch))) if found else 100
    add("checkpoint_every", every, "about a minute's steps" if found else "often enough for a stop at any time")
    points = "a hundred points of a curve at least" if updates >= 100 else "as many points of a curve as there are"
    add("record_every", max(1, min(10, updates // 100)), points)
    if images.count < FEWEST_MEASURED:
        return
    looks = _looks(images.count, updates, batch)
    add("measures.images", looks.images, looks.why)
    if looks.images:
        often = counted(looks.times - 1, "time") if looks.times > 2 else "at its end"
        add("measures.every", looks.every, f"{often}, and before the first step")


@dataclass(frozen=True, kw_only=True)
class _Looks:
    """How measures without labels are taken; no images, not at all."""

    images: int
    why: str
    times: int = 0
    every: int = 0
    """Steps from one to the next."""

    @property
    def looked_at(self) -> int:
        return self.images * self.times


def _looks(images: int, updates: int, batch: int) -> _Looks:
    """Look at so many images ten times, or less often, or at fewer, so that it takes no more than its share of the run."""
    if images < FEWEST_MEASURED:
        return _Looks(images=0, why="too few images to say anything")
    measured, affordable = min(MEASURED, images), int(MEASURING * updates * batch / _A_LOOK)
    # One look is before the first step; two are a beginning and an end.
    looks = min(10, updates, affordable // measured - 1)
    if looks >= 1:
        every = math.ceil(updates / looks)
        why = "to say without labels how the features change"
        return _Looks(images=measured, why=why, times=1 + math.ceil(updates / every), every=every)
    few = min(LEAST_MEASURED, measured)
    if affordable // 2 >= few:
        why = f"two looks at more would take over {MEASURING:.0%} of the run"
        return _Looks(images=affordable // 2, why=why, times=2, every=updates)
    return _Looks(images=0, why=f"two looks at {few} would take over {MEASURING:.0%} of so short a run")


def _papers_length(images: Images) -> tuple[float, str]:
    """Passes over the images, by docs/how-to/own-photographs.md's table."""
    if images.count < 10_000:
        least = LEAST_UPDATES * 16 / images.count
        return max(200.0, min(least, float(PAPERS_EPOCHS))), "200 and more, the fewer the images"
    if images.count < 50_000:
        return 400.0, "between small sets' 200 and the paper's 800"
    if images.count < 500_000:
        return float(PAPERS_EPOCHS), "the paper's on COCO"
    return 200.0, "the paper's on ImageNet"


_TIME = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?(?:(\d+(?:\.\d+)?)s)?")


def seconds_of(text: str) -> float:
    """Return the seconds of a time as people write it: 2h, 90m, 1h30m, 45s.

    Raises:
        UsageError: it is something else, or no time at all.

    """
    found = _TIME.fullmatch(text.strip().replace(" ", "").lower())
    hours, minutes, seconds = (float(part or 0) for part in found.groups()) if found else (0.0, 0.0, 0.0)
    total = 3600 * hours + 60 * minutes + seconds
    if not 1 <= total < 1e9:
        raise UsageError(f"--time {text!r}; expected a time such as 2h, 90m or 1h30m")
    return total


def _said(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes:02d} min" if minutes else f"{hours} h"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"
