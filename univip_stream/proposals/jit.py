"""Compile a kernel with numba, once for all processes that come later.

numba's cache names a file after the source, the signature, and the CPU with its features: a home shared by unlike machines
holds one file for each, and a file is renamed into place when it is whole. Where no folder can be written, kernels are
compiled anew in each process instead.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compile `function` on first use. No fast-math: every machine adds in the order that is written."""
    try:
        compiled = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # "no locator available": neither beside the source nor in the user's cache may be written
        compiled = numba.njit(nogil=True, error_model="numpy")(function)
    return cast(Function, compiled)
