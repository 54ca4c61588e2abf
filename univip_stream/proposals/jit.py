"""Compile with numba, once for all processes that come later.

Kernels that Python calls are `entry`: their machine code is kept on disk. Kernels that only other kernels call are `part`,
compiled into those. Each entry is called with one set of argument types, so its file holds one thing, and whichever of many
processes writes it last writes the same.

The folder is named after what the code depends on: the sources of all kernels (numba itself looks at the date of one file,
and would keep what it inlined from others), numba's version, and the processor with its features, so that a home shared by
unlike machines holds a folder for each.
"""

import contextlib
import hashlib
import os
import tempfile
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
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def part(function: Function) -> Function:
    """Compile into the kernels that call it."""
    return cast(Function, numba.njit(**_OPTIONS)(function))


def entry(function: Function) -> Function:
    """Compile on first use, from the cache if it is there; without a folder to write to, anew in each process."""
    folder = _folder()
    if folder is None:
        return part(function)
    before = _config.CACHE_DIR
    _config.CACHE_DIR = str(folder)
    try:
        compiled: Any = numba.njit(cache=True, **_OPTIONS)(function)
        _forgive(compiled._cache)
        return cast(Function, compiled)
    except RuntimeError:  # "no locator available": the folder went away, or became read-only
        return part(function)
    finally:
        _config.CACHE_DIR = before


def _forgive(cache: Any) -> None:
    """Let a damaged file be as good as none, and a full disk cost no more than the next compilation.

    numba raises what its unpickling raises, in every process from then on, until somebody deletes the file.
    """
    load, save = cache.load_overload, cache.save_overload

    def load_overload(*arguments: Any) -> Any:
        try:
            return load(*arguments)
        except Exception:  # whatever broken pickles lead to
            with contextlib.suppress(OSError):
                cache.flush()
            return None

    def save_overload(*arguments: Any) -> None:
        with contextlib.suppress(OSError):
            save(*arguments)

    cache.load_overload, cache.save_overload = load_overload, save_overload


@lru_cache(maxsize=1)
def _folder() -> Path | None:
    """The first place that can be written: NUMBA_CACHE_DIR, beside this file, the user's cache."""
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


# glibc gives large blocks back to the system when they are freed, and asks for each page again: a fifth of an image's time.
# It stops doing so for blocks up to the largest that it has seen freed. Elsewhere this line does nothing.
_ = np.empty(24 << 20, np.uint8)
del _
