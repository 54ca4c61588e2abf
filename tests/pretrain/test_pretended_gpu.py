"""A training step on a pretended GPU: no copy or look that waits, no tensor on another device, for every method and backbone.

What a real GPU says of the same is in tests/gpu, `pytest -m gpu`.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pretended import CUDA, HostWaitsError, PretendedGpu
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.nn.modules.batchnorm import _BatchNorm

from univip_stream.augment import DRAW_SIZE, AugmentConfig, augment
from univip_stream.distributed import ALONE
from univip_stream.methods import METHODS, Method, build_method, build_plan
from univip_stream.plan import Plan
from univip_stream.pretrain.config import OptimConfig
from univip_stream.pretrain.inputs import inputs_on
from univip_stream.pretrain.optim import build_optimizer
from univip_stream.pretrain.update import Updates
from univip_stream.stream import Batch
from univip_stream.transport import sinkhorn
from univip_stream.views import ViewConfig

CPU = torch.device("cpu")
B, K, SCENE, CROP, THIRD = 4, 2, 64, 32, 32
# Small members of each family.
FAMILIES = {"resnet": "test_resnet", "convnext": "test_convnext", "vit": "test_vit"}
WITHOUT_MAPS = {("densecl", "vit"), ("scrl", "vit"), ("soco", "vit"), ("soco", "convnext")}
"""Methods that refuse a family: tests/methods holds that they say why."""
SMALL = {"hidden": 16, "width": 8, "queue": 10, "iterations": 2, "small_size": 32, "small_views": 2}
CAUGHT = r"_to_copy|_local_scalar_dense|nonzero|unique|repeat_interleave|same device|index"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedGpu]:
    pretended = PretendedGpu(monkeypatch)
    yield pretended
    pretended.close()


def batch_of(gpu: PretendedGpu, plan: Plan) -> Batch:
    """What the stream gives by a plan, its pixels channels last as the stream's are."""

    def pixels(*shape: int) -> torch.Tensor:
        memory = torch.empty((*shape[:-3], *shape[-2:], shape[-3]), dtype=torch.uint8)
        return gpu.like(memory.movedim(-1, -3), CPU)

    def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return gpu.like(torch.empty(shape, dtype=dtype), CPU)

    own = {name: cut for name, cut in plan.cuts.items() if not cut.again}
    return Batch(
        cuts=plan.cuts,
        pixels={name: pixels(*cut.layout(B), 3, cut.size, cut.size) for name, cut in own.items()},
        draws={name: numbers(*cut.layout(B), DRAW_SIZE) for name, cut in plan.cuts.items()},
        windows={name: numbers(*cut.layout(B), 4, dtype=torch.int32) for name, cut in own.items()},
        facts={name: numbers(B, *shape) for name, shape in plan.facts.items()},
        filled=numbers(B, dtype=torch.int32), positions=numbers(B, dtype=torch.int64),
        keys=["key"] * B, sources=["source"] * B, labels=[None] * B, skipped=[],
    )  # fmt: skip


def updates_of(
    gpu: PretendedGpu, name: str, backbone: str, precision: torch.dtype, optimizer: str = "sgd", augmentations: int = 1
) -> tuple[Updates, Iterator[Batch]]:
    """The step of a run on the pretended GPU, and batches without end."""
    kind = METHODS[name].Settings
    config = kind(name=name, backbone=backbone, **{key: value for key, value in SMALL.items() if hasattr(kind, key)})
    views = ViewConfig(
        scene_size=SCENE, instance_size=CROP, instances=K, third_size=THIRD, pairs="pairs.parquet",
        instance_augmentations=augmentations,
    )  # fmt: skip
    plan = build_plan(config, views, AugmentConfig())
    method = build_method(config, plan)
    method.to(memory_format=torch.channels_last)
    batches = itertools.repeat(batch_of(gpu, plan))
    gpu.place(method)
    updates = Updates(
        method, method, method, build_optimizer(method, OptimConfig(name=optimizer)),
        accumulate=1, precision=precision, config=AugmentConfig(), regions=K, device=CUDA, process=ALONE, run=Path(),
    )  # fmt: skip
    with gpu.running(copies_may_wait=True):  # constants go to the GPU once a run
        inputs_on(CUDA, next(batches), updates.config)
    return updates, batches


@pytest.mark.parametrize(
    ("name", "family", "precision", "accumulate"),
    [
        *(
            (name, "resnet", precision, accumulate)
            for name in METHODS
            for precision, accumulate in (("fp32", 1), ("bf16", 2))
        ),
        *(("univip", family, "fp32", 2) for family in ("convnext", "vit")),
        *(
            (name, family, "bf16", 1)
            for name in METHODS
            for family in ("convnext", "vit")
            if (name, family) not in WITHOUT_MAPS
        ),
    ],
)
def test_a_step_makes_nobody_wait(gpu: PretendedGpu, name: str, family: str, precision: str, accumulate: int) -> None:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    updates, batches = updates_of(gpu, name, FAMILIES[family], dtype)
    updates.accumulate = accumulate
    with gpu.running() as watch:
        updates.gradient(batches, 1)
        updates.apply(0.1, 0.99)
    assert watch.launched["_fused_sgd_"] == 1
    assert ("add_", torch.int64) not in watch.dtypes, "batch normalisations count on the host"
    ran = {kind for what, kind in watch.dtypes if what in ("convolution", "mm", "addmm", "convolution_backward")}
    assert dtype in ran
    # The losses are float32 always.
    assert ran <= {dtype, torch.float32}
    batch = next(batches)
    sent = [*batch.pixels.values(), *batch.draws.values(), *batch.facts.values(), batch.filled]
    sizes = [value.numel() * value.element_size() for value in sent]
    assert watch.copied <= accumulate * (sum(sizes) + 1024), "pixels go to the GPU once"
    # What RoIAlign gives is never channels last.
    assert watch.scattered == [] or family == "vit" or name == "soco"
    assert {parameter.device for parameter in updates.method.parameters()} == {CUDA}


def test_an_iteration_of_the_transport_is_four_kernels(gpu: PretendedGpu) -> None:
    launched = []
    for iterations in (1, 11):
        with gpu.running() as watch:
            numbers = [torch.rand(*shape, device=CUDA) for shape in ((B, K, K), (B, K), (B, K))]
            sinkhorn(*numbers, iterations=iterations)  # type: ignore[arg-type]
        launched.append(sum(watch.launched.values()))
    assert launched[1] - launched[0] == 10 * 4


def test_joint_views_are_normalised_without_being_put_together_again(
    gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SMALL, "joint_views", True)
    updates, batches = updates_of(gpu, "byol", "test_resnet", torch.bfloat16)
    with gpu.running() as watch:
        updates.gradient(batches, 1)
    norms = sum(isinstance(module, _BatchNorm) for module in updates.method.modules())
    assert watch.launched["native_batch_norm"] == 2 * norms
    assert watch.launched["cat"] == 0


def test_augmentation_goes_through_memory_no_more_often_than_it_did(gpu: PretendedGpu) -> None:
    images = gpu.like(torch.empty(16, 64, 64, 3, dtype=torch.uint8).movedim(-1, 1))
    draws = gpu.like(torch.empty(16, DRAW_SIZE))
    with gpu.running(copies_may_wait=True):
        augment(images, draws, AugmentConfig())
    with gpu.running() as watch:
        augment(images, draws, AugmentConfig())
    # In planes of float32: an image has three. It was 412; compiled it is some 100, by inductor's own count.
    assert watch.moved / (16 * 64 * 64 * 4) < 365


def test_two_augmentations_of_an_instance_are_cut_and_sent_once(gpu: PretendedGpu) -> None:
    copied = []
    for augmentations in (1, 2):
        updates, batches = updates_of(gpu, "univip", "test_resnet", torch.float32, augmentations=augmentations)
        with gpu.running() as watch:
            updates.gradient(batches, 1)
        copied.append(watch.copied)
    assert copied[1] - copied[0] == B * K * DRAW_SIZE * 4


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_the_optimizers_first_steps_make_nobody_wait(gpu: PretendedGpu, optimizer: str) -> None:
    updates, batches = updates_of(gpu, "byol", "test_resnet", torch.float32, optimizer)
    for step in range(2):  # the first step makes the momenta
        with gpu.running():
            updates.gradient(batches, step)
            updates.apply(0.1, 0.99)


@pytest.mark.parametrize(
    "wait",
    [
        lambda loss, scenes: loss.item(),
        lambda loss, scenes: loss > 0 or loss,
        lambda loss, scenes: loss.cpu(),
        lambda loss, scenes: loss.to("cpu", non_blocking=True),
        lambda loss, scenes: scenes.nonzero(),
        lambda loss, scenes: scenes[scenes > 0],
        lambda loss, scenes: torch.tensor([0.5], device=scenes.device),
        lambda loss, scenes: scenes.unique(),
        lambda loss, scenes: scenes.repeat_interleave(torch.ones_like(scenes[:, 0, 0, 0, 0]).long(), 0),
        lambda loss, scenes: scenes + torch.zeros_like(scenes, device="cpu"),
    ],
)
def test_a_step_that_would_wait_is_caught(gpu: PretendedGpu, wait, monkeypatch: pytest.MonkeyPatch) -> None:
    updates, batches = updates_of(gpu, "byol", "test_resnet", torch.bfloat16)
    forward = type(updates.method).forward

    def waiting(self: Method, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        losses = forward(self, batch)
        wait(losses["loss"].detach(), batch["scenes"])
        return losses

    monkeypatch.setattr(type(updates.method), "forward", waiting)
    caught = (HostWaitsError, DataDependentOutputException, DynamicOutputShapeException, RuntimeError)
    with gpu.running(), pytest.raises(caught, match=CAUGHT):
        updates.gradient(batches, 1)
