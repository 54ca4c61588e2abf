"""Linear classification on frozen features: the paper's Table 1, and the top-1 of Tables 7 to 9.

Shape letters: N images, B of a batch, D width of a feature, R learning rates tried at once, C classes.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from univip_stream.augment import AugmentConfig, augment, normalised
from univip_stream.distributed import ALONE, Process, in_parallel
from univip_stream.errors import UsageError
from univip_stream.evaluation.embedding import features
from univip_stream.evaluation.heads import Heads, LayerHeads, Tally, loss_of
from univip_stream.evaluation.layers import LAYERS, LayerFeatures, has_stages
from univip_stream.evaluation.partial import Partial
from univip_stream.evaluation.split import hold_out
from univip_stream.evaluation.subject import Subject
from univip_stream.evaluation.used import collapsed, unreadable, used_images
from univip_stream.failures import MAX_FAILURES, Failure
from univip_stream.networks import synchronise_batchnorm
from univip_stream.probe.crops import CentreCrop, RandomCrop, batches, lit, require_readable
from univip_stream.probe.knn import chance
from univip_stream.probe.labelled import LabelledSource, same_classes

FLIP_ONLY = AugmentConfig(jitter_p=0.0, grey_p=0.0, blur_p=(0.0, 0.0), solarize_p=(0.0, 0.0))
"""Random resized crop and flip, nothing else."""
ORL_AUGMENT = AugmentConfig(
    jitter_p=1.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.0, grey_p=0.0, blur_p=(0.0, 0.0), solarize_p=(0.0, 0.0)
)
"""Crop, flip and ORL's colour jitter .4 .4 .4 0."""


@dataclass(frozen=True, kw_only=True)
class LinearProtocol:
    """A linear probe: one linear layer is trained on the pooled output of a backbone, always frozen and in evaluation mode."""

    name: str
    """Name in messages and files."""
    source: str
    """Publication that the numbers come from."""
    epochs: int
    """Passes over the training images."""
    batch_size: int = 256
    """Images per update, over all ranks."""
    rates: tuple[float, ...]
    """Peak learning rates at a batch of 256, each for its own classifier; they are scaled with the batch size."""
    milestones: tuple[float, ...] | None = None
    """Shares of the run after which the rate falls to a tenth; None is a cosine to 0."""
    weight_decay: float = 0.0
    """Weight decay of the classifier."""
    nesterov: bool = True
    """Whether the momentum of 0.9 is Nesterov's."""
    normalise: bool = False
    """Standardise features over the batch, without learnt scale and shift."""
    augment: AugmentConfig | None = FLIP_ONLY
    """Augmentation of training images after a random resized crop; None: central crops, whose features are computed once."""
    lighting: float = 0.0
    """Standard deviation of AlexNet's lighting noise on training images; 0 for none."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Interpolation with which images are resized, for training and judging; central crops for `features` are bilinear."""
    layers: bool = False
    """Whether there is a classifier on each depth of a ResNet (`layers.LAYERS`), always normalised; the last is the result."""


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        LinearProtocol(
            name="byol",
            source="BYOL, arXiv:2006.07733, appendix C.1: 80 epochs at batch 1024, SGD with Nesterov momentum, cosine, no weight "
            "decay, random resized crop and flip, bicubic, the best of five rates on held-out images. For the paper's ImageNet "
            "models. Different here: ten images of each class are held out, BYOL has 10,009 of its own; and they are not "
            "learnt from after the choice either",
            epochs=80, batch_size=1024, rates=(0.05, 0.1, 0.2, 0.3, 0.4), interpolation="bicubic",
        ),
        LinearProtocol(
            name="orl",
            source="ORL, arXiv:2106.11952, r50_multihead_28ep: a classifier on each of conv1, res2 to res5 after average pooling "
            "(8,192 features at res5 of a ResNet-50) and affine-free batch normalisation; 28 epochs, rate 0.01 divided by ten "
            "after 8, 16 and 24, weight decay 1e-4, Nesterov, crop, flip, jitter, lighting. The paper's COCO models. Different "
            "here: a last batch that is not full is left out, where ORL fills it; the result is res5's, where some tables print "
            "the best layer's",
            epochs=28, rates=(0.01,), milestones=(8 / 28, 16 / 28, 24 / 28), weight_decay=1e-4, normalise=True,
            augment=ORL_AUGMENT, lighting=0.1, layers=True,
        ),
        LinearProtocol(
            name="orl-last",
            source="ORL's r50_last, MoCo's setting (arXiv:1911.05722, section 4.1): 100 epochs, rate 30 divided by ten after 60 "
            "and 80, no weight decay, random resized crop and flip. Different here: the last epoch's result, where ORL's tables "
            "print the best epoch's",
            epochs=100, rates=(30.0,), milestones=(0.6, 0.8), nesterov=False,
        ),
        LinearProtocol(
            name="features",
            source="ours: central crops, features made once, so that it costs one pass; for small sets and quick looks",
            epochs=100, rates=(0.01, 0.03, 0.1, 0.3, 1.0), normalise=True, augment=None,
        ),
    )
}  # fmt: skip
"""Linear probes by name."""


def protocol_for(subject: Subject) -> str:
    """Return the name of the paper's protocol for the network's training data; `features` if the paper has none.

    For COCO that is ORL's, on all depths of a ResNet; a network without its stages has ORL's other one, on the pooled output.
    """
    recipe = subject.config.recipe
    of_coco = "orl" if has_stages(subject.backbone) else "orl-last"
    return of_coco if recipe.startswith("coco") else "byol" if recipe.startswith("imagenet") else "features"


def linear(
    subject: Subject,
    train: LabelledSource,
    val: LabelledSource,
    protocol: LinearProtocol,
    *,
    cache: Path,
    out: Path | None = None,
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device,
    process: Process = ALONE,
    max_failures: str = MAX_FAILURES,
    progress: Callable[[int, int], None] = lambda epoch, epochs: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train a linear classifier for each rate at once, choose the rate on held-out training images, and judge by `val`.

    A protocol with one rate has nothing to choose: nothing is held out, and it learns from all images.

    Args:
        subject: network to judge.
        train: labelled images to learn from; if there are several rates, some of each class are held out to choose by.
        val: labelled images to judge by, of the same classes.
        protocol: settings of the probe.
        cache: folder that keeps features computed once.
        out: file of the result; a state beside it lets a killed job continue after its last epoch.
        seed: seed of the draw, the order, the crops and the classifiers.
        batch_size: images per forward pass without training.
        workers: processes that read images.
        device: device of the network.
        process: this process among those that work together.
        max_failures: images of each source that may be unreadable, a share or a number; they are left out.
        progress: called after each epoch with its number, from 1, and the number of epochs.
        say: called with lines for people.

    Returns:
        top1, top5 and rate of the best; all rates with their top1 on held-out images (None if there are none) and on
        validation images; `layers`, if the protocol has them, each with the rate that is best on it; chance; what was done. With
        layers, top1, top5 and rate are those of the last, res5, because the best one would be chosen by `val`.

    Raises:
        UsageError: the protocol has layers, and the network no stages.
        InputError: the sources cannot be judged, or there are more unreadable images than allowed.

    """
    same_classes(train, val)
    if protocol.batch_size % process.world_size:
        raise UsageError(
            f"a batch of {protocol.batch_size} does not split over {process.world_size} ranks; expected a divisor"
        )
    network: nn.Module = subject.backbone
    if protocol.layers:
        network = LayerFeatures(subject.backbone.eval(), subject.size, subject.config.method.backbone)
    sources = {"train": train, "val": val}
    made: dict[str, Tensor] = {}
    failed: dict[str, dict[int, Failure]] = {}
    for name, source in sources.items():
        if protocol.augment is None:
            kept = features(
                subject, source, cache, max_failures=max_failures,
                batch_size=batch_size, workers=workers, device=device, process=process,
            )  # fmt: skip
            made[name], failed[name] = torch.from_numpy(kept.vectors_ND), kept.failed
        else:
            failed[name] = unreadable(source, np.arange(len(source)), workers=workers, process=process, say=say)
    used = used_images(train, val, failed["train"], failed["val"], max_failures=max_failures)
    if protocol.augment is None:
        used.notes.extend(collapsed(made["train"][used.train].numpy()))
    several = len(protocol.rates) > 1
    learn, choose = hold_out(used.train, train.numbers[used.train], seed) if several else (used.train, used.train[:0])
    facts = {
        **subject.facts(train=train, val=val), **used.facts(), "protocol": "linear", "linear": asdict(protocol), "seed": seed,
        "held_out": len(choose), "classes": len(train.classes),
    }  # fmt: skip
    classes_of = {"train": torch.from_numpy(train.numbers), "val": _numbers_in(val, train.classes)}
    torch.manual_seed(seed)
    heads: Heads | LayerHeads
    if isinstance(network, LayerFeatures):
        heads = LayerHeads(network.shapes, len(train.classes), len(protocol.rates))
    else:
        heads = Heads(subject.backbone.width, len(train.classes), len(protocol.rates), normalise=protocol.normalise)
    heads.to(device)
    if process.world_size > 1:
        synchronise_batchnorm(heads, device.type)
    # A set of fewer images than a batch is one smaller batch; up to 256 the rates are as they are.
    batch = min(protocol.batch_size, max(len(learn), 256))
    groups = heads.groups([rate * batch / 256 for rate in protocol.rates], protocol.weight_decay)
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=protocol.nesterov)
    batches_of: _FeatureBatches
    if protocol.augment is None:
        batches_of = _StoredBatches(
            made, classes_of, learn, device=device, process=process, batch_size=protocol.batch_size, seed=seed
        )
    else:
        batches_of = _FreshBatches(
            subject, network, sources, classes_of, learn, protocol, device=device, process=process,
            batch_size=protocol.batch_size, workers=workers, seed=seed,
        )  # fmt: skip
    partial = Partial(out, json.dumps(facts, sort_keys=True))
    first = 0
    if (state := partial.load()) is not None:
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        first = int(state["step"])
        say(f"continues after epoch {first} of {protocol.epochs}")
    model = in_parallel(heads, process, device)
    for epoch in range(first, protocol.epochs):
        for count, (vectors, classes) in enumerate(batches_of.training(epoch)):
            share = (epoch + count / batches_of.steps) / protocol.epochs
            for group in optimizer.param_groups:
                group["lr"] = rate_at(group["peak"], share, protocol.milestones)
            loss = loss_of(model(vectors), classes)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
        progress(epoch + 1, protocol.epochs)
        if process.is_first:
            partial.save(step=epoch + 1, heads=heads.state_dict(), optimizer=optimizer.state_dict())
    heads.eval()
    rates = len(protocol.rates)
    diverged = {number % rates for number, weight in enumerate(heads.weights) if not weight.isfinite().all()}
    if diverged:
        named = ", ".join(f"{protocol.rates[number]:g}" for number in sorted(diverged))
        used.notes.append(f"the classifiers of the rates {named} diverged: their weights are not finite; try smaller ones")
    held_out = _judged(heads, batches_of.judging("train", choose), process).top1() if several else []
    judged = _judged(heads, batches_of.judging("val", used.val), process)
    if process.is_first:
        partial.clear()
    rows = [
        {"rate": rate, "held_out_top1": held, "top1": one, "top5": five}
        for rate, held, one, five in zip(
            protocol.rates * (len(heads.weights) // rates), held_out if several else [None] * len(heads.weights),
            judged.top1(), judged.top5(), strict=True,
        )
    ]  # fmt: skip
    chosen = [int(np.argmax(held_out[at : at + rates])) if several else 0 for at in range(0, len(rows), rates)]
    best: list[dict[str, Any]] = [rows[layer * rates + number] for layer, number in enumerate(chosen)]
    named_layers = {"layers": dict(zip(LAYERS, best, strict=True))} if protocol.layers else {}
    return {
        **facts,
        "top1": best[-1]["top1"],
        "top5": best[-1]["top5"],
        "rate": best[-1]["rate"],
        "chosen_by": "top1 on held-out training images" if several else "nothing: there is one rate",
        "rates": rows[-rates:],
        **named_layers,
        "chance": chance([val.labels[number] for number in used.val]),
    }


def rate_at(peak: float, share: float, milestones: tuple[float, ...] | None, fall: float = 0.1) -> float:
    """Return the learning rate when `share` of the run is done: a cosine to 0, or times `fall` after each milestone."""
    if milestones is None:
        return peak * (1 + math.cos(math.pi * share)) / 2
    return peak * fall ** sum(share >= milestone for milestone in milestones)


def _numbers_in(source: LabelledSource, classes: list[str]) -> Tensor:
    process = {label: number for number, label in enumerate(classes)}
    return torch.tensor([process[label] for label in source.labels])


@torch.inference_mode()
def _judged(heads: Heads | LayerHeads, parts: Any, process: Process) -> Tally:
    tally = Tally(len(heads.weights))
    for vectors, classes in parts:
        tally.add(heads(vectors), classes)
    return tally.over_ranks(heads.weights[0].device, process)


class _FeatureBatches:
    """Batches of features for training and judging."""

    def __init__(self, learn: np.ndarray, *, device: torch.device, process: Process, batch_size: int, seed: int) -> None:
        self.learn, self.device, self.process, self.seed = learn, device, process, seed
        self.size = min(batch_size // process.world_size, len(learn) // process.world_size)
        self.steps = max(1, len(learn) // (self.size * process.world_size))

    def order(self, epoch: int) -> np.ndarray:
        """Return this rank's images of an epoch in order, full batches only."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, 1 << 40 | epoch]))
        mixed = rng.permutation(self.learn)[: self.steps * self.size * self.process.world_size]
        return mixed.reshape(self.steps, self.process.world_size, self.size)[:, self.process.rank].ravel()


class _StoredBatches(_FeatureBatches):
    """Batches of features that were computed once."""

    def __init__(self, made: dict[str, Tensor], classes: dict[str, Tensor], learn: np.ndarray, **more: Any) -> None:
        super().__init__(learn, **more)
        self.made, self.classes = made, classes

    def training(self, epoch: int) -> Any:
        order = torch.from_numpy(self.order(epoch))
        for part in torch.split(order, self.size):  # type: ignore[no-untyped-call]
            yield self.made["train"][part].to(self.device), self.classes["train"][part].to(self.device)

    def judging(self, name: str, numbers: np.ndarray) -> Any:
        mine = torch.from_numpy(numbers[self.process.rank :: self.process.world_size])
        for part in torch.split(mine, 4096):  # type: ignore[no-untyped-call]
            yield self.made[name][part].to(self.device), self.classes[name][part].to(self.device)


class _FreshBatches(_FeatureBatches):
    """Batches of features of newly drawn crops: one pass of the backbone serves all rates."""

    def __init__(
        self,
        subject: Subject,
        network: nn.Module,
        sources: dict[str, LabelledSource],
        classes: dict[str, Tensor],
        learn: np.ndarray,
        protocol: LinearProtocol,
        *,
        workers: int,
        **more: Any,
    ) -> None:
        super().__init__(learn, **more)
        self.subject, self.sources, self.classes, self.workers = subject, sources, classes, workers
        assert protocol.augment is not None
        self.protocol, self.config = protocol, subject.with_own_statistics(protocol.augment)
        self.network = network.to(self.device).eval()

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        found: Tensor = self.network(images).float()
        return found

    def training(self, epoch: int) -> Any:
        how, size = self.protocol, self.subject.size
        crop = RandomCrop(
            size, self.config, seed=self.seed, epoch=epoch, interpolation=how.interpolation, lighting=how.lighting
        )
        parts = batches(self.sources["train"], self.order(epoch), crop, batch_size=self.size, workers=self.workers)
        for crops in require_readable(parts):
            draws = crops.draws.to(self.device)
            images = augment(crops.images.to(self.device), draws, self.config)
            if how.lighting:
                images = lit(images, draws[:, -3:], self.config.std)
            yield self._features(images), self.classes["train"][crops.numbers].to(self.device)

    def judging(self, name: str, numbers: np.ndarray) -> Any:
        mine = numbers[self.process.rank :: self.process.world_size]
        crop = CentreCrop(self.subject.size, self.protocol.interpolation)
        for crops in require_readable(batches(self.sources[name], mine, crop, batch_size=self.size, workers=self.workers)):
            images = normalised(crops.images.to(self.device), self.subject.config.augment)
            yield self._features(images), self.classes[name][crops.numbers].to(self.device)
