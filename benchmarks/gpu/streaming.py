"""Part d: the step from real shards beside the same step from memory, with 4, 8 and 16 workers; and JPEGs decoded on the GPU."""

import itertools
import time
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch
from part import Part, running
from pictures import shards_for_speed
from steps import config_of, fitting, small, step_of, updates_of

from univip_stream.methods import build_plan
from univip_stream.pretrain.config import PretrainConfig
from univip_stream.pretrain.pace import random_batch
from univip_stream.stream import Stream


def from_memory(part: Part, config: PretrainConfig) -> dict[str, Any]:
    """Images a second from pinned memory."""
    part.forget()
    updates, batches = updates_of(config, part.device), itertools.repeat(random_batch(config, part.device))
    return {"images_per_second": _rate(part, updates, batches, config, 8)}


def from_shards(part: Part, config: PretrainConfig, shards: str, workers: int) -> dict[str, Any]:
    """Images a second from shards, and the share of the time that the step waited for a batch."""
    part.forget()
    config = replace(config, stream=replace(config.stream, workers=workers))
    stream = Stream(shards, build_plan(config.method, config.views, config.augment), config.stream, reuse=True)
    updates = updates_of(config, part.device)
    with closing(iter(stream)) as batches:
        _rate(part, updates, batches, config, 2)
        waited, start = stream.wait_seconds, time.perf_counter()
        images = _rate(part, updates, batches, config, 2 if part.rehearse else 16)
        share = (stream.wait_seconds - waited) / (time.perf_counter() - start)
    return {"images_per_second": images, "data_wait": round(share, 4), "goal": 0.03}


def stream_alone(part: Part, config: PretrainConfig, shards: str, workers: int) -> dict[str, Any]:
    """Images a second that the workers give when nobody trains."""
    config = replace(config, stream=replace(config.stream, workers=workers))
    stream = Stream(shards, build_plan(config.method, config.views, config.augment), config.stream, reuse=True)
    count = 2 if part.rehearse else 12
    with closing(iter(stream)) as batches:
        next(batches)
        start = time.perf_counter()
        for _ in range(count):
            next(batches)
        seconds = time.perf_counter() - start
    return {"images_per_second": round(count * config.stream.batch_size / seconds, 1)}


def decoded_on_device(part: Part, shards: str) -> dict[str, Any]:
    """JPEGs a second that torchvision's nvjpeg decodes, beside this process's own decoder."""
    import tarfile
    from pathlib import Path

    from torchvision.io import decode_jpeg

    from univip_stream.images import decode

    with tarfile.open(sorted(Path(shards).glob("*.tar"))[0]) as tar:
        members = [member for member in tar if member.name.endswith(".jpg")][:256]
        data = [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    decode(data[0])
    start = time.perf_counter()
    for bytes_ in data:
        decode(bytes_)
    found: dict[str, Any] = {"one_core": round(len(data) / (time.perf_counter() - start), 1)}
    tensors = [torch.frombuffer(bytearray(bytes_), dtype=torch.uint8) for bytes_ in data]
    device = torch.device("cuda", 0) if part.device.type == "cuda" else part.device
    try:
        decode_jpeg(tensors[:8], device=device)
    except RuntimeError as error:  # torchvision was built without it, or the driver brings none
        return found | {"left_out": str(error).splitlines()[0]}
    part.wait()
    start = time.perf_counter()
    decode_jpeg(tensors, device=device)
    part.wait()
    return found | {"device": round(len(data) / (time.perf_counter() - start), 1)}


def _rate(part: Part, updates: Any, batches: Any, config: PretrainConfig, steps: int) -> float:
    step_of(updates, batches)
    part.wait()
    start = time.perf_counter()
    for _ in range(steps):
        step_of(updates, batches)
    part.wait()
    return round(steps * config.stream.batch_size / (time.perf_counter() - start), 1)


def main(part: Part) -> None:
    config = config_of("stream.batch_size=256", "stream.window=8")
    config = small(config) if part.rehearse else config
    made: dict[str, str] = {}

    def make() -> dict[str, Any]:
        shards, origin = shards_for_speed(part.work, few=part.rehearse)
        made["shards"] = str(shards)
        return {"images": origin}

    part.attempt("shards", make)
    if "shards" not in made:
        return
    memory = part.attempt("memory", lambda: fitting(part, config, lambda config: from_memory(part, config)))
    if "batch" in memory:
        config = replace(config, stream=replace(config.stream, batch_size=memory["batch"]))
    for workers in (1,) if part.rehearse else (8, 16, 4):
        part.attempt(f"{workers} workers", lambda w=workers: from_shards(part, config, made["shards"], w), wants=10)  # type: ignore[misc]
    part.attempt("stream alone", lambda: stream_alone(part, config, made["shards"], 1 if part.rehearse else 8), wants=8)
    part.attempt("nvjpeg", lambda: decoded_on_device(part, made["shards"]), wants=5)


if __name__ == "__main__":
    with running() as part:
        main(part)
