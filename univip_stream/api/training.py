"""`univip_stream.train`: from photographs or shards to a backbone."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import click

from univip_stream.api.photographs import chosen, shards_of
from univip_stream.api.progress import duration, rewritten
from univip_stream.distributed import process_from_environment
from univip_stream.errors import UsageError
from univip_stream.loggers import check_loggers
from univip_stream.pretrain import PretrainConfig, pretrain
from univip_stream.pretrain.auto import seconds_of
from univip_stream.pretrain.load import CONFIG
from univip_stream.pretrain.recipes import recipe as recipe_named
from univip_stream.pretrain.settings import with_settings
from univip_stream.typed import expect

Progress = Callable[[int, int, dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What to train on, where to, from which recipe with which settings, and where the work is done."""

    out: str | Path
    """The run folder. Called again with the same, the run continues."""
    sources: tuple[str | Path, ...] = ()
    """Photographs, mined first into the run folder, or into the folder that `shards` names."""
    shards: str | tuple[str, ...] = ()
    """Shards to train on, as `--shards` names them."""
    recipe: str | PretrainConfig | None = None
    """Name of a recipe, or a whole configuration; None is `auto` with photographs, else `coco`."""
    settings: Mapping[str, Any] | tuple[str, ...] = ()
    """What differs from the recipe: `{"optim.lr": 0.1}`, or texts as for `--set`."""
    time: str | None = None
    """How long recipe `auto` may take, such as `2h`."""
    max_failures: str = "10%"
    """Photographs that cannot be read and are put up with, a share or a number."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    launcher: Literal["torchrun", "ray"] = "torchrun"
    """Who starts the ranks: torchrun around this process (or nobody: one rank), or Ray Train from inside."""
    ranks: int | None = None
    """With launcher `ray`; None is one a GPU of the cluster, or one."""
    address: str | None = None
    """With launcher `ray`: of a running cluster; None starts a local one."""

    def texts(self) -> list[str]:
        """The settings as `KEY=VALUE`."""
        if not isinstance(self.settings, Mapping):
            return list(self.settings)
        return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in self.settings.items()]


def train(config: TrainConfig, *, quiet: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Pre-train, as `univip-stream train` does. Called again with the same configuration it continues.

    Args:
        config: what, from where, how.
        quiet: whether to show nothing on standard error.
        progress: called at each recorded step with the step, how many there will be, and the values.

    Returns:
        The last recorded values; {} where the run was finished before.

    Raises:
        InputError, UsageError: images, shards, settings or a run folder that cannot be used; a loss that is not finite.
        Interrupted: asked to stop (SIGTERM, Ctrl-C) and saved; the same call goes on.

    """
    expect(config, "train", TrainConfig)
    process = process_from_environment()
    shards = (config.shards,) if isinstance(config.shards, str) else tuple(config.shards)
    sources, out = tuple(map(str, config.sources)), Path(config.out)
    if not sources and not shards:
        raise UsageError(
            "neither --src nor --shards says what to train on; expected photographs by --src, or shards by --shards"
        )
    name = config.recipe or ("auto" if sources else "coco")
    if config.time is not None and name != "auto":
        called = name if isinstance(name, str) else "a configuration"
        raise UsageError(f"--time is for recipe auto, which chooses the length; {called} has its own: --epochs or --steps")
    seconds = None if config.time is None else seconds_of(config.time)
    if name == "auto" and config.launcher == "ray":
        raise UsageError("recipe auto measures what this process does, which --launcher ray leaves to others; name a recipe")
    if config.launcher == "torchrun" and (config.ranks is not None or config.address is not None):
        raise UsageError("--ranks and --address are for --launcher ray; torchrun has --nproc-per-node")
    texts = config.texts()
    # Wrong settings and missing libraries show before photographs are mined. A run that has begun by `auto` has its own base.
    base = recipe_named("coco" if name == "auto" else name) if isinstance(name, str) else name
    trained = base if name == "auto" and (out / CONFIG).exists() else with_settings(base, texts)
    check_loggers(trained.log)

    def say(line: str) -> None:
        if process.is_first and not quiet:
            lines.end()
            click.echo(line, err=True)

    lines = ProgressLines(say, moving=sys.stderr.isatty() and process.is_first and not quiet)

    def shown(step: int, steps: int, values: dict[str, Any]) -> None:
        lines(step, steps, values)
        if progress is not None:
            progress(step, steps, values)

    try:
        specs = (
            [shards_of(sources, shards, out, process, max_failures=config.max_failures, say=say, quiet=quiet)]
            if sources
            else list(shards)
        )
        if name == "auto":
            trained = chosen(specs, out, texts, device=config.device, process=process, seconds=seconds, say=say)
        # There is one seed for users; the stream's own field follows it.
        trained = replace(trained, stream=replace(trained.stream, seed=trained.seed))
        if config.launcher == "ray":
            from univip_stream.pretrain.on_ray import pretrain_on_ray

            return pretrain_on_ray(
                trained, specs, out, ranks=config.ranks, address=config.address, device=config.device, say=say, progress=shown
            )
        return pretrain(trained, specs, out, device=config.device, process=process, say=say, progress=shown)
    finally:
        lines.end()


class ProgressLines:
    """Shows recorded steps: on a terminal as `mine` does, a line that is rewritten, with a bar; elsewhere a line every few seconds.

    Args:
        say: gets the lines.
        moving: whether to rewrite one line on standard error instead.

    """

    every = 5.0
    """Seconds between two lines."""

    def __init__(self, say: Callable[[str], None], *, moving: bool = False):
        self.say, self.last_printed, self.began, self.first = say, 0.0, 0.0, 0
        self.moving, self.open = moving, False
        if moving:
            self.every = 0.1

    def end(self) -> None:
        """End the line that is being rewritten, before another is printed."""
        if self.open:
            click.echo("", err=True)
            self.open = False

    def __call__(self, step: int, steps: int, values: dict[str, Any]) -> None:
        now = time.monotonic()
        if not self.first:
            self.first, self.began = step, now
        if now - self.last_printed < self.every and step < steps:
            return
        self.last_printed = now
        done = step - self.first
        left = duration((steps - step) * (now - self.began) / done) + " left" if done and step < steps else ""
        terms = {name.removeprefix("loss_").replace("_", "-"): value for name, value in values.items() if name[:5] == "loss_"}
        parts = ", ".join(f"{name} {value:.3f}" for name, value in terms.items())
        shown = f"  loss {values['loss']:.3f}{f' ({parts})' if parts else ''}  std {values['feature_std']:.2f}  "
        rate = f"{values['images_per_second']:.1f} images/s, waiting {values['data_wait']:.0%}"
        if not self.moving:
            self.say(f"step {step}/{steps}{shown}{rate}  {left}")
            return
        # What is cut off on a narrow terminal comes last.
        until = left or ("? left" if step < steps else "done")
        text = f" {step}/{steps} steps, {until}, {rate}{shown}"
        click.echo(rewritten("training", step, steps, text), err=True, nl=False)
        self.open = True
