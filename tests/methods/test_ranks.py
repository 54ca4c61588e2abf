"""Every method on two gloo ranks: gradients, queues and updates are those of one process with all the images."""

from pathlib import Path

import pytest
import torch

from univip_stream.augment import AugmentConfig
from univip_stream.distributed import Process, in_parallel, joined, process_from_environment
from univip_stream.methods import METHODS, build_method, build_plan
from univip_stream.networks import synchronise_batchnorm
from univip_stream.views import ViewConfig

B, K, S, T = 4, 2, 32, 16
NAMES = sorted(METHODS.keys() - {"univip", "byol"})  # these two: tests/pretrain/test_distributed.py


def two_steps(name: str, process: Process) -> dict[str, torch.Tensor]:
    """What two updates leave of a method that trains in float64 on this rank's share of a fixed batch."""
    torch.manual_seed(0)
    kind = METHODS[name].Settings
    own = {"queue": 6, "small_views": 3, "small_size": T}
    config = kind(
        name=name, backbone="test_resnet", hidden=16, width=8, **{key: own[key] for key in own if hasattr(kind, key)}
    )
    views = ViewConfig(scene_size=S, instance_size=S, instances=K, third_size=T, pairs="pairs.parquet")
    plan = build_plan(config, views, AugmentConfig())
    method = build_method(config, plan).double()
    model: torch.nn.Module = method
    if process.world_size > 1:
        synchronise_batchnorm(method, "cpu")
        model = in_parallel(method, process, torch.device("cpu"))
    optimizer = torch.optim.SGD(method.online_parameters(), lr=0.01, momentum=0.9)
    mine = slice(process.rank * B // process.world_size, (process.rank + 1) * B // process.world_size)
    left = {}
    for step in range(2):
        rng = torch.Generator().manual_seed(step)
        batch = {}
        for cut, form in plan.cuts.items():  # pictures that differ from image to image in strength, too
            pictures = torch.randn(*form.layout(B), 3, form.size, form.size, generator=rng).double()
            batch[cut] = (pictures * torch.linspace(0.5, 2, B)[:, None, None, None])[:, mine]
            assert not form.together
        if "boxes" in plan.facts:
            near = torch.rand(B, *plan.facts["boxes"][:-1], 2, generator=rng) * 8
            batch["boxes"] = torch.cat([near, near + 8], -1)[mine]
        model(batch)["loss"].backward()
        left |= {f"gradient {step} {key}": p.grad.clone() for key, p in method.named_parameters() if p.requires_grad}
        optimizer.step()
        optimizer.zero_grad()
        method.update_target(0.9)
    return left | {key: value.clone() for key, value in method.state_dict().items()}


def be_a_rank(folder: str) -> None:
    torch.set_num_threads(1)
    process = process_from_environment()
    rank = process.rank
    with joined(process, torch.device("cpu")):
        for name in NAMES:
            torch.save(two_steps(name, process), f"{folder}/{name}-{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, warm):
    folder = tmp_path_factory.mktemp("ranks")
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_ranks as here; "
    statuses, said = warm.ranks(2, ["-c", f"{code}here.be_a_rank({str(folder)!r})"])
    assert statuses == [0, 0], said
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_gradients_queues_and_updates_of_two_ranks_are_those_of_one_process(name, ranks):
    alone = two_steps(name, Process())
    for rank in range(2):
        ours = torch.load(ranks / f"{name}-{rank}.pt")
        assert ours.keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-8, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}")
    assert any(value.abs().max() > 1e-3 for key, value in alone.items() if key.startswith("gradient 1"))
