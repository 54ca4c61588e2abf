"""UniVIP and BYOL: what a step changes, what a switch changes, and the forward pass against its parts put together."""

import pytest
import torch

from univip_stream import losses
from univip_stream.augment import AugmentConfig
from univip_stream.errors import UsageError
from univip_stream.methods import BYOL, Method, UniVIP, build_method, build_plan, method_class
from univip_stream.networks import synchronise_batchnorm
from univip_stream.views import ViewConfig

B, K, S, INSTANCE = 4, 3, 64, 32
SMALL = {"backbone": "resnet18", "hidden": 32, "width": 16}


def build(instances: int = K, name: str = "univip", **changes: object) -> Method:
    config = method_class(name).Settings(name=name, **(SMALL | changes))
    plan = build_plan(config, ViewConfig(instances=instances), AugmentConfig())
    torch.manual_seed(0)
    return build_method(config, plan)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "scenes": torch.randn(2, B, 3, S, S, generator=generator),
        "instances": torch.randn(B, K, 3, INSTANCE, INSTANCE, generator=generator),
    }


def test_forward_is_the_equations_on_separate_forwards(batch):
    scenes, instances = batch["scenes"], batch["instances"]
    result = build()(batch)
    twin = build()
    assert isinstance(twin, UniVIP)
    ft1, ft2 = (twin.target(view).detach() for view in scenes)
    z1, z2 = (twin.online(view) for view in scenes)
    fo1, fo2 = twin.predictor(z1), twin.predictor(z2)
    o = twin.predictor(twin.online(instances.reshape(B * K, 3, INSTANCE, INSTANCE))).reshape(B, K, 16)
    t = twin.target(instances.reshape(B * K, 3, INSTANCE, INSTANCE)).reshape(B, K, 16).detach()
    aggregate = torch.stack([twin.aggregate(torch.cat(list(o[i]))) for i in range(B)])
    expected = {
        "loss_scene": losses.scene_loss(fo1, fo2, ft1, ft2),
        "loss_scene_instance": losses.scene_instance_loss(aggregate, ft1, ft2),
        "loss_instance": losses.instance_loss(o, t, fo1, fo2, ft1, ft2, mass=float(K)),
    }
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(result["loss"], sum(expected.values()))
    unit = torch.cat([z1, z2]) / torch.cat([z1, z2]).norm(dim=1, keepdim=True)
    torch.testing.assert_close(result["feature_std"], (unit.var(0, correction=0).sqrt().mean() * 4).detach())


def test_one_joint_forward_gives_what_two_give(batch):
    joint, apart = build(joint_views=True), build()
    first, second = joint(batch), apart(batch)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(dict(joint.named_buffers()), dict(apart.named_buffers()))


@pytest.mark.parametrize("name", ["univip", "byol"])
def test_a_step_moves_every_online_parameter_and_no_target(batch, name: str):
    method = build(name=name)
    before = {key: value.clone() for key, value in method.named_parameters()}
    optimizer = torch.optim.SGD(method.online_parameters(), lr=0.5)
    method(batch)["loss"].backward()
    optimizer.step()
    for key, value in method.named_parameters():
        if key.startswith("target."):
            assert value.grad is None, key
            assert torch.equal(value, before[key]), key
        else:
            assert value.grad is not None, key
            assert not torch.equal(value, before[key]), key
    if name == "univip":
        assert "aggregate.weight" in before


def test_target_starts_as_the_online_network_and_follows_it(batch):
    method = build()
    for target, online in zip(method.target.parameters(), method.online.parameters(), strict=True):
        assert torch.equal(target, online)
        assert target.data_ptr() != online.data_ptr()
    optimizer = torch.optim.SGD(method.online_parameters(), lr=0.5)
    method(batch)["loss"].backward()
    optimizer.step()
    before = [parameter.clone() for parameter in method.target.parameters()]
    method.update_target(0.75)
    for old, new, online in zip(before, method.target.parameters(), method.online.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * online.detach())


def test_target_normalises_with_the_batchs_own_statistics(batch):
    scenes = batch["scenes"]
    method = build(name="byol")
    assert method.target.training
    norm = method.target.backbone.trunk.bn1
    method(batch)
    assert norm.num_batches_tracked == 2
    features = [method.target.backbone.trunk.conv1(view) for view in scenes]
    mean = torch.zeros(64)
    for view in features:
        mean = 0.9 * mean + 0.1 * view.mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, mean.detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("off", ["scene", "scene_instance", "instance"])
def test_a_switch_takes_away_its_term_and_nothing_else(batch, off: str):
    full, without = build()(batch), build(**{off: False})(batch)
    terms = ["loss_scene", "loss_scene_instance", "loss_instance"]
    assert without.keys() == full.keys()
    for name in terms:
        assert without[name].item() == (0 if name == f"loss_{off}" else pytest.approx(full[name].item(), abs=1e-6))
    torch.testing.assert_close(without["loss"], sum(without[name] for name in terms))


@pytest.mark.parametrize("off", ["scene", "scene_instance", "instance"])
def test_every_parameter_has_a_gradient_whatever_is_off(batch, off: str):
    # Distributed training hangs or fails on a parameter without one.
    method = build(**{off: False})
    method(batch)["loss"].backward()
    assert [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


def test_byol_is_univip_with_the_scene_term_alone(batch):
    byol = build(name="byol")
    univip = build(scene_instance=False, instance=False)
    assert byol.state_dict().keys() == univip.state_dict().keys()
    torch.testing.assert_close(byol(batch), univip(batch))
    assert isinstance(byol, BYOL)


def test_no_instances_leaves_the_scene_term(batch):
    method = build(instances=0)
    assert method.aggregate is None
    expected = build(name="byol")(batch)
    torch.testing.assert_close(method({"scenes": batch["scenes"]}), expected)


def test_no_loss_left_is_refused():
    with pytest.raises(UsageError, match="No loss is left"):
        build(instances=0, scene=False)


def test_instances_of_another_number_are_refused(batch):
    with pytest.raises(ValueError, match="built for 3 instances"):
        build()(batch | {"instances": batch["instances"][:, :2]})


def test_the_second_augmentation_goes_to_the_target(batch):
    instances = batch["instances"]
    other = instances.flip(-1) + 0.5
    method = build()
    seen = {}
    method.online.register_forward_hook(lambda module, args, out: seen.__setitem__("online", args[0]))
    method.target.register_forward_hook(lambda module, args, out: seen.__setitem__("target", args[0]))
    method(batch | {"instances_again": other})
    assert torch.equal(seen["online"], instances.flatten(0, 1))
    assert torch.equal(seen["target"], other.flatten(0, 1))
    method(batch)
    assert torch.equal(seen["target"], seen["online"])


def test_a_method_nobody_wrote_is_a_usage_error_with_a_guess():
    with pytest.raises(UsageError, match="did you mean univip"):
        build(name="univp")


def test_bf16_autocast_gives_float32_losses_near_the_exact_ones(batch):
    exact = build()(batch)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = build()(batch)
    for name, value in mixed.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact[name].item(), abs=0.1), name


def test_same_seed_and_batch_give_the_same_loss_to_the_bit(batch):
    assert torch.equal(build()(batch)["loss"], build()(batch)["loss"])


def test_collapsed_features_are_told_by_feature_std(batch):
    method = build(name="byol")
    assert 0.5 < method(batch)["feature_std"].item() <= 1
    with torch.no_grad():
        method.online.projector[3].weight[:] = 0
        method.online.projector[1].weight[:] = 0
        method.online.projector[1].bias[:] = 1
        method.online.projector[3].weight[:] = 1
    assert method(batch)["feature_std"].item() == pytest.approx(0, abs=1e-5)


def test_synchronised_method_keeps_its_names_and_aliases(batch):
    method = build()
    names = list(method.state_dict())
    synchronised = synchronise_batchnorm(method)
    assert synchronised is method
    assert list(method.state_dict()) == names
    assert method.backbone is method.online.backbone
    assert next(method.online.parameters()) is next(method.online_parameters())


@pytest.mark.slow
def test_state_returns_through_a_dictionary(batch):
    method = build()
    optimizer = torch.optim.SGD(method.online_parameters(), lr=0.5)
    method(batch)["loss"].backward()
    optimizer.step()
    method.update_target(0.9)
    twin = build()
    twin.load_state_dict(method.state_dict())
    assert torch.equal(twin(batch)["loss"], method(batch)["loss"])


@pytest.mark.parametrize("name", ["univip", "byol"])
@pytest.mark.slow
def test_the_loss_scale_multiplies_the_gradient_and_leaves_the_terms(name: str, batch):
    once, twice = (build(name=name, loss_scale=scale) for scale in (1.0, 2.0))
    one, two = once(batch), twice(batch)
    assert torch.equal(two["loss"], 2 * one["loss"])
    assert torch.equal(two["loss_scene"], one["loss_scene"])
    one["loss"].backward()
    two["loss"].backward()
    for ours, theirs in zip(once.online_parameters(), twice.online_parameters(), strict=True):
        torch.testing.assert_close(2 * ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def test_kaiming_is_the_spread_of_every_layer_of_backbone_heads_and_aggregate():
    """Fan-in: standard deviation sqrt(2 / inputs of an output)."""
    method = build(init="kaiming")
    layers = [layer for layer in method.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
    assert method.aggregate in layers
    for layer in layers:
        weights = layer.weight.detach()
        expected = (2 / weights[0].numel()) ** 0.5
        # Of n normal numbers the deviation is off by about 1 / sqrt(2 n).
        assert abs(float(weights.std()) / expected - 1) < 5 / (2 * weights.numel()) ** 0.5
    assert torch.equal(method.target.backbone.trunk.conv1.weight, method.online.backbone.trunk.conv1.weight)
