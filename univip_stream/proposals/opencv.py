"""OpenCV's selective search, the reference for published boxes, made deterministic.

OpenCV ranks regions by libc's `rand()` times their level and never seeds it, so two runs of one process give two orders,
and the greedy filter then keeps other boxes. Here libc is seeded from the pixels before each image. And because `rand()`
has one state for a whole process, which other threads use too (those of a Ray worker do), OpenCV runs in a process of its
own, started once and kept. The boxes are then a function of the image, the seed, the OpenCV build and the C library; both
are named by `version()`.
"""

import atexit
import contextlib
import ctypes
import os
import platform
import struct
import subprocess
import sys
import threading
import zlib
from typing import IO

import cv2
import numpy as np

from univip_stream.errors import InputError

# For smaller sides OpenCV's graph has next to nothing to merge, and its Scharr filter fails for a side of one pixel.
_SMALLEST_SIDE = 8
_REQUEST = struct.Struct("<BIII")
_ANSWER = struct.Struct("<I")
_FAST, _QUALITY = 0, 1


def fast(image: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Propose boxes in Fast mode: HSV and Lab, k = 150, 300, 450, two strategies (Uijlings et al., IJCV 2013).

    Args:
        image: uint8, height x width x 3, RGB.
        seed: another seed gives another random order of the same boxes.

    Returns:
        int32, N x 4 x, y, w, h in OpenCV's rank order.

    """
    return _server.propose(image, _FAST, seed)


def quality(image: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Propose boxes in Quality mode: five colour spaces, k = 150 to 750, four strategies; ten times the cost of `fast`."""
    return _server.propose(image, _QUALITY, seed)


def version() -> str:
    """Return the OpenCV build and the C library, whose `rand()` orders the boxes."""
    return f"opencv {cv2.__version__}, {' '.join(platform.libc_ver()) or platform.system()}"


class _Server:
    """This process's OpenCV process: started at the first image, and again after a fork or a crash."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def propose(self, image: np.ndarray, mode: int, seed: int) -> np.ndarray:
        height, width = image.shape[:2]
        whole = np.array([[0, 0, width, height]], np.int32)
        if min(height, width) < _SMALLEST_SIDE:
            return whole
        pixels = np.ascontiguousarray(image)
        chance = zlib.crc32(pixels.tobytes(), zlib.crc32(f"{width}x{height}/{seed}".encode()))
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(_REQUEST.pack(mode, height, width, chance))
                process.stdin.write(pixels.tobytes())
                process.stdin.flush()
                (count,) = _ANSWER.unpack(_read(process.stdout, _ANSWER.size))
                boxes = np.frombuffer(_read(process.stdout, count * 16), np.int32).reshape(-1, 4)
            except (OSError, EOFError) as error:
                self.stop()
                raise InputError(f"OpenCV's selective search died on an image of {width} x {height} pixels") from error
        return boxes.copy() if len(boxes) else whole

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            process.wait()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self.stop()
            command = [sys.executable, "-m", __name__]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._owner = os.getpid()
        return self._process


_server = _Server()
atexit.register(_server.stop)


def _read(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) != size:
        raise EOFError(f"{len(data)} of {size} bytes")
    return data


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until the pipe is closed, which also happens when the parent dies."""
    # A Ray task is given one CPU, but OpenCV's own pool would use every core of the node.
    cv2.setNumThreads(1)
    libc = ctypes.CDLL("msvcrt" if platform.system() == "Windows" else None)
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    with contextlib.suppress(EOFError):
        while True:
            mode, height, width, chance = _REQUEST.unpack(_read(requests, _REQUEST.size))
            pixels = np.frombuffer(_read(requests, height * width * 3), np.uint8).reshape(height, width, 3)
            search.setBaseImage(np.ascontiguousarray(pixels[..., ::-1]))
            (search.switchToSelectiveSearchFast if mode == _FAST else search.switchToSelectiveSearchQuality)()
            libc.srand(ctypes.c_uint(chance))
            boxes = np.asarray(search.process(), np.int32).reshape(-1, 4)
            answers.write(_ANSWER.pack(len(boxes)) + boxes.tobytes())
            answers.flush()


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
