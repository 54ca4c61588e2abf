"""Checkpoints of a run. Each is written as a whole or not at all; the last few are kept; reading them runs no code.

A file holds plain tensors, numbers and text; it is loaded with `weights_only=True`.
"""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from univip_stream.errors import InputError
from univip_stream.files import remove_leftovers, written_atomically

_NAME = re.compile(r"step-(\d{9})\.pt")


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: folder of the checkpoints; created when the first is saved.
        keep: number of checkpoints to keep, the latest ones.

    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(found[1]) for path in self.folder.iterdir() if (found := _NAME.fullmatch(path.name)))

    def path(self, step: int) -> Path:
        """Return the path of the checkpoint of a step."""
        return self.folder / f"step-{step:09d}.pt"

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state after `step` steps, then delete all but the latest `keep`.

        Raises:
            NoRoomError: the disk is full. Earlier checkpoints stay intact, and nothing half written is left.

        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(step)
        with written_atomically(path, wanted=_bytes_of(state)) as file:
            torch.save({"step": step, **state}, file)
        for old in self.steps()[: -self.keep]:
            self.path(old).unlink(missing_ok=True)
        remove_leftovers(self.folder)
        return path

    def load_latest(self) -> dict[str, Any] | None:
        """Return the latest state, or None if there is none.

        Raises:
            InputError: the latest checkpoint is damaged; an older one is never used silently.

        """
        steps = self.steps()
        if not steps:
            return None
        try:
            return load_checkpoint(self.path(steps[-1]))
        except InputError as error:
            before = f"the one of step {steps[-2]}" if len(steps) > 1 else "the start"
            raise InputError(f"{error}. To continue from {before} instead, delete {self.path(steps[-1])}") from error


def _bytes_of(state: Any) -> int:
    """Return the total size of tensors in nested dictionaries and lists."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(map(_bytes_of, state.values()))
    return sum(map(_bytes_of, state)) if isinstance(state, list | tuple) else 0


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint into CPU memory.

    Raises:
        InputError: it is missing, damaged, or not a checkpoint of ours.

    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch reads past flipped bits; the archive's own checksums do not
        if damaged is not None:
            raise InputError(f"{path} is damaged: its part {damaged} does not match its checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} cannot be read as a checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict) or not isinstance(state.get("step"), int) or state["step"] < 0:
        raise InputError(f"{path} is not a checkpoint of a run; expected a file that `univip-stream train` saved")
    return state
