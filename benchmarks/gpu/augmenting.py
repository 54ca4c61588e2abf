"""Part c: what augmentation costs of a step; the goal is 3 %."""

import itertools
import statistics
import time
from typing import Any

import torch
from part import Part, running
from steps import config_of, memory_batch, rate, small

from univip_stream.pretrain.config import PretrainConfig
from univip_stream.pretrain.inputs import inputs_on


def alone(part: Part, config: PretrainConfig, *, compiled: bool) -> dict[str, Any]:
    """Milliseconds of a batch's augmentation on the device, the copy there included."""
    from univip_stream import augment

    part.forget()
    batch = memory_batch(config, part.device)
    plain = augment._change_all
    if compiled:
        augment._change_all = torch.compile(plain, dynamic=False)
    try:
        taken = []
        for _ in itertools.repeat(None, 2 if part.rehearse else 20):
            part.wait()
            start = time.perf_counter()
            inputs_on(part.device, batch, config.augment)
            part.wait()
            taken.append(time.perf_counter() - start)
    finally:
        augment._change_all = plain
    return {"ms": round(1e3 * statistics.median(taken), 3), "first_s": round(taken[0], 2), **part.peak()}


def main(part: Part) -> None:
    config = config_of("stream.batch_size=256")
    config = small(config) if part.rehearse else config
    step = part.attempt("step", lambda: rate(part, config))
    eager = part.attempt("augmentation", lambda: alone(part, config, compiled=False))
    if "step_ms" in step and "ms" in eager:
        part.keep("share", {"of_step": round(eager["ms"] / step["step_ms"], 4), "goal": 0.03})
    if not part.rehearse:  # a CPU augments image by image, without this function
        part.attempt("augmentation compiled", lambda: alone(part, config, compiled=True), wants=20)


if __name__ == "__main__":
    with running() as part:
        main(part)
