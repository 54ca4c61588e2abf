"""Run a plain function over shards, on Ray or one after the other."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

from univip_stream.cluster import ANSWER_WITHIN, attached
from univip_stream.errors import InputError, in_words
from univip_stream.machine import usable_cpus

_OBJECT_STORE = 100 << 20
"""Size of a local Ray's object store in bytes. Only tasks and reports pass through it, never images."""
_CHECK_EVERY = 0.5
"""Seconds between two checks of the workers' progress."""
_AHEAD = 2
"""Number of tasks submitted for each that can run: enough that no CPU waits for the driver, few enough to stop soon."""


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Settings that say where work is done."""

    workers: int | None = None
    """Number of shards that are processed at the same time; None is one for each CPU."""
    address: str | None = None
    """Address of a running Ray cluster; None starts a local one."""
    inline: bool = False
    """Whether to work without Ray, one shard after the other, in this process."""


class Task(Protocol):
    """The work on one shard."""

    @property
    def name(self) -> str:
        """Name of the shard, for messages."""


Progress = Callable[[int], None]
Function = Callable[[Any, Progress], Any]
"""Takes (task, progress) and returns the result; it calls `progress` now and then with the number of images done since."""


def run(function: Function, tasks: Iterable[Task], place: Compute, progress: Progress) -> Iterator[tuple[Task, Any]]:
    """Carry out all tasks, and yield each with its result when it is done, in any order.

    Args:
        function: function that carries out a task.
        tasks: the tasks, which are taken when there is work; there may be none.
        place: where the work is done.
        progress: called with the number of images done since the last call.

    Raises:
        InputError: a task failed as a whole; the message names it and has the worker's error.

    """
    if place.inline:
        for task in tasks:
            yield task, function(task, progress)
        return
    waiting = iter(tasks)
    first = next(waiting, None)
    if first is not None:
        yield from _on_ray(function, chain([first], waiting), place, progress)


def _on_ray(function: Function, tasks: Iterator[Task], place: Compute, progress: Progress) -> Iterator[tuple[Task, Any]]:
    import ray as ray_module

    ray: Any = ray_module  # its stubs know neither remote functions nor actors made at run time
    local = {"num_cpus": place.workers or usable_cpus(), "num_gpus": 0, "object_store_memory": _OBJECT_STORE}
    stays = ray.is_initialized()  # a program that uses Ray itself called us, and its Ray runs on after us
    with ExitStack() as stack, attached(ray, place.address, otherwise="--inline does without Ray, on one CPU", **local):
        here = place.address is None and not stays  # all workers are of this machine
        counter = stack.enter_context(_FileCounter()) if here else _ActorCounter(ray)
        # Each task has one CPU and no GPU; a task whose worker or node dies is given to another.
        remotely = ray.remote(num_cpus=1, max_retries=3)(_mine_and_count)
        at_once = place.workers or max(1, int(ray.cluster_resources().get("CPU", 1))) * _AHEAD
        running: dict[Any, Task] = {}
        try:
            while True:
                for task in islice(tasks, at_once - len(running)):
                    running[remotely.remote(function, task, counter)] = task
                if not running:
                    break
                done, _ = ray.wait(list(running), num_returns=1, timeout=_CHECK_EVERY)
                progress(counter.take())
                for reference in done:
                    task = running.pop(reference)
                    yield task, _result(ray, reference, task)
            progress(counter.take())
        finally:
            # Stopped early. Elsewhere the end of the connection ends the tasks; a cancelled one that answers while Ray shuts
            # down would abort this process (Ray 2.5x: "Tried to complete task that was not pending").
            for reference in running if stays else ():
                ray.cancel(reference)


class _Counter(Protocol):
    """Counts images done since the driver last asked, the workers' only report before a shard is finished."""

    def add(self, images: int) -> None:
        """Count images, in a worker."""

    def take(self) -> int:
        """Return what was counted since the last call, in the driver. If it cannot be had, only the display falls behind."""


class _FileCounter:
    """Counts in a file, for workers of this machine: an actor would be one more process to start."""

    def __init__(self) -> None:
        self._path, self._read = "", 0

    def __enter__(self) -> "_FileCounter":
        descriptor, self._path = tempfile.mkstemp(prefix="univip-stream-", suffix=".count")
        os.close(descriptor)
        return self

    def __exit__(self, *error: object) -> None:
        Path(self._path).unlink(missing_ok=True)

    def add(self, images: int) -> None:
        # The file is not made again where the driver has gone. A line this short is appended whole.
        with contextlib.suppress(OSError), open(os.open(self._path, os.O_WRONLY | os.O_APPEND), "wb", buffering=0) as file:
            file.write(b"%d\n" % images)

    def take(self) -> int:
        with contextlib.suppress(OSError), open(self._path, "rb") as file:
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")[0]
            self._read += len(whole) + bool(whole)
            return sum(map(int, whole.split()))
        return 0


class _ActorCounter:
    """Counts in an actor, for workers of a cluster."""

    class _Count:
        def __init__(self) -> None:
            self.count = 0

        def add(self, images: int) -> None:
            self.count += images

        def take(self) -> int:
            taken, self.count = self.count, 0
            return taken

    def __init__(self, ray: Any) -> None:
        self._actor = ray.remote(num_cpus=0, max_restarts=-1)(self._Count).remote()

    def add(self, images: int) -> None:
        self._actor.add.remote(images)

    def take(self) -> int:
        import ray as ray_module

        ray: Any = ray_module
        try:
            return int(ray.get(self._actor.take.remote(), timeout=ANSWER_WITHIN))
        except ray.exceptions.RayError:  # its node is gone; it restarts elsewhere
            return 0


def _mine_and_count(function: Function, task: Task, counter: _Counter) -> Any:
    return function(task, counter.add)


def _result(ray: Any, reference: Any, task: Task) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        if isinstance(cause, InputError | OSError):
            message = in_words(cause) if isinstance(cause, OSError) else str(cause)
            raise InputError(f"shard {task.name}: {message}") from error
        raise
    except ray.exceptions.RayError as error:
        raise InputError(
            f"shard {task.name}: its worker died and so did the retries "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); finished shards are kept, run the same command again"
        ) from error
