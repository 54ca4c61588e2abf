"""Semi-supervised classification: train the whole network on the few images that have labels. The paper's Table 6.

Shape letters: B images of a batch.
"""

import copy
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from univip_stream.augment import augment, normalised
from univip_stream.distributed import ALONE, Process, in_parallel
from univip_stream.errors import InputError, UsageError
from univip_stream.evaluation.heads import Tally
from univip_stream.evaluation.linear import FLIP_ONLY, rate_at
from univip_stream.evaluation.partial import Partial
from univip_stream.evaluation.split import fraction_of, hold_out, listed
from univip_stream.evaluation.subject import Subject
from univip_stream.evaluation.used import unreadable, used_images
from univip_stream.failures import MAX_FAILURES
from univip_stream.networks import synchronise_batchnorm
from univip_stream.probe.crops import CentreCrop, RandomCrop, batches, require_readable
from univip_stream.probe.knn import chance
from univip_stream.probe.labelled import LabelledSource, same_classes


@dataclass(frozen=True, kw_only=True)
class FinetuneProtocol:
    """ORL's semi-supervised protocol (arXiv:2106.11952, its configurations): nothing frozen, SGD with momentum 0.9, random resized
    crop and flip, SyncBN over the ranks; every rate of the backbone with every multiplier of the head's rate. Our addition is how a
    pair is chosen: on held-out labelled images, after which the chosen pair trains once more, on all of them."""

    epochs: int = 20
    """Passes over the labelled images."""
    batch_size: int = 256
    """Images per update, over all ranks; all labelled images if there are fewer."""
    rates: tuple[float, ...] = (0.1, 0.01, 0.001)
    """Learning rates of the backbone."""
    multipliers: tuple[float, ...] = (1.0, 10.0, 100.0)
    """Factors from the backbone's to the head's learning rate."""
    milestones: tuple[float, ...] = (0.6, 0.8)
    """Shares of the run after which the rate falls (12 and 16 of 20 epochs)."""
    fall: float = 0.2
    """Factor of each fall."""
    weight_decay: float = 5e-4
    """Weight decay: 5e-4 for 1 % of ImageNet, 1e-4 for 10 %."""


def protocol_for(share: float, **changes: Any) -> FinetuneProtocol:
    """Return the protocol for a share of labels: weight decay 5e-4 for less than 5 %, else 1e-4."""
    return FinetuneProtocol(weight_decay=5e-4 if share < 0.05 else 1e-4, **changes)


def finetune(
    subject: Subject,
    train: LabelledSource,
    val: LabelledSource,
    share: float,
    protocol: FinetuneProtocol,
    *,
    subset: Path | None = None,
    out: Path | None = None,
    seed: int = 0,
    workers: int = 0,
    device: torch.device,
    process: Process = ALONE,
    max_failures: str = MAX_FAILURES,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Fine-tune on a share of the labelled images, and judge by `val`.

    Each pair of rates is tried with some images held out; the pair that is best on these then trains on all of the share. If
    there is one pair, nothing is chosen and nothing held out.

    Args:
        subject: network to judge.
        train: labelled images, of which `share` are used.
        val: labelled images to judge by, of the same classes.
        share: share of each class's labels that is used, 0 to 1.
        protocol: settings of the fine-tuning.
        subset: list of the images to use instead of a draw (SimCLR's).
        out: file of the result; a state beside it lets a killed job continue after its last pair.
        seed: seed of the draw, the order and the crops.
        workers: processes that read images.
        device: device of the network.
        process: this process among those that work together.
        max_failures: images that may be unreadable, of those with labels and of `val` each; they are left out.
        say: called with a line for each pair.

    Returns:
        top1 and top5 of the network trained on all labelled images; the pairs, each with its top1 on held-out images (empty
        if there was one pair); chance; what was done.

    Raises:
        InputError: the sources cannot be judged, or there are more unreadable images than allowed.

    """
    same_classes(train, val)
    if not 0 < share <= 1:
        raise UsageError(f"--fraction is {share:.2%}; expected more than 0 and at most 100%")
    asked = listed(train, subset) if subset is not None else fraction_of(train, share, seed)
    bad, bad_val = (
        unreadable(source, numbers, workers=workers, process=process, say=say)
        for source, numbers in ((train, asked), (val, np.arange(len(val))))
    )
    used = used_images(train, val, bad, bad_val, max_failures=max_failures, among=asked)
    few = used.train
    pairs = list(itertools.product(protocol.rates, protocol.multipliers))
    learn, choose, chosen_by = _split_to_choose(few, train, len(pairs), seed)
    facts = {
        **subject.facts(train=train, val=val), **used.facts(), "protocol": "finetune", "fraction": share,
        "subset": None if subset is None else str(subset), "finetune": asdict(protocol), "seed": seed,
        "labelled": len(few), "held_out": len(few) - len(learn), "classes": len(train.classes),
    }  # fmt: skip
    partial = Partial(out, json.dumps(facts, sort_keys=True))
    state = partial.load()
    rows: list[dict[str, Any]] = json.loads(state["rows"]) if state else []
    job = _Job(subject, train, val, protocol, seed=seed, workers=workers, device=device, process=process)
    for number, (rate, multiplier) in enumerate(pairs[len(rows) :] if len(pairs) > 1 else [], len(rows) + 1):
        network = job.trained(learn, rate, multiplier)
        right = job.judged(network, train, choose).top1()[0]
        rows.append({"rate": rate, "multiplier": multiplier, "held_out_top1": right, "burst": _has_diverged(network)})
        say(f"{number}/{len(pairs)}: rate {rate:g} x {multiplier:g}  held out {right:.3f}")
        if process.is_first:
            partial.save(step=number, rows=json.dumps(rows))
    rate, multiplier = pairs[int(np.argmax([row["held_out_top1"] for row in rows]))] if rows else pairs[0]
    say(f"training on all {len(few)} labelled images: rate {rate:g} x {multiplier:g}")
    network = job.trained(few, rate, multiplier)
    judged = job.judged(network, val, used.val)
    diverged = [f"{row['rate']:g} x {row['multiplier']:g}" for row in rows if row.get("burst")]
    if _has_diverged(network):
        diverged.append(f"{rate:g} x {multiplier:g}{' on all labels' if rows else ''}")
    if diverged:
        used.notes.append(
            f"with the rates {', '.join(diverged)} the network diverged: its weights are not finite; try smaller ones"
        )
    if process.is_first:
        partial.clear()
    return {
        **facts,
        "top1": judged.top1()[0],
        "top5": judged.top5()[0],
        "rate": rate,
        "multiplier": multiplier,
        "chosen_by": chosen_by,
        "pairs": rows,
        "chance": chance([val.labels[number] for number in used.val]),
    }


def _split_to_choose(few: np.ndarray, train: LabelledSource, pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Return the labelled images that a pair is tried on, those that it is chosen by, and the result's sentence about it."""
    if pairs == 1:
        return few, few[:0], "nothing: there is one pair of rates"
    try:
        return *hold_out(few, train.numbers[few], seed), "top1 on held-out ones"
    except InputError:  # an image or two of each class: all are needed for training, and also used to choose
        return few, few, "top1 on the labelled images themselves, too few to hold any out"


def _has_diverged(network: nn.Module) -> bool:
    """Whether some weights are no longer finite."""
    return not all(value.isfinite().all() for value in network.state_dict().values())


class _Classifier(nn.Module):
    def __init__(self, backbone: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(width, classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.backbone(images))
        return logits


@dataclass
class _Job:
    """Everything that the training runs of all pairs share."""

    subject: Subject
    train: LabelledSource
    val: LabelledSource
    protocol: FinetuneProtocol
    seed: int
    workers: int
    device: torch.device
    process: Process

    def trained(self, learn: np.ndarray, rate: float, multiplier: float) -> _Classifier:
        """Return a copy of the backbone with a new head, trained on the images `learn`."""
        torch.manual_seed(self.seed)
        protocol, ranks = self.protocol, self.process.world_size
        network = _Classifier(copy.deepcopy(self.subject.backbone), self.subject.backbone.width, len(self.train.classes))
        network.requires_grad_(True).to(self.device)
        if ranks > 1:
            synchronise_batchnorm(network, self.device.type)
        model = in_parallel(network, self.process, self.device)
        groups = [
            {"params": list(network.backbone.parameters()), "peak": rate},
            {"params": list(network.head.parameters()), "peak": rate * multiplier},
        ]
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9, weight_decay=protocol.weight_decay)
        size = min(protocol.batch_size // ranks, len(learn) // ranks)
        if size < 2:
            raise InputError(
                f"{len(learn)} labelled images over {ranks} ranks leave less than 2 a rank; batch normalisation needs 2"
            )
        steps = len(learn) // (size * ranks)
        classes = torch.from_numpy(self.train.numbers)
        flip = self.subject.with_own_statistics(FLIP_ONLY)
        model.train()
        for epoch in range(protocol.epochs):
            rng = np.random.Generator(np.random.Philox(key=[self.seed, 1 << 40 | epoch]))
            order = rng.permutation(learn)[: steps * size * ranks].reshape(steps, ranks, size)[:, self.process.rank].ravel()
            crop = RandomCrop(self.subject.size, flip, seed=self.seed, epoch=epoch)
            parts = require_readable(batches(self.train, order, crop, batch_size=size, workers=self.workers))
            for step, crops in enumerate(parts):
                share = (epoch + step / steps) / protocol.epochs
                for group in optimizer.param_groups:
                    group["lr"] = rate_at(group["peak"], share, protocol.milestones, protocol.fall)
                images = augment(crops.images.to(self.device), crops.draws.to(self.device), flip)
                F.cross_entropy(model(images), classes[crops.numbers].to(self.device)).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad()
        return network.eval()

    @torch.inference_mode()
    def judged(self, network: _Classifier, source: LabelledSource, numbers: np.ndarray) -> Tally:
        """Return the counts of right answers on central crops."""
        tally = Tally(1)
        process = {label: number for number, label in enumerate(self.train.classes)}
        classes = torch.tensor([process[label] for label in source.labels])
        mine = numbers[self.process.rank :: self.process.world_size]
        for crops in require_readable(
            batches(source, mine, CentreCrop(self.subject.size), batch_size=64, workers=self.workers)
        ):
            logits = network(normalised(crops.images.to(self.device), self.subject.config.augment))
            # Diverged weights give NaN, which must not count as an answer.
            tally.add(torch.nan_to_num(logits)[None].cpu(), classes[crops.numbers])
        return tally.over_ranks(self.device, self.process)
