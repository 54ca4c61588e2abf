"""Fine-tune a detector and score it.

Shape letters: N objects of an image.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from univip_stream.distributed import ALONE, Process, in_parallel, mean_over_ranks
from univip_stream.errors import InputError, UsageError
from univip_stream.evaluation.detection.data import DetectionSet
from univip_stream.evaluation.detection.models import build_detector, first_label
from univip_stream.evaluation.detection.score import average_precision, detections
from univip_stream.evaluation.partial import Partial
from univip_stream.evaluation.subject import Subject
from univip_stream.evaluation.used import gathered
from univip_stream.failures import MAX_FAILURES, Failure, as_json, listed, stop_if_too_many
from univip_stream.images import BadImageError
from univip_stream.networks import synchronise_batchnorm
from univip_stream.shards.format import UNREADABLE
from univip_stream.workers import loaded

SCHEDULES = {"1x": 90_000, "2x": 180_000, "6x": 540_000}
"""Iterations at batch 16 (Detectron2's; the paper's Tables 2, 3 and 5)."""


@dataclass(frozen=True, kw_only=True)
class DetectionProtocol:
    """Detectron2's and MoCo's COCO protocol (arXiv:1911.05722, section 4.2): nothing frozen, SGD with momentum 0.9 and weight decay
    1e-4, none on normalisations, rate 0.02 at batch 16 (RetinaNet 0.01), divided by ten twice, linear warm-up, horizontal flips,
    short side drawn from 640 to 800 pixels, batch normalisation over all ranks in backbone, pyramid and heads (`build_detector`).

    Not Detectron2's yet: long schedules, where the rate falls 60 and 20 thousand iterations before the end; VOC's warm-up of 100
    iterations in MoCo; statistics measured anew before scoring (PRECISE_BN in ORL); networks without a pyramid (C4)."""

    model: str = "mask-rcnn"
    """One of `MODELS`."""
    iterations: int = SCHEDULES["1x"]
    """Updates."""
    batch_size: int = 16
    """Images per update, over all ranks."""
    rate: float = 0.02
    """Peak learning rate for this batch size; `rate_for` gives Detectron2's."""
    milestones: tuple[float, ...] = (2 / 3, 8 / 9)
    """Shares of the run after which the rate falls to a tenth: 60k and 80k of 90k. VOC: 18k and 22k of 24k."""
    warmup: int = 1000
    """Iterations of linear warm-up from a thousandth (Detectron2's default); never more than a tenth of the run."""
    sides: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    """Short sides in pixels that training draws from; testing uses the last."""
    longest: int = 1333
    """Maximal pixels of the long side."""
    weight_decay: float = 1e-4
    """Weight decay of all parameters but the normalisations'."""
    norm_decay: float = 0.0
    """Weight decay of scales and shifts of normalisations (Detectron2's SOLVER.WEIGHT_DECAY_NORM)."""
    seed: int = 0
    """Seed of new layers, order and flips."""

    def rate_at(self, iteration: int) -> float:
        """Return the learning rate of an iteration, counted from 0."""
        warmup = min(self.warmup, self.iterations // 10)
        warm = 1e-3 + (1 - 1e-3) * iteration / warmup if iteration < warmup else 1.0
        return self.rate * warm * 0.1 ** sum(iteration >= share * self.iterations for share in self.milestones)


def voc(**changes: Any) -> DetectionProtocol:
    """Return the protocol for VOC07+12: Faster R-CNN, 24k iterations, rate falls after 18k and 22k, short side 480 to 800
    (MoCo's, there with a C4 network, here with a feature pyramid: compare only with our own runs)."""
    settings = {
        "model": "faster-rcnn",
        "iterations": 24_000,
        "milestones": (18 / 24, 22 / 24),
        "sides": tuple(range(480, 801, 32)),
    }
    return DetectionProtocol(**{**settings, **changes})


def detect(
    subject: Subject,
    train: DetectionSet,
    val: DetectionSet,
    protocol: DetectionProtocol,
    *,
    out: Path | None = None,
    save_every: int = 2500,
    workers: int = 2,
    device: torch.device,
    process: Process = ALONE,
    max_failures: str = MAX_FAILURES,
    progress: Callable[[int, float], None] = lambda iteration, loss: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Fine-tune a detector on `train`, from a pre-trained backbone, and score it on `val` with pycocotools.

    Args:

        subject: provides the backbone.
        train: images to learn from.
        val: images to score on, of the same categories.
        protocol: settings of the fine-tuning.
        out: file of the result; a state beside it lets a killed job continue.
        save_every: iterations between two such states.
        workers: processes that read images.
        device: device of the detector.
        process: this process among those that work together.
        max_failures: images of each set that may be unreadable, a share or a number. In training, the next image of the order
            replaces an unreadable one; in scoring, it is left out with its objects.
        progress: called with each iteration's number and loss.
        say: called with lines for people.

    Returns:
        `bbox` and, for Mask R-CNN, `segm`: AP and its parts, 0 to 1; the losses of the first and the last tenth; what was done;
        and the images left out (of the training images, only those that were drawn).

    Raises:
        InputError: the sets do not fit each other or the model; there are more unreadable images than allowed; a loss is not
            finite.

    """
    _check(train, val, protocol, process)
    masks = protocol.model == "mask-rcnn"
    facts = {
        **subject.facts(), "protocol": "detect", "detect": asdict(protocol), "train": train.facts(), "val": val.facts(),
    }  # fmt: skip
    torch.manual_seed(protocol.seed)
    network = build_detector(
        protocol.model, subject, len(train.categories), sides=protocol.sides, longest=protocol.longest
    ).to(device)
    if process.world_size > 1:
        network = synchronise_batchnorm(network, device.type).to(device)
    optimizer = torch.optim.SGD(_groups(network, protocol), lr=protocol.rate, momentum=0.9)
    partial = Partial(out, json.dumps(facts, sort_keys=True))
    first, losses = 0, [0.0] * 0
    bad: dict[int, Failure] = {}
    if (state := partial.load()) is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        first, losses = int(state["step"]), list(state["losses"])
        bad = {int(number): Failure(*failure) for number, failure in json.loads(state.get("failed", "{}")).items()}
        say(f"continues after iteration {first} of {protocol.iterations}")
    model = in_parallel(network, process, device)
    network.train()
    label = first_label(protocol.model)
    parts = _batches(train, protocol, first, workers, process, masks=masks)
    for iteration in range(first, protocol.iterations):
        images, targets, met = next(parts)
        bad |= met
        _stop_if_hopeless(bad, train, max_failures)
        # The detectors use torch's generator to draw the side of an image and the boxes to learn from.
        torch.manual_seed((protocol.seed * 1_000_003 + iteration) * process.world_size + process.rank)
        on = [{**{k: v.to(device) for k, v in t.items()}, "labels": t["labels"].to(device) + label} for t in targets]
        loss: Tensor = sum(model([image.to(device).float() / 255 for image in images], on).values())  # type: ignore[assignment]
        losses.append(float(mean_over_ranks(loss.detach(), process)))
        if not np.isfinite(losses[-1]):
            raise InputError(
                f"the loss of iteration {iteration + 1} is {losses[-1]}, before its update; a smaller --lr usually helps"
                + (", and without the state beside --out it begins anew" if out else "")
            )
        for group in optimizer.param_groups:
            group["lr"] = protocol.rate_at(iteration)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        progress(iteration + 1, losses[-1])
        if (iteration + 1) % save_every:
            continue
        bad = gathered(bad, process)
        if process.is_first:
            partial.save(
                step=iteration + 1, network=network.state_dict(), optimizer=optimizer.state_dict(), losses=losses[-1000:],
                failed=json.dumps(bad),
            )  # fmt: skip
    found, bad_val = _detect_all(network, val, protocol, workers, device, process, max_failures)
    bad, bad_val = gathered(bad, process), gathered(bad_val, process)
    for failed, known in ((bad, train), (bad_val, val)):
        _stop_if_hopeless(failed, known, max_failures)
    if len(bad_val) == len(val):
        raise InputError(f"none of the {len(val)} images of {val.name} can be read")
    if process.is_first:
        partial.clear()
    tenth = max(1, len(losses) // 10)
    kinds = ("bbox", *(["segm"] if masks else []))
    scores = {kind: average_precision(val, found, kind, without=bad_val) for kind in kinds}
    return {
        **facts,
        **scores,
        "used": {"train": len(train) - len(bad), "val": len(val) - len(bad_val)},
        "failed": {"train": as_json(bad.values()), "val": as_json(bad_val.values())},
        "notes": _notes(train, val),
        "detections": len(found),
        "loss_first": float(np.mean(losses[:tenth])),
        "loss_last": float(np.mean(losses[-tenth:])),
    }


def rate_for(model: str, batch_size: int) -> float:
    """Return Detectron2's peak learning rate, in proportion to the batch: 0.02 for 16 images, for RetinaNet 0.01
    (configs/COCO-Detection/retinanet_R_50_FPN_1x.yaml)."""
    return (0.01 if model == "retinanet" else 0.02) * batch_size / 16


def _groups(network: nn.Module, protocol: DetectionProtocol) -> list[dict[str, Any]]:
    """Return the optimizer's parameter groups: the normalisations', and all others."""
    norms = [p for part in network.modules() if isinstance(part, _BatchNorm) for p in part.parameters(recurse=False)]
    of_norms = set(map(id, norms))
    others = [p for p in network.parameters() if id(p) not in of_norms]
    return [
        {"params": others, "weight_decay": protocol.weight_decay},
        {"params": norms, "weight_decay": protocol.norm_decay},
    ]


def _check(train: DetectionSet, val: DetectionSet, protocol: DetectionProtocol, process: Process) -> None:
    ours, theirs = ([category.get("name", category["id"]) for category in known.categories] for known in (train, val))
    if ours != theirs:
        differ = sorted(set(map(str, ours)) ^ set(map(str, theirs)))
        raise InputError(
            f"{train.name} has {len(ours)} categories and {val.name} {len(theirs)}; they differ in "
            f"{', '.join(differ[:5]) or 'their order'}"
        )
    if protocol.model == "mask-rcnn":
        for known in (train, val):
            if not known.has_masks:
                raise InputError(
                    f"{known.name} has objects without an outline; expected `segmentation`s for mask-rcnn, or --model faster-rcnn"
                )
    if protocol.batch_size % process.world_size:
        raise UsageError(
            f"a batch of {protocol.batch_size} does not split over {process.world_size} ranks; expected a multiple"
        )
    if not any(len(known) for known in train.annotations):
        raise InputError(f"{train.name} has no object to learn from")


def _notes(train: DetectionSet, val: DetectionSet) -> list[str]:
    shared = {str(path) for path in train.paths} & {str(path) for path in val.paths}
    if not shared:
        return []
    return [
        f"{len(shared)} of the {len(val)} images of {val.name} are images of {train.name} too: the result says little of images "
        "that were not learnt from"
    ]


def _stop_if_hopeless(failed: dict[int, Failure], known: DetectionSet, max_failures: str) -> None:
    stop_if_too_many(
        list(failed.values()), seen=len(known), images=len(known), allowed=max_failures, where=known.name,
    )  # fmt: skip


class _Images(Dataset[Any]):
    """Items for training: an image, its target, and the failures of unreadable images that it replaces. Items for scoring
    (`masks` is None): an image's number with its pixels or its Failure. Errors are items, because DataLoader would replace
    their message by a worker's traceback."""

    def __init__(self, known: DetectionSet, *, masks: bool | None) -> None:
        self.known, self.masks = known, masks

    def __getitem__(self, item: tuple[int, bool]) -> Any:
        number, flip = item
        if self.masks is None:
            pixels = self._pixels(number)
            return number, pixels if isinstance(pixels, Failure) else torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
        met: dict[int, Failure] = {}
        while isinstance(pixels := self._pixels(number), Failure):
            met[number] = pixels
            number = (number + 1) % len(self.known)
            if number in met:
                return InputError("\n".join([f"no image of {self.known.name} can be read:", *listed(list(met.values()), 10)]))
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
        try:
            target = self.known.target(number, masks=self.masks)
        except Exception as error:
            name = self.known.images[number]["file_name"]
            return InputError(f"{self.known.name}: the objects of {name} cannot be used ({type(error).__name__}: {error})")
        if flip:
            width = image.shape[-1]
            image = image.flip(-1)
            target["boxes"] = torch.stack(
                [width - target["boxes"][:, 2], target["boxes"][:, 1], width - target["boxes"][:, 0], target["boxes"][:, 3]],
                1,
            )
            if self.masks:
                target["masks"] = target["masks"].flip(-1)
        return image, target, met

    def _pixels(self, number: int) -> np.ndarray | Failure:
        try:
            return self.known.pixels(number)
        except InputError as error:
            cause = error.__cause__
            status = cause.status if isinstance(cause, BadImageError) else UNREADABLE
            return Failure(self.known.images[number]["file_name"], status, str(cause or error))


class _Order:
    """Batches of (number of an image, whether it is flipped) for one rank: a pure function of seed and iteration."""

    def __init__(self, count: int, protocol: DetectionProtocol, first: int, process: Process) -> None:
        self.count, self.protocol, self.first, self.process = count, protocol, first, process

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        protocol, epoch, order = self.protocol, -1, np.empty(0, np.int64)
        flips = np.empty(0)
        for iteration in range(self.first, protocol.iterations):
            batch = []
            for at in range(self.process.rank, protocol.batch_size, self.process.world_size):
                turn, where = divmod(iteration * protocol.batch_size + at, self.count)
                if turn != epoch:
                    rng = np.random.Generator(np.random.Philox(key=[protocol.seed, turn]))
                    epoch, order, flips = turn, rng.permutation(self.count), rng.random(self.count)
                batch.append((int(order[where]), bool(flips[where] < 0.5)))
            yield batch

    def __len__(self) -> int:
        return self.protocol.iterations - self.first


def _batches(
    known: DetectionSet, protocol: DetectionProtocol, first: int, workers: int, process: Process, *, masks: bool
) -> Iterator[Any]:
    order: Any = _Order(len(known), protocol, first, process)
    for images, targets, met in loaded(
        _Images(known, masks=masks), workers=workers, batch_sampler=order, collate_fn=_transposed
    ):
        yield images, targets, {number: failure for one in met for number, failure in one.items()}


def _transposed(items: list[Any]) -> Any:
    for item in items:
        if isinstance(item, InputError):
            return item
    return tuple(zip(*items, strict=True))


@torch.inference_mode()
def _detect_all(
    network: nn.Module,
    known: DetectionSet,
    protocol: DetectionProtocol,
    workers: int,
    device: torch.device,
    process: Process,
    max_failures: str,
) -> tuple[list[dict[str, Any]], dict[int, Failure]]:
    """Return the detections of all ranks on all images, and the images of this rank that cannot be read."""
    network.eval()
    numbers = [[(number, False)] for number in range(process.rank, len(known), process.world_size)]
    loader = loaded(_Images(known, masks=None), workers=workers, batch_sampler=numbers, collate_fn=_transposed)
    label = first_label(protocol.model)
    rows: list[dict[str, Any]] = []
    bad: dict[int, Failure] = {}
    for (number,), (image,) in loader:
        if isinstance(image, Failure):
            bad[number] = image
            _stop_if_hopeless(bad, known, max_failures)
            continue
        (found,) = network([image.to(device).float() / 255])
        rows += detections(known, number, {**found, "labels": found["labels"] - label})
    if process.world_size == 1:
        return rows, bad
    everyones: list[Any] = [None] * process.world_size
    dist.all_gather_object(everyones, rows)
    return [row for theirs in everyones for row in theirs], bad
