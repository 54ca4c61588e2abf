"""Record the metrics of a run: one JSON object per recorded step, and TensorBoard events if that is installed."""

import contextlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from univip_stream.augment import AugmentConfig
from univip_stream.files import no_room_in_words, written_atomically

METRICS = "metrics.jsonl"


class Recorder:
    """Appends to `metrics.jsonl` of a run folder.

    Args:
        folder: folder of the run.
        resumed: step from which the run continues. Lines of later steps, from a run that was killed after its checkpoint, are
            dropped: those steps are repeated, with the same results.

    """

    def __init__(self, folder: Path, resumed: int):
        self.path = folder / METRICS
        self._drop_after(resumed)
        self._file = self.path.open("ab", buffering=0)
        self._board = _Board(folder / "tensorboard", resumed)

    def write(self, values: dict[str, Any]) -> None:
        """Append the values of one step; `step` must be among them.

        Raises:
            NoRoomError: the disk is full; no part of the line is left.

        """
        line = memoryview((json.dumps(values) + "\n").encode())
        before = os.fstat(self._file.fileno()).st_size
        with no_room_in_words(self.path, len(line)):
            try:
                while line:
                    line = line[self._file.write(line) :]
            except OSError:
                self._file.truncate(before)
                raise
        self._board.scalars({name: value for name, value in values.items() if name != "step"}, values["step"])

    def pictures(self, pictures: Mapping[str, Tensor], config: AugmentConfig, step: int) -> None:
        """Show normalised pictures, float (B, N, 3, S, S) by name, in TensorBoard, one row per image."""
        if not self._board.open:
            return
        for name, shown in pictures.items():
            grid = shown.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)  # 3, B * S, views * S
            mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
            self._board.picture(name, (grid * std + mean).clamp(0, 1), step)

    def close(self) -> None:
        """Close the file and the TensorBoard events."""
        self._file.close()
        self._board.close()

    def _drop_after(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # half a line, cut off when the run was killed
        with written_atomically(self.path) as file:
            file.write("".join(line + "\n" for line in kept).encode())


class SilentRecorder:
    """The recorder of a rank that is not the first."""

    def write(self, values: dict[str, Any]) -> None:
        """Say nothing."""

    def pictures(self, pictures: Mapping[str, Tensor], config: AugmentConfig, step: int) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Close nothing."""


class _Board:
    """TensorBoard events of a run, if TensorBoard is installed: a copy of metrics.jsonl.

    If they cannot be written (the disk is full), no more are written and the run continues: metrics.jsonl has all values.
    """

    def __init__(self, folder: Path, resumed: int) -> None:
        self._writer: Any = None
        self._hook: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        # Events are written in a thread, whose error would be printed with a traceback; `_call` gets the error too.
        self._hook = threading.excepthook
        threading.excepthook = self._on_thread_error
        with contextlib.suppress(OSError):
            self._writer = SummaryWriter(str(folder), purge_step=resumed + 1)  # type: ignore[no-untyped-call]

    @property
    def open(self) -> bool:
        """Whether events are written."""
        return self._writer is not None

    def scalars(self, values: dict[str, Any], step: int) -> None:
        """Add a point to each curve."""
        for name, value in values.items():
            if isinstance(value, int | float):
                self._call("add_scalar", name, value, step)

    def picture(self, name: str, image: Tensor, step: int) -> None:
        """Add a picture, 3 x H x W, 0 to 1."""
        self._call("add_image", name, image, step)

    def close(self) -> None:
        """Flush and close."""
        self._call("close")
        self._writer = None
        if threading.excepthook == self._on_thread_error:
            threading.excepthook = self._hook

    def _on_thread_error(self, hook: threading.ExceptHookArgs) -> None:
        if not (isinstance(hook.exc_value, OSError) and type(hook.thread).__module__.startswith("tensorboard.")):
            self._hook(hook)

    def _call(self, what: str, *arguments: Any) -> None:
        try:
            if self._writer is not None:
                getattr(self._writer, what)(*arguments)
        except OSError:
            self._writer = None
