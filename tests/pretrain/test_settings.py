import dataclasses
import json

import pytest
import torch

from univip_stream.augment import AugmentConfig
from univip_stream.errors import UsageError
from univip_stream.methods import UniVIPConfig, build_method
from univip_stream.methods.univip import UniVIPPlan
from univip_stream.pretrain import RECIPES, PretrainConfig
from univip_stream.pretrain.optim import build_optimizer
from univip_stream.pretrain.recipes import recipe
from univip_stream.pretrain.settings import flat, from_dict, to_dict, with_settings
from univip_stream.views import ViewConfig


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name):
    config = recipe(name)
    assert config.recipe == name
    assert from_dict(PretrainConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_recipes_hold_the_papers_numbers():
    """Section 4 with ORL's and BYOL's: research numbers, transcribed a second time."""
    coco, plus, image200, image300 = (recipe(name) for name in ("coco", "coco-plus", "imagenet-200", "imagenet-300"))
    assert (coco.stream.batch_size, coco.epochs, coco.optim.lr, coco.optim.weight_decay) == (512, 800, 0.4, 1e-4)
    assert (coco.optim.name, coco.optim.warmup_epochs, coco.ema, coco.optim.exclude_norm_and_bias) == ("sgd", 4, 0.99, False)
    assert dataclasses.replace(plus, recipe="coco") == coco
    assert (image200.stream.batch_size, image200.epochs, image200.optim.name, image200.optim.lr) == (4096, 200, "lars", 4.8)
    assert (image200.optim.weight_decay, image200.optim.warmup_epochs, image200.views.interpolation) == (1e-6, 10, "bicubic")
    assert dataclasses.replace(image300, recipe="imagenet-200", epochs=200) == image200
    assert (image200.optim.momentum, image200.optim.trust, image200.optim.exclude_norm_and_bias, image200.ema) == (
        0.9, 1e-3, True, 0.99,
    )  # fmt: skip
    for config in (coco, image200):
        augment, views = config.augment, config.views
        assert (augment.flip_p, augment.jitter_p, augment.grey_p) == (0.5, 0.8, 0.2)
        assert (augment.brightness, augment.contrast, augment.saturation, augment.hue) == (0.4, 0.4, 0.2, 0.1)
        assert (augment.blur_p, augment.blur_sigma, augment.solarize_p) == ((1.0, 0.1), (0.1, 2.0), (0.0, 0.2))
        assert (augment.solarize_threshold, views.crop_scale, views.crop_ratio) == (0.5, (0.08, 1.0), (3 / 4, 4 / 3))
        assert (config.optim.final_lr, config.sync_batchnorm, config.views.min_scale) == (0.0, True, 64)
        assert (config.method.backbone, config.method.hidden, config.method.width) == ("resnet50", 4096, 256)
        assert (config.views.scene_size, config.views.instance_size, config.views.instances, config.views.tries) == (
            224,
            96,
            4,
            20,
        )


def test_lars_adapts_weights_and_spares_norms_and_biases_whatever_the_decay():
    """One first step on gradients of ones, in plain arithmetic: You et al. 2017, eta |w| / |g|, here without decay."""
    config = recipe("imagenet-200")
    for decay in (0.0, 1e-6):
        torch.manual_seed(0)
        method = build_method(
            UniVIPConfig(backbone="resnet10t", hidden=32, width=16), UniVIPPlan(ViewConfig(instances=2), AugmentConfig())
        )
        before = {name: value.clone() for name, value in method.named_parameters()}
        optimizer = build_optimizer(method, dataclasses.replace(config.optim, weight_decay=decay))
        for parameter in method.online_parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        after = dict(method.named_parameters())
        weight, bias = "predictor.0.weight", "predictor.0.bias"
        share = 1e-3 * before[weight].norm() / before[weight].numel() ** 0.5
        torch.testing.assert_close(
            before[weight] - after[weight], (4.8 * share).expand_as(before[weight]), rtol=1e-3, atol=1e-6
        )
        torch.testing.assert_close(before[bias] - after[bias], torch.full_like(before[bias], 4.8))


def test_another_method_has_its_own_settings_and_keeps_what_both_have():
    before = recipe("cpu-demo")
    after = with_settings(before, ["method.temperature=0.5", "method.hidden=7", "method.name=simclr"])  # in whatever order
    theirs = {"method.name": "simclr", "method.temperature": 0.5, "method.hidden": 7, "method.joint_statistics": False}
    assert flat(after) == {key: value for key, value in flat(before).items() if key in flat(after)} | theirs
    assert flat(before).keys() - flat(after).keys() == {
        f"method.{name}"
        for name in ("scene", "scene_instance", "instance", "epsilon", "iterations", "mass", "through_plan", "loss_scale")
    }
    with pytest.raises(UsageError, match=r"there is no setting 'method\.temperature'"):
        with_settings(before, ["method.temperature=0.5"])


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("optim.lr=0.2", "optim.lr", 0.2),
        ("optim.lr=1", "optim.lr", 1.0),
        ("steps=100", "steps", 100),
        ("epochs=null", "epochs", None),
        ("method.name=univip", "method.name", "univip"),
        ("views.crop_scale=[0.2, 1]", "views.crop_scale", [0.2, 1.0]),
        ("channels_last=false", "channels_last", False),
        ("views.instances=2", "views.instances", 2),
    ],
)
def test_a_setting_changes_exactly_what_it_says(text, key, value):
    before = dataclasses.replace(recipe("cpu-demo"), steps=7)
    after = with_settings(before, [text])
    assert flat(after) == flat(before) | {key: value}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim.learning_rate=0.2", "there is no setting 'optim.learning_rate'"),
        ("optim.ler=0.2", "did you mean optim.lr?"),
        ("instances=2", "did you mean views.instances?"),
        ("optim=3", "optim is a group of settings"),
        ("optim.lr", "expected KEY=VALUE"),
        ("optim.lr=fast", "optim.lr is 'fast'; expected float"),
        ("steps=1.5", "steps is 1.5; expected int | None"),
        ("channels_last=1", "channels_last is 1; expected bool"),
        ("optim.name=adam", "expected sgd or lars or adamw"),
        ("views.tries=0", "expected at least 1"),
        ("seed.x=1", "there is no setting 'seed.x'"),
    ],
)
def test_a_setting_that_cannot_be_is_said(text, words):
    with pytest.raises(UsageError) as caught:
        with_settings(recipe("cpu-demo"), [text])
    assert words in str(caught.value)


@pytest.mark.parametrize("wrong", ["-1", "-1.5", "[-1, -1]", "[NaN, NaN, NaN]", "1e400"])
def test_a_value_that_cannot_be_is_named_by_the_setting_as_it_is_typed(wrong):
    config = recipe("coco")
    refused = set()
    for key in flat(config):
        said = ""
        try:
            with_settings(config, [f"{key}={wrong}"])
        except UsageError as error:
            said = str(error)
        assert not said or said.startswith(f"{key} is "), said
        refused |= {key.partition(".")[0]} if said else set()
    assert {"method", "views", "augment", "stream", "optim", "epochs", "seed"} <= refused


def test_an_unknown_recipe_suggests_the_nearest():
    with pytest.raises(UsageError, match=r"there is no recipe 'cpu_demo'; did you mean cpu-demo\? Recipes: coco, "):
        recipe("cpu_demo")
    with pytest.raises(UsageError, match=r"there is no recipe 'zzz'\. Recipes: coco, "):
        recipe("zzz")
