"""kNN on frozen features: no epochs, no optimizer, no augmentation."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from univip_stream.distributed import ALONE, Process
from univip_stream.evaluation.embedding import features
from univip_stream.evaluation.subject import Subject
from univip_stream.evaluation.used import collapsed, used_images
from univip_stream.failures import MAX_FAILURES
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
    process: Process = ALONE,
    max_failures: str = MAX_FAILURES,
) -> dict[str, Any]:
    """Judge by kNN (Wu et al. 2018, arXiv:1805.01978, section 3.4): frozen backbone, central crops, `train` votes on `val`.

    Args:
        subject: network to judge.
        train: labelled images that vote.
        val: labelled images to classify, of the same classes.
        config: settings of the vote.
        cache: folder that keeps features.
        batch_size: images per forward pass.
        workers: processes that read images.
        device: device of the backbone.
        process: this process among those that work together.
        max_failures: images of each source that may be unreadable, a share or a number; they are left out.

    Returns:

        top1, chance (naming the most frequent class), what was done, and what was left out.

    Raises:
        InputError: the sources cannot be judged, or there are more unreadable images than allowed.

    """
    same_classes(train, val)
    known, asked = (
        features(
            subject, source, cache, max_failures=max_failures,
            batch_size=batch_size, workers=workers, device=device, process=process,
        )
        for source in (train, val)
    )  # fmt: skip
    used = used_images(train, val, known.failed, asked.failed, max_failures=max_failures)
    voting_ND, labels = known.vectors_ND[used.train], [train.labels[number] for number in used.train]
    judged_QD, truth = asked.vectors_ND[used.val], [val.labels[number] for number in used.val]
    used.notes.extend(_notes(voting_ND, config))
    return {
        **subject.facts(train=train, val=val),
        **used.facts(),
        "protocol": "knn",
        "top1": accuracy(classify(voting_ND, labels, judged_QD, config), truth),
        "chance": chance(truth),
        "classes": len(train.classes),
        "train_images": len(used.train),
        "val_images": len(used.val),
        "k": min(config.k, len(used.train)),
        "temperature": config.temperature,
    }


def _notes(voting_ND: np.ndarray, config: KnnConfig) -> list[str]:
    found = []
    if config.k > len(voting_ND):
        found.append(f"k is {config.k}, but there are only {len(voting_ND)} images: all of them vote")
    return found + collapsed(voting_ND)
