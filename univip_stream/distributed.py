"""The processes that train together, from torchrun's environment variables; without them, a process trains alone."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from univip_stream.errors import InputError, UsageError

PATIENCE = timedelta(minutes=10)
"""Time that a rank waits for the others before it gives up, so that a dead rank ends the job instead of blocking it."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process of a job."""

    rank: int = 0
    """Number of this process among all, from 0."""
    world_size: int = 1
    """Number of processes."""
    local_rank: int = 0
    """Number of this process among those on this machine, from 0."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0


ALONE = Process()
"""The process of a job that has only one."""


def process_from_environment() -> Process:
    """Return the process that torchrun's environment variables describe; `ALONE` if they are not set.

    Raises:
        InputError: the variables contradict each other.

    """
    try:
        process = Process(
            rank=int(os.environ.get("RANK", 0)),
            world_size=int(os.environ.get("WORLD_SIZE", 1)),
            local_rank=int(os.environ.get("LOCAL_RANK", 0)),
        )
    except ValueError as error:
        raise InputError(f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers, as torchrun sets them: {error}") from error
    if not 0 <= process.rank < process.world_size:
        raise InputError(f"RANK is {process.rank} and WORLD_SIZE {process.world_size}; expected 0 <= RANK < WORLD_SIZE")
    if process.world_size > 1 and not (os.environ.get("MASTER_ADDR") and os.environ.get("MASTER_PORT")):
        raise InputError(
            f"WORLD_SIZE is {process.world_size}, but MASTER_ADDR and MASTER_PORT do not say where rank 0 listens; torchrun sets "
            "them, or unset WORLD_SIZE to train alone"
        )
    return process


def pick_device(name: str, process: Process) -> torch.device:
    """Return a device by name; `auto` is this process's GPU if there is one, otherwise the CPU.

    Raises:
        UsageError: the name is not that of a device.
        InputError: the name is that of a GPU that this machine does not have.

    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{process.local_rank}"
    known = re.fullmatch(r"cpu|cuda(:\d{1,3})?", name)
    if known is None:
        guess = "; an NVIDIA GPU is called cuda" if name in ("gpu", "GPU", "CUDA", "nvidia") else ""
        guess = "; Apple's GPUs are not used yet, the CPU is" if name == "mps" else guess
        raise UsageError(f"--device {name}: there is no such device here; expected auto, cpu, cuda or cuda:N{guess}")
    device = torch.device(name)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise InputError(f"--device {name}: this machine has {found} GPUs that torch can use; --device cpu uses none")
    return device


@contextmanager
def joined(process: Process, device: torch.device) -> Iterator[None]:
    """While inside: the processes of the job can communicate.

    Raises:
        InputError: another process is gone, so that this one cannot continue.

    """
    if process.world_size == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    ours = not dist.is_initialized()  # Ray Train has joined them already
    try:
        if ours:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        try:
            yield
        finally:
            if ours:
                dist.destroy_process_group()
    except RuntimeError as error:
        if gone := ended_by_others(error, process):
            raise InputError(gone) from error
        raise


def mean_over_ranks(values: torch.Tensor, process: Process) -> torch.Tensor:
    """Return the mean of a tensor over all processes; the tensor itself if there is only one."""
    return summed_over_ranks(values, process) / process.world_size


def summed_over_ranks(values: torch.Tensor, process: Process) -> torch.Tensor:
    """Return the sum of a tensor over all processes; the tensor itself if there is only one."""
    if process.world_size == 1:
        return values
    summed = values.clone()
    dist.all_reduce(summed)
    return summed


def in_parallel(module: nn.Module, process: Process, device: torch.device) -> nn.Module:
    """Return the module with its gradients averaged over all processes; the module itself if there is only one.

    Buffers are not synchronised: batch statistics over all ranks are equal anyway, and those of a single rank belong to it.
    """
    if process.world_size == 1:
        return module
    with warnings.catch_warnings():
        # Its successor, forward_sync_buffers, does not exist in the older versions of torch that we support.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)


def ended_by_others(error: RuntimeError, process: Process) -> str | None:
    """Return the message for an error that means that another process of the job is gone; None for other errors."""
    text = str(error)
    if process.world_size == 1:
        return None
    silent = isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "Connection closed", "NCCL"))
    # When a rank dies, torchrun sends SIGTERM to the others and their loader workers, which die of it.
    told = "DataLoader worker" in text and "Terminated" in text
    if not silent and not told:
        return None
    what = (
        "was told to stop while others were still training" if told and not silent else "lost the connection to another rank"
    )
    return (
        f"rank {process.rank} of {process.world_size} {what}: a rank died or was stopped, and the log of the first that did "
        f"says why. ({text.splitlines()[0].split(' This is typically')[0]}) Run the same command again: it "
        "continues from the last checkpoint"
    )


@contextmanager
def after_the_first(process: Process) -> Iterator[None]:
    """Run the block in rank 0 first, and in the other ranks when it is done, so that they find what it wrote.

    An InputError of rank 0 is raised by all ranks, so that none waits for a rank that has left.
    """
    if process.world_size == 1:
        yield
        return
    if process.is_first:
        try:
            yield
        except InputError as error:
            _from_the_first(str(error))
            raise
        _from_the_first("")
        return
    if message := _from_the_first(None):
        raise InputError(message)
    yield


def agree(number: int, process: Process, what: str) -> None:
    """Check that all processes have the same number; `what` names it in the message.

    Raises:
        InputError: this process has another number than rank 0.

    """
    if process.world_size == 1:
        return
    theirs = int(_from_the_first(str(number) if process.is_first else None))
    if theirs != number:
        raise InputError(
            f"{what} is {number} for rank {process.rank} and {theirs} for rank 0; expected the same run folder on every machine: "
            "put --out on a file system that all of them share"
        )


def said_by_the_first(text: str, process: Process) -> str:
    """Return the text of rank 0 in every process."""
    return text if process.world_size == 1 else _from_the_first(text if process.is_first else None)


def _from_the_first(text: str | None) -> str:
    """Return the text that rank 0 passes, in every process."""
    texts = [text]
    dist.broadcast_object_list(texts, src=0)
    return texts[0] or ""


def wait_for_all(process: Process) -> None:
    """Return when every process has called this."""
    if process.world_size > 1:
        dist.barrier()
