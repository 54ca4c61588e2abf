"""ORL's linear probe: its maps, its heads and its lighting are those of its code, written here as plainly as possible."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from univip_stream.augment import AugmentConfig
from univip_stream.cli import cli
from univip_stream.errors import UsageError
from univip_stream.evaluation.heads import LayerHeads
from univip_stream.evaluation.layers import LAYERS, LayerFeatures
from univip_stream.evaluation.linear import PROTOCOLS
from univip_stream.networks import build_backbone
from univip_stream.probe.crops import RandomCrop, lit


@pytest.mark.slow
def test_a_resnet_50s_maps_are_pooled_as_orl_pools_them():
    """openselfsup/models/utils/multi_pooling.py, POOL_PARAMS and POOL_DIMS of resnet50, on maps that torchvision names."""
    torch.manual_seed(0)
    backbone = build_backbone("resnet50").eval()
    found = LayerFeatures(backbone, 224, "resnet50")
    assert [channels * places for channels, places in found.shapes] == [9216, 9216, 8192, 9216, 8192]
    pools = [nn.AvgPool2d(10, 10, 4), nn.AvgPool2d(16, 8), nn.AvgPool2d(13, 5), nn.AvgPool2d(8, 3), nn.AvgPool2d(6, 1)]
    nodes = dict(zip(["relu", "layer1", "layer2", "layer3", "layer4"], LAYERS, strict=True))
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        maps = create_feature_extractor(backbone.trunk, nodes)(images)
        expected = torch.cat([pool(maps[name]).flatten(1) for name, pool in zip(LAYERS, pools, strict=True)], dim=1)
        torch.testing.assert_close(found(images), expected, rtol=0, atol=0)


def test_images_of_other_sizes_are_pooled_to_the_same_sides():
    found = LayerFeatures(build_backbone("resnet18"), 64, "resnet18")
    assert found.shapes == [(64, 144), (64, 36), (128, 16), (256, 9), (512, 4)]
    with pytest.raises(UsageError, match=r"no such stages.*orl-last"):
        LayerFeatures(build_backbone("test_vit"), 64, "test_vit")


def test_each_head_is_orls():
    """openselfsup/models/heads/multi_cls_head.py: a normalisation without scale over each map, flattened, then a linear layer."""
    torch.manual_seed(1)
    shapes = [(3, 4), (5, 9)]
    heads = LayerHeads(shapes, 7, 2).double()
    maps = [torch.randn(6, channels, int(places**0.5), int(places**0.5), dtype=torch.float64) for channels, places in shapes]
    logits = heads(torch.cat([found.flatten(1) for found in maps], dim=1))
    assert logits.shape == (4, 6, 7)
    for number, (layer, rate) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        normalised = nn.BatchNorm2d(shapes[layer][0], affine=False).double()(maps[layer])
        own = heads.layers[layer]
        expected = normalised.flatten(1) @ own.weights[rate].T + own.offsets[rate]
        torch.testing.assert_close(logits[number], expected)
        assert heads.weights[number] is own.weights[rate]
        assert heads.groups([0.1, 0.2], 1e-4)[number]["params"][0] is own.weights[rate]


def test_lighting_is_alexnets_and_drawn_for_each_image_and_epoch():
    """ORL 2ad64f7, `Lighting`: normal numbers of deviation 0.1 times eigenvalues and vectors."""
    values = np.array([0.2175, 0.0188, 0.0045])
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    std = AugmentConfig().std
    numbers = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    images = torch.rand(4, 3, 5, 5)
    found = (lit(images, numbers, std) - images) * torch.tensor(std)[None, :, None, None]
    for n in range(4):
        colour = sum(vectors[:, component] * float(numbers[n, component]) * values[component] for component in range(3))
        np.testing.assert_allclose(found[n].numpy(), np.broadcast_to(colour[:, None, None], (3, 5, 5)), atol=1e-6)

    image = np.zeros((40, 40, 3), np.uint8)
    drawn = np.array(
        [
            RandomCrop(16, AugmentConfig(), seed=0, epoch=epoch, lighting=0.1)(image, number)[1][-3:].numpy()
            for epoch in range(20)
            for number in range(20)
        ]
    )
    assert len(np.unique(drawn[:, 0])) == 400
    assert drawn.std() == pytest.approx(0.1, rel=0.1)
    # Without it, a draw is what it was.
    plain = RandomCrop(16, AugmentConfig(), seed=0, epoch=0)(image, 0)[1]
    assert torch.equal(plain, RandomCrop(16, AugmentConfig(), seed=0, epoch=0, lighting=0.1)(image, 0)[1][:-3])


def test_the_protocols_are_the_papers():
    orl, byol = PROTOCOLS["orl"], PROTOCOLS["byol"]
    assert (orl.epochs, orl.rates, orl.batch_size, orl.layers, orl.lighting) == (28, (0.01,), 256, True, 0.1)
    assert (byol.epochs, byol.batch_size, byol.interpolation) == (80, 1024, "bicubic")


def test_the_result_has_every_depth_and_is_the_lasts(run, coloured, tmp_path):
    out = tmp_path / "orl.json"
    done = CliRunner().invoke(cli, ["eval", "linear", str(run), "--train", str(coloured / "train"), "--val", str(coloured / "val"),
                                    "--protocol", "orl", "--epochs", "2", "--batch-size", "12", "--lr", "0.1", "--lr", "0.3",
                                    "--workers", "0", "--out", str(out)])  # fmt: skip
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert list(result["layers"]) == list(LAYERS)
    assert result["layers"]["res5"]["top1"] == result["top1"]
    assert len(result["rates"]) == 2
    for name in LAYERS:
        assert f"  {name}" in done.output
