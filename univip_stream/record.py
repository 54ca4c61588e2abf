"""What a run says of itself: one JSON object a recorded step, and TensorBoard events beside it where that is installed."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from univip_stream.augment import AugmentConfig
from univip_stream.files import written_atomically

METRICS = "metrics.jsonl"


class Recorder:
    """Appends to `metrics.jsonl` of a run folder.

    Args:
        folder: of the run.
        resumed: the step the run continues from. Lines of later steps, from a run that died after its checkpoint, are
            dropped: those steps are run again, to the same numbers.

    """

    def __init__(self, folder: Path, resumed: int):
        self.path = folder / METRICS
        self._drop_after(resumed)
        self._file = self.path.open("a", encoding="utf-8")
        self._board = _tensorboard(folder / "tensorboard", resumed)

    def write(self, values: dict[str, Any]) -> None:
        """Append one step's values; `step` must be among them."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if name != "step" and isinstance(value, int | float):
                    self._board.add_scalar(name, value, values["step"])

    def pictures(self, scenes: Tensor, instances: Tensor | None, config: AugmentConfig, step: int) -> None:
        """Show normalised views, float (2, B, 3, S, S) and (A, B, K, 3, I, I), in TensorBoard: a row an image."""
        if self._board is None:
            return
        rows = {"scenes": scenes.transpose(0, 1)}
        if instances is not None:
            rows["instances"] = instances.transpose(0, 1).flatten(1, 2)
        for name, shown in rows.items():
            grid = shown.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)  # 3, B * S, views * S
            mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
            self._board.add_image(name, (grid * std + mean).clamp(0, 1), step)

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        if self._board is not None:
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


def _tensorboard(folder: Path, resumed: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=resumed + 1)  # type: ignore[no-untyped-call]
