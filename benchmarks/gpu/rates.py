"""Part b: images a second of a step, ResNet-50, 2 x 224 + 4 x 96, in several ways; and a profile's largest kernels."""

import itertools
from typing import Any

import torch
from part import Part, running
from steps import config_of, fitting, rate, small, step_of, updates_of

from univip_stream.pretrain.config import PretrainConfig
from univip_stream.pretrain.pace import random_batch

UNIVIP_512, UNIVIP_256 = "stream.batch_size=512", "stream.batch_size=256"
BYOL_18 = (
    "method.name=byol", "method.backbone=resnet18", "views.overlap=false", "views.instances=0", "views.scene_size=128",
    "stream.batch_size=256",
)  # fmt: skip
JOINT = "method.joint_views=true"
# (name, settings, compiled, seconds it wants), the most telling first of those that begin at once, then of those that are compiled.
EAGER: list[tuple[str, tuple[str, ...], str, float]] = [
    ("univip r50 512 eager", (UNIVIP_512,), "", 10),
    ("byol r18 128px 256 eager", BYOL_18, "", 8),
    ("univip r50 512 joint", (UNIVIP_512, JOINT), "", 10),
    ("univip r50 256 eager", (UNIVIP_256,), "", 8),
]
COMPILED: list[tuple[str, tuple[str, ...], str, float]] = [
    ("univip r50 512 compiled backbones", (UNIVIP_512,), "backbones", 60),
    ("byol r18 128px 256 compiled", BYOL_18, "whole", 50),
    ("univip r50 256 channels first", (UNIVIP_256, "channels_last=false"), "", 12),
    ("univip r50 256 fp32", (UNIVIP_256, "precision=fp32"), "", 15),
    ("univip r50 512 joint compiled", (UNIVIP_512, JOINT), "whole", 90),
    ("univip r50 512 compiled transport", (UNIVIP_512,), "transport", 25),
    ("univip r50 256 compiled backbones", (UNIVIP_256,), "backbones", 50),
    ("univip r50 512 compiled", (UNIVIP_512,), "whole", 130),
    ("univip r50 256 joint max-autotune", (UNIVIP_256, JOINT), "backbones max-autotune", 150),
]


def profile(part: Part, config: PretrainConfig) -> dict[str, Any]:
    """The ten largest kernels of an eager step, what is launched in it, and the host's share."""
    from torch.profiler import ProfilerActivity

    part.forget()
    updates = updates_of(config, part.device)
    batches = itertools.repeat(random_batch(config, part.device))
    for _ in range(3):
        step_of(updates, batches)
    part.wait()
    cuda = part.device.type == "cuda"
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with torch.profiler.profile(activities=kinds) as found:
        step_of(updates, batches)
        part.wait()
    rows = found.key_averages()

    def taken(row: Any) -> float:
        return float(row.self_device_time_total if cuda else row.self_cpu_time_total)

    kernels = [row for row in rows if taken(row) > 0 and not getattr(row, "is_user_annotation", False)]
    if cuda:  # ... and not the operators of the host that launched them
        kernels = [row for row in kernels if row.device_type == torch.autograd.DeviceType.CUDA]
    if not kernels:
        return {"left_out": "the profiler saw no kernel: this machine may not let it count"}
    total = sum(map(taken, kernels)) or 1.0
    largest = sorted(kernels, key=taken, reverse=True)[:10]
    return {
        "launched": sum(row.count for row in kernels),
        "device_ms": round(total / 1e3, 2),
        "largest": [
            {
                "name": row.key[:100],
                "ms": round(taken(row) / 1e3, 2),
                "share": round(taken(row) / total, 3),
                "count": row.count,
            }
            for row in largest
        ],
    }


def captured(part: Part, config: PretrainConfig) -> dict[str, Any]:
    """The step as one CUDA graph, learning rate and momentum as they were when it was captured."""
    import time

    part.forget()
    updates = updates_of(config, part.device)
    batches = itertools.repeat(random_batch(config, part.device).to(part.device))
    if part.device.type != "cuda":
        step_of(updates, batches)
        return {"left_out": "graphs are CUDA's; the step from the device's memory ran"}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step_of(updates, batches)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step_of(updates, batches)
    graph.replay()
    part.wait()
    start = time.perf_counter()
    for _ in range(10):
        graph.replay()
    part.wait()
    seconds = (time.perf_counter() - start) / 10
    return {
        "images_per_second": round(config.stream.batch_size / seconds, 1),
        "step_ms": round(1e3 * seconds, 2),
        **part.peak(),
    }


def transport_alone(part: Part, name: str, compiled: bool) -> dict[str, Any]:
    """Milliseconds of Eq. 7 for a batch of 512, and how far its plan is from the CPU's form."""
    import time

    from univip_stream import transport

    gen = torch.Generator().manual_seed(0)
    given = [torch.rand(*shape, generator=gen).to(part.device) for shape in ((512, 4, 4), (512, 4), (512, 4))]
    solve = getattr(transport, name)
    run = torch.compile(solve, dynamic=False) if compiled else solve
    with torch.no_grad():
        for count in (3, 20):  # the first to warm up
            part.wait()
            start = time.perf_counter()
            for _ in range(count):
                plan = run(*given, 0.1, 50, 1.0)
            part.wait()
        apart = (plan.cpu() - transport._sinkhorn(*(tensor.cpu() for tensor in given), 0.1, 50, 1.0)).abs().max()
    return {"ms": round((time.perf_counter() - start) / 20 * 1e3, 3), "apart": float(apart)}


def attempt(part: Part, name: str, settings: tuple[str, ...], compiled: str, wants: float) -> None:
    """One of the variants."""
    config = small(config_of(*settings)) if part.rehearse else config_of(*settings)

    def timed() -> dict[str, Any]:
        try:
            return fitting(part, config, lambda config: rate(part, config, compiled))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if not compiled.endswith("max-autotune"):
                raise
            why = str(error).splitlines()[0]  # several compiled calls before one backward are much to ask of its graphs
        without = fitting(part, config, lambda config: rate(part, config, f"{compiled}-no-cudagraphs"))
        return without | {"with_cudagraphs": why}

    part.attempt(name, timed, wants=wants)


def main(part: Part) -> None:
    if part.device.type == "cuda":
        torch.backends.cudnn.benchmark = False
    middle = small(config_of(UNIVIP_256)) if part.rehearse else config_of(UNIVIP_256)
    for variant in EAGER:
        attempt(part, *variant)
    part.attempt("profile", lambda: fitting(part, middle, lambda config: profile(part, config)), wants=15)
    part.attempt("univip r50 256 captured", lambda: fitting(part, middle, lambda config: captured(part, config)), wants=15)
    part.attempt("transport by factors, as on a CPU", lambda: transport_alone(part, "_sinkhorn", False), wants=3)
    part.attempt("transport by plans", lambda: transport_alone(part, "_sinkhorn_by_plans", False), wants=3)
    part.attempt("cudnn.benchmark", lambda: tuned(part), wants=15)
    for variant in COMPILED:
        attempt(part, *variant)
    if not part.rehearse:  # code for a CPU takes long to generate
        part.attempt("transport compiled", lambda: transport_alone(part, "_sinkhorn_by_plans", True), wants=25)


def tuned(part: Part) -> dict[str, Any]:
    """The eager step with cuDNN trying its algorithms."""
    config = config_of(UNIVIP_512)
    torch.backends.cudnn.benchmark = True
    try:
        return fitting(part, small(config) if part.rehearse else config, lambda config: rate(part, config))
    finally:
        torch.backends.cudnn.benchmark = False


if __name__ == "__main__":
    with running() as part:
        main(part)
