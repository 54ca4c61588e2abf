"""Several processes on gloo: the gradients, updates and losses of one; and what a dead one does to the others."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from univip_stream.distributed import Place, joined
from univip_stream.methods import Method, MethodConfig, build_method
from univip_stream.networks import synchronise_batchnorm

B, K = 12, 2
SMALL = MethodConfig(backbone="resnet18", hidden=32, width=16)


def two_steps(place: Place, synchronised: bool, backbone: str) -> dict[str, torch.Tensor]:
    """Everything two updates leave of a method that trains in float64 on this rank's share of a fixed batch."""
    torch.manual_seed(0)
    method: Method = build_method(dataclasses.replace(SMALL, backbone=backbone), instances=K).double()
    model: torch.nn.Module = method
    if place.world_size > 1:
        if synchronised:
            synchronise_batchnorm(method, "cpu")
        model = DistributedDataParallel(method, broadcast_buffers=False)
    optimizer = torch.optim.SGD(method.online_parameters(), lr=0.1, momentum=0.9)
    mine = slice(place.rank * B // place.world_size, (place.rank + 1) * B // place.world_size)
    left = {}
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        scenes = torch.randn(2, B, 3, 32, 32, generator=generator).double() * torch.linspace(0.5, 2, B)[:, None, None, None]
        instances = torch.randn(1, B, K, 3, 32, 32, generator=generator).double()
        model(scenes[:, mine], instances[:, mine])["loss"].backward()
        left |= {f"gradient {step} {name}": p.grad.clone() for name, p in method.named_parameters() if p.requires_grad}
        optimizer.step()
        optimizer.zero_grad()
        method.update_target(0.9)
    return left | {name: value.clone() for name, value in method.state_dict().items()}


def be_a_rank(rank: int, world_size: int, port: int, folder: str, backbone: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    place = Place(rank=rank, world_size=world_size)
    with joined(place, torch.device("cpu")):
        for synchronised in (True, False):
            torch.save(two_steps(place, synchronised, backbone), f"{folder}/{rank}-{synchronised}.pt")


def largest_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max().clamp(min=1e-3)) for name in theirs)


@pytest.mark.parametrize(("world_size", "backbone"), [(2, "resnet18"), (3, "resnet10t")])
def test_gradients_and_updates_of_n_ranks_are_those_of_one_process(world_size: int, backbone: str, tmp_path):
    """resnet10t is timm's; its normalisations and those of torchvision are of different classes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    torch.multiprocessing.spawn(be_a_rank, (world_size, port, str(tmp_path), backbone), nprocs=world_size)
    alone = two_steps(Place(), True, backbone)
    for rank in range(world_size):
        assert largest_difference(torch.load(tmp_path / f"{rank}-True.pt"), alone) < 1e-7
    # Statistics of each rank's own images are another computation, which this comparison must be able to see.
    assert largest_difference(torch.load(tmp_path / "0-False.pt"), alone) > 1e-2
