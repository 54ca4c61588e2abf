"""Region proposals: ranked boxes for an image, from several engines behind one interface.

Every engine is a pure function of the pixels, the seed and its options, whatever the process and the number of threads.
Engines are imported when used, so a machine without numba or OpenCV's contrib part can use the others.
"""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from univip_stream.boxes import as_boxes
from univip_stream.errors import InputError, UsageError
from univip_stream.suggest import did_you_mean

Proposer = Callable[..., np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Location of an engine. Its module also has `version() -> str`, which changes when its boxes can change."""

    module: str
    function: str
    summary: str
    """One line that describes the engine."""


ENGINES = {
    "selective-search": Engine(
        module="univip_stream.proposals.fast",
        function="selective_search",
        summary="our kernel: hierarchies of regions at a working resolution, ranked by what each adds",
    ),
    "selective-search-exact": Engine(
        module="univip_stream.proposals.exact",
        function="selective_search_exact",
        summary="OpenCV Fast's algorithm at full resolution, each thing done once",
    ),
    "opencv-fast": Engine(
        module="univip_stream.proposals.opencv", function="fast", summary="OpenCV's selective search, Fast mode"
    ),
    "opencv-quality": Engine(
        module="univip_stream.proposals.opencv", function="quality", summary="OpenCV's selective search, Quality mode"
    ),
    "edge-boxes": Engine(
        module="univip_stream.proposals.edges",
        function="edge_boxes",
        summary="OpenCV's EdgeBoxes, on edges that need no trained model",
    ),
    "watershed": Engine(
        module="univip_stream.proposals.watershed",
        function="watershed",
        summary="hierarchical watersheds, by the library higra",
    ),
    "grid": Engine(module="univip_stream.proposals.grid", function="grid", summary="a regular grid of boxes, coarse to fine"),
    "naive": Engine(module="univip_stream.proposals.naive", function="naive", summary="random boxes"),
}


def propose(image: np.ndarray, engine: str = "selective-search", seed: int = 0, **options: Any) -> np.ndarray:
    """Propose boxes that may hold an object.

    Args:
        image: uint8, height x width x 3, RGB. Grey (height x width), alpha (a fourth channel, laid over white) and 16 bit
            are turned into that first.
        engine: a name of `ENGINES`.
        seed: seed of engines that make random choices. The same image, seed and options give the same boxes.
        options: options of the engine.

    Returns:
        int32, N x 4: x, y, w, h in pixels, best first, unfiltered, no two equal, all inside the image.

    Raises:
        UsageError: the engine does not exist, lacks an option, or an option has a value that it cannot have.
        InputError: `image` is not an image.

    """
    found = _engine(engine)
    function: Proposer = getattr(importlib.import_module(found.module), found.function)
    pixels = as_rgb(image)
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 1 << 63:
        raise UsageError(f"seed is {seed!r}; expected a whole number from 0 to 2 ** 63 - 1")
    known = [name for name in inspect.signature(function).parameters if name not in ("image", "seed")]
    for name in options:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UsageError(f"engine {engine!r} has no option {name!r}; {has}{did_you_mean(name, known)}")
    return as_boxes(function(pixels, seed=seed, **options))


def engine_version(engine: str) -> str:
    """Return what an engine's boxes depend on beside image, seed and options; it is part of the shards' fingerprint."""
    return str(importlib.import_module(_engine(engine).module).version())


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Convert a grey, RGB or RGBA image of 8 or 16 bits to uint8, height x width x 3, C-contiguous.

    Raises:
        InputError: it has another shape or type, or no pixels.

    """
    pixels = np.asarray(image)
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:  # in either order of bytes
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise InputError(f"image has shape {pixels.shape} and type {pixels.dtype}; expected uint8 height x width x 3, RGB")
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3:].astype(np.uint16)
        # Rounded integer blend over white, the same on every machine.
        pixels = ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def _engine(name: str) -> Engine:
    if name not in ENGINES:
        raise UsageError(f"unknown proposals {name!r}; expected one of: {', '.join(ENGINES)}{did_you_mean(name, ENGINES)}")
    return ENGINES[name]
