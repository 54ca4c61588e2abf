"""Part c: what augmentation costs of a step; the goal is 3 %."""

import statistics
import time
from dataclasses import replace
from typing import Any

from part import Part, running
from steps import config_of, fitting, rate, small

from univip_stream.pretrain.config import PretrainConfig
from univip_stream.pretrain.inputs import inputs_on
from univip_stream.pretrain.pace import random_batch


def alone(part: Part, config: PretrainConfig, *, compiled: bool) -> dict[str, Any]:
    """Milliseconds of a batch's augmentation on the device, the copy there included."""
    part.forget()
    batch = random_batch(config, part.device)
    taken = []
    for _ in range(2 if part.rehearse else 20):
        part.wait()
        start = time.perf_counter()
        inputs_on(part.device, batch, config.augment, compiled=compiled)
        part.wait()
        taken.append(time.perf_counter() - start)
    return {"ms": round(1e3 * statistics.median(taken), 3), "first_s": round(taken[0], 2), **part.peak()}


def main(part: Part) -> None:
    config = config_of("stream.batch_size=256")
    config = small(config) if part.rehearse else config
    step = part.attempt("step", lambda: fitting(part, config, lambda config: rate(part, config)))
    if "batch" in step:
        config = replace(config, stream=replace(config.stream, batch_size=step["batch"]))
    eager = part.attempt("augmentation", lambda: alone(part, config, compiled=False))
    share = {"goal": 0.03}
    if "step_ms" in step and "ms" in eager:
        share["of_step"] = round(eager["ms"] / step["step_ms"], 4)
        part.keep("share", share)
    # A CPU augments image by image, compiled or not.
    compiled = part.attempt("augmentation compiled", lambda: alone(part, config, compiled=True), wants=15)
    if "of_step" in share and "ms" in compiled:
        rest = step["step_ms"] - eager["ms"]  # of a step that is not compiled
        part.keep("share", share | {"of_step_compiled": round(compiled["ms"] / (rest + compiled["ms"]), 4)})


if __name__ == "__main__":
    with running() as part:
        main(part)
