"""Part b: images a second of a step, ResNet-50, 2 x 224 + 4 x 96, in several ways; and a profile's largest kernels."""

import itertools
from typing import Any

import torch
from part import Part, running
from steps import config_of, fitting, memory_batch, rate, small, step_of, updates_of

from univip_stream.pretrain.config import PretrainConfig

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
    ("univip r50 256 channels first", (UNIVIP_256, "channels_last=false"), "", 12),
    ("univip r50 256 fp32", (UNIVIP_256, "precision=fp32"), "", 15),
    ("univip r50 512 compiled", (UNIVIP_512,), "whole", 120),
    ("univip r50 256 joint max-autotune", (UNIVIP_256, JOINT), "backbones max-autotune", 150),
]


def profile(part: Part, config: PretrainConfig) -> dict[str, Any]:
    """The ten largest kernels of an eager step, what is launched in it, and the host's share."""
    from torch.profiler import ProfilerActivity

    part.forget()
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


def transports(part: Part) -> dict[str, Any]:
    """Milliseconds of Eq. 7 for a batch of 512, by factors as on a CPU, by plans as on a GPU, and compiled."""
    import time

    from univip_stream import transport

    cost, rows, columns = (torch.rand(*shape, device=part.device) for shape in ((512, 4, 4), (512, 4), (512, 4)))
    forms = {"by factors": transport._sinkhorn, "by plans": transport._sinkhorn_by_plans}
    if part.device.type == "cuda":  # code for a CPU takes long to generate
        forms["by plans, compiled"] = torch.compile(transport._sinkhorn_by_plans, dynamic=False)
    found: dict[str, Any] = {}
    plans = {}
    for name, solve in forms.items():
        with torch.no_grad():
            for count in (3, 20):  # the first to warm up
                part.wait()
                start = time.perf_counter()
                for _ in range(count):
                    plans[name] = solve(cost, rows, columns, 0.1, 50, 1.0)
                part.wait()
        found[f"{name}: ms"] = round((time.perf_counter() - start) / 20 * 1e3, 3)
        found[f"{name}: apart"] = float((plans[name] - plans["by factors"]).abs().max())
    return found


def main(part: Part) -> None:
    if part.device.type == "cuda":
        torch.backends.cudnn.benchmark = False
    for number, (name, settings, compiled, wants) in enumerate(VARIANTS):
        config = config_of(*settings)
        config = small(config) if part.rehearse else config
        part.attempt(name, lambda c=config, k=compiled: fitting(part, c, lambda c: rate(part, c, k)), wants=wants)  # type: ignore[misc]
        if number == 3:
            part.attempt("transport", lambda: transports(part), wants=20)
            middle = small(config_of(UNIVIP_256)) if part.rehearse else config_of(UNIVIP_256)
            part.attempt("profile", lambda c=middle: fitting(part, c, lambda c: profile(part, c)), wants=15)  # type: ignore[misc]
            part.attempt("cudnn.benchmark", lambda: tuned(part), wants=15)
            part.attempt("univip r50 256 captured", lambda c=middle: fitting(part, c, lambda c: captured(part, c)), wants=15)  # type: ignore[misc]


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
