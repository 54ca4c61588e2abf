"""Recipes: a name, and the whole configuration it stands for. Every number says where it comes from.

The first lines of a recipe are its promise: hardware and hours, the expected number, the command. The hours are derived, not measured
(`paper_tables.RATES`), and the numbers are the paper's: no recipe but `cpu-demo` has been run to its end here.

The paper (section 4) follows ORL on COCO and BYOL on ImageNet; what it leaves out is theirs.
"""

from collections.abc import Callable
from dataclasses import replace

from univip_stream.augment import AugmentConfig
from univip_stream.errors import UsageError
from univip_stream.methods import UniVIPConfig
from univip_stream.pretrain.config import OptimConfig, PretrainConfig
from univip_stream.stream import StreamConfig
from univip_stream.suggest import did_you_mean
from univip_stream.views import ViewConfig


def coco() -> PretrainConfig:
    """COCO train2017 (118,287 images), ResNet-50, batch 512, 800 epochs: Tables 1 to 8.

    SGD, learning rate 0.4 = the paper's base 0.2 x 512 / 256 (ORL's configuration has 0.4), weight decay 1e-4 on all
    parameters, cosine to 0, warm-up 4 epochs, EMA 0.99 to 1. ORL blurs by radius, BYOL with a kernel of a tenth of the side,
    which would cut 2 px of deviation short on instances of 96 px: 0.14 of the side reaches three deviations there.
    """
    return PretrainConfig(
        recipe="coco",
        method=UniVIPConfig(backbone="resnet50"),
        views=ViewConfig(),
        augment=AugmentConfig(blur_kernel=0.14),
        stream=StreamConfig(batch_size=512, workers=8),
        optim=OptimConfig(name="sgd", lr=0.4, momentum=0.9, weight_decay=1e-4, warmup_epochs=4.0),
        epochs=800,
        ema=0.99,
    )


def coco_plus() -> PretrainConfig:
    """COCO+ (train2017 and unlabeled2017, 241,690 images): as `coco`, twice the steps an epoch."""
    return replace(coco(), recipe="coco-plus")


def imagenet_200() -> PretrainConfig:
    """ImageNet, ResNet-50, batch 4096, 200 epochs: Tables 1, 3, 4.

    BYOL has no 200-epoch preset; LARS at 4.8, weight decay 1e-6, warm-up 10 and EMA 0.99 are what OpenSelfSup and
    mmpretrain use for it, equal to BYOL's own 300-epoch numbers. Bicubic crops, as BYOL.
    """
    return PretrainConfig(
        recipe="imagenet-200",
        method=UniVIPConfig(backbone="resnet50"),
        views=ViewConfig(interpolation="bicubic"),
        augment=AugmentConfig(),
        stream=StreamConfig(batch_size=4096, workers=8),
        optim=OptimConfig(
            name="lars", lr=4.8, momentum=0.9, weight_decay=1e-6, exclude_norm_and_bias=True, trust=1e-3, warmup_epochs=10.0
        ),
        epochs=200,
        ema=0.99,
    )


def imagenet_300() -> PretrainConfig:
    """ImageNet, 300 epochs: BYOL's 300-epoch preset (base 0.3 x 4096 / 256 = 4.8, weight decay 1e-6, EMA 0.99)."""
    return replace(imagenet_200(), recipe="imagenet-300", epochs=300)


def cpu_demo() -> PretrainConfig:
    """A few hundred images, two cores, a few minutes: the same method and losses on a small network and small scenes.

    It shows that everything runs and the loss falls; it is no measure of the method.
    """
    return PretrainConfig(
        recipe="cpu-demo",
        method=UniVIPConfig(backbone="resnet10t", hidden=512, width=128),
        views=ViewConfig(scene_size=96, instance_size=96, instances=4),
        augment=AugmentConfig(),
        stream=StreamConfig(batch_size=32, workers=1),
        optim=OptimConfig(name="sgd", lr=0.05, momentum=0.9, weight_decay=1e-4, warmup_epochs=1.0),
        epochs=20,
        ema=0.97,
        record_every=1,
        checkpoint_every=20,
    )


RECIPES: dict[str, Callable[[], PretrainConfig]] = {
    "coco": coco,
    "coco-plus": coco_plus,
    "imagenet-200": imagenet_200,
    "imagenet-300": imagenet_300,
    "cpu-demo": cpu_demo,
}


def recipe(name: str) -> PretrainConfig:
    """The configuration a name stands for.

    Raises:
        UsageError: no recipe has that name.

    """
    if name not in RECIPES:
        guess = did_you_mean(name, RECIPES) or "."
        raise UsageError(f"there is no recipe {name!r}{guess} Recipes: {', '.join(RECIPES)}")
    return RECIPES[name]()
