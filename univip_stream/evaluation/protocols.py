"""The protocols from a run to numbers: what is frozen, what is read, what comes out."""

from pathlib import Path
from typing import Any

from univip_stream.distributed import ALONE, pick_device
from univip_stream.errors import InputError
from univip_stream.networks import Backbone
from univip_stream.pretrain import load_backbone
from univip_stream.probe.features import Features, extract
from univip_stream.probe.knn import KnnConfig, accuracy, chance, classify
from univip_stream.probe.labelled import LabelledSource, open_labelled


def knn_protocol(
    run: Path,
    train: str,
    val: str,
    config: KnnConfig,
    *,
    image_size: int | None = None,
    batch_size: int = 64,
    device: str = "auto",
    untrained: bool = False,
) -> dict[str, Any]:
    """Weighted kNN on frozen features (Wu et al. 2018): no epochs, no optimizer, no augmentation.

    Args:
        run: run folder or checkpoint.
        train: labelled images that vote, a folder of class folders or shards.
        val: labelled images to classify, of the same classes.
        config: how many vote, and how.
        image_size: side of the centre crop in pixels; None is the run's scene size.
        batch_size: images a forward pass.
        device: auto, cpu, cuda or cuda:N.
        untrained: also score the network as it was before training.

    Returns:
        top1, chance (naming the most frequent class), classes, train_images, val_images, k, image_size, run, and with
        `untrained` the same network's top1 before training.

    """
    backbone, settings = load_backbone(run)
    reference, queries = open_labelled(train), open_labelled(val)
    if unknown := sorted(queries.classes - reference.classes):
        raise InputError(
            f"{val} has classes that {train} has not: {', '.join(unknown[:5])}{' ...' if len(unknown) > 5 else ''}; "
            f"they share {len(queries.classes & reference.classes)}"
        )
    size = image_size or settings.views.scene_size
    where = pick_device(device, ALONE)

    def features(network: Backbone, images: LabelledSource) -> Features:
        return extract(network, images, size=size, batch_size=batch_size, device=where)

    def top1(network: Backbone) -> float:
        known, asked = features(network, reference), features(network, queries)
        return accuracy(classify(known.vectors_ND, known.labels, asked.vectors_ND, config), asked.labels)

    result: dict[str, Any] = {
        "protocol": "knn",
        "run": str(run),
        "top1": top1(backbone),
        "chance": chance(queries.labels),
        "classes": len(reference.classes),
        "train_images": len(reference.labels),
        "val_images": len(queries.labels),
        "k": min(config.k, len(reference.labels)),
        "temperature": config.temperature,
        "image_size": size,
    }
    if untrained:
        result["untrained"] = {"top1": top1(load_backbone(run, untrained=True)[0])}
    return result
