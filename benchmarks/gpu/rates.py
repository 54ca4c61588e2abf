"""Part b: images a second of a step, ResNet-50, 2 x 224 + 4 x 96, in several ways; and a profile's largest kernels."""

import itertools
from typing import Any

import torch
from part import Part, running
from steps import config_of, memory_batch, rate, small, step_of, updates_of

UNIVIP_512, UNIVIP_256 = "stream.batch_size=512", "stream.batch_size=256"
BYOL_18 = (
    "method.name=byol", "method.backbone=resnet18", "views.overlap=false", "views.instances=0", "views.scene_size=128",
    "stream.batch_size=256",
)  # fmt: skip
JOINT = "method.joint_views=true"
# (name, settings, compiled, seconds it wants), the most telling first.
VARIANTS: list[tuple[str, tuple[str, ...], str, float]] = [
    ("univip r50 512 eager", (UNIVIP_512,), "", 10),
    ("univip r50 512 compiled backbones", (UNIVIP_512,), "backbones", 60),
    ("byol r18 128px 256 eager", BYOL_18, "", 8),
    ("univip r50 512 joint", (UNIVIP_512, JOINT), "", 10),
    ("univip r50 256 eager", (UNIVIP_256,), "", 8),
    ("byol r18 128px 256 compiled", BYOL_18, "whole", 40),
    ("univip r50 512 joint compiled", (UNIVIP_512, JOINT), "whole", 80),
    ("univip r50 512 compiled transport", (UNIVIP_512,), "transport", 25),
    ("univip r50 256 compiled backbones", (UNIVIP_256,), "backbones", 40),
    ("univip r50 512 channels first", (UNIVIP_512, "channels_last=false"), "", 12),
    ("univip r50 512 fp32", (UNIVIP_512, "precision=fp32"), "", 15),
    ("univip r50 512 compiled", (UNIVIP_512,), "whole", 120),
    ("univip r50 256 joint max-autotune", (UNIVIP_256, JOINT), "backbones max-autotune", 150),
]


def profile(part: Part) -> dict[str, Any]:
    """The ten largest kernels of an eager step, what is launched in it, and the host's share."""
    from torch.profiler import ProfilerActivity

    part.forget()
    config = config_of(UNIVIP_256)
    config = small(config) if part.rehearse else config
    updates = updates_of(config, part.device)
    batches = itertools.repeat(memory_batch(config, part.device))
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

    kernels = [row for row in rows if taken(row) > 0 and (not cuda or row.device_type == torch.autograd.DeviceType.CUDA)]
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


def captured(part: Part) -> dict[str, Any]:
    """The step as one CUDA graph, learning rate and momentum as they were when it was captured."""
    import time

    config = config_of(UNIVIP_256)
    config = small(config) if part.rehearse else config
    part.forget()
    updates = updates_of(config, part.device)
    batches = itertools.repeat(memory_batch(config, part.device).to(part.device))
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


def main(part: Part) -> None:
    if part.device.type == "cuda":
        torch.backends.cudnn.benchmark = False
    for number, (name, settings, compiled, wants) in enumerate(VARIANTS):
        config = config_of(*settings)
        config = small(config) if part.rehearse else config
        part.attempt(name, lambda c=config, k=compiled: rate(part, c, k), wants=wants)  # type: ignore[misc]
        if number == 3:
            part.attempt("profile", lambda: profile(part), wants=15)
            part.attempt("cudnn.benchmark", lambda: tuned(part), wants=15)
            part.attempt("univip r50 256 captured", lambda: captured(part), wants=15)


def tuned(part: Part) -> dict[str, Any]:
    """The eager step with cuDNN trying its algorithms."""
    config = config_of(UNIVIP_512)
    torch.backends.cudnn.benchmark = True
    try:
        return rate(part, small(config) if part.rehearse else config)
    finally:
        torch.backends.cudnn.benchmark = False


if __name__ == "__main__":
    with running() as part:
        main(part)
