"""Every method on two gloo ranks: gradients, queues and updates are those of one process with all the images."""

from pathlib import Path

import pytest
import torch

from univip_stream.distributed import Place, in_parallel, joined, place_from_environment
from univip_stream.methods import METHODS, MethodConfig, build_method
from univip_stream.networks import synchronise_batchnorm

B, K, S, T = 4, 2, 32, 16
NAMES = sorted(METHODS.keys() - {"univip", "byol"})  # these two: tests/pretrain/test_distributed.py


def two_steps(name: str, place: Place) -> dict[str, torch.Tensor]:
    """What two updates leave of a method that trains in float64 on this rank's share of a fixed batch."""
    torch.manual_seed(0)
    config = MethodConfig(name=name, backbone="resnet10t", hidden=16, width=8, queue=6)
    method = build_method(config, instances=K).double()
    model: torch.nn.Module = method
    if place.world_size > 1:
        synchronise_batchnorm(method, "cpu")
        model = in_parallel(method, place, torch.device("cpu"))
    optimizer = torch.optim.SGD(method.online_parameters(), lr=0.01, momentum=0.9)
    mine = slice(place.rank * B // place.world_size, (place.rank + 1) * B // place.world_size)
    left = {}
    for step in range(2):
        rng = torch.Generator().manual_seed(step)
        scenes = torch.randn(2, B, 3, S, S, generator=rng).double() * torch.linspace(0.5, 2, B)[:, None, None, None]
        instances = torch.randn(1, B, K, 3, S, S, generator=rng).double() if method.wants.crops else None
        extras = {}
        if method.wants.boxes:
            near = torch.rand(2 + method.wants.third, B, K, 2, generator=rng) * 8
            extras["boxes"] = torch.cat([near, near + 8], -1)[:, mine]
        if method.wants.third:
            extras["third"] = torch.randn(B, 3, T, T, generator=rng).double()[mine]
        if method.wants.patches:
            extras["patches"] = torch.randn(4, B, 3, S, S, generator=rng).double()[:, mine]
        model(scenes[:, mine], None if instances is None else instances[:, mine], **extras)["loss"].backward()
        left |= {f"gradient {step} {key}": p.grad.clone() for key, p in method.named_parameters() if p.requires_grad}
        optimizer.step()
        optimizer.zero_grad()
        method.update_target(0.9)
    return left | {key: value.clone() for key, value in method.state_dict().items()}


def be_a_rank(folder: str) -> None:
    torch.set_num_threads(1)
    place = place_from_environment()
    rank = place.rank
    with joined(place, torch.device("cpu")):
        for name in NAMES:
            torch.save(two_steps(name, place), f"{folder}/{name}-{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, warm):
    folder = tmp_path_factory.mktemp("ranks")
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_ranks as here; "
    statuses, said = warm.ranks(2, ["-c", f"{code}here.be_a_rank({str(folder)!r})"])
    assert statuses == [0, 0], said
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_gradients_queues_and_updates_of_two_ranks_are_those_of_one_process(name, ranks):
    alone = two_steps(name, Place())
    for rank in range(2):
        ours = torch.load(ranks / f"{name}-{rank}.pt")
        assert ours.keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-8, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}")
    assert any(value.abs().max() > 1e-3 for key, value in alone.items() if key.startswith("gradient 1"))
