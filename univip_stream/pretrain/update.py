"""One update: forward, backward and step, and the look at what came out.

The host waits for a GPU only where it looks; between two looks it runs ahead, so that the GPU never waits for it.

Shape letters: B images, K instances an image, S and I sides, A instance augmentations.
"""

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from univip_stream.augment import AugmentConfig
from univip_stream.distributed import Process, ended_by_others, mean_over_ranks
from univip_stream.errors import InputError
from univip_stream.files import written_atomically
from univip_stream.methods import Method
from univip_stream.methods.registry import checked_losses, explained
from univip_stream.networks import countable_together, counted_together
from univip_stream.pretrain.asked import Asked
from univip_stream.pretrain.inputs import inputs_on
from univip_stream.pretrain.optim import set_learning_rate
from univip_stream.pretrain.troubles import out_of_memory
from univip_stream.stream import Batch
from univip_stream.workers import death

LOOK_EVERY = {"cpu": 1, "cuda": 10}
"""Steps between two looks at the losses, by device. On a CPU they are at hand; on a GPU a look makes the host wait."""
_SHOWN = 8
"""Images of a batch whose views are kept to be looked at."""


@dataclass(frozen=True, kw_only=True)
class _Unseen:
    """A step that nobody has looked at."""

    step: int
    values: Tensor
    """The method's terms and the share of filled instances, means over the step's parts, on the device."""
    keys: list[str]
    sources: list[str]


class Updates:
    """The updates of a run on this rank: `gradient`, `look` where one is due, `apply`.

    Args:
        method: what is trained.
        model: the same as it is called: in parallel with other ranks, compiled.
        parallel: the module whose gradients are averaged over the ranks; the method itself where there is one rank.
        optimizer: of the method's online parameters.
        accumulate: parts of a step.
        precision: of the networks' arithmetic.
        config: of the augmentations.
        regions: that the plan draws of an image.
        run: folder for what is left of a loss that is no number.
        channels_last: how the networks' weights lie in memory.

    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        parallel: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        accumulate: int,
        precision: torch.dtype,
        config: AugmentConfig,
        regions: int,
        device: torch.device,
        process: Process,
        run: Path,
        channels_last: bool = True,
    ) -> None:
        self.method, self.model, self.parallel, self.optimizer = method, model, parallel, optimizer
        self.accumulate, self.precision, self.config, self.regions = accumulate, precision, config, regions
        self.device, self.process, self.run, self.channels_last = device, process, run, channels_last
        self.terms = ("loss", *method.terms, "feature_std")
        """What the method returns of a step, in this order."""
        self.compiled = model is not parallel
        # What is compiled counts as it was compiled.
        self._counted = [] if self.compiled else countable_together(method)
        self._unseen: list[_Unseen] = []
        self.views: dict[str, Tensor] | None = None
        """The pictures of the last batch's first images as the networks saw them, (B, N, 3, S, S), where they were asked for."""
        self.halfway = False
        """Whether some parts of a step have been computed and others not: running statistics and queues are of neither step."""

    def look_due(self, finished: int) -> bool:
        """Whether to look before the update that makes `finished`: the same answer on every rank."""
        return finished % LOOK_EVERY[self.device.type] == 0

    def gradient(self, batches: Iterator[Batch], step: int, *, keep_views: bool = False) -> None:
        """Add up the gradient of a step over its parts; `keep_views` leaves some of what the networks saw in `views`."""
        totals = torch.zeros(len(self.terms) + 1, device=self.device)
        keys: list[str] = []
        sources: list[str] = []
        with counted_together(self._counted):
            self._parts(batches, totals, keys, sources, keep_views=keep_views)
        self.halfway = False
        self._unseen.append(_Unseen(step=step, values=totals, keys=keys, sources=sources))

    def _parts(
        self, batches: Iterator[Batch], totals: Tensor, keys: list[str], sources: list[str], *, keep_views: bool
    ) -> None:
        """The parts of a step: gradients, and what is told of them."""
        for part in range(self.accumulate):
            self.halfway = part > 0
            batch = next(batches)
            inputs = inputs_on(self.device, batch, self.config, channels_last=self.channels_last, compiled=self.compiled)
            if keep_views:
                self.views = _first(inputs, batch)
            with self._alone(last=part == self.accumulate - 1):
                losses = self._losses(inputs)
                (losses["loss"] / self.accumulate).backward()  # type: ignore[no-untyped-call]
            filled = batch.filled.float().mean() / max(self.regions, 1)
            terms = [losses[name].detach().float() for name in self.terms]
            totals += torch.stack([*terms, filled.to(self.device, non_blocking=True)]) / self.accumulate
            keys += batch.keys
            sources += batch.sources

    def apply(self, rate: float, momentum: float) -> None:
        """Follow the gradient, and let the target follow."""
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.update_target(momentum)

    def look(self, asked: Asked) -> tuple[dict[str, float], bool]:
        """The last step's terms and `filled`, means over parts and ranks; and whether any rank is asked to stop.

        Raises:
            InputError: the loss of a step since the last look is no number.

        """
        unseen, self._unseen = self._unseen, []
        mine = torch.stack([step.values for step in unseen])
        stop = torch.full((1, mine.shape[1]), float(asked.is_set()), device=self.device)
        *values, stops = mean_over_ranks(torch.cat([mine, stop]), self.process).cpu()
        for step, theirs in zip(unseen, values, strict=True):
            if not torch.isfinite(theirs[0]):
                self._stop_at(step, late=unseen[-1].step - step.step)
        return dict(zip([*self.terms, "filled"], values[-1].tolist(), strict=True)), bool(stops[0] > 0)

    def _losses(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """A forward pass; what goes wrong in a method of somebody's own is told in words."""
        try:
            with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                return checked_losses(self.model(inputs), self.method)
        except Exception as error:
            others = isinstance(error, RuntimeError) and (death(error) or ended_by_others(error, self.process))
            if others or out_of_memory(error) or (told := explained(error, self.method)) is None:
                raise
            raise told from error

    def _alone(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are summed over the ranks once a step, with its last part."""
        if last or not isinstance(self.parallel, DistributedDataParallel):
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[None] = self.parallel.no_sync()
        return context

    def _stop_at(self, step: _Unseen, late: int) -> None:
        """A loss that is no number ends the run and leaves on disk what caused it."""
        left = self.run / f"not-finite-step-{step.step + 1}-rank-{self.process.rank}.json"
        found = dict(zip(self.terms, step.values.tolist(), strict=False))
        with written_atomically(left) as file:
            facts = {
                "step": step.step + 1,
                "losses": {name: str(value) for name, value in found.items()},
                "keys": step.keys,
                "sources": step.sources,
            }
            file.write(json.dumps(facts, indent=1).encode())
        when = f"seen {late} steps later" if late else "before its update"
        if math.isfinite(found["loss"]):
            when += ", and no number on another rank"
        raise InputError(
            f"the loss of step {step.step + 1} is {found['loss']}, {when}: {found}. The samples' keys are in {left}; the "
            "last checkpoint is whole. A smaller optim.lr or precision=fp32 are what usually helps"
        )


def _first(inputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """The pictures of a batch's first images, image by image."""
    pictures = {name: inputs[name] if cut.together else inputs[name].transpose(0, 1) for name, cut in batch.cuts.items()}
    return {name: shown[:_SHOWN].cpu() for name, shown in pictures.items()}
