"""Record the metrics of a run: one JSON object per recorded step, and what loggers make of them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from univip_stream.augment import AugmentConfig
from univip_stream.files import no_room_in_words, written_atomically
from univip_stream.loggers import Loggers

METRICS = "metrics.jsonl"


class Recorder:
    """Appends to `metrics.jsonl` of a run folder.

    Args:
        folder: folder of the run.
        resumed: step from which the run continues. Lines of later steps, from a run that was killed after its checkpoint, are
            dropped: those steps are repeated, with the same results. A run that begins (0) drops all.
        loggers: where the values go beside; None for nowhere.

    """

    def __init__(self, folder: Path, resumed: int, loggers: Loggers | None = None):
        self.path = folder / METRICS
        self._drop_after(resumed)
        self._file = self.path.open("ab", buffering=0)
        self._loggers = loggers

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
        if self._loggers is not None:
            self._loggers.scalars({name: value for name, value in values.items() if name != "step"}, values["step"])

    def pictures(self, pictures: Mapping[str, Tensor], config: AugmentConfig, step: int) -> None:
        """Show normalised pictures, float (B, N, 3, S, S) by name, in the loggers, one row per image."""
        if self._loggers is None or not self._loggers.open:
            return
        for name, shown in pictures.items():
            grid = shown.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)  # 3, B * S, views * S
            mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
            self._loggers.picture(name, (grid * std + mean).clamp(0, 1), step)

    def close(self, *, finished: bool = False) -> None:
        """Close the file and the loggers; the run is finished, or will be continued."""
        self._file.close()
        if self._loggers is not None:
            self._loggers.close(finished=finished)

    def _drop_after(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if 0 <= json.loads(line)["step"] <= step != 0:
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

    def close(self, *, finished: bool = False) -> None:
        """Close nothing."""
