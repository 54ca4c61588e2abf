"""One update: forward, backward and step, and the check of the losses.

The host waits for a GPU only when it checks them; between two checks it runs ahead, so that the GPU never waits for it.

Shape letters: B images, K instances of an image, S and I sides, A instance augmentations.
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
"""Steps between two checks of the losses, by device. On a CPU a check is free; on a GPU it makes the host wait."""
_SHOWN = 8
"""Number of images of a batch whose views are kept for people to look at."""


@dataclass(frozen=True, kw_only=True)
class _Unseen:
    """A step whose losses have not been checked yet."""

    step: int
    values: Tensor
    """The method's terms and the share of filled instances, as means over the parts of the step, on the device."""
    keys: list[str]
    sources: list[str]


class Updates:
    """The updates of a run on this rank: call `gradient`, then `look` if it is due, then `apply`.

    Args:
        method: the method that is trained.
        model: the module that is called for it, which may be parallel over ranks and compiled.
        parallel: the module whose gradients are averaged over the ranks; the method itself if there is only one rank.
        optimizer: optimizer of the method's online parameters.
        accumulate: number of parts of a step.
        precision: type of the networks' arithmetic.
        config: settings of the augmentations.
        regions: number of regions that the plan draws for an image.
        run: folder for a report about a loss that is not finite.
        channels_last: whether the networks' weights have the memory layout channels-last.

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
        """Names of the values that the method returns for a step, in this order."""
        self.compiled = model is not parallel
        # A compiled module counts its batches as it was compiled to.
        self._counted = [] if self.compiled else countable_together(method)
        self._unseen: list[_Unseen] = []
        self.views: dict[str, Tensor] | None = None
        """Pictures of the last batch's first images as the networks saw them, (B, N, 3, S, S), if they were asked for."""
        self.halfway = False
        """Whether only some parts of a step have been computed, so that running statistics and queues belong to no whole
        step."""

    def look_due(self, finished: int) -> bool:
        """Return whether to check the losses before update number `finished`; all ranks get the same answer."""
        return finished % LOOK_EVERY[self.device.type] == 0

    def gradient(self, batches: Iterator[Batch], step: int, *, keep_views: bool = False) -> None:
        """Add up the gradient of a step over its parts; with `keep_views`, keep some of the networks' inputs in `views`."""
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
        """Compute the gradients of a step's parts, and collect their losses and samples."""
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
        """Make the optimizer's step, and update the target network."""
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.update_target(momentum)

    def look(self, asked: Asked) -> tuple[dict[str, float], bool]:
        """Return the last step's terms and `filled`, as means over parts and ranks, and whether any rank is asked to stop.

        Raises:
            InputError: the loss of a step since the last call is not finite.

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
        """Make a forward pass; errors in a user's own method become messages."""
        try:
            with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                return checked_losses(self.model(inputs), self.method)
        except Exception as error:
            others = isinstance(error, RuntimeError) and (death(error) or ended_by_others(error, self.process))
            if others or out_of_memory(error) or (told := explained(error, self.method)) is None:
                raise
            raise told from error

    def _alone(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Return a context in which gradients are summed over the ranks only with the last part of a step."""
        if last or not isinstance(self.parallel, DistributedDataParallel):
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[None] = self.parallel.no_sync()
        return context

    def _stop_at(self, step: _Unseen, late: int) -> None:
        """End the run because a loss is not finite, and leave a file that names the step's samples."""
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
    """Return the pictures of a batch's first images, image by image."""
    pictures = {name: inputs[name] if cut.together else inputs[name].transpose(0, 1) for name, cut in batch.cuts.items()}
    return {name: shown[:_SHOWN].cpu() for name, shown in pictures.items()}
