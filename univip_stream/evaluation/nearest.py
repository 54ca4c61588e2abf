"""kNN on frozen features: no epochs, no optimizer, no augmentation."""

from pathlib import Path
from typing import Any

import torch

from univip_stream.distributed import ALONE, Place
from univip_stream.evaluation.embedding import features
from univip_stream.evaluation.subject import Subject
from univip_stream.probe.knn import KnnConfig, accuracy, chance, classify
from univip_stream.probe.labelled import LabelledSource, same_classes


def knn(
    subject: Subject,
    train: LabelledSource,
    val: LabelledSource,
    config: KnnConfig,
    *,
    cache: Path,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device,
    place: Place = ALONE,
) -> dict[str, Any]:
    """Weighted kNN (Wu et al. 2018, arXiv:1805.01978, section 3.4): frozen backbone, central crops, `train` votes on `val`.

    Args:
        subject: what is judged.
        train: labelled images that vote.
        val: labelled images to classify, of the same classes.
        config: how many vote, and how.
        cache: folder for features.
        batch_size: images a forward pass.
        workers: processes that read images.
        device: where the backbone runs.
        place: this process among those that work together.

    Returns:
        top1, chance (naming the most frequent class), and what was done.

    """
    same_classes(train, val)
    known, asked = (
        features(subject, source, cache, batch_size=batch_size, workers=workers, device=device, place=place)
        for source in (train, val)
    )
    return {
        **subject.facts(train=train, val=val),
        "protocol": "knn",
        "top1": accuracy(classify(known, train.labels, asked, config), val.labels),
        "chance": chance(val.labels),
        "classes": len(train.classes),
        "train_images": len(train),
        "val_images": len(val),
        "k": min(config.k, len(train)),
        "temperature": config.temperature,
    }
