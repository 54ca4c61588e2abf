"""Recipes: a name, and the whole configuration it stands for. Every number says where it comes from.

The first lines of a recipe are its promise: hardware and hours, the expected number, the command. The hours are derived, not
measured (`paper_tables.RATES`), and the numbers are the paper's: no recipe but `cpu-demo` has been run to its end here.

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
    """UniVIP on COCO, ResNet-50: 31 h on one H200 (derived), ImageNet top-1 60.2 (linear, ORL's), COCO box AP 40.8 (R50-FPN, 1x).

    univip-stream train --recipe coco --shards shards-coco --out runs/coco

    The loss is -cos (`method.loss_scale=1`) at rate 0.4; ORL has 2 - 2 cos, twice the gradient, at that rate.

    COCO train2017 (118,287 images), batch 512, 800 epochs: Tables 1 to 13. SGD, learning rate 0.4 = the base 0.2 x 512 / 256
    (ORL's configuration has 0.4), weight decay 1e-4 on all parameters, cosine to 0, warm-up 4 epochs, EMA 0.99 to 1. ORL blurs by
    radius, BYOL with a kernel of a tenth of the side, which would cut 2 px of deviation short on instances of 96 px: 0.14 of it
    reaches three deviations there.
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
    """UniVIP on COCO+, ResNet-50: 64 h on one H200 (derived), ImageNet top-1 63.0 (linear, ORL's), COCO box AP 41.1 (R50-FPN, 1x).

    univip-stream train --recipe coco-plus --shards shards-coco-plus --out runs/coco-plus

    train2017 and unlabeled2017 (241,690 images): as `coco`, loss scale 1 at rate 0.4 too, with twice the steps an epoch.
    """
    return replace(coco(), recipe="coco-plus")


def imagenet_200() -> PretrainConfig:
    """UniVIP on ImageNet: 84 h on one H200 (derived), ImageNet top-1 73.1 (linear, BYOL's), COCO box AP 41.6 (R50-FPN, 1x).

    univip-stream train --recipe imagenet-200 --shards shards-imagenet --out runs/imagenet-200

    The loss is -cos (`method.loss_scale=1`) at LARS's rate 4.8. BYOL has 2 - 2 cos; LARS adapts the rate to the gradient's size, so
    that the scale decides only for normalisations and biases, which it spares.

    Batch 4096, 200 epochs: Tables 1 to 4, 6. BYOL has no 200-epoch preset; LARS at 4.8, weight decay 1e-6, warm-up 10, and
    EMA 0.99 are what OpenSelfSup and mmpretrain use for it, equal to BYOL's own 300-epoch numbers. Bicubic crops, as BYOL.
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
    """UniVIP, 300 epochs: 126 h on one H200 (derived), ImageNet top-1 74.2 (linear, BYOL's), COCO box AP 42.2 (R50-FPN, 1x).

    univip-stream train --recipe imagenet-300 --shards shards-imagenet --out runs/imagenet-300

    BYOL's 300-epoch preset (base 0.3 x 4096 / 256 = 4.8, weight decay 1e-6, EMA 0.99); loss scale 1 at rate 4.8 as `imagenet-200`.
    """
    return replace(imagenet_200(), recipe="imagenet-300", epochs=300)


def cpu_demo() -> PretrainConfig:
    """UniVIP at a small size: a few minutes on two cores, no number to expect.

    univip-stream train --recipe cpu-demo --shards shards --out runs/demo

    A few hundred images, the same method and losses on a small network and small scenes; loss scale 1 at rate 0.05.

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


def vit() -> PretrainConfig:
    """UniVIP with a vision transformer, ViT-S/16: batch 512, 300 epochs; the paper has none, so no number to expect.

    univip-stream train --recipe vit --shards shards --out runs/vit

    MoCo v3 (Chen, Xie and He 2021): AdamW at 1.5e-4 x batch / 256, weight decay 0.1, warm-up 40 epochs, EMA 0.99, and the
    projection of the patches left as it began, without which they found training unstable. That norms and biases are spared
    from decay is DINO's (Caron et al. 2021). Scenes and instances have sides that are multiples of the patch's 16.
    """
    return PretrainConfig(
        recipe="vit",
        method=UniVIPConfig(backbone="vit_small_patch16_224"),
        views=ViewConfig(interpolation="bicubic"),
        augment=AugmentConfig(),
        stream=StreamConfig(batch_size=512, workers=8),
        optim=OptimConfig(name="adamw", lr=3e-4, weight_decay=0.1, exclude_norm_and_bias=True, warmup_epochs=40.0),
        epochs=300,
        ema=0.99,
        freeze=("patch_embed",),
    )


def convnext() -> PretrainConfig:
    """UniVIP with ConvNeXt-T: batch 512, 300 epochs; the paper has none, and nobody has published BYOL's settings for it.

    univip-stream train --recipe convnext --shards shards --out runs/convnext

    ConvNeXt's own, with labels (Liu et al. 2022): AdamW at 4e-3 for a batch of 4096, here in proportion, weight decay 0.05,
    warm-up 20 epochs; norms, biases and layer scales are spared from decay. EMA as in `vit`.
    """
    return PretrainConfig(
        recipe="convnext",
        method=UniVIPConfig(backbone="convnext_tiny"),
        views=ViewConfig(interpolation="bicubic"),
        augment=AugmentConfig(),
        stream=StreamConfig(batch_size=512, workers=8),
        optim=OptimConfig(name="adamw", lr=5e-4, weight_decay=0.05, exclude_norm_and_bias=True, warmup_epochs=20.0),
        epochs=300,
        ema=0.99,
    )


RECIPES: dict[str, Callable[[], PretrainConfig]] = {
    "coco": coco,
    "coco-plus": coco_plus,
    "imagenet-200": imagenet_200,
    "imagenet-300": imagenet_300,
    "vit": vit,
    "convnext": convnext,
    "cpu-demo": cpu_demo,
}


def recipe(name: str) -> PretrainConfig:
    """Return the configuration that a name stands for.

    Raises:
        UsageError: no recipe has that name.

    """
    if name not in RECIPES:
        guess = did_you_mean(name, RECIPES) or "."
        raise UsageError(f"there is no recipe {name!r}{guess} Recipes: {', '.join(RECIPES)}")
    return RECIPES[name]()
