"""The rate that recipe `auto` goes by: measured of every kind of plan, without a trace in the run that follows."""

import pytest
import torch

from univip_stream.methods import METHODS
from univip_stream.pretrain.pace import images_per_second, random_batch
from univip_stream.pretrain.recipes import recipe
from univip_stream.pretrain.settings import with_settings

TINY = [
    "method.backbone=test_resnet", "method.hidden=16", "method.width=8", "views.scene_size=32", "views.instance_size=32",
    "views.third_size=32", "views.instances=2", "stream.batch_size=4", "precision=fp32",
]  # fmt: skip


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"orl"}))  # which wants a file of pairs
def test_every_method_has_a_rate_and_leaves_chance_as_it_was(name):
    queue = ["method.queue=16"] if hasattr(METHODS[name].Settings, "queue") else []
    config = with_settings(recipe("cpu-demo"), [f"method.name={name}", *TINY, *queue])
    before = torch.get_rng_state()
    assert images_per_second(config, torch.device("cpu")) > 0
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ["byol", "univip"])
def test_a_method_without_instances_and_a_batch_in_parts(name):
    config = with_settings(recipe("cpu-demo"), [*TINY, f"method.name={name}", "views.instances=0", "accumulate=2"])
    batch = random_batch(config, torch.device("cpu"))
    assert batch.pixels["scenes"].shape[:2] == (2, 2)
    assert images_per_second(config, torch.device("cpu")) > 0
