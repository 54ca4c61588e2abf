"""`compile`: a step of every method is one graph, compiled once, with the losses that it has without.

In processes of their own: the shape checks that wrap functions in tests are what a graph would break at.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from planned import inputs_of, planned, shallow
from torch._dynamo.backends.debugging import aot_eager

from univip_stream.augment import AugmentConfig, _augment_all, _tables, draw
from univip_stream.methods import METHODS, Method
from univip_stream.plan import Plan
from univip_stream.views import ViewConfig

pytestmark = pytest.mark.timeout(700)  # one process for all: a minute of a CPU, and more where others use it too
HERE = Path(__file__).resolve().parent
B, K = 4, 2


VIEWS = ViewConfig(scene_size=64, instance_size=32, instances=K, third_size=32, pairs="pairs.parquet")
SMALL = {"hidden": 16, "width": 8, "queue": 10, "iterations": 2, "small_size": 32, "small_views": 2}


FAMILIES = ("byol test_convnext", "byol test_vit")
"""Other networks than a ResNet, with which a method is compiled too."""


def method_of(name: str, backbone: str, *, joint_views: bool) -> tuple[Method, Plan]:
    torch.manual_seed(0)
    method, plan = planned(name, VIEWS, backbone=backbone, joint_views=joint_views, **SMALL)
    return shallow(method).to(memory_format=torch.channels_last), plan


def compared(name: str) -> dict[str, object]:
    """Losses of two steps in bf16, as GPUs make them, compiled and not, and why a graph broke or was compiled again, if it did."""
    name, _, backbone = name.partition(" ")
    joint = name in ("univip", "byol", "simclr")
    (plain, plan), (method, _) = (method_of(name, backbone or "test_resnet", joint_views=joint) for _ in range(2))
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
                with torch.autocast("cpu", torch.bfloat16):
                    losses = [network(inputs_of(plan, B, seed))["loss"] for network in (compiled, plain)]
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

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        losses = super().forward(batch)
        return losses if losses["loss"].item() < 10 else {}


def augmented() -> dict[str, object]:
    """How far compiled augmentations are from those that are not, how they lie in memory, and in how many graphs."""
    config, rng = AugmentConfig(), np.random.default_rng(0)
    images = torch.randint(0, 256, (24, 32, 32, 3), dtype=torch.uint8).movedim(-1, 1)
    draws = torch.from_numpy(np.stack([draw(rng, config, number % 2) for number in range(24)]))
    graphs: list[torch.fx.GraphModule] = []

    def counted(graph: torch.fx.GraphModule, given: object) -> Callable[..., object]:
        graphs.append(graph)
        return aot_eager(graph, given)

    compiled = torch.compile(_augment_all, backend=counted, fullgraph=True, dynamic=False)
    given = (images, draws, _tables(32, config, images.device), config.solarize_threshold, False)
    ours, theirs = compiled(*given), _augment_all(*given)
    return {
        "apart": (ours - theirs).abs().max().item(),
        "last": [found.is_contiguous(memory_format=torch.channels_last) for found in (ours, theirs)],
        "graphs": len(graphs),
        "constants": sum(node.op == "call_function" and node.target is torch.tensor for node in graphs[0].graph.nodes),
    }


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, object]]:
    """What `compared` says of every method, and `augmented` of the augmentations, from one process."""
    code = (
        "import json, test_compiled as m; m.METHODS['looking'] = m.Looking; "
        "print(json.dumps({'augmentations': m.augmented(), **{name: m.compared(name) for name in (*m.METHODS, *m.FAMILIES)}}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.mark.parametrize("name", [*METHODS, *FAMILIES])
def test_a_step_of_every_method_is_one_graph_and_is_compiled_once(name: str, found: dict[str, dict[str, object]]) -> None:
    said = found[name]
    assert said.get("error") is None, said["error"]
    assert said["graphs"] == 1
    for compiled, plain in said["losses"]:  # type: ignore[attr-defined]
        assert compiled == pytest.approx(plain, rel=1e-4)


def test_a_step_that_breaks_the_graph_is_caught(found: dict[str, dict[str, object]]) -> None:
    assert "item" in str(found["looking"]["error"])


def test_augmentations_are_one_graph_too_and_make_no_constants_in_it(found: dict[str, dict[str, object]]) -> None:
    expected = {"apart": pytest.approx(0, abs=1e-5), "last": [True, True], "graphs": 1, "constants": 0}
    assert found["augmentations"] == expected
