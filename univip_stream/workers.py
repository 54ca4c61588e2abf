"""Loader workers, one start for all: no batch is lost without a word, and none outlives the process that wants its batches.

torch's DataLoader hands batches over in a thread of the worker. What goes wrong there is printed and forgotten, and whoever
waits for that batch waits for ever. A worker whose parent was killed may wait for ever too: in a write to a pipe that its
siblings hold open. `docs/decisions/022` says what is done about both.
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

from univip_stream.errors import InputError
from univip_stream.files import said_size

_PR_SET_PDEATHSIG = 1
"""linux/prctl.h: the signal that a process gets when the thread that forked it ends."""
_WATCH_EVERY = 0.5
"""Seconds between two looks of a worker at its parent, where the kernel has not ended it already."""
_LEAVE_AFTER = 2.0
"""Seconds that workers have to leave on their own once nobody wants their batches."""
_SOCKET_NAME = 107
"""Bytes of a unix socket's path, man 7 unix: 108 with the zero at its end."""
_PYMP = len("/pymp-12345678/listener-12345678")
"""What multiprocessing adds to the temporary folder."""

_last_words = mmap.mmap(-1, 4096)
"""Why a worker died, where it could say so: memory that all workers share with their parent."""


class WorkerDied(InputError, RuntimeError):  # noqa: N818 - it tells what happened
    """A loader worker is gone, and with it the batches that it had."""


def loaded(
    dataset: Dataset[Any], *, workers: int, start: Callable[[], None] = lambda: None, **options: Any
) -> Generator[Any, None, None]:
    """What a DataLoader gives, in its order; the workers start at once.

    An item that is an InputError is raised here, and so is an InputError that the dataset raises in a worker, as itself:
    DataLoader would lay the worker's traceback over its words. Close the iterator, or let go of it, to end the workers.

    Args:
        dataset: with `__getitem__`, and `__len__` unless a sampler is among the options.
        workers: processes that make the items; 0: this one.
        start: called in each worker before its first item.
        options: DataLoader's.

    Raises:
        InputError: what keeps a batch from arriving, in words: no shared memory, too many open files, no memory.
        WorkerDied: a worker is gone.

    """
    if workers == 0:
        options.pop("prefetch_factor", None)
        return _raised(iter(DataLoader(dataset, **options)))
    _short_temporary_folder()
    _last_words[:] = bytes(len(_last_words))
    leave = mmap.mmap(-1, mmap.PAGESIZE)
    begin = _Start(os.getpid(), threading.current_thread() is threading.main_thread(), leave, start)
    if options.get("batch_size", 1) is not None:  # an item is put together from several
        options["collate_fn"] = _Collated(options.get("collate_fn") or default_collate)
    with warnings.catch_warnings(), _in_words():
        # How many workers are wise is the user's to say: more than cores are right where reading waits for a network.
        warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
        # Python 3.12 warns of any fork beside threads. The workers touch neither CUDA nor the parent's thread pools.
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        loader: DataLoader[Any] = DataLoader(
            _Told(dataset),
            num_workers=workers,
            # Forked workers share the parent's memory; at a million images a copy of the index each would be gigabytes.
            multiprocessing_context="fork",
            worker_init_fn=begin,
            **options,
        )
        return _given(iter(loader), leave)


def explained(error: BaseException | str) -> str | None:
    """What to tell a person about an error of a loader; None if it is none of those that are known here."""
    text = str(error)
    number = getattr(error, "errno", None)
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text or "ancdata" in text:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return (
            f"too many open files: a process may have {soft} here (`ulimit -n`), and loader workers that hand over batches need "
            "more. `ulimit -n 4096` before the command, or fewer --workers"
        )
    if "AF_UNIX path too long" in text:
        return (
            f"the name of the temporary folder {tempfile.gettempdir()} is too long for the sockets by which loader workers hand "
            f"over batches (at most {_SOCKET_NAME - _PYMP} bytes): set TMPDIR to a shorter one, such as /tmp"
        )
    if "shared memory" in text or "Bus error" in text or "</torch_" in text:
        return f"no room in shared memory for the batches of loader workers{_room()}"
    if isinstance(error, MemoryError) or number == errno.ENOMEM or "can't allocate memory" in text:
        return f"out of memory ({text.splitlines()[0] if text else 'MemoryError'}): fewer --workers or a smaller batch help"
    return None


def death(error: BaseException) -> str | None:
    """What to tell a person about an error that means a dead loader worker; None if it means something else.

    torch tells of a worker's death in whatever call the main process happens to be in, so look at any RuntimeError.
    """
    text = str(error).strip()
    if isinstance(error, WorkerDied):
        return text
    if "Pin memory thread" in text:
        return f"batches of loader workers can no longer be received: {_said() or 'the thread that receives them is gone'}"
    if "DataLoader worker" not in text or text.startswith("Caught"):  # a worker's error, of which it did not die
        return None
    if said := _said() or (explained(text) if "Bus error" in text else None):
        return f"a loader worker died: {said}"
    return f"a loader worker died ({text.splitlines()[0]}); often memory: fewer --workers help"


class _Start:
    """What a worker does first, beside what its user wants of it."""

    def __init__(self, parent: int, of_main_thread: bool, leave: mmap.mmap, then: Callable[[], None]) -> None:
        self.parent, self.of_main_thread, self.leave, self.then = parent, of_main_thread, leave, then

    def __call__(self, worker: int) -> None:
        # They leave the process group: what a terminal, torchrun or a scheduler sends to the group is the parent's to answer,
        # which needs them for what it is in the middle of.
        os.setsid()
        if self.of_main_thread and sys.platform == "linux":
            # A thread that is not the main one may end before its process does, and the signal goes by threads.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        threading.Thread(target=self._watch, name="watch-parent", daemon=True).start()
        # In the threads of a worker that hand over batches: what is lost there is told in its place, or the worker dies of it.
        # It is called as a method of the queue, because it is looked up on it.
        multiprocessing.queues.Queue._on_queue_feeder_error = _tell  # type: ignore[attr-defined]
        others = threading.excepthook
        threading.excepthook = lambda hook: (
            _die(hook.exc_value) if hook.thread and hook.thread.name == "QueueFeederThread" else others(hook)
        )
        sys.excepthook = lambda kind, error, trace: _die(error)
        torch.set_num_threads(1)  # workers are the parallelism
        self.then()

    def _watch(self) -> None:
        """End this process with its parent, or when that has no use for it, whatever its other threads wait for."""
        while os.getppid() == self.parent and not self.leave[0]:
            time.sleep(_WATCH_EVERY)
        until = time.monotonic() + _LEAVE_AFTER
        while os.getppid() == self.parent and time.monotonic() < until:
            time.sleep(_WATCH_EVERY)
        os._exit(0)


class _Told(Dataset[Any]):
    """A dataset whose errors are items, where they can be put in words."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, number: Any) -> Any:
        return _or_error(self.dataset.__getitem__, number)


class _Collated:
    """Items as a batch; an error among them in its stead."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: list[Any]) -> Any:
        for item in items:
            if isinstance(item, InputError):
                return item
        return _or_error(self.collate, items)


def _or_error(make: Callable[[Any], Any], what: Any) -> Any:
    """What is made of something; the error, where it can be put in words."""
    try:
        return make(what)
    except InputError as error:
        return type(error)(str(error))  # without what it holds on to, which may not travel between processes
    except (OSError, MemoryError, RuntimeError) as error:
        if (words := explained(error) or (str(error) if isinstance(error, OSError) else None)) is None:
            raise
        return InputError(words)


def _given(batches: Iterator[Any], leave: mmap.mmap) -> Generator[Any, None, None]:
    try:
        while True:
            with _in_words():
                try:
                    item = next(batches)
                except StopIteration:
                    return
                except (ConnectionError, EOFError, FileNotFoundError) as error:
                    # A worker that is gone leaves batches whose memory can no longer be handed over.
                    raise WorkerDied(death(RuntimeError(f"DataLoader worker lost with a batch: {error!r}")) or "") from error
            if isinstance(item, InputError):
                raise item
            yield item
    finally:
        # DataLoader waits for one after the other, five seconds each. A worker that hangs is not waited for so long.
        leave[0] = 1
        # Not left to the garbage collector: an error's traceback holds the iterator on. A worker's death was told already.
        with contextlib.suppress(RuntimeError, AttributeError):
            cast(Any, batches)._shutdown_workers()


def _raised(items: Iterator[Any]) -> Generator[Any, None, None]:
    for item in items:
        if isinstance(item, InputError):
            raise item
        yield item


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """Within: errors of a loader are InputErrors, where they are known."""
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, OSError, MemoryError) as error:
        if (died := death(error)) is not None:
            raise WorkerDied(died) from error
        if (words := explained(error)) is not None:
            raise InputError(words) from error
        raise


def _tell(queue: Any, error: Exception, lost: Any) -> None:
    """In a worker: a batch could not be handed over. Hand over why."""
    if isinstance(lost, tuple) and len(lost) == 2:
        queue.put((lost[0], InputError(explained(error) or _unknown(error))))
    else:  # it was on its way already, and half of it may lie in the pipe
        _die(error)


def _die(error: BaseException | None) -> None:
    """In a worker: end, and leave word. A parent that waits learns of it by the death."""
    if error is None or isinstance(error, (ConnectionError, EOFError, SystemExit)):
        return  # the parent has hung up, and does not wait
    words = (explained(error) or _unknown(error)).encode()[: len(_last_words) - 1]
    _last_words[: len(words)] = words
    os._exit(1)


def _said() -> str:
    """The last words of a worker, if it had any."""
    return _last_words[:].rstrip(b"\0").decode(errors="replace")


def _unknown(error: BaseException) -> str:
    return f"a batch cannot be handed over by its loader worker ({type(error).__name__}: {error})"


def _room() -> str:
    advice = (
        "Fewer --workers or smaller batches need less; in a container, --shm-size=8g gives more (Docker's default is 64 MB)"
    )
    if not Path("/dev/shm").is_dir():
        return f". {advice}"
    shared = shutil.disk_usage("/dev/shm")
    return f": /dev/shm has {said_size(shared.free)} of {said_size(shared.total)} free. {advice}"


def _short_temporary_folder() -> None:
    """Give multiprocessing a folder for its sockets whose name is short enough, where $TMPDIR's is not.

    Made here and not by each worker, so that one is left to be removed, by this process. Python does the same from 3.14 on.
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
    except OSError:  # none that can be written to
        return None
