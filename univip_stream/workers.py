"""Start loader workers so that no batch is lost silently and no worker outlives the process that uses its batches.

torch's DataLoader hands batches over in a thread of the worker. If that fails, it prints the error and goes on, and the
process that waits for the batch waits for ever. A worker whose parent was killed may wait for ever too, in a write to a pipe
that its siblings hold open. `docs/decisions/022` explains what is done about both.
"""

import contextlib
import ctypes
import errno
import mmap
import multiprocessing.process
import multiprocessing.queues
import multiprocessing.util
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sized
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from univip_stream.errors import InputError, causes
from univip_stream.files import readable_size

_PR_SET_PDEATHSIG = 1
"""Option of prctl for the signal that a process gets when the thread that forked it ends. Source: linux/prctl.h."""
_CHECK_EVERY = 0.5
"""Seconds between two checks of a worker that its parent is alive, in case the kernel has not ended the worker already."""
_LEAVE_AFTER = 2.0
"""Seconds that workers have to end by themselves once nobody needs their batches."""
_SOCKET_NAME = 107
"""The most bytes of a unix socket's path. Source: man 7 unix, 108 with the zero at its end."""
_PYMP = len("/pymp-12345678/listener-12345678")
"""Bytes that multiprocessing adds to the name of the temporary folder."""

_reported_reason = mmap.mmap(-1, 4096)
"""Reason why a worker died, if it could write one, in memory that all workers share with their parent."""


class WorkerDied(InputError, RuntimeError):  # noqa: N818 - the name says what happened
    """A loader worker died, and the batches that it had are lost."""


def loaded(
    dataset: Dataset[Any], *, workers: int, start: Callable[[], None] = lambda: None, **options: Any
) -> Generator[Any, None, None]:
    """Yield what a DataLoader gives, in its order. The workers start at once.

    If an item is an InputError, it is raised here. An InputError that the dataset raises in a worker is raised here
    unchanged; DataLoader would put the worker's traceback in front of its message. To end the workers, close the iterator or
    delete it.

    Args:
        dataset: dataset with `__getitem__`, and with `__len__` unless a sampler is among the options.
        workers: number of processes that make the items; 0 makes them in this one.
        start: called in each worker before its first item.
        options: options of DataLoader.

    Raises:
        InputError: a batch cannot arrive: shared memory is full, too many files are open, or memory is short.
        WorkerDied: a worker died.

    """
    if workers == 0:
        options.pop("prefetch_factor", None)
        return _raise_errors(iter(DataLoader(dataset, **options)))
    _short_temporary_folder()
    _reported_reason[:] = bytes(len(_reported_reason))
    leave = mmap.mmap(-1, mmap.PAGESIZE)
    begin = _WorkerStart(os.getpid(), threading.current_thread() is threading.main_thread(), leave, start)
    if options.get("batch_size", 1) is not None:  # a batch is made of several items
        options["collate_fn"] = _CollateOrError(options.get("collate_fn") or default_collate)
    with warnings.catch_warnings(), _known_as_input_errors():
        # The user decides how many workers are right: if reading waits for a network, more than there are cores.
        warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
        # Python 3.12 warns of every fork beside threads. The workers use neither CUDA nor the parent's thread pools.
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        loader: DataLoader[Any] = DataLoader(
            _ErrorsAsItems(dataset),
            num_workers=workers,
            # Forked workers share the parent's memory; at a million images a copy of the index each would be gigabytes.
            multiprocessing_context="fork",
            worker_init_fn=begin,
            **options,
        )
        return _batches_of(iter(loader), leave)


def explained(error: BaseException | str) -> str | None:
    """Return the message for an error of a loader; None if the error is not known here."""
    text = str(error)
    number = getattr(error, "errno", None)
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text or "ancdata" in text:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return (
            f"too many open files: a process may have {soft} here (`ulimit -n`), and loader workers that hand over batches need "
            "more. Run `ulimit -n 4096` before the command, or use fewer --workers"
        )
    if "AF_UNIX path too long" in text:
        return (
            f"the name of the temporary folder {tempfile.gettempdir()} is too long for the sockets through which loader workers "
            f"hand over batches (at most {_SOCKET_NAME - _PYMP} bytes): set TMPDIR to a shorter one, such as /tmp"
        )
    if "shared memory" in text or "Bus error" in text or "</torch_" in text:
        return f"no room in shared memory for the batches of loader workers{_shared_memory_left()}"
    if isinstance(error, MemoryError) or number == errno.ENOMEM or "can't allocate memory" in text:
        return f"out of memory ({text.splitlines()[0] if text else 'MemoryError'}): fewer --workers or a smaller batch help"
    return None


def death(error: BaseException) -> str | None:
    """Return the message for an error that means that a loader worker died; None for other errors.

    torch reports a worker's death in whatever call the main process happens to be in, so pass any RuntimeError. A call that is cut
    off like that can end with an error of its own, as the writing of a checkpoint does.
    """
    return next((told for cause in causes(error) if (told := _death(cause)) is not None), None)


def _death(error: BaseException) -> str | None:
    text = str(error).strip()
    if isinstance(error, WorkerDied):
        return text
    if "Pin memory thread" in text:
        gone = "the thread that receives them is gone"
        return f"batches of loader workers can no longer be received: {_reason_of_death() or gone}"
    if "DataLoader worker" not in text or text.startswith("Caught"):  # an error that the worker survived
        return None
    if reason := _reason_of_death() or (explained(text) if "Bus error" in text else None):
        return f"a loader worker died: {reason}"
    return f"a loader worker died ({text.splitlines()[0]}); often memory: fewer --workers help"


class _WorkerStart:
    """Prepares a worker process before its first item, and then calls the caller's `start`."""

    def __init__(self, parent: int, of_main_thread: bool, leave: mmap.mmap, then: Callable[[], None]) -> None:
        self.parent, self.of_main_thread, self.leave, self.then = parent, of_main_thread, leave, then

    def __call__(self, worker: int) -> None:
        # Workers leave the process group: signals that a terminal, torchrun or a scheduler sends to the group are for the
        # parent, which needs the workers to finish what it is doing.
        os.setsid()
        if self.of_main_thread and sys.platform == "linux":
            # A thread other than the main one may end before its process, and the kernel sends the signal when the thread
            # ends.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        threading.Thread(target=self._watch, name="watch-parent", daemon=True).start()
        # These act in the threads of a worker that hand over batches: if a batch is lost, the error takes its place, or the
        # worker dies. `_send_error` is called as a method of the queue, because Python looks it up there.
        multiprocessing.queues.Queue._on_queue_feeder_error = _send_error  # type: ignore[attr-defined]
        others = threading.excepthook
        threading.excepthook = lambda hook: (
            _die(hook.exc_value) if hook.thread and hook.thread.name == "QueueFeederThread" else others(hook)
        )
        sys.excepthook = lambda kind, error, trace: _die(error)
        torch.set_num_threads(1)  # workers are the parallelism
        self.then()

    def _watch(self) -> None:
        """End this process when its parent ends or no longer needs it, whatever its other threads wait for."""
        while os.getppid() == self.parent and not self.leave[0]:
            time.sleep(_CHECK_EVERY)
        until = time.monotonic() + _LEAVE_AFTER
        while os.getppid() == self.parent and time.monotonic() < until:
            time.sleep(_CHECK_EVERY)
        os._exit(0)


class _ErrorsAsItems(Dataset[Any]):
    """A dataset whose known errors are items."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, number: Any) -> Any:
        return _call_or_error(self.dataset.__getitem__, number)


class _CollateOrError:
    """Collates items into a batch; if one of them is an error, that is the batch."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: list[Any]) -> Any:
        for item in items:
            if isinstance(item, InputError):
                return item
        return _call_or_error(self.collate, items)


def _call_or_error(make: Callable[[Any], Any], what: Any) -> Any:
    """Return `make(what)`, or the error if it is a known one."""
    try:
        return make(what)
    except InputError as error:
        return type(error)(str(error))  # without its references, which may not be picklable
    except (OSError, MemoryError, RuntimeError) as error:
        if (message := explained(error) or (str(error) if isinstance(error, OSError) else None)) is None:
            raise
        return InputError(message)


def _batches_of(batches: Iterator[Any], leave: mmap.mmap) -> Generator[Any, None, None]:
    try:
        while True:
            with _known_as_input_errors():
                try:
                    item = next(batches)
                except StopIteration:
                    return
                except (ConnectionError, EOFError, FileNotFoundError) as error:
                    # A dead worker leaves batches whose memory can no longer be handed over.
                    raise WorkerDied(death(RuntimeError(f"DataLoader worker lost with a batch: {error!r}")) or "") from error
            if isinstance(item, InputError):
                raise item
            yield item
    finally:
        # DataLoader waits up to five seconds for each worker in turn. This makes a worker that hangs end sooner.
        leave[0] = 1
        # Not left to the garbage collector, because an error's traceback keeps the iterator alive. A death was reported
        # already.
        with contextlib.suppress(RuntimeError, AttributeError):
            cast(Any, batches)._shutdown_workers()


def _raise_errors(items: Iterator[Any]) -> Generator[Any, None, None]:
    for item in items:
        if isinstance(item, InputError):
            raise item
        yield item


@contextlib.contextmanager
def _known_as_input_errors() -> Iterator[None]:
    """While inside: known errors of a loader become InputErrors."""
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, OSError, MemoryError) as error:
        if (died := death(error)) is not None:
            raise WorkerDied(died) from error
        if (message := explained(error)) is not None:
            raise InputError(message) from error
        raise


def _send_error(queue: Any, error: Exception, lost: Any) -> None:
    """Send the reason in place of a batch that this worker could not hand over."""
    if isinstance(lost, tuple) and len(lost) == 2:
        queue.put((lost[0], InputError(explained(error) or _unknown_error(error))))
    else:  # it was being sent already, and half of it may be in the pipe
        _die(error)


def _die(error: BaseException | None) -> None:
    """Write down the reason and end this worker. A parent that waits notices the death."""
    if error is None or isinstance(error, (ConnectionError, EOFError, SystemExit)):
        return  # the parent has closed the connection, and does not wait
    reason = (explained(error) or _unknown_error(error)).encode()[: len(_reported_reason) - 1]
    _reported_reason[: len(reason)] = reason
    os._exit(1)


def _reason_of_death() -> str:
    """Return the reason that a dead worker wrote down; empty if it wrote none."""
    return _reported_reason[:].rstrip(b"\0").decode(errors="replace")


def _unknown_error(error: BaseException) -> str:
    return f"a batch cannot be handed over by its loader worker ({type(error).__name__}: {error})"


def _shared_memory_left() -> str:
    advice = (
        "Fewer --workers or smaller batches need less; in a container, --shm-size=8g gives more (Docker's default is 64 MB)"
    )
    if not Path("/dev/shm").is_dir():
        return f". {advice}"
    shared = shutil.disk_usage("/dev/shm")
    return f": /dev/shm has {readable_size(shared.free)} of {readable_size(shared.total)} free. {advice}"


def _short_temporary_folder() -> None:
    """Give multiprocessing a folder for its sockets with a short enough name if that of $TMPDIR is too long.

    It is made here, not by each worker, so that this process has just one to remove. Python does the same from 3.14 on.
    """
    settings: dict[str, Any] = getattr(multiprocessing.process.current_process(), "_config", {})
    there = settings.get("tempdir")
    if there and os.path.isdir(there) and len(os.fsencode(there)) + len("/listener-12345678") <= _SOCKET_NAME:
        return
    for place in (_temporary(), "/tmp", "/var/tmp", "/dev/shm"):
        if place and len(os.fsencode(place)) + _PYMP <= _SOCKET_NAME:
            try:
                folder = tempfile.mkdtemp(prefix="pymp-", dir=place)
            except OSError:
                continue
            multiprocessing.util.Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=-100)
            settings["tempdir"] = folder
            return
    raise InputError(explained("AF_UNIX path too long") or "")


def _temporary() -> str | None:
    try:
        return tempfile.gettempdir()
    except OSError:  # no temporary folder can be written to
        return None
