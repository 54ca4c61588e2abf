"""Several processes on gloo: the gradients, updates and losses of one; and what a dead one does to the others."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from warm import PIPE, Started, Warm

from univip_stream.augment import AugmentConfig
from univip_stream.distributed import Process, in_parallel, joined
from univip_stream.methods import Method, UniVIPConfig, build_method
from univip_stream.methods.univip import UniVIPPlan
from univip_stream.networks import synchronise_batchnorm
from univip_stream.views import ViewConfig

B, K = 12, 2
# It has torch's normalisations, one- and two-dimensional, and timm's, which brings its activation with it.
SMALL = UniVIPConfig(backbone="mobilenetv3_small_050", hidden=32, width=16)


def two_steps(process: Process, synchronised: bool) -> dict[str, torch.Tensor]:
    """Everything two updates leave of a method that trains in float64 on this rank's share of a fixed batch."""
    torch.manual_seed(0)
    method: Method = build_method(SMALL, UniVIPPlan(ViewConfig(instances=K), AugmentConfig())).double()
    model: torch.nn.Module = method
    if process.world_size > 1:
        if synchronised:
            synchronise_batchnorm(method, "cpu")
        model = in_parallel(method, process, torch.device("cpu"))
    optimizer = torch.optim.SGD(method.online_parameters(), lr=0.1, momentum=0.9)
    mine = slice(process.rank * B // process.world_size, (process.rank + 1) * B // process.world_size)
    left = {}
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        scenes = torch.randn(2, B, 3, 32, 32, generator=generator).double() * torch.linspace(0.5, 2, B)[:, None, None, None]
        instances = torch.randn(B, K, 3, 32, 32, generator=generator).double()
        model({"scenes": scenes[:, mine], "instances": instances[mine]})["loss"].backward()
        left |= {f"gradient {step} {name}": p.grad.clone() for name, p in method.named_parameters() if p.requires_grad}
        optimizer.step()
        optimizer.zero_grad()
        method.update_target(0.9)
    return left | {name: value.clone() for name, value in method.state_dict().items()}


def be_a_rank(rank: int, ports: dict[int, int], folder: str) -> None:
    torch.set_num_threads(1)
    for world_size, port in ports.items():
        if rank >= world_size:
            continue
        names = {"RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in names.items()}
        process = Process(rank=rank, world_size=world_size)
        with joined(process, torch.device("cpu")):
            torch.save(two_steps(process, True), f"{folder}/{world_size}-{rank}.pt")
            if world_size == 2:
                torch.save(two_steps(process, False), f"{folder}/apart-{rank}.pt")


def largest_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max().clamp(min=1e-3)) for name in theirs)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_gradients_and_updates_of_2_and_3_ranks_are_those_of_one_process(tmp_path, warm):
    ports = {2: free_port(), 3: free_port()}
    here = Path(__file__).resolve().parent
    code = f"import os, sys; sys.path[:0] = {[str(here), str(here.parent)]}; import test_distributed as here; "
    statuses, said = warm.ranks(3, ["-c", f"{code}here.be_a_rank(int(os.environ['RANK']), {ports}, {str(tmp_path)!r})"])
    assert statuses == [0, 0, 0], said
    alone = two_steps(Process(), True)
    for world_size in ports:
        for rank in range(world_size):
            assert largest_difference(torch.load(tmp_path / f"{world_size}-{rank}.pt"), alone) < 1e-10
    # Statistics of each rank's own images are another computation, which this comparison must be able to see.
    assert largest_difference(torch.load(tmp_path / "apart-0.pt"), alone) > 1e-2


TINY = [
    "method.backbone=test_resnet", "method.hidden=32", "method.width=16", "views.scene_size=32", "views.instance_size=32",
    "views.instances=2", "views.min_scale=32", "stream.batch_size=12", "stream.workers=1", "precision=fp32",
    "steps=8", "checkpoint_every=2", "record_every=1", "optim.lr=0.0005",
]  # fmt: skip


def words(shards: Path, run: Path, *settings: str) -> list[str]:
    texts = [argument for setting in (*TINY, *settings) for argument in ("--set", setting)]
    return ["train", "--shards", str(shards), "--out", str(run), "--recipe", "cpu-demo", *texts]


def job(warm: Warm, ranks: int, *arguments: Path | str) -> list[str]:
    """The command under torchrun's own code, all of them forks; the test of the page about Slurm starts what they stand for."""
    launcher = ["-c", "from torch.distributed.run import main; main()", "--standalone", "--nproc-per-node", str(ranks)]
    return [*launcher, "--no-python", str(warm.bin / "univip-stream"), *words(*arguments)]


def losses(run: Path) -> list[list[float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[row[name] for name in ("loss", "loss_scene", "loss_scene_instance", "loss_instance", "filled")] for row in rows]


@contextlib.contextmanager
def launched(warm: Warm, command: list[str], **more: str) -> Iterator[Started]:
    """A job that is stopped where the test fails: it would train on beside all the others."""
    launcher = warm.start(command, stderr=PIPE, env=os.environ | more)
    with launcher.stderr:
        try:
            yield launcher
        finally:
            launcher.send_signal(signal.SIGTERM)
            launcher.wait(30)


def wait_for(launcher: Started, what: Callable[[], bool]) -> None:
    until = time.monotonic() + 200  # three starts of torch, and whatever else the machine does
    while not what():
        assert launcher.poll() is None, launcher.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)


def rank_of(process: int) -> str | None:
    try:
        environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((entry[5:].decode() for entry in environment if entry.startswith(b"RANK=")), None)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds a rank's process in /proc")
def test_a_killed_rank_ends_the_job_soon_and_the_same_command_continues(drawn_shards, tmp_path, warm):
    """Two ranks, one killed; then three finish the run, with the losses that one process has."""
    run = tmp_path / "run"
    with launched(warm, job(warm, 2, drawn_shards, run)) as launcher:
        wait_for(launcher, lambda: (run / "checkpoints" / "step-000000002.pt").exists())
        children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True).stdout.split()
        (victim,) = [int(child) for child in children if rank_of(int(child)) == "1"]
        os.kill(victim, signal.SIGKILL)
        _, said = launcher.communicate(timeout=45)
    assert launcher.returncode == 1
    assert "rank 0 of 2" in said
    assert "a rank died or was stopped" in said
    assert "it continues from the last checkpoint" in said

    from click.testing import CliRunner

    from univip_stream.cli import cli

    statuses, said = warm.ranks(3, ["-m", "univip_stream", *words(drawn_shards, run)])
    assert statuses == [0, 0, 0], said
    assert "continues after step" in said
    assert "a batch of 12, 4 on each of 3 ranks;" in said
    alone = CliRunner().invoke(cli, words(drawn_shards, tmp_path / "alone"))
    assert alone.exit_code == 0, alone.output
    # In float32 the rounding of another order of sums grows about tenfold a step in so small a network, so only the first.
    assert len(losses(run)) == 8
    torch.testing.assert_close(torch.tensor(losses(run)[:3]), torch.tensor(losses(tmp_path / "alone")[:3]), atol=5e-5, rtol=0)


def test_parts_of_ranks_add_up_to_the_parts_of_one_process(drawn_shards, tmp_path, warm):
    """Gradients meet once a step, with its last part."""
    from click.testing import CliRunner

    from univip_stream.cli import cli

    parts = ["accumulate=2", "steps=2"]
    statuses, said = warm.ranks(2, ["-m", "univip_stream", *words(drawn_shards, tmp_path / "two", *parts)])
    assert statuses == [0, 0], said
    alone = CliRunner().invoke(cli, words(drawn_shards, tmp_path / "one", *parts))
    assert alone.exit_code == 0, alone.output
    # The second step has the first one's update in it, and its rounding, which this network makes some seventy times as large.
    for ours, theirs, least in zip(losses(tmp_path / "two"), losses(tmp_path / "one"), (1e-5, 1e-3), strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=least, rtol=0)


def test_sigterm_to_the_job_saves_at_one_step_of_all_ranks(drawn_shards, tmp_path, warm):
    run = tmp_path / "preempted"
    command = job(warm, 2, drawn_shards, run, "checkpoint_every=4000", "steps=4000")
    written = run / "metrics.jsonl"
    with launched(warm, command) as launcher:
        wait_for(launcher, lambda: written.exists() and written.read_text().count("\n") >= 2)
        launcher.send_signal(signal.SIGTERM)
        _, said = launcher.communicate(timeout=60)
    # Rank 0 speaks for all; a rank that stopped at another step would leave the other waiting for it, and that says so.
    (step,) = re.findall(r"stopped after step (\d+) of 4000, saved", said)
    assert "lost the connection" not in said
    assert "was told to stop" not in said
    assert (run / "checkpoints" / f"step-{int(step):09d}.pt").exists()
