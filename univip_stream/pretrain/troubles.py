"""Messages for what can go wrong on the machine while a run trains."""

import torch

from univip_stream.distributed import Process, ended_by_others
from univip_stream.errors import InputError
from univip_stream.pretrain.config import PretrainConfig
from univip_stream.workers import death, explained

AGAIN = "Run the same command again, it continues from the last checkpoint"


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the memory of a GPU, or of the machine, is full."""
    text = str(error)
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "CUDA error: out of memory" in text
        or "can't allocate memory" in text  # torch's CPU allocator, which raises a plain RuntimeError
    )


def told(error: Exception, config: PretrainConfig, process: Process) -> InputError | None:
    """Return the error for a person; None if the error is not known here, or means that another rank ended."""
    if isinstance(error, RuntimeError) and ended_by_others(error, process):
        return None
    if (died := death(error)) is not None:
        return InputError(f"{died}. A smaller stream.prefetch needs less memory too. {AGAIN}")
    if isinstance(error, InputError):
        return None
    if out_of_memory(error):
        return InputError(_memory(error, config, process))
    if (words := explained(error)) is not None:
        return InputError(f"{words}. {AGAIN}")
    return None


def _memory(error: BaseException, config: PretrainConfig, process: Process) -> str:
    gpu = isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error)
    size, parts = config.stream.batch_size, config.accumulate
    full = "GPU memory" if gpu else "memory"
    half = " or precision=bf16, which halves what the networks keep," if config.precision == "fp32" else ""
    first = str(error).strip().splitlines() or [type(error).__name__]
    return (
        f"out of {full} with batch size {size} ({size // process.world_size // parts} images at a time on a "
        f"rank, accumulate={parts}), {config.method.backbone}, precision={config.precision}: {first[0]} --set accumulate="
        f"{2 * parts}{half} or a smaller --batch-size (with optim.lr in proportion) fits more. They are other settings: where "
        "steps were trained already, they begin with another --out"
    )
