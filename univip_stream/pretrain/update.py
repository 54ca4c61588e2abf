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

from univip_stream.augment import AugmentConfig, augment
from univip_stream.distributed import Place, ended_by_others, mean_over_ranks
from univip_stream.errors import InputError
from univip_stream.files import written_atomically
from univip_stream.methods import Method
from univip_stream.methods.registry import checked_losses, explained
from univip_stream.pretrain.asked import Asked
from univip_stream.pretrain.inputs import extras_on, sent
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
        instances: instances an image.
        run: folder for what is left of a loss that is no number.
        channels_last: how the networks' weights lie in memory, and so the images had better.

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
        instances: int,
        device: torch.device,
        place: Place,
        run: Path,
        channels_last: bool = True,
    ) -> None:
        self.method, self.model, self.parallel, self.optimizer = method, model, parallel, optimizer
        self.accumulate, self.precision, self.config, self.instances = accumulate, precision, config, instances
        self.device, self.place, self.run, self.channels_last = device, place, run, channels_last
        self.terms = ("loss", *method.terms, "feature_std")
        """What the method returns of a step, in this order."""
        self._unseen: list[_Unseen] = []
        self.views: tuple[Tensor, Tensor | None] | None = None
        """The first images of the last batch as the networks saw them, where they were asked for."""
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
        for part in range(self.accumulate):
            self.halfway = part > 0
            batch = next(batches)
            scenes, instances = views_on(self.device, batch, self.config)
            if keep_views:
                self.views = scenes[:, :_SHOWN].cpu(), None if instances is None else instances[:, :_SHOWN].cpu()
            extras = extras_on(self.device, batch, self.method.wants, self.config)
            if not self.channels_last:  # as the stream's pixels lie, and so what a GPU made of them
                scenes, instances = scenes.contiguous(), None if instances is None else instances.contiguous()
                extras = {name: values.contiguous() for name, values in extras.items()}
            with self._alone(last=part == self.accumulate - 1):
                losses = self._losses(scenes, instances, extras)
                (losses["loss"] / self.accumulate).backward()  # type: ignore[no-untyped-call]
            filled = batch.filled.float().mean() / max(self.instances, 1)
            terms = [losses[name].detach().float() for name in self.terms]
            totals += torch.stack([*terms, filled.to(self.device, non_blocking=True)]) / self.accumulate
            keys += batch.keys
            sources += batch.sources
        self.halfway = False
        self._unseen.append(_Unseen(step=step, values=totals, keys=keys, sources=sources))

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
        *values, stops = mean_over_ranks(torch.cat([mine, stop]), self.place).cpu()
        for step, theirs in zip(unseen, values, strict=True):
            if not torch.isfinite(theirs[0]):
                self._stop_at(step, late=unseen[-1].step - step.step)
        return dict(zip([*self.terms, "filled"], values[-1].tolist(), strict=True)), bool(stops[0] > 0)

    def _losses(self, scenes: Tensor, instances: Tensor | None, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        """A forward pass; what goes wrong in a method of somebody's own is told in words."""
        try:
            with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                return checked_losses(self.model(scenes, instances, **extras), self.method)
        except Exception as error:
            others = isinstance(error, RuntimeError) and (death(error) or ended_by_others(error, self.place))
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
        left = self.run / f"not-finite-step-{step.step + 1}-rank-{self.place.rank}.json"
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


def views_on(device: torch.device, batch: Batch, config: AugmentConfig) -> tuple[Tensor, Tensor | None]:
    """A batch as the networks want it: float32 (2, B, 3, S, S) scenes and (A, B, K, 3, I, I) instances, augmented."""
    # Only these: what else a batch holds is either another function's to send or for the host.
    pixels, numbers = sent(device, batch.scenes), sent(device, batch.scene_draws)
    scenes = augment(pixels.flatten(0, 1), numbers.flatten(0, 1), config).reshape(pixels.shape)
    if batch.instances.shape[1] == 0:
        return scenes, None
    crops, drawn = sent(device, batch.instances), sent(device, batch.instance_draws)
    instances = [augment(crops.flatten(0, 1), draws.flatten(0, 1), config).reshape(crops.shape) for draws in drawn]
    return scenes, torch.stack(instances) if len(instances) > 1 else instances[0].unsqueeze(0)
