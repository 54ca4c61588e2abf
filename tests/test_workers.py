"""Loader workers: none loses a batch without a word, and none outlives who wants its batches."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import pytest
import torch
from torch.utils.data import Dataset

from univip_stream.cli.trouble import errors_reported
from univip_stream.errors import InputError, UsageError
from univip_stream.workers import WorkerDied, death, explained, loaded


class Numbers(Dataset):
    """Item n is a tensor full of n; it may do something first."""

    def __init__(self, count=12, first=lambda number: None, size=1000):
        self.count, self.first, self.size = count, first, size

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        self.first(number)
        return torch.full((self.size,), float(number))


def in_time(what, seconds=60):
    """Run `what` in a thread: a hang is a failure and not the end of the suite."""
    result = []

    def run():
        try:
            result.append(what())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert result, f"nothing came within {seconds} s"
    return result[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_items_come_in_their_order_from_any_number_of_workers(workers):
    assert [int(batch[0, 0]) for batch in loaded(Numbers(), workers=workers, batch_size=3)] == [0, 3, 6, 9]


def raising(error):
    def first(number):
        if number == 5:
            raise error

    return first


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("collate", [None, torch.stack])
def test_an_error_in_words_crosses_as_itself(workers, collate):
    options = {} if collate is None else {"collate_fn": collate}
    batches = loaded(Numbers(first=raising(UsageError("item 5 is odd"))), workers=workers, batch_size=3, **options)
    assert int(next(batches)[0, 0]) == 0
    with pytest.raises(UsageError) as caught:
        next(batches)
    assert str(caught.value) == "item 5 is odd"


def test_an_error_of_the_system_is_its_sentence_and_a_mistake_keeps_its_traceback():
    with pytest.raises(InputError) as caught:
        list(loaded(Numbers(first=raising(FileNotFoundError(2, "No such file or directory", "a.jpg"))), workers=1))
    assert str(caught.value) == "[Errno 2] No such file or directory: 'a.jpg'"
    with pytest.raises(ZeroDivisionError, match="Traceback"):
        list(loaded(Numbers(first=raising(ZeroDivisionError("by zero"))), workers=1))


def no_more_files():
    """In a worker: as many files are open as may be."""
    next_one = os.open(os.devnull, os.O_RDONLY)
    os.close(next_one)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_one, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def too_long_a_name():
    """In a worker: sockets whose names the system refuses."""
    import multiprocessing.process

    multiprocessing.process.current_process()._config["tempdir"] = "/tmp/" + "x" * 100


@pytest.mark.parametrize(
    ("start", "words"),
    [(no_more_files, "too many open files: a process may have"), (too_long_a_name, "is too long for the sockets")],
)
def test_a_batch_that_cannot_be_handed_over_is_told_and_not_waited_for(start, words):
    """The thread that hands it over used to print a traceback and go on; the batch was waited for for ever."""
    error = in_time(lambda: list(loaded(Numbers(), workers=2, start=start)))
    assert isinstance(error, InputError)
    assert words in str(error)


@pytest.mark.slow
def test_a_worker_that_can_no_longer_be_asked_for_its_batches_is_told():
    """Its thread that passes files on has none left to answer with: the other side would wait for the answer."""

    def first(number):
        if number == 1:  # the batch before is on its way; what comes is accepted by no one
            no_more_files()
            time.sleep(3600)

    def run():
        batches = loaded(Numbers(first=first), workers=1, prefetch_factor=2, batch_size=None, sampler=range(4))
        time.sleep(3)
        return list(batches)

    error = in_time(run)
    assert isinstance(error, InputError)
    assert "too many open files" in str(error)


@pytest.mark.slow
def test_the_last_words_of_a_worker_are_told():
    error = in_time(lambda: list(loaded(Numbers(first=lambda number: os.kill(os.getpid(), signal.SIGKILL)), workers=1)))
    assert isinstance(error, WorkerDied)
    assert "a loader worker died" in str(error)
    assert "often memory" in str(error)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"),
            "--shm-size",
        ),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
        (RuntimeError("unable to open shared memory object </torch_1> in read-write mode: Too many open files"), "ulimit -n"),
        (MemoryError(), "out of memory"),
    ],
)
def test_what_libraries_say_is_said_in_words(error, words):
    assert words in explained(error)


def test_what_is_not_known_is_left_alone():
    assert explained(RuntimeError("size mismatch")) is None
    assert death(RuntimeError("size mismatch")) is None
    bus = "DataLoader worker (pid 3) is killed by signal: Bus error. It is possible that dataloader's workers are out of"
    assert "--shm-size" in death(RuntimeError(bus))


def test_a_death_in_a_call_that_then_ends_with_an_error_of_its_own_is_still_told(capsys):
    """As torch.save does: the file's end does not fit what was written before the signal."""
    written = RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 4615104 vs 4614992")
    written.__context__ = RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed.")
    assert death(written).startswith("a loader worker died")
    with pytest.raises(click.exceptions.Exit), errors_reported(click.Context(click.Command("train"))):
        raise written
    assert capsys.readouterr().err.startswith("error: a loader worker died")


@pytest.mark.slow
def test_workers_that_hang_do_not_keep_their_parent():
    batches = loaded(Numbers(count=800, first=lambda number: time.sleep(3600 if number >= 4 else 0)), workers=4)
    next(batches)
    began = time.monotonic()
    batches.close()
    assert time.monotonic() - began < 10  # DataLoader alone takes five seconds for each of them


LONG = """
import multiprocessing, os, sys, tempfile, torch
sys.path.insert(0, {tests!r})
from test_workers import Numbers
from univip_stream.workers import loaded
print(sum(int(item[0]) for item in loaded(Numbers(), workers=2, batch_size=None, sampler=range(12))))
print(multiprocessing.current_process()._config["tempdir"])
"""


def test_a_temporary_folder_of_a_long_name_does_no_harm_and_nothing_is_left_of_it(tmp_path):
    folder = tmp_path / ("slurm_" * 20)
    folder.mkdir()
    code = LONG.format(tests=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(folder)}, capture_output=True, text=True, timeout=100
    )
    assert done.stderr == ""
    total, short = done.stdout.split()
    assert total == "66"
    assert Path(short).name.startswith("pymp-")
    assert not Path(short).exists()


KILLED = """
import multiprocessing, os, signal, sys, threading, time
sys.path.insert(0, {tests!r})
from test_workers import Numbers
from univip_stream.workers import loaded

def run():
    def first(number):
        if {how!r} == "asleep":
            time.sleep(3600 if number > 8 else 0)
    size = 1 if {how!r} == "asleep" else 1_000_000
    class Plain(Numbers):  # bytes go through the pipe, which nobody empties
        def __getitem__(self, number):
            return super().__getitem__(number).numpy().tobytes()
    batches = loaded(Plain(count=10**6, first=first, size=size), workers=8, batch_size=None, sampler=range(10**6))
    next(batches)
    time.sleep(2)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

if {threaded!r}:
    threading.Thread(target=run).start()
else:
    run()
"""


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("how", ["writing", "asleep"])
def test_workers_are_gone_soon_after_their_parent_was_killed(how, threaded, warm):
    code = KILLED.format(tests=str(Path(__file__).parent), how=how, threaded=threaded)
    done = warm.run(["-c", code], timeout=100)
    began = time.monotonic()
    workers = done.stdout.split()
    assert len(workers) == 8
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() - began < 5
        time.sleep(0.05)


SMALL = """
import sys
sys.path.insert(0, {tests!r})
from test_workers import Numbers
from univip_stream.workers import loaded
try:
    list(loaded(Numbers(size=4_000_000, count=40), workers=2))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_small_shared_memory_is_told_with_its_cure():
    """Docker's default is 64 MB."""
    code = SMALL.format(tests=str(Path(__file__).parent))
    script = 'mount -t tmpfs -o size=16m tmpfs /dev/shm && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script, "_", sys.executable, "-c", code], capture_output=True, text=True, timeout=100
    )
    if done.returncode and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip("needs the right to mount a file system, which is not given here")
    assert done.stdout.startswith("InputError no room in shared memory for the batches of loader workers: /dev/shm has")
    assert "--shm-size=8g" in done.stdout
    assert "Traceback" not in done.stderr
