"""`univip_stream.evaluate` of a detector around a run's backbone."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from univip_stream.api.progress import duration
from univip_stream.api.running import CommonConfig, line_printer, reading_workers
from univip_stream.boxes import UPRIGHT
from univip_stream.distributed import Process, pick_device
from univip_stream.errors import UsageError, counted
from univip_stream.evaluation.detection.data import DetectionSet, read_coco, read_voc
from univip_stream.evaluation.detection.models import MODELS
from univip_stream.evaluation.detection.protocol import SCHEDULES, DetectionProtocol, detect, rate_for, voc
from univip_stream.evaluation.subject import open_subject

_PROGRESS_EVERY = 5.0
"""Seconds between two progress lines."""


@dataclass(frozen=True, kw_only=True)
class Detect(CommonConfig):
    """A detector around the backbone, fine-tuned and scored by pycocotools: on COCO's files, or on a VOCdevkit."""

    train_json: str | Path | None = None
    """COCO's annotations of the images to learn from."""
    train_images: str | Path | None = None
    """Their folder."""
    val_json: str | Path | None = None
    """COCO's annotations of the images to judge by."""
    val_images: str | Path | None = None
    """Their folder."""
    voc: str | Path | None = None
    """A VOCdevkit instead: trainval of 2007 and 2012, judged by test 2007."""
    box_frame: str = UPRIGHT
    """For photographs that EXIF turns: whether boxes are in the upright picture or in the pixels as stored."""
    model: str | None = None
    """A name of `MODELS`; None is mask-rcnn, and faster-rcnn on VOC."""
    schedule: str | None = None
    """1x, 2x or 6x: 90, 180 or 540 thousand iterations."""
    iterations: int | None = None
    """Any other number; the steps of the learning rate move with it."""
    batch_size: int | None = None
    """Images of an update, over all ranks; None is 16."""
    rate: float | None = None
    """Peak learning rate; None is 0.02 x batch / 16, half of it for retinanet."""
    sides: tuple[int, ...] = ()
    """Short sides that training draws from, pixels; testing uses the last; none is 640 to 800."""
    seed: int = 0
    """Decides every random choice."""
    save_every: int = 2500
    """Iterations between two states beside `out` that a killed job goes on from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is not None and self.model not in MODELS:
            raise UsageError(f"model is {self.model!r}; expected one of {', '.join(MODELS)}")
        if self.schedule is not None and self.schedule not in SCHEDULES:
            raise UsageError(f"schedule is {self.schedule!r}; expected one of {', '.join(SCHEDULES)}")
        if self.schedule is not None and self.iterations is not None:
            raise UsageError("--schedule and --iterations both say how long to train; expected one of them")
        for name, least in (("iterations", 1), ("batch_size", 1), ("save_every", 1), ("workers", 0), ("max_pixels", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} is {value}; expected at least {least}")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise UsageError(f"--lr is {self.rate}; expected a number above 0")
        if not all(32 <= side <= 8192 for side in self.sides):
            raise UsageError(f"sides are {self.sides}; expected 32 to 8192 pixels")
        coco = (self.train_json, self.train_images, self.val_json, self.val_images)
        if self.voc is not None and any(coco):
            raise UsageError("--voc and COCO's files are both given; expected one of them")
        if self.voc is None and not all(coco):
            raise UsageError("expected --train-json, --train-images, --val-json and --val-images, or --voc")


def detected(config: Detect, quiet: bool) -> Callable[[Process], dict[str, Any]]:
    """Open all that a detector is trained and scored with, and return what does it on a process."""
    train, val = _sets(config)
    train.max_pixels = val.max_pixels = config.max_pixels
    given: dict[str, Any] = {
        "model": config.model, "iterations": config.iterations or (SCHEDULES[config.schedule] if config.schedule else None),
        "batch_size": config.batch_size, "sides": config.sides or None, "seed": config.seed,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    protocol = voc(**given) if config.voc else DetectionProtocol(**given)
    protocol = replace(protocol, rate=config.rate or rate_for(protocol.model, protocol.batch_size))
    subject = open_subject(config.run)
    say = line_printer(quiet)
    say(
        f"{protocol.model} from {config.run}: {len(train)} images, {len(train.categories)} categories; batch "
        f"{protocol.batch_size}, rate {protocol.rate:g}, {counted(protocol.iterations, 'iteration')}; judged by "
        f"{counted(len(val), 'image')}"
    )
    for note in dict.fromkeys([*train.notes, *val.notes]):
        say(note)

    def judged(process: Process) -> dict[str, Any]:
        try:
            return detect(
                subject, train, val, protocol, out=None if config.out is None else Path(config.out),
                save_every=config.save_every, workers=reading_workers(config.workers), device=pick_device(config.device, process),
                process=process, max_failures=config.max_failures, progress=_progress(protocol.iterations, say), say=say,
            )  # fmt: skip
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UsageError(
                f"a batch of {protocol.batch_size} images with a short side of {min(protocol.sides)} px leaves batch normalisation "
                "a single value; expected a larger --batch-size or --short-side"
            ) from error

    return judged


def _progress(iterations: int, say: Callable[[str], None]) -> Callable[[int, float], None]:
    """What is called with (iteration, loss), and says now and then how far it is."""
    began, last_said = time.monotonic(), 0.0
    first: int | None = None

    def progress(iteration: int, loss: float) -> None:
        nonlocal last_said, first
        first = iteration - 1 if first is None else first
        now = time.monotonic()
        if now - last_said >= _PROGRESS_EVERY or iteration == iterations:
            last_said = now
            left = (iterations - iteration) * (now - began) / (iteration - first)
            say(f"iteration {iteration}/{iterations}  loss {loss:.3f}  {duration(left)} left")

    return progress


def _sets(config: Detect) -> tuple[DetectionSet, DetectionSet]:
    if config.voc is not None:
        devkit = Path(config.voc)
        train = read_voc(devkit, [("2007", "trainval"), ("2012", "trainval")], box_frame=config.box_frame)
        return train, read_voc(devkit, [("2007", "test")], box_frame=config.box_frame)
    pairs = ((config.train_json, config.train_images), (config.val_json, config.val_images))
    first, second = (read_coco(Path(str(file)), Path(str(folder)), box_frame=config.box_frame) for file, folder in pairs)
    return first, second
