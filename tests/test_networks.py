"""Backbones by name, heads, the moving average, and batch normalisation kept per view."""

import copy

import pytest
import torch
from torch import nn

from univip_stream.errors import UsageError
from univip_stream.networks import (
    build_backbone,
    countable_together,
    counted_together,
    frozen_copy,
    per_view_batchnorm,
    projector,
    synchronise_batchnorm,
    update_ema,
    views_in_batch,
)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("resnet18", 512),
        ("resnet50", 2048),
        ("timm/resnet18", 512),
        ("mobilenetv3_small_050", 1024),
        ("vit_tiny_patch16_224", 192),
    ],
)
def test_a_backbone_pools_scenes_and_instances_to_vectors_of_its_width(name: str, width: int):
    backbone = build_backbone(name).eval()
    with torch.no_grad():
        assert backbone.width == width
        assert backbone(drawn(2, 3, 96, 96)).shape == (2, width)
        assert backbone(drawn(1, 3, 64, 64)).shape == (1, width)


def test_a_small_stem_keeps_four_times_the_side():
    sides = []
    for small in (False, True):
        backbone = build_backbone("resnet18", small_stem=small).eval()
        backbone.trunk.layer1.register_forward_hook(lambda module, args, out: sides.append(out.shape[-1]))
        assert backbone(drawn(1, 3, 32, 32)).shape == (1, 512)
    assert sides == [8, 32]


def test_an_unknown_backbone_suggests_the_nearest():
    with pytest.raises(UsageError, match="resnet50"):
        build_backbone("resnet-50")


def test_a_small_stem_on_another_architecture_is_refused():
    with pytest.raises(UsageError, match="small_stem"):
        build_backbone("mobilenetv3_small_050", small_stem=True)


def test_projector_is_linear_bn_relu_and_a_plain_linear():
    head = projector(8, 32, 4)
    assert [type(layer) for layer in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert head[0].bias is not None
    assert head[3].bias is None
    assert head(drawn(5, 8)).shape == (5, 4)


def test_moving_average_is_equation_1_and_leaves_buffers():
    online = projector(4, 8, 2)
    target = frozen_copy(projector(4, 8, 2))
    before, buffers = copy.deepcopy(list(target.parameters())), copy.deepcopy(dict(target.named_buffers()))
    online(drawn(16, 4))
    update_ema(target, online, 0.9)
    for old, new, source in zip(before, target.parameters(), online.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * source.detach())
        assert not new.requires_grad
    assert all(torch.equal(buffers[name], value) for name, value in target.named_buffers())


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_moving_average_at_its_ends_copies_or_keeps(momentum: float):
    online, target = projector(4, 8, 2), frozen_copy(projector(4, 8, 2))
    expected = copy.deepcopy(list((target if momentum == 1 else online).parameters()))
    update_ema(target, online, momentum)
    assert all(torch.equal(new, old) for new, old in zip(target.parameters(), expected, strict=True))


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_views_in_one_batch_are_normalised_to_the_bit_as_in_calls_of_their_own(channels_last: bool, written: bool):
    views = [drawn(4, 6, 5, 5), 3 * drawn(4, 6, 5, 5) + 1]
    if channels_last:
        views = [view.contiguous(memory_format=torch.channels_last) for view in views]
    plain = nn.BatchNorm2d(6)
    joint = per_view_batchnorm(copy.deepcopy(plain))
    apart = [view.clone().requires_grad_() for view in views]
    together = [view.clone().requires_grad_() for view in views]
    expected = torch.cat([plain(view) for view in apart])
    with views_in_batch(joint, 2):
        result = joint._write_views(torch.cat(together)) if written else joint(torch.cat(together))
    assert torch.equal(result, expected)
    assert joint._can_write_views()
    assert result.stride() == expected.stride()
    assert all(torch.equal(a, b) for a, b in zip(joint.state_dict().values(), plain.state_dict().values(), strict=True))
    assert joint.num_batches_tracked == 2
    weight = drawn(*expected.shape)
    (expected * weight).sum().backward()
    (result * weight).sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(apart, together, strict=True))
    torch.testing.assert_close(joint.weight.grad, plain.weight.grad)


@pytest.mark.slow
def test_a_whole_network_agrees_with_separate_forwards_and_one_plain_batch_does_not():
    torch.manual_seed(0)
    plain = build_backbone("resnet18", small_stem=True).double()
    joint = per_view_batchnorm(copy.deepcopy(plain))
    views = torch.stack([drawn(4, 3, 16, 16), drawn(4, 3, 16, 16) * 2 + 1]).double()
    mixed = copy.deepcopy(plain)(views.flatten(0, 1))
    expected = torch.cat([plain(view) for view in views])
    with views_in_batch(joint, 2):
        result = joint(views.flatten(0, 1))
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(dict(joint.named_buffers()), dict(plain.named_buffers()))
    assert (mixed - expected).abs().max() > 1e-3


def test_views_count_ends_with_its_block_and_does_not_touch_evaluation():
    norm = per_view_batchnorm(nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="does not split"), views_in_batch(norm, 2):
        norm(drawn(3, 3))
    assert norm.views == 1
    norm.eval()
    with views_in_batch(norm, 2):
        assert norm(drawn(3, 3)).shape == (3, 3)


def test_per_view_norms_copy_and_keep_their_names():
    network = projector(4, 8, 2)
    names = list(network.state_dict())
    twin = copy.deepcopy(per_view_batchnorm(per_view_batchnorm(network)))
    assert list(twin.state_dict()) == names
    assert type(twin[1]) is type(network[1])
    assert isinstance(twin[1], nn.BatchNorm1d)


def test_synchronised_norms_still_know_their_views():
    network = synchronise_batchnorm(per_view_batchnorm(projector(4, 8, 2)))
    assert isinstance(network[1], nn.SyncBatchNorm)
    with views_in_batch(network, 2):
        assert network[1].views == 2


def test_batches_counted_together_are_those_counted_one_by_one():
    network = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3, momentum=None))
    one_by_one = copy.deepcopy(network)
    per_view_batchnorm(network)
    counted = list(network[:2])

    def step(module: nn.Sequential) -> None:
        module[0](drawn(4, 3))
        module(drawn(4, 3))
        with pytest.raises(RuntimeError):
            module(drawn(4, 5))

    with counted_together(counted):
        step(network)
    with pytest.raises(KeyError), counted_together(counted):
        raise KeyError
    step(one_by_one)
    for name, value in one_by_one.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name


@pytest.mark.slow
def test_counters_of_a_cpu_and_of_what_is_compiled_are_left_alone():
    network = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, momentum=None), nn.InstanceNorm1d(3))
    assert countable_together(network) == []
    network.to("meta")
    assert countable_together(network) == [network[0]]
    network[2].compile()
    assert countable_together(network) == []
