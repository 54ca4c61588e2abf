"""Rank the stored candidates of images again, by something that only `--rank-by` needs: mining itself knows no network."""

import functools
import hashlib
import importlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from univip_stream import storage
from univip_stream.errors import InputError, why
from univip_stream.images import MAX_PIXELS, decode
from univip_stream.shards.format import StoredImage

RANKED_BY = ".ranked-by"
"""File in the folder of the new shards that all workers read; it is there until the manifest is."""

Ranker = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(image, uint8 height x width x 3, RGB; candidates, int32 N x 4, best first) -> int64 N, their new order."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How candidates are ranked again: made where the job is started, and loaded where it is done."""

    facts: dict[str, Any]
    """Everything that the order depends on besides images and candidates, such as the SHA-256 of weights; for the manifest."""
    data: bytes
    """Contents of the file that workers read."""
    load: str
    """`module:function` that makes the ranker from that file, (bytes) -> Ranker. Workers import it, and nobody else."""
    made_with: tuple[str, ...] = ()
    """Packages that the order may depend on, whose versions the manifest names."""


@dataclass(frozen=True, kw_only=True)
class RankTask:
    """What a worker needs to rank."""

    file: str
    """Location of the file, local or in an object store."""
    sha256: str
    """SHA-256 of its contents."""
    load: str
    """`module:function` that makes the ranker from them."""

    def ranker(self) -> Ranker:
        """Return the ranker; a process makes it once.

        Raises:
            InputError: the file is gone or another, or a package is missing here.

        """
        with _LOADING:
            return _ranker(self.file, self.sha256, self.load)


_LOADING = threading.Lock()


@functools.lru_cache(maxsize=1)
def _ranker(file: str, sha256: str, load: str) -> Ranker:
    try:
        data = storage.read(file)
    except OSError as error:
        raise InputError(f"{file}, which all workers read to rank boxes, cannot be read ({why(error)})") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InputError(f"{file} was changed while boxes were ranked; run the same command again")
    module, _, function = load.partition(":")
    try:
        made: Ranker = getattr(importlib.import_module(module), function)(data)
    except ModuleNotFoundError as error:
        raise InputError(f"--rank-by needs {error.name}, which is not installed on every node that does the work") from error
    return made


def ranked_again(sample: StoredImage, ranker: Ranker) -> StoredImage:
    """Return a sample with its candidates in their new order; its boxes are not chosen again yet.

    Raises:
        InputError: its image cannot be decoded as its row says, or cannot be ranked.

    """
    if sample.candidates is None or len(sample.candidates) < 2:
        return sample
    name = f"image {sample.key} ({sample.source})"
    try:
        pixels = decode(sample.data, max_pixels=max(MAX_PIXELS, (sample.width or 0) * (sample.height or 0)))
        if pixels.shape[:2] != (sample.height, sample.width):
            raise InputError(
                f"it decodes to {pixels.shape[1]} x {pixels.shape[0]} pixels, its row says {sample.width} x {sample.height}"
            )
        order = ranker(pixels, np.asarray(sample.candidates, np.int32))
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    return replace(sample, candidates=sample.candidates[order])
