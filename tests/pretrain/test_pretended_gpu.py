"""A training step on a pretended GPU: no copy or look that waits, no tensor on another device, for every method and backbone.

What a real GPU says of the same is in tests/gpu, `pytest -m gpu`.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from planned import shallow
from pretended import CUDA, HostWaitsError, PretendedGpu
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.nn.modules.batchnorm import _BatchNorm

from univip_stream.augment import DRAW_SIZE, AugmentConfig, augment
from univip_stream.distributed import ALONE
from univip_stream.errors import UsageError
from univip_stream.methods import METHODS, Method, build_method, build_plan
from univip_stream.plan import Plan
from univip_stream.pretrain.config import OptimConfig
from univip_stream.pretrain.inputs import inputs_on
from univip_stream.pretrain.optim import build_optimizer
from univip_stream.pretrain.update import Updates
from univip_stream.stream import Batch
from univip_stream.transport import sinkhorn
from univip_stream.views import ViewConfig

pytestmark = pytest.mark.slow  # fake tensors make every operator a Python call: a second or two for each case
CPU = torch.device("cpu")
B, K, SCENE, CROP, THIRD = 4, 2, 64, 32, 32
# Small members of each family.
FAMILIES = {"resnet": "test_resnet", "convnext": "test_convnext", "vit": "test_vit"}
WITHOUT_MAPS = {("densecl", "vit"), ("scrl", "vit"), ("soco", "vit"), ("soco", "convnext")}
"""Methods that refuse a family."""
SMALL = {"hidden": 16, "width": 8, "queue": 10, "iterations": 2, "small_size": 32, "small_views": 2}
CAUGHT = r"_to_copy|_local_scalar_dense|nonzero|unique|repeat_interleave|same device|index|linalg|multinomial|printed"


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
    method = shallow(build_method(config, plan))
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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_a_step_makes_nobody_wait(gpu: PretendedGpu, name: str, family: str) -> None:
    if (name, family) in WITHOUT_MAPS:
        with pytest.raises(UsageError, match=f"{name} needs"):
            updates_of(gpu, name, FAMILIES[family], torch.float32)
        return
    updates, batches = updates_of(gpu, name, FAMILIES[family], torch.float32)
    for updates.precision, updates.accumulate in ((torch.float32, 2), (torch.bfloat16, 1)):
        check_a_step(gpu, updates, batches)
    assert {parameter.device for parameter in updates.method.parameters()} == {CUDA}


def check_a_step(gpu: PretendedGpu, updates: Updates, batches: Iterator[Batch], optimizer: str = "_fused_sgd_") -> None:
    """Nobody waits in it, and it computes, copies and launches what it is expected to."""
    precision = updates.precision
    with gpu.running() as watch:
        updates.gradient(batches, 1)
    with gpu.running() as applied:
        updates.apply(0.1, 0.99)
    groups = len(updates.optimizer.param_groups)
    assert applied.launched.pop(optimizer) <= groups
    assert applied.launched.pop("_foreach_lerp_", 0) == len(updates.method.target_pairs()), "one kernel a target"
    assert sum(applied.launched.values()) <= groups, "a counter, at most"
    assert ("add_", torch.int64) not in watch.dtypes, "batch normalisations count on the host"
    ran = {kind for what, kind in watch.dtypes if what in ("convolution", "mm", "addmm", "convolution_backward")}
    assert precision in ran
    # The losses are float32 always.
    assert ran <= {precision, torch.float32}
    batch = next(batches)
    sent = [*batch.pixels.values(), *batch.draws.values(), *batch.facts.values(), batch.filled]
    sizes = [value.numel() * value.element_size() for value in sent]
    assert watch.copied <= updates.accumulate * (sum(sizes) + 1024), "pixels go to the GPU once"
    assert watch.scattered == [], "pictures and maps stay channels last"


# Settings that take other ways through the code: (method, settings, of the test, of the method).
WAYS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("byol", {"optimizer": "adamw", "backbone": "test_vit"}, {}),
    ("byol", {"channels_last": False}, {}),
    ("univip", {}, {"through_plan": True}),
    ("univip", {"augmentations": 2}, {"joint_views": True}),
    ("simclr", {}, {"joint_statistics": True}),
    ("scrl", {}, {"joint_statistics": True}),
    ("soco", {}, {"cutout_p": 1.0}),
]


@pytest.mark.parametrize(
    ("name", "settings", "own"),
    WAYS,
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_other_ways_through_a_step_make_nobody_wait(
    gpu: PretendedGpu, name: str, settings: dict[str, Any], own: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in own.items():
        assert key in METHODS[name].Settings.__dataclass_fields__
        monkeypatch.setitem(SMALL, key, value)
    given = {"backbone": "test_resnet"} | settings
    optimizer, last = given.get("optimizer", "sgd"), given.pop("channels_last", True)
    updates, batches = updates_of(gpu, name, precision=torch.bfloat16, **given)
    if optimizer != "sgd":  # its first step makes its momenta
        with gpu.running():
            updates.gradient(batches, 0)
            updates.apply(0.1, 0.99)
    if last:
        check_a_step(gpu, updates, batches, f"_fused_{optimizer}_")
    else:
        updates.channels_last = False
        with gpu.running() as watch:
            updates.gradient(batches, 1)
        # The test's network is channels last; images come as they were asked for.
        assert {shape[1] for shape in watch.scattered} == {3}


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
    assert watch.scattered == []


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


def test_the_first_steps_of_lars_make_nobody_wait(gpu: PretendedGpu) -> None:
    updates, batches = updates_of(gpu, "byol", "test_resnet", torch.float32, "lars")
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
        lambda loss, scenes: scenes.tolist(),
        lambda loss, scenes: str(loss),
        lambda loss, scenes: scenes.index_put_((scenes > 0,), loss),
        lambda loss, scenes: scenes.clone().__setitem__(scenes[:, :, 0, 0, 0] > 0, scenes[0, 0]),
        lambda loss, scenes: scenes[torch.zeros(2, dtype=torch.long)],
        lambda loss, scenes: torch.linalg.inv(scenes[0, 0, 0]),
        lambda loss, scenes: torch.linalg.svd(scenes[0, 0, 0]),
        lambda loss, scenes: torch.linalg.eigh(scenes[0, 0, 0]),
        lambda loss, scenes: torch.linalg.cholesky(scenes[0, 0, 0]),
        lambda loss, scenes: torch.multinomial(scenes[0, 0, 0].abs(), 1),
        lambda loss, scenes: torch.zeros(2).to(scenes.device, non_blocking=True),
    ],
)
def test_what_would_wait_is_refused(gpu: PretendedGpu, wait: Callable[..., object]) -> None:
    caught = (HostWaitsError, DataDependentOutputException, DynamicOutputShapeException, RuntimeError)
    loss, scenes = gpu.like(torch.empty(())), gpu.like(torch.empty(2, B, 3, CROP, CROP))
    with gpu.running(), pytest.raises(caught, match=CAUGHT):
        wait(loss, scenes)


def test_a_step_in_which_somebody_waits_is_caught(gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    updates, batches = updates_of(gpu, "byol", "test_resnet", torch.bfloat16)
    forward = type(updates.method).forward

    def waiting(self: Method, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        losses = forward(self, batch)
        losses["loss"].item()
        return losses

    monkeypatch.setattr(type(updates.method), "forward", waiting)
    with gpu.running(), pytest.raises(DataDependentOutputException):
        updates.gradient(batches, 1)


def test_filling_by_a_mask_and_what_is_free_are_let_through(gpu: PretendedGpu) -> None:
    scenes = gpu.like(torch.empty(2, B, 3, CROP, CROP))
    with gpu.running():
        scenes[scenes > 0] = 0.0
        scenes.masked_fill_(scenes > 0, 0.0)
        torch.full((2,), 1.0, device=CUDA)
        torch.tensor(0.5).to(CUDA, non_blocking=True)
