"""What a long protocol has reached, beside the file that its result goes to: killed, it goes on from there."""

from pathlib import Path
from typing import Any

import torch

from univip_stream.checkpoint import load_checkpoint
from univip_stream.errors import InputError
from univip_stream.files import written_atomically


class Partial:
    """A state that is whole or not there, for one job.

    Args:
        out: where the job's result goes; None keeps nothing.
        job: text that tells this job from others; a state of another is not taken.

    """

    def __init__(self, out: Path | None, job: str) -> None:
        self.path = None if out is None else out.with_name(out.name + ".partial")
        self.job = job

    def load(self) -> dict[str, Any] | None:
        """The state, where there is one of this job."""
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
        """The job is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
