"""Which process this is among those that train together: torchrun's environment variables, or alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from univip_stream.errors import InputError

PATIENCE = timedelta(minutes=10)
"""How long a rank waits for the others before it gives up: a dead rank ends the job, it does not hang it."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """One process of a job."""

    rank: int = 0
    """Among all processes."""
    world_size: int = 1
    """How many there are."""
    local_rank: int = 0
    """On this machine."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0


ALONE = Place()
"""The one process of a job without others."""


def place_from_environment() -> Place:
    """What torchrun (or any launcher that sets the same variables) says; alone if it says nothing.

    Raises:
        InputError: the variables contradict each other.

    """
    try:
        place = Place(
            rank=int(os.environ.get("RANK", 0)),
            world_size=int(os.environ.get("WORLD_SIZE", 1)),
            local_rank=int(os.environ.get("LOCAL_RANK", 0)),
        )
    except ValueError as error:
        raise InputError(f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers, as torchrun sets them: {error}") from error
    if not 0 <= place.rank < place.world_size:
        raise InputError(f"RANK is {place.rank} and WORLD_SIZE {place.world_size}; expected 0 <= RANK < WORLD_SIZE")
    if place.world_size > 1 and not (os.environ.get("MASTER_ADDR") and os.environ.get("MASTER_PORT")):
        raise InputError(
            f"WORLD_SIZE is {place.world_size}, but MASTER_ADDR and MASTER_PORT do not say where rank 0 listens; torchrun sets "
            "them, or unset WORLD_SIZE to train alone"
        )
    return place


def pick_device(name: str, place: Place) -> torch.device:
    """`auto` is this process's GPU where there is one, else the CPU.

    Raises:
        InputError: a GPU is asked for and there is none.

    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{place.local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}; expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise InputError(f"--device {name}: this machine has {found} GPUs that torch can use; --device cpu trains without")
    return device


@contextmanager
def joined(place: Place, device: torch.device) -> Iterator[None]:
    """Within: the processes of the job can talk to each other."""
    if place.world_size == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def mean_over_ranks(values: torch.Tensor, place: Place) -> torch.Tensor:
    """The mean of a tensor over all processes; the tensor itself where there is one."""
    if place.world_size == 1:
        return values
    summed = values.clone()
    dist.all_reduce(summed)
    return summed / place.world_size
