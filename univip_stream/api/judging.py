"""`univip_stream.evaluate`: judge a run by labelled images."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from univip_stream.api.detecting import Detect, detected
from univip_stream.api.progress import Progress
from univip_stream.api.running import (
    CommonConfig,
    cache_folder,
    line_printer,
    print_source_notes,
    reading_workers,
    sole_writer,
    write_result,
)
from univip_stream.distributed import Process, joined, pick_device, process_from_environment
from univip_stream.errors import UsageError
from univip_stream.evaluation.finetune import finetune as finetune_subject
from univip_stream.evaluation.finetune import protocol_for as finetuning_for
from univip_stream.evaluation.linear import PROTOCOLS, protocol_for
from univip_stream.evaluation.linear import linear as linear_on
from univip_stream.evaluation.nearest import knn as knn_on
from univip_stream.evaluation.split import listed
from univip_stream.evaluation.subject import open_subject
from univip_stream.probe.knn import KnnConfig
from univip_stream.probe.labelled import LabelledSource
from univip_stream.typed import expect


@dataclass(frozen=True, kw_only=True)
class Judging(CommonConfig):
    """What every protocol needs; use `Knn`, `Linear` or `Finetune`."""

    train: str | Path
    """Labelled images to learn from: a folder of class folders, or shards."""
    val: str | Path
    """Labelled images to judge by: the same classes."""
    image_size: int | None = None
    """Side of the crops, pixels; None is the run's scene size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size is not None and not 8 <= self.image_size <= 4096:
            raise UsageError(f"image_size is {self.image_size}; expected 8 to 4096")
        for name, least in (("workers", 0), ("k", 1), ("batch_size", 1), ("epochs", 1), ("max_pixels", 1)):
            value = getattr(self, name, None)
            if value is not None and value < least:
                raise UsageError(f"{name} is {value}; expected at least {least}")
        for name, option in (("rates", "--lr"), ("multipliers", "--multiplier")):
            for value in getattr(self, name, ()):
                if not 0 < value < float("inf"):
                    raise UsageError(f"{option} is {value}; expected a number above 0")


@dataclass(frozen=True, kw_only=True)
class Knn(Judging):
    """The nearest labelled images vote; nothing is trained."""

    k: int = 20
    """Neighbours that vote."""
    temperature: float = 0.07
    """A vote has the weight exp(cosine / temperature)."""
    batch_size: int = 64
    """Images a forward pass."""
    untrained: bool = False
    """Whether to score the same network untrained too."""
    cache: str | Path | None = None
    """Folder that keeps features; None is the run's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UsageError(f"--temperature is {self.temperature}; expected a number above 0")


@dataclass(frozen=True, kw_only=True)
class Linear(Judging):
    """A linear classifier on frozen features."""

    protocol: str | None = None
    """byol, orl, orl-last or features; None is the paper's for the run's recipe, else features."""
    epochs: int | None = None
    """Passes over the training images; None is the protocol's."""
    rates: tuple[float, ...] = ()
    """Learning rates to try, at a batch of 256; none is the protocol's."""
    batch_size: int | None = None
    """Images of an update; None is the protocol's."""
    seed: int = 0
    """Decides every random choice."""
    cache: str | Path | None = None
    """Folder that keeps features; None is the run's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protocol is not None and self.protocol not in PROTOCOLS:
            raise UsageError(f"protocol is {self.protocol!r}; expected one of {', '.join(PROTOCOLS)}")


@dataclass(frozen=True, kw_only=True)
class Finetune(Judging):
    """The whole network, on few labels."""

    fraction: str | float | None = None
    """Share of the labels of each class that is used; None is 1%, or with `subset` the share that the list has."""
    subset: str | Path | None = None
    """List of labelled images, SimCLR's, instead of a draw."""
    epochs: int | None = None
    """Passes over the labelled images."""
    rates: tuple[float, ...] = ()
    """Learning rates of the backbone to try."""
    multipliers: tuple[float, ...] = ()
    """The head's learning rates as multiples of the backbone's."""
    batch_size: int | None = None
    """Images of an update."""
    seed: int = 0
    """Decides every random choice."""


def evaluate(config: Knn | Linear | Finetune | Detect, *, quiet: bool = False) -> dict[str, Any] | None:
    """Judge a run, as `univip-stream eval knn`, `linear`, `finetune` and `detect` do; the configuration's kind is the protocol.

    Args:
        config: what to judge, and by which images.
        quiet: whether to show nothing on standard error.

    Returns:
        The result as its JSON has it (`top1` or `bbox`, `used`, `failed`, ...); None on all of torchrun's ranks but the first.

    Raises:
        InputError, UsageError: a run, images or options that cannot be used.

    """
    kinds: dict[type, Callable[[Any, bool], Judged]] = {Knn: _knn, Linear: _linear, Finetune: _finetune, Detect: detected}
    expect(config, "evaluate", *kinds)
    judged = kinds[type(config)](config, quiet)
    out = None if config.out is None else Path(config.out)
    process = process_from_environment()
    with sole_writer(out, process), joined(process, pick_device(config.device, process)):
        result = judged(process)
        if not process.is_first:
            return None
        write_result(result, out)  # as its sole writer: another one removes half-written files of this name first
    return result


Judged = Callable[[Process], dict[str, Any]]


def _sources(config: Judging, quiet: bool) -> tuple[LabelledSource, LabelledSource]:
    train, val = (LabelledSource(str(spec), max_pixels=config.max_pixels) for spec in (config.train, config.val))
    print_source_notes(train, val, quiet=quiet)
    return train, val


def _knn(config: Knn, quiet: bool) -> Judged:
    sources = _sources(config, quiet)

    def judged(process: Process, *, fresh: bool = False) -> dict[str, Any]:
        subject = open_subject(config.run, image_size=config.image_size, untrained=fresh)
        where = pick_device(config.device, process)
        with cache_folder(config.run, config.cache, process) as folder:
            return knn_on(
                subject, *sources, KnnConfig(k=config.k, temperature=config.temperature), cache=folder,
                batch_size=config.batch_size, workers=reading_workers(config.workers), device=where, process=process,
                max_failures=config.max_failures,
            )  # fmt: skip

    def both(process: Process) -> dict[str, Any]:
        result = judged(process)
        return result | ({"untrained": {"top1": judged(process, fresh=True)["top1"]}} if config.untrained else {})

    return both


def _linear(config: Linear, quiet: bool) -> Judged:
    sources = _sources(config, quiet)
    subject = open_subject(config.run, image_size=config.image_size)
    chosen = PROTOCOLS[config.protocol or protocol_for(subject)]
    given = {"epochs": config.epochs, "batch_size": config.batch_size, "rates": config.rates or None}
    chosen = replace(chosen, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    say = line_printer(quiet)
    say(f"protocol {chosen.name}: {chosen.source}")
    bar: list[Progress] = []

    def progress(epoch: int, epochs: int) -> None:
        if not bar:
            silent = quiet or not process_from_environment().is_first
            bar.append(Progress("linear", epochs, unit="epochs", done=epoch - 1, quiet=silent))
        bar[0].add(epoch - bar[0].done)

    def judged(process: Process) -> dict[str, Any]:
        try:
            with cache_folder(config.run, config.cache, process) as folder:
                return linear_on(
                    subject, *sources, chosen, cache=folder, out=None if config.out is None else Path(config.out),
                    seed=config.seed, workers=reading_workers(config.workers), device=pick_device(config.device, process),
                    process=process, max_failures=config.max_failures, progress=progress, say=say,
                )  # fmt: skip
        finally:
            for line in bar:
                line.__exit__(None, None, None)

    return judged


def _finetune(config: Finetune, quiet: bool) -> Judged:
    asked = None if config.fraction is None else _share(config.fraction)
    sources = _sources(config, quiet)
    share = asked or (0.01 if config.subset is None else _share_of(sources[0], Path(config.subset)))
    subject = open_subject(config.run, image_size=config.image_size)
    given = {
        "epochs": config.epochs, "batch_size": config.batch_size, "rates": config.rates or None,
        "multipliers": config.multipliers or None,
    }  # fmt: skip
    chosen = finetuning_for(share, **{name: value for name, value in given.items() if value is not None})

    def judged(process: Process) -> dict[str, Any]:
        return finetune_subject(
            subject, *sources, share, chosen, subset=None if config.subset is None else Path(config.subset),
            out=None if config.out is None else Path(config.out), seed=config.seed, workers=reading_workers(config.workers),
            device=pick_device(config.device, process), process=process, max_failures=config.max_failures,
            say=line_printer(quiet),
        )  # fmt: skip

    return judged


def _share_of(train: LabelledSource, subset: Path) -> float:
    """Return the share of its images that a list names, to three digits: SimCLR's lists have 12,811 and 128,116 of 1,281,167."""
    return float(f"{len(listed(train, subset)) / len(train):.3g}")


def _share(given: str | float) -> float:
    text = str(given)
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise UsageError(f"--fraction is {text!r}; expected a share such as 1%, 10% or 0.2")
    return share
