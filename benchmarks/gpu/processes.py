"""Processes with a time limit that never outlive who started them, and words that are kept where they can be.

Without torch: it is used before anybody knows whether there is one.
"""

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class StoppedError(KeyboardInterrupt):
    """Somebody outside asked the script to stop."""


def started(command: list[str], **how: Any) -> subprocess.Popen[bytes]:
    """Start a process that is asked to stop when this one is gone, even if this one was killed outright."""
    return subprocess.Popen(command, preexec_fn=lambda: _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM), **how)


def watched(command: list[str], folder: Path, limit: float, grace: float, keep: Callable[[bytes], None]) -> int | str:
    """Run a part, its words passed on and kept; its exit status, or in words what ended it.

    Args:
        command: of the part.
        folder: where it runs.
        limit: seconds after which it is asked to stop.
        grace: seconds more after which it is killed.
        keep: takes its words.

    """
    process = started(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        asked = _listen(process, time.monotonic() + limit, grace, keep)
        why = "its limit" if asked else ""
    except StoppedError:
        _signal(process, signal.SIGTERM)
        _listen(process, time.monotonic() + grace, 0, keep)
        why = "outside"
    finally:
        _signal(process, signal.SIGKILL)  # what it left behind, too
    status = _status(process)
    if why:
        return f"stopped {'from' if why == 'outside' else 'at'} {why} ({status})"
    return status


def _listen(process: subprocess.Popen[bytes], deadline: float, grace: float, keep: Callable[[bytes], None]) -> bool:
    """Pass on what a process says until it is gone; whether it had to be asked to stop."""
    assert process.stdout is not None
    asked, silent = False, False
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if silent:
                time.sleep(0.1)
            elif selector.select(timeout=0.5):
                words = os.read(process.stdout.fileno(), 1 << 16)
                silent = not words
                keep(words)
                if words and time.monotonic() < deadline:
                    continue
            if process.poll() is not None:
                return asked  # a process that it left behind may hold its output open
            if time.monotonic() > deadline:
                _signal(process, signal.SIGKILL if asked or not grace else signal.SIGTERM)
                if asked or not grace:
                    return True
                asked, deadline = True, time.monotonic() + grace


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """To the process and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _status(process: subprocess.Popen[bytes]) -> int | str:
    try:
        return process.wait(timeout=10)
    except subprocess.TimeoutExpired:  # it hangs in the driver, where no signal reaches it
        return "cannot be killed"


class Words:
    """Standard output and a transcript; where one of them cannot be written, the other still is."""

    def __init__(self, transcript: Path) -> None:
        self.transcript = transcript
        self.silent = self.lost = False

    def keep(self, words: bytes) -> None:
        """Say and keep words."""
        if not self.silent:
            try:
                sys.stdout.buffer.write(words)
                sys.stdout.flush()
            except OSError:  # nobody reads it any more
                self.silent = True
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            with open(self.transcript, "ab") as file:
                file.write(words)
        except OSError as error:
            self._complain(self.transcript, error)

    def say(self, words: str) -> None:
        """Say and keep a text."""
        self.keep(words.encode())

    def write(self, path: Path, text: str) -> None:
        """Replace a file by a text, whole or not at all."""
        part = path.with_suffix(".part")
        try:
            part.write_text(text)
            part.replace(path)
        except OSError as error:
            self._complain(path, error)

    def _complain(self, path: Path, error: OSError) -> None:
        if not self.lost:  # once: a full disk has much to say
            self.lost = True
            with contextlib.suppress(OSError):
                print(
                    f"{path} cannot be written ({error.strerror}); what follows is said on standard output", file=sys.stderr
                )
