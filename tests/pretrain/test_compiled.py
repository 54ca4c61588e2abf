"""`compile`: a step of every method is one graph, compiled once, with the losses that it has without.

In processes of their own: the shape checks that wrap functions in tests are what a graph would break at.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import count

import pytest
import torch

from univip_stream.methods import METHODS, Method, MethodConfig, build_method

B, K = 4, 2


def method_of(name: str, *, joint_views: bool) -> Method:
    torch.manual_seed(0)
    settings = {"hidden": 16, "width": 8, "queue": 10, "iterations": 2, "joint_views": joint_views}
    method = build_method(MethodConfig(name=name, backbone="test_resnet", **settings), instances=K)
    return method.to(memory_format=torch.channels_last)


def batch_of(method: Method, seed: int) -> tuple[tuple[torch.Tensor, torch.Tensor | None], dict[str, torch.Tensor]]:
    gen, wants = torch.Generator().manual_seed(seed), method.wants
    scenes = torch.randn(2, B, 3, 64, 64, generator=gen)
    instances = torch.randn(1, B, K, 3, 32, 32, generator=gen) if wants.crops else None
    extras = {}
    if wants.boxes:
        extras["boxes"] = torch.tensor([4.0, 4.0, 28.0, 28.0]).repeat(3 if wants.third else 2, B, K, 1)
    if wants.third:
        extras["third"] = torch.randn(B, 3, 32, 32, generator=gen)
    if wants.patches:
        extras["patches"] = torch.randn(4, B, 3, 32, 32, generator=gen)
    return (scenes, instances), extras


def compared(name: str) -> dict[str, object]:
    """Losses of two steps, compiled and not, and why a graph broke or was compiled again, if it did."""
    plain, method = (method_of(name, joint_views=name in ("univip", "byol", "simclr")) for _ in range(2))
    torch._dynamo.reset()
    graphs: list[int] = []
    number = count()

    def counted(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(next(number))
        return graph.forward

    compiled = torch.compile(method, backend=counted, fullgraph=True)
    pairs = []
    try:
        with torch._dynamo.config.patch(error_on_recompile=True):
            for seed in range(2):
                args, extras = batch_of(method, seed)
                losses = [network(*args, **extras)["loss"] for network in (compiled, plain)]
                pairs.append([loss.item() for loss in losses])
                for network, loss in zip((method, plain), losses, strict=True):
                    loss.backward()
                    with torch.no_grad():
                        for parameter in network.online_parameters():
                            parameter.add_(parameter.grad, alpha=-0.01)
                            parameter.grad = None
                    network.update_target(0.9)
    except torch._dynamo.exc.TorchDynamoException as error:
        return {"error": str(error)}
    return {"losses": pairs, "graphs": len(graphs)}


class Looking(METHODS["byol"]):  # type: ignore[misc]
    """A method that somebody made slow."""

    def forward(self, scenes: torch.Tensor, instances: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        losses = super().forward(scenes, instances)
        return losses if losses["loss"].item() < 10 else {}


def in_a_process_of_its_own(names: list[str]) -> dict[str, dict[str, object]]:
    code = f"import json, test_compiled as m; print(json.dumps({{name: m.compared(name) for name in {names!r}}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=__file__.rsplit("/", 1)[0], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_step_of_every_method_is_one_graph_and_is_compiled_once() -> None:
    found = in_a_process_of_its_own([*METHODS])
    assert [*found] == [*METHODS]
    for name, said in found.items():
        assert said.get("error") is None, (name, said["error"])
        assert said["graphs"] == 1, name
        for compiled, plain in said["losses"]:  # type: ignore[attr-defined]
            assert compiled == pytest.approx(plain, rel=1e-4), name


def test_a_step_that_breaks_the_graph_is_caught() -> None:
    assert "item" in str(in_a_process_of_its_own(["test_compiled:Looking"])["test_compiled:Looking"]["error"])
