"""Train with Ray Train as the launcher (`train --launcher ray`), on a running Ray cluster or a local Ray started here."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from univip_stream import storage
from univip_stream.cluster import attached
from univip_stream.distributed import PATIENCE, Process
from univip_stream.errors import InputError, UsageError
from univip_stream.machine import usable_cpus
from univip_stream.pretrain.config import PretrainConfig
from univip_stream.pretrain.results import last_record
from univip_stream.pretrain.settings import from_dict, to_dict
from univip_stream.pretrain.train import pretrain

_LISTEN_EVERY = 0.5
"""Seconds between two requests of the driver for messages of rank 0."""
_LISTEN_WITHIN = 10.0
"""Seconds that an answer may take."""


def pretrain_on_ray(
    config: PretrainConfig,
    shards: list[str],
    run: Path,
    *,
    ranks: int | None = None,
    address: str | None = None,
    device: str = "auto",
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int, dict[str, Any]], None] = lambda step, steps, values: None,
) -> dict[str, Any]:
    """Run `pretrain` on several ranks that Ray places, each with one CPU, and one GPU if the cluster has any.

    Every rank must reach the shards and the run folder under the same names. If a rank dies, the job ends; if called again,
    it continues from the last checkpoint.

    Args:
        config: as in `pretrain`.
        shards: as in `pretrain`.
        run: folder of the run.
        ranks: number of processes; None is one for each GPU of the cluster, or one without GPUs.
        address: address of a running Ray; None starts a local one.
        device: auto, cpu or cuda.
        say: called with each line for a person.
        progress: called for each recorded step, soon after it.

    Returns:
        The last recorded values.

    Raises:
        InputError: `pretrain` raised it in a rank, or Ray is not installed or cannot be reached.

    """
    try:
        import ray as ray_module
        from ray import train as ray_train
        from ray.train import torch as ray_torch
    except ImportError as error:
        raise InputError(f"--launcher ray needs Ray Train ({error}); pip install 'univip-stream[launch]'") from error
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device}: Ray gives every rank its GPU; expected auto, cpu or cuda")
    ray: Any = ray_module  # its stubs know little of what is made at run time
    with attached(ray, address, otherwise="without --launcher ray training does without it", num_cpus=usable_cpus()):
        gpus = int(ray.cluster_resources().get("GPU", 0))
        on_gpu = device == "cuda" or (device == "auto" and gpus > 0)
        count = ranks or (gpus if on_gpu else 1)
        _room(ray, count, on_gpu)
        say(f"Ray: {count} ranks, each with one CPU{' and one GPU' if on_gpu else ''}")
        mouth = ray.remote(num_cpus=0)(_Mouth).remote()
        trainer = ray_torch.TorchTrainer(
            _be_a_rank,
            train_loop_config={
                "config": json.dumps(to_dict(config)),
                "shards": [storage.absolute(spec) for spec in shards],
                "run": os.path.abspath(run),
                "device": "cuda" if on_gpu else "cpu",
                "folder": os.getcwd(),
                "mouth": mouth,
            },
            torch_config=ray_torch.TorchConfig(backend="nccl" if on_gpu else "gloo", timeout_s=int(PATIENCE.total_seconds())),
            scaling_config=ray_train.ScalingConfig(num_workers=count, use_gpu=on_gpu, resources_per_worker=_each(on_gpu)),
            run_config=ray_train.RunConfig(name=".ray", storage_path=os.path.abspath(run)),
        )
        try:
            with _heard(ray, mouth, say, progress):
                trainer.fit()
        except ray_train.TrainingFailedError as error:
            raise _told(error) from error
    return last_record(run) or {}


def _each(on_gpu: bool) -> dict[str, float]:
    return {"CPU": 1.0, "GPU": 1.0} if on_gpu else {"CPU": 1.0}


def _room(ray: Any, count: int, on_gpu: bool) -> None:
    """Raise InputError if the cluster has too few CPUs or GPUs; Ray itself would wait for ever."""
    there = ray.cluster_resources()
    for name, wanted in _each(on_gpu).items():
        if count * wanted > there.get(name, 0):
            raise InputError(
                f"{count} ranks need {count * wanted:g} {name}s, and the cluster has {there.get(name, 0):g}; expected fewer "
                "--ranks or more machines"
            )


def _be_a_rank(settings: dict[str, Any]) -> None:
    """Train on one rank; Ray calls this on each."""
    from ray import train as ray_train

    context = ray_train.get_context()
    process = Process(rank=context.get_world_rank(), world_size=context.get_world_size(), local_rank=context.get_local_rank())
    if os.path.isdir(settings["folder"]):
        os.chdir(settings["folder"])  # relative paths among the settings are relative to this folder

    def say(*words: Any) -> None:
        if process.is_first:
            settings["mouth"].speak.remote(words)

    config = from_dict(PretrainConfig, json.loads(settings["config"]))
    run = Path(settings["run"])
    pretrain(config, settings["shards"], run, device=settings["device"], process=process, say=say, progress=say)


class _Mouth:
    """Keeps the messages of rank 0, lines and recorded steps, until the driver takes them."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def speak(self, words: tuple[Any, ...]) -> None:
        self.said.append(words)

    def take(self) -> list[tuple[Any, ...]]:
        taken, self.said = self.said, []
        return taken


@contextmanager
def _heard(
    ray: Any, mouth: Any, say: Callable[[str], None], progress: Callable[[int, int, dict[str, Any]], None]
) -> Iterator[None]:
    """While inside: a thread passes on the messages of rank 0, because the launcher waits in this thread."""
    done = threading.Event()

    def listen() -> None:
        last = False
        while not last:
            last = done.wait(_LISTEN_EVERY)
            try:
                said = ray.get(mouth.take.remote(), timeout=_LISTEN_WITHIN)
            except ray.exceptions.RayError:  # its node is gone; the run itself will say so
                continue
            for words in said:
                (say if len(words) == 1 else progress)(*words)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        done.set()
        listener.join()


def _told(error: Exception) -> InputError:
    """Return the first error of the ranks that is not just another rank's end."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    causes = [getattr(failure, "cause", None) or failure for failure in failures.values()]
    ours = [cause for cause in causes if isinstance(cause, InputError)]
    for cause in [*(cause for cause in ours if "rank died or was stopped" not in str(cause)), *ours]:
        return type(cause)(str(cause))
    first = str(causes[0]).strip().splitlines()[-1]
    return InputError(f"a rank failed or died ({first}); run the same command again, it continues from the last checkpoint")
