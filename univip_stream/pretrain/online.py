"""kNN on labelled images while a run trains: the progress signal that losses without labels are not."""

import numpy as np
import torch
from torch import nn

from univip_stream.augment import AugmentConfig
from univip_stream.failures import MAX_FAILURES, Failure, listed, stop_if_too_many
from univip_stream.pretrain.config import OnlineKnnConfig
from univip_stream.probe.crops import look_through
from univip_stream.probe.features import extract
from univip_stream.probe.knn import KnnConfig, accuracy, classify
from univip_stream.probe.labelled import LabelledSource, same_classes

_BATCH = 64
_NO_CHOICE = "They are knn.train or knn.val, looked at while the run trains."


class OnlineKnn:
    """Opens both sources and reads every image once, so that what is wrong with them shows before the first step.

    Args:
        config: which images, and how often.
        size: side of the centre crop, pixels.
        pixels: of the training: its mean and standard deviation.

    Raises:
        InputError: sources without labels, or of other classes, or more unreadable images than `mine` allows of its own.

    """

    def __init__(self, config: OnlineKnnConfig, size: int, pixels: AugmentConfig) -> None:
        self.reference, self.queries = LabelledSource(str(config.train)), LabelledSource(str(config.val))
        same_classes(self.reference, self.queries)
        self.config, self.size, self.pixels = KnnConfig(k=config.k), size, pixels
        self.failed: list[Failure] = []
        """Images of both that cannot be read: neither do they vote nor are they judged."""
        for source in (self.reference, self.queries):
            failed = list(look_through(source, np.arange(len(source)), workers=0).values())
            stop_if_too_many(
                failed, seen=len(source), images=len(source), allowed=MAX_FAILURES, where=source.name, advice=_NO_CHOICE
            )
            self.failed += failed

    def notes(self) -> list[str]:
        """Return what a person should know before the first number."""
        found = [f"knn: {note}" for source in (self.reference, self.queries) for note in source.notes]
        if self.failed:
            found.append("\n".join(["knn: these images cannot be read and are left out:", *listed(self.failed, 10)]))
        if shared := len(self.reference.places & self.queries.places):
            found.append(
                f"knn: {shared} of the {len(self.queries)} images of knn.val are images of knn.train too: they are known by heart"
            )
        return found

    def top1(self, backbone: nn.Module, device: torch.device) -> float:
        """Return the share of the queries that their neighbours name rightly, 0 to 1. The backbone is left as it was.

        An image that can no longer be read is left out and named in `failed`: a training does not stop for it.
        """
        training = backbone.training
        try:
            known, asked = (
                extract(backbone, images, size=self.size, pixels=self.pixels, batch_size=_BATCH, device=device)
                for images in (self.reference, self.queries)
            )
        finally:
            backbone.train(training)
        self.failed = known.failed + asked.failed
        return accuracy(classify(known.vectors_ND, known.labels, asked.vectors_ND, self.config), asked.labels)
