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

from univip_stream.distributed import ALONE, Process, in_parallel, mean_over_ranks
from univip_stream.errors import InputError, UsageError
from univip_stream.evaluation.detection.batches import DetectionItems, training_batches, transposed
from univip_stream.evaluation.detection.data import DetectionSet
from univip_stream.evaluation.detection.models import build_detector, first_label, has_masks
from univip_stream.evaluation.detection.score import average_precision, detections
from univip_stream.evaluation.detection.voc import voc_precision
from univip_stream.evaluation.partial import Partial
from univip_stream.evaluation.subject import Subject
from univip_stream.evaluation.used import gathered
from univip_stream.failures import MAX_FAILURES, Failure, as_json, stop_if_too_many
from univip_stream.networks import synchronise_batchnorm
from univip_stream.workers import loaded

SCHEDULES = {"1x": 90_000, "2x": 180_000, "6x": 540_000}
"""Iterations at batch 16 (Detectron2's; the paper's Tables 2, 3 and 5)."""


@dataclass(frozen=True, kw_only=True)
class DetectionProtocol:
    """Detectron2's and MoCo's COCO protocol (arXiv:1911.05722, section 4.2): nothing frozen, SGD with momentum 0.9 and weight decay
    1e-4, none on normalisations, rate 0.02 at batch 16 (RetinaNet 0.01), divided by ten twice, linear warm-up, horizontal flips,
    short side drawn from 640 to 800 pixels, batch normalisation over all ranks in backbone, pyramid and heads (`build_detector`).

    Before scoring, the statistics of all normalisations are measured anew on 200 batches (Detectron2's TEST.PRECISE_BN, which
    ORL and MoCo have on).

    Not Detectron2's: images of one batch are not grouped by shape; images without objects are learnt from; box losses are smooth
    L1 with a bend at 1/9, Detectron2's are L1; with a pyramid, regions are pooled with four samples a cell and half a pixel off
    (torchvision's MultiScaleRoIAlign), box and mask layers begin as torchvision's, and 2,000 proposals an image are learnt from,
    not 1,000; RetinaNet divides the loss of each image by its own objects, not all by a moving mean, finds 300 objects an image,
    not 100, and has anchors of whole pixels. So compare these numbers with each other; for those of the tables there is
    `export backbone --format detectron2`."""

    model: str = "mask-rcnn"
    """One of `MODELS`."""
    iterations: int = SCHEDULES["1x"]
    """Updates."""
    batch_size: int = 16
    """Images per update, over all ranks."""
    rate: float = 0.02
    """Peak learning rate for this batch size; `rate_for` gives Detectron2's."""
    milestones: tuple[float, ...] | None = None
    """Shares of the run after which the rate falls to a tenth; VOC: 18k and 22k of 24k. None is Detectron2's: 60k and 80k of 90k,
    and in runs of more than 180k the last 60k and 20k iterations (its 3x and 9x configurations)."""
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
    precise: int = 200
    """Batches that statistics are measured anew on before scoring; never more than a tenth of the run's iterations."""
    seed: int = 0
    """Seed of new layers, order and flips."""

    def rate_at(self, iteration: int) -> float:
        """Return the learning rate of an iteration, counted from 0."""
        warmup = min(self.warmup, self.iterations // 10)
        warm = 1e-3 + (1 - 1e-3) * iteration / warmup if iteration < warmup else 1.0
        return self.rate * warm * 0.1 ** sum(iteration >= at for at in self.falls())

    def falls(self) -> tuple[float, ...]:
        """Return the iterations from which on the rate is a tenth of what it was."""
        if self.milestones is not None:
            return tuple(share * self.iterations for share in self.milestones)
        if self.iterations > SCHEDULES["2x"]:
            return self.iterations - 60_000, self.iterations - 20_000
        return self.iterations * 2 / 3, self.iterations * 8 / 9

    def measured(self) -> int:
        """Return the batches that statistics are measured on before scoring."""
        return min(self.precise, self.iterations // 10)


def voc(**changes: Any) -> DetectionProtocol:
    """Return the protocol for VOC07+12: Faster R-CNN, 24k iterations, rate falls after 18k and 22k, warm-up of 100, short side 480
    to 800 (MoCo's, whose network is faster-rcnn-c4; here it has a feature pyramid unless `model` says so)."""
    settings = {
        "model": "faster-rcnn",
        "iterations": 24_000,
        "milestones": (18 / 24, 22 / 24),
        "warmup": 100,
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
        `bbox` and, for Mask R-CNN, `segm`: COCO's AP and its parts, 0 to 1; for VOC also `voc`, its own AP; the losses of the
        first and the last tenth; what was done; and the images left out (of the training images, only those that were drawn).

    Raises:
        InputError: the sets do not fit each other or the model; there are more unreadable images than allowed; a loss is not
            finite.

    """
    _check(train, val, protocol, process)
    masks = has_masks(protocol.model)
    facts = {
        **subject.facts(), "protocol": "detect", "detect": asdict(protocol) | {"falls": protocol.falls()},
        "train": train.facts(), "val": val.facts(),
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
    parts = training_batches(
        train, seed=protocol.seed, batch_size=protocol.batch_size, first=first, last=protocol.iterations + protocol.measured(),
        workers=workers, process=process, masks=masks,
    )  # fmt: skip
    for iteration in range(first, protocol.iterations):
        images, targets, met = next(parts)
        bad |= met
        _stop_if_hopeless(bad, train, max_failures)
        # The detectors use torch's generator to draw the side of an image and the boxes to learn from.
        torch.manual_seed((protocol.seed * 1_000_003 + iteration) * process.world_size + process.rank)
        loss: Tensor = sum(model(*_on(device, images, targets, label)).values())  # type: ignore[assignment]
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
    # Further batches of the same order; a run that was killed here measures anew from its last state.
    bad |= _measure(network, model, parts, protocol, label, device)
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
        **({"voc": voc_precision(val, found, without=bad_val)} if val.is_voc else {}),
        "used": {"train": len(train) - len(bad), "val": len(val) - len(bad_val)},
        "failed": {"train": as_json(bad.values()), "val": as_json(bad_val.values())},
        "notes": _notes(train, val),
        "detections": len(found),
        "loss_first": float(np.mean(losses[:tenth])),
        "loss_last": float(np.mean(losses[-tenth:])),
    }


def _on(device: torch.device, images: Any, targets: Any, label: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return images of 0 to 1 and targets as the detectors take them, on the device."""
    on = [{**{k: v.to(device) for k, v in t.items()}, "labels": t["labels"].to(device) + label} for t in targets]
    return [image.to(device).float() / 255 for image in images], on


@torch.no_grad()
def _measure(
    network: nn.Module, model: nn.Module, parts: Iterator[Any], protocol: DetectionProtocol, label: int, device: torch.device
) -> dict[int, Failure]:
    """Give every normalisation the mean of its statistics over further batches; return the images that cannot be read."""
    bad: dict[int, Failure] = {}
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm)] if protocol.measured() else []
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean of all batches since
    for _ in range(protocol.measured()):
        images, targets, met = next(parts)
        bad |= met
        model(*_on(device, images, targets, label))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    return bad


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
    if has_masks(protocol.model):
        for known in (train, val):
            if not known.has_masks:
                raise InputError(
                    f"{known.name} has objects without an outline; expected `segmentation`s for {protocol.model}, or --model "
                    f"{protocol.model.replace('mask', 'faster')}"
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
    loader = loaded(DetectionItems(known, masks=None), workers=workers, batch_sampler=numbers, collate_fn=transposed)
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
