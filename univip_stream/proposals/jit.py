"""Compile kernels with numba, and cache them on disk for all later processes.

Kernels that Python calls are `entry`: their machine code is kept on disk. Kernels that only other kernels call are `part`, and
compiled into those. Each entry is called with one set of argument types, so all processes that write its file write the same.

The first call of all takes some 20 seconds of compiling, so kernels are written for the compiler too. A part is called with as
few sets of argument types as can be, since each is compiled anew; a literal is a type of its own (`np.int64(0)` is not). Arrays
are copied by `copy_into`: an assignment to a slice compiles numba's strings, for the message of a wrong shape.

The folder is named after everything that the code depends on: the sources of all kernels (numba itself only checks the date of
one file, and would keep outdated code inlined from others), numba's version, and the processor with its features, so that a
home folder shared by different machines has a folder for each.
"""

import contextlib
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import binding  # type: ignore[import-untyped]

Function = TypeVar("Function", bound=Callable[..., Any])

# "numpy": a division by zero is no Python exception, which every loop would have to be ready for. No fast-math: every machine
# adds in the order that is written.
_config: Any = numba.config
_CACHING = threading.Lock()
"""Held while numba's one setting of a folder, which all threads share, is ours."""
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def part(function: Function) -> Function:
    """Make a function part of the kernels that call it."""
    return cast(Function, numba.njit(**_OPTIONS)(function))


@part
def copy_into(out: np.ndarray, values: np.ndarray) -> None:
    """Write an array of one axis into another, which is at least as long."""
    for at in range(len(values)):
        out[at] = values[at]


def entry(function: Function) -> Function:
    """Compile a function on first use, or load it from the cache; without a writable folder, it is compiled in each process."""
    with _CACHING:
        folder = _folder()
        if folder is None:
            return part(function)
        before = _config.CACHE_DIR
        _config.CACHE_DIR = str(folder)
        try:
            compiled: Any = numba.njit(cache=True, **_OPTIONS)(function)
            _tolerate_errors(compiled._cache)
            return cast(Function, compiled)
        except RuntimeError:  # "no locator available": the folder went away, or became read-only
            return part(function)
        finally:
            _config.CACHE_DIR = before


def _tolerate_errors(cache: Any) -> None:
    """Make numba ignore damaged cache files and full disks, and compile again.

    Otherwise numba raises the error of its unpickling in every later process, until somebody deletes the file.
    """
    load, save = cache.load_overload, cache.save_overload

    def load_overload(*arguments: Any) -> Any:
        try:
            return load(*arguments)
        except Exception:  # a damaged pickle can cause any error
            with contextlib.suppress(OSError):
                cache.flush()
            return None

    def save_overload(*arguments: Any) -> None:
        with contextlib.suppress(OSError):
            save(*arguments)

    cache.load_overload, cache.save_overload = load_overload, save_overload


@lru_cache(maxsize=1)
def _folder() -> Path | None:
    """Return the first writable folder of: NUMBA_CACHE_DIR, beside this file, the user's cache."""
    places = [
        Path(__file__).parent / "__pycache__",
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "univip-stream",
    ]
    if _config.CACHE_DIR:
        places.insert(0, Path(_config.CACHE_DIR))
    for place in places:
        folder = place / f"kernels-{_digest()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return None


def _digest() -> str:
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    digest.update(repr((numba.__version__, binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten())).encode())
    return digest.hexdigest()[:16]


# glibc returns large blocks to the system when they are freed, and then needs a fifth of an image's time to get the pages again.
# It stops doing so for blocks up to the largest that was freed before. With other C libraries this line has no effect.
_ = np.empty(24 << 20, np.uint8)
del _
