"""The state of a long protocol, kept beside the file of its result, so that a killed job can continue."""

from pathlib import Path
from typing import Any

import torch

from univip_stream.checkpoint import load_checkpoint
from univip_stream.errors import InputError
from univip_stream.files import written_atomically


class Partial:
    """The state of one job, complete or absent.

    Args:
        out: file of the job's result; None keeps no state.
        job: text that identifies this job; the state of another job is refused.

    """

    def __init__(self, out: Path | None, job: str) -> None:
        self.path = None if out is None else out.with_name(out.name + ".partial")
        self.job = job

    def load(self) -> dict[str, Any] | None:
        """Return the state, or None if there is none.

        Raises:
            InputError: it is the state of another job.

        """
        if self.path is None or not self.path.exists():
            return None
        state = load_checkpoint(self.path)
        if state.get("job") != self.job:
            raise InputError(f"{self.path} is of another job (other weights, images or settings); delete it to start over")
        return state

    def save(self, **state: Any) -> None:
        """Replace the state."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with written_atomically(self.path) as file:
                torch.save({**state, "job": self.job}, file)

    def clear(self) -> None:
        """Remove the state, because the job is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
