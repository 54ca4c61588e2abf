"""The columns of the paper's tables: which results of `eval` they take, and the paper's protocol in a result's own words."""

from typing import Any

from univip_stream.pretrain.paper import Column

_IMAGES = {"train.images": 1_281_167, "val.images": 50_000, "classes": 1000}
"""ImageNet, as results count it. The labels used of it are counted beside this (Table 6)."""
_RESNET50 = {"backbone": "resnet50", "small_stem": False}
# The protocols themselves are `evaluation`'s, which this file may not import; a test holds these against them.
_PROBES = (
    {
        "linear.name": "orl", "linear.epochs": 28, "linear.batch_size": 256, "linear.rates": [0.01], "image_size": 224,
        "recipe": ("", "coco", "coco-plus"), **_RESNET50, **_IMAGES,
    },
    {
        "linear.name": "byol", "linear.epochs": 80, "linear.batch_size": 1024, "linear.rates": [0.05, 0.1, 0.2, 0.3, 0.4],
        "image_size": 224, "recipe": ("", "imagenet-200", "imagenet-300"), **_RESNET50, **_IMAGES,
    },
)  # fmt: skip


def linear() -> Column:
    """Return top-1 of a linear probe: ORL's of networks trained on COCO, BYOL's of ImageNet's, either of a reference."""
    return Column(name="top-1", value="top1", wanted={"protocol": "linear"}, exact=_PROBES)


_SCHEDULES = {90_000: [60_000, 80_000], 180_000: [120_000, 160_000], 540_000: [480_000, 520_000]}
"""Iterations, and those from which on the rate is a tenth of what it was."""


def detect(name: str, value: str, model: str, iterations: int, *, only: bool = False) -> Column:
    """Return a number of a detector, on COCO; on VOC07+12 if it is VOC's own AP.

    Args:
        name: the column's head.
        value: place of the number in a result.
        model: the detector.
        iterations: the schedule's; results of the other schedules are no numbers of this column.
        only: whether results of any other number of iterations are none either.

    """
    voc = value.startswith("voc")
    # VOC: 5,011 and 11,540 images of trainval, 4,952 of test.
    images = {"train.images": 16_551, "val.images": 4_952} if voc else {"train.images": 118_287, "val.images": 5_000}
    protocol = {
        "detect.iterations": iterations, "detect.falls": [18_000, 22_000] if voc else _SCHEDULES[iterations],
        "detect.batch_size": 16, "detect.rate": 0.01 if model == "retinanet" else 0.02, "detect.warmup": 100 if voc else 1000,
        "detect.sides": [*range(480 if voc else 640, 801, 32)], "detect.longest": 1333, "detect.weight_decay": 1e-4,
        "detect.norm_decay": 0.0, "detect.precise": 200,
    }  # fmt: skip
    wanted: dict[str, Any] = {"protocol": "detect", "detect.model": model}
    if only:
        wanted["detect.iterations"] = iterations
    others = () if voc else tuple(_SCHEDULES.keys() - {iterations})
    exact = {**protocol, **_RESNET50, **images}
    return Column(name=name, value=value, wanted=wanted, never={"detect.iterations": others}, exact=(exact,))


def ap(model: str, iterations: int, *kinds: str) -> tuple[Column, ...]:
    """Return AP of boxes (bbox) or masks (segm), or of both."""
    names = {"bbox": "box AP", "segm": "mask AP"}
    return tuple(detect(names[kind], f"{kind}.AP", model, iterations) for kind in kinds)


def six(model: str, iterations: int) -> tuple[Column, ...]:
    """Return AP, AP50 and AP75 of boxes and of masks."""
    return tuple(
        detect(f"{what} {name}", f"{kind}.{name}", model, iterations)
        for kind, what in (("bbox", "box"), ("segm", "mask"))
        for name in ("AP", "AP50", "AP75")
    )


def fraction(share: float, value: str) -> Column:
    """Return top1 or top5 after fine-tuning on a share of ImageNet's labels."""
    labelled = round(share * _IMAGES["train.images"])
    protocol = {
        "labelled": range(labelled * 99 // 100, labelled * 101 // 100),  # a draw of ours rounds class by class
        "finetune.epochs": 20, "finetune.batch_size": 256, "finetune.rates": [0.1, 0.01, 0.001],
        "finetune.multipliers": [1, 10, 100], "finetune.weight_decay": 5e-4 if share < 0.05 else 1e-4, "image_size": 224,
    }  # fmt: skip
    return Column(
        name=f"{share:.0%} top-{value[-1]}", value=value, wanted={"protocol": "finetune", "fraction": share},
        exact=({**protocol, **_RESNET50, **_IMAGES},),
    )  # fmt: skip
