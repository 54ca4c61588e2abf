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
from torch.nn.parallel import DistributedDataParallel

from univip_stream.augment import AugmentConfig, augment, draw
from univip_stream.distributed import ALONE
from univip_stream.methods import METHODS, Method, MethodConfig, build_method
from univip_stream.networks import synchronise_batchnorm
from univip_stream.pretrain.config import OptimConfig
from univip_stream.pretrain.optim import build_optimizer
from univip_stream.pretrain.update import Updates
from univip_stream.stream import Batch

pytestmark = pytest.mark.gpu
B, K, SCENE, CROP = 8, 4, 64, 32
Inputs = tuple[tuple[torch.Tensor, torch.Tensor | None], dict[str, torch.Tensor]]


def method_of(name: str, **settings: object) -> Method:
    torch.manual_seed(0)
    config = MethodConfig(name=name, backbone="resnet18", hidden=64, width=32, queue=64, **settings)
    return build_method(config, instances=K).to(memory_format=torch.channels_last)


def inputs_of(method: Method) -> Inputs:
    gen, wants = torch.Generator().manual_seed(1), method.wants

    def pictures(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=gen)

    extras = {}
    if wants.boxes:
        extras["boxes"] = torch.tensor([4.0, 2.0, 29.0, 30.0]).repeat(3 if wants.third else 2, B, K, 1)
    if wants.third:
        extras["third"] = pictures(B, 3, CROP, CROP)
    if wants.patches:
        extras["patches"] = pictures(4, B, 3, CROP, CROP)
    return (pictures(2, B, 3, SCENE, SCENE), pictures(1, B, K, 3, CROP, CROP) if wants.crops else None), extras


def loss_and_gradient(
    start: Method, inputs: Inputs, device: torch.device, kind: torch.dtype, precision: torch.dtype
) -> tuple[float, torch.Tensor]:
    """Of one step, in float64 on the CPU; `kind` is of weights and images, `precision` what autocast makes of them."""
    method = copy.deepcopy(start).to(device, kind)
    (scenes, instances), extras = inputs
    args = [None if tensor is None else tensor.to(device, kind) for tensor in (scenes, instances)]
    more = {name: tensor.to(device, kind) for name, tensor in extras.items()}
    with torch.autocast(device.type, precision, enabled=precision == torch.bfloat16):
        losses = method(*args, **more)
    losses["loss"].backward()
    gradients = [parameter.grad.flatten() for parameter in method.online_parameters() if parameter.grad is not None]
    return losses["loss"].item(), torch.cat(gradients).double().cpu()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_losses_and_gradients_are_the_cpus(
    name: str, precision: str, device: torch.device, record_property: Callable
) -> None:
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    start, cpu = method_of(name), torch.device("cpu")
    inputs = inputs_of(start)
    true, slope = loss_and_gradient(start, inputs, cpu, torch.float64, torch.float64)
    missed = {}
    for where, place in (("cpu", cpu), ("device", device)):
        loss, gradient = loss_and_gradient(start, inputs, place, torch.float32, kind)
        missed[where] = (abs(loss - true) / abs(true), ((gradient - slope).norm() / slope.norm()).item())
        record_property(f"{where} misses of loss and gradient", "{:.2e} {:.2e}".format(*missed[where]))
    floor = {"fp32": (1e-5, 1e-3), "bf16": (2e-2, 1e-1)}[precision]
    for ours, theirs, least in zip(missed["device"], missed["cpu"], floor, strict=True):
        assert ours <= max(least, 4 * theirs), missed


@pytest.mark.parametrize("side", [96, 224])
def test_augmentation_is_the_cpus(side: int, device: torch.device, record_property: Callable) -> None:
    import numpy as np

    config, rng = AugmentConfig(), np.random.default_rng(0)
    gen = torch.Generator().manual_seed(2)
    coarse = torch.randint(0, 256, (48, 3, 12, 12), generator=gen).float()
    images = torch.nn.functional.interpolate(coarse, size=side, mode="bicubic").clamp(0, 255).to(torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    draws = torch.from_numpy(np.stack([draw(rng, config, number % 2) for number in range(len(images))]))
    expected = augment(images, draws, config)
    result = augment(images.to(device), draws.to(device), config)
    if device.type == "cuda":
        assert result.is_contiguous(memory_format=torch.channels_last)
    apart = (result.cpu() - expected).abs()
    record_property("largest and mean difference", f"{apart.max():.2e} {apart.mean():.2e}")
    # A rounding may carry a pixel over solarize's threshold; there are few such, and everywhere else it is rounding alone.
    assert (apart > 2e-3).float().mean() < 1e-4
    assert apart.mean() < 1e-4


def batches_of(method: Method) -> Iterator[Batch]:
    crops = K if method.wants.crops else 0
    rows = torch.zeros(2 * B + B * K, 12)
    rows[:, 1:4], rows[:, 5:9] = 1, torch.tensor([0.0, 1, 2, 3])

    def pixels(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8)

    batch = Batch(
        scenes=pixels(2, B, SCENE, SCENE, 3).movedim(-1, -3), instances=pixels(B, crops, CROP, CROP, 3).movedim(-1, -3),
        scene_draws=rows[: 2 * B].reshape(2, B, 12), instance_draws=rows[: B * crops].reshape(1, B, crops, 12),
        scene_boxes=torch.zeros(2, B, 4, dtype=torch.int32), instance_boxes=torch.zeros(B, K, 4, dtype=torch.int32),
        view_boxes=torch.zeros(2, B, K, 4), third=pixels(B, 3, 0, 0), third_draws=rows[:B],
        patches=pixels(B, 0, 3, 1, 1), patch_draws=torch.empty(B, 0, 12), filled=torch.zeros(B, dtype=torch.int32),
        positions=torch.arange(B), keys=[""] * B, sources=[""] * B, labels=[None] * B, skipped=[],
    )  # fmt: skip
    return itertools.repeat(batch.pin_memory() if torch.cuda.is_available() else batch)


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
@pytest.mark.parametrize("name", ["univip", "moco-v2"])
def test_nothing_waits_between_two_looks(name: str, optimizer: str, device: torch.device) -> None:
    method = method_of(name).to(device)
    updates = Updates(
        method, method, method, build_optimizer(method, OptimConfig(name=optimizer)), accumulate=2, precision=torch.bfloat16,
        config=AugmentConfig(), instances=K, device=device, place=ALONE, run=Path(),
    )  # fmt: skip
    batches = batches_of(method)

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
    values, _ = updates.look(type("Nobody", (), {"is_set": staticmethod(lambda: False)}))  # type: ignore[arg-type]
    assert len(values) == len(updates.terms) + 1


def test_one_process_in_parallel_with_synchronised_norms_is_the_process_alone(device: torch.device, tmp_path: Path) -> None:
    start = method_of("univip", joint_views=True)
    inputs = inputs_of(start)
    (scenes, instances), _ = inputs
    alone = copy.deepcopy(start).to(device)
    alone(scenes.to(device), instances.to(device))["loss"].backward()
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=0, world_size=1)
    try:
        method = synchronise_batchnorm(copy.deepcopy(start), device.type).to(device)
        parallel = DistributedDataParallel(method, device_ids=[device] if device.type == "cuda" else None)
        with parallel.no_sync():
            parallel(scenes.to(device), instances.to(device))["loss"].backward()
        parallel.zero_grad()
        parallel(scenes.to(device), instances.to(device))["loss"].backward()
        ours, theirs = ([parameter.grad for parameter in network.online_parameters()] for network in (method, alone))
        apart = sum((a - b).square().sum() for a, b in zip(ours, theirs, strict=True)).sqrt()
        assert apart / sum(b.square().sum() for b in theirs).sqrt() < 1e-2
    finally:
        dist.destroy_process_group()


def test_a_compiled_step_has_the_losses_of_one_that_is_not(device: torch.device) -> None:
    start = method_of("univip", iterations=5)
    (scenes, instances), _ = inputs_of(start)
    plain = copy.deepcopy(start).to(device)
    # Code for a CPU takes minutes to generate; there the same graphs run as they are.
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(start).to(device), backend="inductor" if device.type == "cuda" else "aot_eager")
    losses = [network(scenes.to(device), instances.to(device))["loss"] for network in (plain, compiled)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-3)
    torch._dynamo.reset()
