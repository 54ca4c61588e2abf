"""Pickles that every numpy reads: arrays name nothing but `numpy.ndarray` and `numpy.dtype`.

numpy 2's own pickles name `numpy._core`, which the versions that the repositories need (below 1.26) do not have.
"""

import io
import pickle
from typing import Any

import numpy as np

PROTOCOL = 3
"""The last one without frames, so that pieces can be put together; Python 3.0 reads it."""


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return NotImplemented
        data = value.tolist() if value.dtype.hasobject else value.tobytes()
        if value.dtype.hasobject and value.shape == ():
            data = [data]
        return np.ndarray, ((0,), "b"), (1, value.shape, value.dtype, False, data)


def pickled(value: Any, *, piece: bool = False) -> bytes:
    """A pickle of builtin values and arrays; as a piece, without its beginning, its end and references."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, PROTOCOL)
    pickler.fast = piece  # no references: they would count from another beginning
    pickler.dump(value)
    return buffer.getvalue()[2:-1] if piece else buffer.getvalue()
