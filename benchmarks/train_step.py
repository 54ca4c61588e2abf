"""A training step of UniVIP on the CPU, beside a straightforward implementation of the same equations, in one run.

    python benchmarks/train_step.py [--rounds 3] [--batch 4] [--backbone resnet50] [--threads 1]

ResNet-50, scenes of 224 px, 4 instances of 96 px. A step is forward, backward, SGD and the moving average. The peer runs a
forward for each view and each instance slot, in float32 and NCHW, and solves each image's transport by POT. Then ours, one
choice after the other; the last row is what the trainer does where the CPU multiplies bf16. Medians, rounds interleaved.

Losses are compared first, on the same weights and images. A batch normalisation's statistics are those of what it is given,
so for that the peer gives all instances in one forward, as ours does.

The last lines are of the host alone: the same operators on tensors of next to no numbers (a ResNet-50 of two channels, 32 px, two
images), so what is left is Python and the calls into torch. It bounds from above what a GPU waits for its host.

One thread: with several, oneDNN's threads wait for each other in loops, and beside other programs that is what one measures.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import numpy as np
import ot
import timm
import torch
import torch.nn.functional as F
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor

from univip_stream.augment import AugmentConfig
from univip_stream.methods import UniVIP, UniVIPConfig
from univip_stream.methods.univip import UniVIPPlan
from univip_stream.pretrain.config import OptimConfig
from univip_stream.pretrain.optim import build_optimizer
from univip_stream.pretrain.train import pick_precision
from univip_stream.transport import sinkhorn
from univip_stream.views import ViewConfig

K = 4


def medians(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds a call, one to warm up; every round runs each once, so that other work on the machine hits all alike.

    With one thread these are seconds of the CPU, from which other work takes less than from those of the clock.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            start = clock()
            work()
            taken[name].append(clock() - start)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def pot_plans(cost: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Eq. 7 image by image. POT updates columns first, ours rows first: the transposed problem is the same sequence."""
    plans = []
    for c, b, a in zip(cost.double().numpy(), rows.double().numpy(), columns.double().numpy(), strict=True):
        b, a = b.clip(1e-12), a.clip(1e-12)  # POT's iterations stop at a weight of zero
        plans.append(ot.sinkhorn(a / a.sum(), b / b.sum(), c.T, 0.1, numItermax=50, stopThr=0, warn=False).T)
    return torch.from_numpy(np.stack(plans)).float()


def straightforward(method: UniVIP, scenes: Tensor, instances: Tensor, *, joint: bool = False) -> Tensor:
    """Eq. 2 to 12 with a forward for each view and each instance slot, or with `joint` one for all instances."""

    def online(images: Tensor) -> Tensor:
        return method.predictor(method.online(images))

    def of_instances(network: Callable[[Tensor], Tensor]) -> Tensor:
        if joint:
            return network(instances.flatten(0, 1)).reshape(*instances.shape[:2], -1)
        return torch.stack([network(instances[:, k]) for k in range(K)], 1)

    with torch.no_grad():
        g1, g2 = method.target(scenes[0]), method.target(scenes[1])
        t = of_instances(method.target)
    f1, f2 = online(scenes[0]), online(scenes[1])
    o = of_instances(online)
    scene = -F.cosine_similarity(f1, g2) - F.cosine_similarity(f2, g1)
    assert method.aggregate is not None
    aggregate = method.aggregate(o.flatten(1))
    affinity = -F.cosine_similarity(aggregate, g1) - F.cosine_similarity(aggregate, g2)
    cosines = F.cosine_similarity(o[:, :, None], t[:, None], dim=-1)
    with torch.no_grad():
        supply = (o * ((g1 + g2) / 2)[:, None]).sum(-1).relu()
        demand = (t * ((f1 + f2) / 2)[:, None]).sum(-1).relu()
        plan = pot_plans(1 - cosines, supply, demand)
    return (scene + affinity - (plan * cosines).sum((1, 2))).mean()


def the_peers_step(start: UniVIP, scenes: Tensor, instances: Tensor) -> Callable[[], None]:
    method = copy.deepcopy(start)
    optimizer = torch.optim.SGD(method.online_parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, foreach=False)

    def step() -> None:
        optimizer.zero_grad()
        straightforward(method, scenes, instances[0]).backward()
        optimizer.step()
        with torch.no_grad():
            for target, online in zip(method.target.parameters(), method.online.parameters(), strict=True):
                target.mul_(0.99).add_(online, alpha=0.01)

    return step


def our_step(start: UniVIP, scenes: Tensor, instances: Tensor, layout: torch.memory_format, kind: torch.dtype) -> Callable:
    method = copy.deepcopy(start).to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = build_optimizer(method, OptimConfig(lr=0.01))

    def step() -> None:
        with torch.autocast("cpu", kind, enabled=kind != torch.float32):
            losses = method({"scenes": scenes, "instances": instances[0]})
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.update_target(0.99)

    return step


def compare_steps(backbone: str, batch: int, rounds: int) -> None:
    torch.manual_seed(0)
    start = UniVIP(UniVIPConfig(backbone=backbone), UniVIPPlan(ViewConfig(instances=K), AugmentConfig()))
    # As the trainer has them: cut as H x W x 3, so channels_last without a copy.
    scenes = torch.randn(2, batch, 224, 224, 3).permute(0, 1, 4, 2, 3)
    instances = torch.randn(1, batch, K, 96, 96, 3).permute(0, 1, 2, 5, 3, 4)
    plain, plain_instances = scenes.contiguous(), instances.contiguous()
    wanted, why = pick_precision("auto", torch.device("cpu"))

    with torch.no_grad():
        theirs = float(straightforward(copy.deepcopy(start), plain, plain_instances[0], joint=True))
        ours = float(copy.deepcopy(start)({"scenes": plain, "instances": plain_instances[0]})["loss"])
        with torch.autocast("cpu", torch.bfloat16):
            low = float(copy.deepcopy(start)({"scenes": plain, "instances": plain_instances[0]})["loss"])
    print(f"loss: straightforward {theirs:.6f}, ours {ours:.6f} (differ by {abs(ours - theirs):.1e}, expected under 1e-4), "
          f"in bf16 {low:.4f} (by {abs(low - theirs):.1e}, expected under 5e-2)")  # fmt: skip
    assert abs(ours - theirs) < 1e-4
    assert abs(low - theirs) < 5e-2

    last, nchw = torch.channels_last, torch.contiguous_format
    works: dict[str, Callable[[], object]] = {
        "straightforward": the_peers_step(start, plain, plain_instances),
        "ours, float32, NCHW": our_step(start, plain, plain_instances, nchw, torch.float32),
        "ours, float32, channels_last": our_step(start, scenes, instances, last, torch.float32),
        "ours, bf16, NCHW": our_step(start, plain, plain_instances, nchw, torch.bfloat16),
        "ours, bf16, channels_last": our_step(start, scenes, instances, last, torch.bfloat16),
    }
    taken = medians(works, rounds)
    for name, seconds in taken.items():
        print(f"{name:30s} {seconds:6.2f} s a step of {batch}: {taken['straightforward'] / seconds:.2f} times as fast")
    print(f"the trainer would take {str(wanted).removeprefix('torch.')} here: {why}")


def compare_transport(rounds: int) -> None:
    for batch in (64, 512):
        generator = torch.Generator().manual_seed(0)
        o, t = (F.normalize(torch.randn(batch, K, 256, generator=generator), dim=-1) for _ in range(2))
        cost, rows = 1 - o @ t.transpose(1, 2), torch.rand(batch, K, generator=generator)
        columns = torch.rand(batch, K, generator=generator)
        torch.testing.assert_close(sinkhorn(cost, rows, columns), pot_plans(cost, rows, columns), atol=1e-5, rtol=0)
        works: dict[str, Callable[[], object]] = {
            "pot": lambda cost=cost, rows=rows, columns=columns: pot_plans(cost, rows, columns),  # type: ignore[misc]
            "ours": lambda cost=cost, rows=rows, columns=columns: sinkhorn(cost, rows, columns),  # type: ignore[misc]
        }
        taken = medians(works, 5 * rounds)
        print(f"Sinkhorn, {batch} problems of {K} x {K}, 50 iterations: POT one by one {1000 * taken['pot']:.1f} ms, ours "
              f"{1000 * taken['ours']:.2f} ms: {taken['pot'] / taken['ours']:.0f} times as fast")  # fmt: skip


@timm.models.register_model
def resnet50_of_two_channels(pretrained: bool = False, **settings: object) -> ResNet:
    """A ResNet-50's modules with hardly any weights."""
    del pretrained, settings
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes=0, stem_width=2, channels=(2, 2, 2, 2))


def compare_hosts(rounds: int) -> None:
    """Time of the host for a step, whatever the batch: ours beside the straightforward one, and what is left at our goal."""
    torch.manual_seed(0)
    views = ViewConfig(scene_size=32, instance_size=32, instances=K)
    config = UniVIPConfig(backbone="timm/resnet50_of_two_channels", hidden=8, width=8)
    start = UniVIP(config, UniVIPPlan(views, AugmentConfig()))
    scenes, instances = torch.randn(2, 2, 3, 32, 32), torch.randn(1, 2, K, 3, 32, 32)
    works: dict[str, Callable[[], object]] = {
        "straightforward": the_peers_step(start, scenes, instances),
        "ours": our_step(start, scenes, instances, torch.channels_last, torch.float32),
        "ours, bf16": our_step(start, scenes, instances, torch.channels_last, torch.bfloat16),
    }
    taken = medians(works, 5 * rounds)
    for name, seconds in taken.items():
        print(f"host, {name:22s} {1000 * seconds:6.1f} ms a step: {taken['straightforward'] / seconds:.2f} times as fast")
    print(f"the goal on an H100, 2,000 images/s in batches of 256, leaves it {256 / 2000 * 1000:.0f} ms")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} thread{'s' * (arguments.threads > 1)}, {arguments.backbone}")
    compare_transport(arguments.rounds)
    compare_hosts(arguments.rounds)
    compare_steps(arguments.backbone, arguments.batch, arguments.rounds)


if __name__ == "__main__":
    main()
