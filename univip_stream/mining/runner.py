"""Run a plain function over shards: on Ray, or one after the other."""

import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

from univip_stream.errors import InputError
from univip_stream.machine import usable_cpus

_OBJECT_STORE = 100 << 20
"""Bytes Ray's local object store gets: tasks and reports only, images never pass through it."""
_LOOK_EVERY = 0.5
"""Seconds between two looks at the workers' progress."""
_AHEAD = 2
"""Tasks submitted for every one that can run: enough that no CPU waits for the driver, few enough to stop soon."""
_ANSWER_WITHIN = 10.0
"""Seconds that a cluster's address, or the counter of progress, has for an answer."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where work is done."""

    workers: int | None = None
    """Shards in work at a time; None is one a CPU."""
    address: str | None = None
    """Of a running Ray cluster; None starts a local one."""
    inline: bool = False
    """Without Ray, one after the other, in this process."""


class Task(Protocol):
    """One shard's work."""

    @property
    def name(self) -> str:
        """Of the shard, for people."""


Progress = Callable[[int], None]
Function = Callable[[Any, Progress], Any]
"""(task, progress) -> result; calls progress now and then with the number of images done since the last call."""


def run(function: Function, tasks: Iterable[Task], place: Place, progress: Progress) -> Iterator[tuple[Task, Any]]:
    """Do all tasks and yield each with its result as it is done, in any order.

    Args:
        function: what to do with a task.
        tasks: made as they are taken; may be empty.
        place: where.
        progress: called with the number of images done since the last call.

    Raises:
        InputError: a task that failed as a whole, by name; the rest of its error is the worker's.

    """
    if place.inline:
        for task in tasks:
            yield task, function(task, progress)
        return
    waiting = iter(tasks)
    first = next(waiting, None)
    if first is not None:
        yield from _on_ray(function, chain([first], waiting), place, progress)


def _on_ray(function: Function, tasks: Iterator[Task], place: Place, progress: Progress) -> Iterator[tuple[Task, Any]]:
    import ray as ray_module

    ray: Any = ray_module  # its stubs know neither remote functions nor actors made at run time
    _start(ray, place)
    try:
        counter = ray.remote(num_cpus=0, max_restarts=-1)(_Counter).remote()
        # One CPU and no GPU a task; a task whose worker or node dies is given to another.
        remotely = ray.remote(num_cpus=1, max_retries=3)(_mine_and_count)
        at_once = place.workers or max(1, int(ray.cluster_resources().get("CPU", 1))) * _AHEAD
        running: dict[Any, Task] = {}
        while True:
            for task in islice(tasks, at_once - len(running)):
                running[remotely.remote(function, task, counter)] = task
            if not running:
                break
            done, _ = ray.wait(list(running), num_returns=1, timeout=_LOOK_EVERY)
            progress(_taken(ray, counter))
            for reference in done:
                task = running.pop(reference)
                yield task, _result(ray, reference, task)
        progress(_taken(ray, counter))
    finally:
        ray.shutdown()


def _start(ray: Any, place: Place) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's coming default; without it, it warns about accelerators that mining does not use.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if place.address:
        _refuse_silence(place.address)
        try:
            ray.init(address=place.address, **settings)
        except (ConnectionError, ray.exceptions.RayError) as error:
            raise InputError(
                f"--address {place.address}: {str(error).splitlines()[0]}; is a cluster running (`ray start --head`)? If it "
                "asks for a token: copy ~/.ray/auth_token from its head and set RAY_AUTH_MODE=token"
            ) from error
    else:
        ray.init(
            address="local",
            num_cpus=place.workers or usable_cpus(),
            num_gpus=0,
            object_store_memory=_OBJECT_STORE,
            include_dashboard=False,
            **settings,
        )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own there, which exits without a word of ours


def _refuse_silence(address: str) -> None:
    """Ray itself waits for minutes where nobody answers."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or _latest_cluster() or address
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=_ANSWER_WITHIN).close()
        except OSError as error:
            raise InputError(
                f"--address {address}: nobody answers there ({error}); start a cluster with `ray start --head`, "
                "or leave --address out for a local one"
            ) from error


def _latest_cluster() -> str | None:
    """Where Ray remembers this machine's cluster, also one that is gone."""
    try:
        return Path(tempfile.gettempdir(), "ray", "ray_current_cluster").read_text().strip()
    except OSError:
        return None


class _Counter:
    """Images done since the driver last asked; the workers' only word before a shard lands."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, images: int) -> None:
        self.count += images

    def take(self) -> int:
        taken, self.count = self.count, 0
        return taken


def _taken(ray: Any, counter: Any) -> int:
    try:
        return int(ray.get(counter.take.remote(), timeout=_ANSWER_WITHIN))
    except ray.exceptions.RayError:  # its node is gone; it starts anew elsewhere, and only the display is behind
        return 0


def _mine_and_count(function: Function, task: Task, counter: Any) -> Any:
    return function(task, lambda images: counter.add.remote(images))


def _result(ray: Any, reference: Any, task: Task) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        if isinstance(cause, InputError | OSError):
            raise InputError(f"shard {task.name}: {cause}") from error
        raise
    except ray.exceptions.RayError as error:
        raise InputError(
            f"shard {task.name}: its worker died and so did the retries "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); finished shards are kept, run the same command again"
        ) from error
