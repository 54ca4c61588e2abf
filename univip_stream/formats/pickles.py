"""Pickles of numbers, texts, lists and arrays: read without running code, and written so that every numpy version reads them.

A pickle can call any function. Its arrays are built by the stand-ins below, never by numpy's own `__setstate__`. Pickles written
here name only `numpy.ndarray` and `numpy.dtype`: numpy 2's own pickles name `numpy._core`, which the versions that the repositories
need (below 1.26) do not have.
"""

import io
import math
import pickle
import re
from typing import Any, BinaryIO

import numpy as np

from univip_stream.errors import InputError, why

_NUMBERS = re.compile(r"[<>|=]?[?biuf]\d{0,2}")
_BUILTINS = {"bytearray": bytearray, "bytes": bytes, "dict": dict, "float": float, "int": int, "list": list, "str": str,
             "tuple": tuple, "bool": bool}  # fmt: skip


def load_plain(file: BinaryIO, name: str) -> Any:
    """Read a pickle of builtin types and numeric numpy arrays.

    Raises:
        InputError: it contains anything else, or is damaged.

    """
    try:
        return _plain(_Unpickler(file, name).load())
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can cause any error
        raise InputError(f"{name} is not a readable pickle ({why(error)})") from error


class _Dtype:
    """Stand-in for `numpy.dtype`: a type of numbers, or objects."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True):
        self.code = code.decode("latin1") if isinstance(code, bytes) else str(code)
        if self.code not in ("O", "O8") and not _NUMBERS.fullmatch(self.code):
            raise ValueError(f"an array of {self.code!r}; expected numbers")

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.code = state[1] + self.code.lstrip("<>|=")

    def of(self, data: Any, shape: Any) -> np.ndarray:
        """Return an array of this type from its bytes."""
        if isinstance(data, str):  # Python 2's bytes
            data = data.encode("latin1")
        kind = np.dtype(self.code)  # refuses objects below
        size = math.prod(shape)
        if kind.hasobject or len(data) != size * kind.itemsize:
            raise ValueError(f"{len(data)} bytes for {size} numbers of {kind}")
        return np.frombuffer(bytes(data), kind)


class _Array:
    """Stand-in for `numpy.ndarray`: empty until its state is set."""

    def __init__(self, *arguments: Any):
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_columns, data = state
        if isinstance(data, list):
            if shape != ():
                raise ValueError(f"objects in an array of shape {shape}; expected one")
            [self.value] = data
        else:
            self.value = dtype.of(data, shape).reshape(shape, order="F" if by_columns else "C")


def _from_buffer(data: Any, dtype: _Dtype, shape: Any, order: str, *more: Any) -> np.ndarray:
    return dtype.of(data, shape).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: _Dtype, data: Any) -> Any:
    return dtype.of(data, ()).item()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


_NUMPY = {"ndarray": _Array, "_reconstruct": _Array, "dtype": _Dtype, "scalar": _scalar, "_frombuffer": _from_buffer}
_NUMPYS = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
_ALLOWED: dict[tuple[str, str], Any] = {
    **{(module, name): stand_in for module in _NUMPYS for name, stand_in in _NUMPY.items()},
    **{(module, name): kind for module in ("builtins", "__builtin__") for name, kind in _BUILTINS.items()},
    ("_codecs", "encode"): _encode,
    ("detectron2.structures.boxes", "BoxMode"): int,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, name: str):
        super().__init__(file, encoding="latin1")
        self.name = name

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise InputError(
                f"{self.name} asks for {module}.{name}, and a pickle that is loaded can run anything: only numbers, texts, "
                "lists and numpy arrays are read; use a file from somebody you trust, written again as plain arrays"
            )
        return _ALLOWED[module, name]


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        return _plain(value.value)
    if isinstance(value, dict):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


PROTOCOL = 3
"""Pickle protocol: the last one without frames, so that pieces can be joined; Python 3.0 reads it."""


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return NotImplemented
        data = value.tolist() if value.dtype.hasobject else value.tobytes()
        if value.dtype.hasobject and value.shape == ():
            data = [data]
        return np.ndarray, ((0,), "b"), (1, value.shape, value.dtype, False, data)


def pickled(value: Any, *, piece: bool = False) -> bytes:
    """Return a pickle of builtin values and arrays; a `piece` has no beginning, no end and no references."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, PROTOCOL)
    pickler.fast = piece  # no references: their numbers would be wrong in the joined pickle
    pickler.dump(value)
    return buffer.getvalue()[2:-1] if piece else buffer.getvalue()
