"""What a run on several GPUs is made of, looked at without one: which norms are synchronised, what DDP is told."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from planned import planned
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from univip_stream import distributed
from univip_stream.distributed import Process, in_parallel
from univip_stream.methods import METHODS
from univip_stream.networks import ViewBatchNorm, synchronise_batchnorm
from univip_stream.pretrain.optim import build_optimizer
from univip_stream.pretrain.pace import random_batch
from univip_stream.pretrain.recipes import recipe
from univip_stream.pretrain.settings import with_settings
from univip_stream.pretrain.update import Updates
from univip_stream.views import ViewConfig

RANK_1 = Process(rank=1, world_size=2, local_rank=1)
VIEWS = ViewConfig(scene_size=64, instance_size=32, instances=2, third_size=32, pairs="pairs.parquet")


@pytest.mark.parametrize("backbone", ["resnet18", "test_resnet", "test_convnext"])
@pytest.mark.parametrize("name", METHODS)
def test_every_norm_of_a_method_is_synchronised_on_gpus_and_keeps_its_views_and_names(name: str, backbone: str) -> None:
    if name == "soco" and backbone == "test_convnext":
        pytest.skip("soco needs a ResNet's stages")
    method, _ = planned(name, VIEWS, backbone=backbone, hidden=8, width=4, queue=8)
    names = list(method.state_dict())
    before = sum(isinstance(module, _BatchNorm) for module in method.modules())
    trained = sum(parameter.requires_grad for parameter in method.parameters())
    method = synchronise_batchnorm(method, "cuda")
    norms = [module for module in method.modules() if isinstance(module, _BatchNorm)]
    assert len(norms) == before
    assert all(isinstance(norm, nn.SyncBatchNorm) and isinstance(norm, ViewBatchNorm) for norm in norms)
    assert list(method.state_dict()) == names
    assert sum(parameter.requires_grad for parameter in method.parameters()) == trained
    assert {norm.training for norm in norms} <= {True}


def test_ddp_gets_its_own_gpu_and_leaves_buffers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {}

    def constructed(module: nn.Module, **words: object) -> nn.Module:  # it would ask for a process group
        told.update(words, module=module)
        return module

    monkeypatch.setattr(distributed, "DistributedDataParallel", constructed)
    method, device = nn.Linear(1, 1), torch.device("cuda", 1)
    in_parallel(method, RANK_1, device)
    # Buffers are not sent from rank 0: queues and running statistics are equal anyway, or each rank's own. Every parameter has a
    # gradient in every step, so none is looked for.
    assert told == {"module": method, "device_ids": [device], "broadcast_buffers": False}
    in_parallel(method, RANK_1, torch.device("cpu"))
    assert told["device_ids"] is None
    told.clear()
    assert in_parallel(method, Process(), device) is method
    assert told == {}


def test_gradients_are_summed_over_the_ranks_with_the_last_part_of_a_step_alone(tmp_path: Path) -> None:
    method, plan = planned("byol", VIEWS, backbone="test_resnet", hidden=8, width=4)
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        parallel = in_parallel(method, RANK_1, torch.device("cpu"))
        summed = []
        parallel.register_forward_pre_hook(lambda module, given: summed.append(module.require_backward_grad_sync))
        config = with_settings(recipe("cpu-demo"), ["method.name=byol", "stream.batch_size=4", "accumulate=2"])
        config = replace(config, method=method.config, views=VIEWS)
        updates = Updates(
            method, parallel, parallel, build_optimizer(method, config.optim), accumulate=3, precision=torch.float32,
            config=config.augment, regions=plan.regions, device=torch.device("cpu"), process=Process(), run=tmp_path,
        )  # fmt: skip
        updates.gradient(itertools.repeat(random_batch(config, torch.device("cpu"))), 0)
    finally:
        dist.destroy_process_group()
    assert summed == [False, False, True]
