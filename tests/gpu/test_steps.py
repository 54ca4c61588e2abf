"""On a CUDA card: losses, gradients and augmentation are the CPU's, nothing waits, ranks and graphs work. `pytest -m gpu`.

Tolerances are taken from the CPU itself: float64 there is what is true, and what float32 or bf16 there miss of it is what the
card may miss a few times over.
"""

import copy
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from planned import inputs_of, planned
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from univip_stream.augment import AugmentConfig, augment, draw
from univip_stream.distributed import ALONE
from univip_stream.methods import METHODS, Method
from univip_stream.networks import synchronise_batchnorm
from univip_stream.plan import Plan
from univip_stream.pretrain.config import OptimConfig
from univip_stream.pretrain.optim import build_optimizer
from univip_stream.pretrain.update import Updates
from univip_stream.stream import Batch
from univip_stream.views import ViewConfig

pytestmark = pytest.mark.gpu
B, K, SCENE, CROP = 8, 4, 64, 32
Inputs = dict[str, torch.Tensor]
VIEWS = ViewConfig(scene_size=SCENE, instance_size=CROP, instances=K, third_size=CROP, pairs="pairs.parquet")


def method_of(name: str, **settings: object) -> tuple[Method, Plan]:
    torch.manual_seed(0)
    small = {"backbone": "resnet18", "hidden": 64, "width": 32, "queue": 64, "small_size": 32}
    method, plan = planned(name, VIEWS, **small, **settings)
    return method.to(memory_format=torch.channels_last), plan


def loss_and_gradient(
    start: Method, inputs: Inputs, device: torch.device, kind: torch.dtype, precision: torch.dtype
) -> tuple[float, torch.Tensor]:
    """Of one step, in float64 on the CPU; `kind` is of weights and images, `precision` what autocast makes of them."""
    method = copy.deepcopy(start).to(device, kind)
    batch = {name: tensor.to(device, kind) for name, tensor in inputs.items()}
    with torch.autocast(device.type, precision, enabled=precision == torch.bfloat16):
        losses = method(batch)
    losses["loss"].backward()
    gradients = [parameter.grad.flatten() for parameter in method.online_parameters() if parameter.grad is not None]
    return losses["loss"].item(), torch.cat(gradients).double().cpu()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_losses_and_gradients_are_the_cpus(
    name: str, precision: str, device: torch.device, record_property: Callable
) -> None:
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    (start, plan), cpu = method_of(name), torch.device("cpu")
    inputs = inputs_of(plan, B, 1)
    true, slope = loss_and_gradient(start, inputs, cpu, torch.float64, torch.float64)
    missed = {}
    for where, process in (("cpu", cpu), ("device", device)):
        loss, gradient = loss_and_gradient(start, inputs, process, torch.float32, kind)
        missed[where] = (abs(loss - true) / abs(true), ((gradient - slope).norm() / slope.norm()).item())
        record_property(f"{where} misses of loss and gradient", "{:.2e} {:.2e}".format(*missed[where]))
    floor = {"fp32": (1e-5, 1e-3), "bf16": (2e-2, 1e-1)}[precision]
    for ours, theirs, least in zip(missed["device"], missed["cpu"], floor, strict=True):
        assert ours <= max(least, 4 * theirs), missed


@pytest.mark.parametrize(("side", "how"), [(96, "eager"), (224, "eager"), (96, "compiled")])
def test_augmentation_is_the_cpus(side: int, how: str, device: torch.device, record_property: Callable) -> None:
    import numpy as np

    config, rng = AugmentConfig(), np.random.default_rng(0)
    gen = torch.Generator().manual_seed(2)
    coarse = torch.randint(0, 256, (48, 3, 12, 12), generator=gen).float()
    images = torch.nn.functional.interpolate(coarse, size=side, mode="bicubic").clamp(0, 255).to(torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    draws = torch.from_numpy(np.stack([draw(rng, config, number % 2) for number in range(len(images))]))
    expected = augment(images, draws, config)
    result = augment(images.to(device), draws.to(device), config, compiled=how == "compiled")
    if device.type == "cuda":
        assert result.is_contiguous(memory_format=torch.channels_last)
    apart = (result.cpu() - expected).abs()
    record_property("largest and mean difference", f"{apart.max():.2e} {apart.mean():.2e}")
    # A rounding may carry a pixel over solarize's threshold; there are few such, and everywhere else it is rounding alone.
    assert (apart > 2e-3).float().mean() < 1e-4
    assert apart.mean() < 1e-4


def batches_of(plan: Plan) -> Iterator[Batch]:
    row = torch.zeros(12)
    row[1:4], row[5:9] = 1, torch.tensor([0.0, 1, 2, 3])  # nothing is changed
    own = {name: cut for name, cut in plan.cuts.items() if not cut.again}
    batch = Batch(
        cuts=plan.cuts,
        pixels={
            name: torch.randint(0, 256, (*cut.layout(B), cut.size, cut.size, 3), dtype=torch.uint8).movedim(-1, -3)
            for name, cut in own.items()
        },
        draws={name: row.repeat(*cut.layout(B), 1) for name, cut in plan.cuts.items()},
        windows={name: torch.zeros(*cut.layout(B), 4, dtype=torch.int32) for name, cut in own.items()},
        facts={}, filled=torch.zeros(B, dtype=torch.int32), positions=torch.arange(B),
        keys=[""] * B, sources=[""] * B, labels=[None] * B, skipped=[],
    )  # fmt: skip
    return itertools.repeat(batch.pin_memory() if torch.cuda.is_available() else batch)


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
@pytest.mark.parametrize("name", ["univip", "moco-v2"])
def test_nothing_waits_between_two_looks(name: str, optimizer: str, device: torch.device) -> None:
    method, plan = method_of(name)
    method.to(device)
    updates = Updates(
        method, method, method, build_optimizer(method, OptimConfig(name=optimizer)), accumulate=2, precision=torch.bfloat16,
        config=AugmentConfig(), regions=K, device=device, process=ALONE, run=Path(),
    )  # fmt: skip
    batches = batches_of(plan)

    def step() -> None:
        updates.gradient(batches, 0)
        updates.apply(0.01, 0.99)

    step()
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        step()
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    # Three steps of two parts; univip's network sees two scenes and the instances, moco's the query.
    counted = {int(norm.num_batches_tracked) for norm in method.online.backbone.modules() if isinstance(norm, _BatchNorm)}
    assert counted == {18 if name == "univip" else 6}
    values, _ = updates.look(type("Nobody", (), {"is_set": staticmethod(lambda: False)}))  # type: ignore[arg-type]
    assert len(values) == len(updates.terms) + 1


def test_one_process_in_parallel_with_synchronised_norms_is_the_process_alone(device: torch.device, tmp_path: Path) -> None:
    start, plan = method_of("univip", joint_views=True)
    inputs = {name: tensor.to(device) for name, tensor in inputs_of(plan, B, 1).items()}
    alone = copy.deepcopy(start).to(device)
    alone(inputs)["loss"].backward()
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=0, world_size=1)
    try:
        method = synchronise_batchnorm(copy.deepcopy(start), device.type).to(device)
        parallel = DistributedDataParallel(method, device_ids=[device] if device.type == "cuda" else None)
        with parallel.no_sync():
            parallel(inputs)["loss"].backward()
        parallel.zero_grad()
        parallel(inputs)["loss"].backward()
        ours, theirs = ([parameter.grad for parameter in network.online_parameters()] for network in (method, alone))
        apart = sum((a - b).square().sum() for a, b in zip(ours, theirs, strict=True)).sqrt()
        assert apart / sum(b.square().sum() for b in theirs).sqrt() < 1e-2
    finally:
        dist.destroy_process_group()


def test_a_compiled_step_has_the_losses_of_one_that_is_not(device: torch.device) -> None:
    start, plan = method_of("univip", iterations=5)
    inputs = {name: tensor.to(device) for name, tensor in inputs_of(plan, B, 1).items()}
    plain = copy.deepcopy(start).to(device)
    # Code for a CPU takes minutes to generate; there the same graphs run as they are.
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(start).to(device), backend="inductor" if device.type == "cuda" else "aot_eager")
    losses = [network(inputs)["loss"] for network in (plain, compiled)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-3)
    torch._dynamo.reset()
