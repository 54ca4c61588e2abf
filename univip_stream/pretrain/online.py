"""kNN on labelled images while a run trains: the progress signal that losses without labels are not."""

import torch
from torch import nn

from univip_stream.pretrain.config import OnlineKnnConfig
from univip_stream.probe.features import extract
from univip_stream.probe.knn import KnnConfig, accuracy, classify
from univip_stream.probe.labelled import LabelledSource, same_classes

_BATCH = 64


class OnlineKnn:
    """Opens both sources once, so that what is wrong with them shows before the first step.

    Args:
        config: which images, and how often.
        size: side of the centre crop, pixels.

    Raises:
        InputError: sources without labels, or of other classes.

    """

    def __init__(self, config: OnlineKnnConfig, size: int) -> None:
        self.reference, self.queries = LabelledSource(str(config.train)), LabelledSource(str(config.val))
        same_classes(self.reference, self.queries)
        self.config, self.size = KnnConfig(k=config.k), size

    def top1(self, backbone: nn.Module, device: torch.device) -> float:
        """Share of the queries that their neighbours name rightly, 0 to 1. The backbone is left as it was."""
        training = backbone.training
        try:
            known, asked = (
                extract(backbone, images, size=self.size, batch_size=_BATCH, device=device)
                for images in (self.reference, self.queries)
            )
        finally:
            backbone.train(training)
        return accuracy(classify(known.vectors_ND, known.labels, asked.vectors_ND, self.config), asked.labels)
