"""Run shard tasks: on Ray, or one after the other. What is run is the same plain function."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from univip_stream.errors import InputError
from univip_stream.mining.shard import ShardTask, mine_shard

if TYPE_CHECKING:
    from univip_stream.mining.job import MiningConfig

_OBJECT_STORE = 100 << 20
"""Bytes Ray's local object store gets: tasks and reports only, images never pass through it."""
_LOOK_EVERY = 0.5
"""Seconds between two looks at the workers' progress."""
_AHEAD = 2
"""Tasks submitted for every one that can run: enough that no CPU waits for the driver, few enough to stop soon."""


def run(tasks: Iterable[ShardTask], config: "MiningConfig", progress: Callable[[int], None]) -> Iterator[dict[str, Any]]:
    """Mine the shards and yield each one's manifest entry as it lands, in any order.

    Args:
        tasks: made as they are taken; may be empty.
        config: where to run.
        progress: called with the number of images done since the last call.

    Raises:
        InputError: a shard that failed as a whole, by name; the rest of its error is the worker's.

    """
    if config.inline:
        for task in tasks:
            yield mine_shard(task, progress)
        return
    waiting = iter(tasks)
    first = next(waiting, None)
    if first is not None:
        yield from _on_ray(chain([first], waiting), config, progress)


def _on_ray(tasks: Iterator[ShardTask], config: "MiningConfig", progress: Callable[[int], None]) -> Iterator[dict[str, Any]]:
    import ray as ray_module

    ray: Any = ray_module  # its stubs know neither remote functions nor actors made at run time
    _start(ray, config)
    try:
        counter = ray.remote(num_cpus=0)(_Counter).remote()
        mine_remotely = ray.remote(num_cpus=1, max_retries=3)(_mine_and_count)
        cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        at_once = min(config.workers or cpus, cpus) * _AHEAD if config.workers is None else config.workers
        running: dict[Any, ShardTask] = {}
        while True:
            for task in islice(tasks, at_once - len(running)):
                running[mine_remotely.remote(task, counter)] = task
            if not running:
                break
            done, _ = ray.wait(list(running), num_returns=1, timeout=_LOOK_EVERY)
            progress(ray.get(counter.take.remote()))
            for reference in done:
                yield _result(ray, reference, running.pop(reference))
        progress(ray.get(counter.take.remote()))
    finally:
        ray.shutdown()


def _start(ray: Any, config: "MiningConfig") -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's coming default; without it, it warns about accelerators that mining does not use.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if config.address:
        ray.init(address=config.address, **settings)
    else:
        ray.init(
            address="local",
            num_cpus=config.workers or len(os.sched_getaffinity(0)),
            num_gpus=0,
            object_store_memory=_OBJECT_STORE,
            include_dashboard=False,
            **settings,
        )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own there, which exits without a word of ours


class _Counter:
    """Images done since the driver last asked; the workers' only word before a shard lands."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, images: int) -> None:
        self.count += images

    def take(self) -> int:
        taken, self.count = self.count, 0
        return taken


def _mine_and_count(task: ShardTask, counter: Any) -> dict[str, Any]:
    return mine_shard(task, lambda images: counter.add.remote(images))


def _result(ray: Any, reference: Any, task: ShardTask) -> dict[str, Any]:
    try:
        entry: dict[str, Any] = ray.get(reference)
        return entry
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        if isinstance(cause, InputError | OSError):
            raise InputError(f"shard {task.name} ({len(task.images)} images): {cause}") from error
        raise
    except ray.exceptions.RayError as error:
        raise InputError(
            f"shard {task.name} ({len(task.images)} images): its worker died and so did the retries "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); finished shards are kept, run the same command again"
        ) from error
