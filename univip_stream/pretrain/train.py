"""The training loop: build, resume, step, record, save."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from univip_stream.checkpoint import Checkpoints
from univip_stream.distributed import (
    ALONE,
    Process,
    after_the_first,
    agree,
    in_parallel,
    joined,
    pick_device,
)
from univip_stream.errors import InputError, UsageError, why
from univip_stream.files import written_atomically
from univip_stream.loggers import Loggers, check_loggers
from univip_stream.methods import Method, build_method, build_plan
from univip_stream.networks import synchronise_batchnorm
from univip_stream.pretrain import provenance, words
from univip_stream.pretrain.asked import Asked, Interrupted, WaitedEnoughError
from univip_stream.pretrain.config import PretrainConfig
from univip_stream.pretrain.hardware import memory, pick_precision
from univip_stream.pretrain.initial import begin_with, first_weights, freeze
from univip_stream.pretrain.inputs import check_sizes
from univip_stream.pretrain.load import BACKBONE, CHECKPOINTS, as_safetensors, backbone_facts
from univip_stream.pretrain.measures import Measures
from univip_stream.pretrain.online import OnlineKnn
from univip_stream.pretrain.optim import build_optimizer
from univip_stream.pretrain.results import records_of
from univip_stream.pretrain.rundir import check_run, open_run, settings_of
from univip_stream.pretrain.settings import flat, to_dict
from univip_stream.pretrain.troubles import told
from univip_stream.pretrain.update import Updates
from univip_stream.pretrain.verdict import judge
from univip_stream.record import Recorder, SilentRecorder
from univip_stream.schedules import cosine_lr
from univip_stream.stream import Stream

_PATIENCE = 3.0
"""Seconds that a run of one process waits for a batch after a request to stop. Schedulers kill it 10 to 30 s after the
request."""
_PATIENCE_OF_RANKS = 20.0
"""The same for several ranks: a rank that leaves early keeps the others from saving at the same step."""
_BEFORE = "stopped before a step was made; run the same command to begin"


def pretrain(
    config: PretrainConfig,
    shards: str | list[str],
    run: Path,
    *,
    device: str = "auto",
    process: Process = ALONE,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int, dict[str, Any]], None] = lambda step, steps, values: None,
) -> dict[str, Any]:
    """Train on shards and write a run folder. If called again with the same folder, it continues.

    Args:
        config: all settings that the result depends on besides the shards.
        shards: any spec of `expand_shards`.
        run: folder of the run.
        device: auto, cpu, cuda or cuda:N.
        process: rank and number of the processes that train together.
        say: called with each line for a person at the start and the end.
        progress: called at each recorded step with the step, the number of steps of the run, and the values.

    Returns:
        The last recorded values, or {} when the run was finished before.

    Raises:
        InputError: shards, settings or the run folder cannot be used, or a loss is not finite.
        Interrupted: the run was stopped from outside, after saving.

    """
    where = pick_device(device, process)
    asked = Asked()
    with joined(process, where), asked.listening(), _in_words(config, process):
        try:
            with asked.waiting():
                trainer = _Trainer(config, shards, run, where, process, say)
        except WaitedEnoughError:
            raise Interrupted(_BEFORE) from None
        with closing(trainer):
            for line in trainer.beginning():
                say(line)
            values: dict[str, Any] = {}
            for values in trainer.steps(asked):
                progress(values["step"], trainer.total, values)
            for line in words.doubts(trainer.method, config.optim.lr):
                say(line)
            trainer.export()
            if values and process.is_first:
                say(f"without labels: {judge(records_of(run)).sentence()}")
        return values


@contextmanager
def _in_words(config: PretrainConfig, process: Process) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, MemoryError) as error:
        if (words := told(error, config, process)) is None:
            raise
        raise words from error


class _Trainer:
    """A run in progress: it builds everything once, and then makes one step at a time."""

    def __init__(
        self, config: PretrainConfig, shards: str | list[str], run: Path, device: torch.device, process: Process,
        say: Callable[[str], None],
    ):  # fmt: skip
        self.config, self.run, self.device, self.process = config, run, device, process
        if config.stream.batch_size < 2 * process.world_size * config.accumulate:
            raise UsageError(
                f"batch size {config.stream.batch_size} over {process.world_size} ranks x {config.accumulate} parts leaves less "
                "than 2 images at a time; batch normalisation needs at least 2"
            )
        if (config.knn.train is None) != (config.knn.val is None):
            raise UsageError(f"knn.train is {config.knn.train} and knn.val {config.knn.val}; expected both, or neither")
        check_loggers(config.log)
        plan = build_plan(config.method, config.views, config.augment)
        check_run(run, config, shards)
        stream = Stream(
            shards, plan, config.stream,
            rank=process.rank, world_size=process.world_size, parts=config.accumulate, reuse=True,
        )  # fmt: skip
        self.length = words.Length.of(config, stream.images, stream.steps_per_epoch)
        self.total = self.length.steps
        self.boxes, self.notes = stream.index.box_count, stream.notes

        # Everything that can be wrong is checked before the folder becomes that of this run.
        torch.manual_seed(config.seed)
        self.method: Method = build_method(config.method, plan)
        check_sizes(self.method.backbone, config.method.backbone, plan)
        self.checkpoints = Checkpoints(run / CHECKPOINTS, keep=config.keep_checkpoints)
        # A run that continues has its weights in its checkpoint; the file that they came from may be gone by then.
        self.first_weights = (
            first_weights(config.init_from, self.method.backbone, config.method.backbone)
            if config.init_from is not None and not self.checkpoints.steps()
            else None
        )
        if self.first_weights is not None:
            begin_with(self.method, self.first_weights)
        self.frozen = freeze(self.method, config.freeze)
        if process.world_size > 1 and config.sync_batchnorm:
            self.method = synchronise_batchnorm(self.method, device.type)  # type: ignore[assignment]
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.method.to(device, memory_format=layout)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(self.method, config.optim)
        self.precision, self.why = pick_precision(config.precision, device)
        with after_the_first(process):
            self.knn = (
                OnlineKnn(config.knn, config.views.scene_size, config.augment)
                if config.knn.train and process.is_first
                else None
            )
            self.measures = (
                Measures(
                    config.measures, stream.index, config.views.scene_size, config.augment, config.seed, config.stream.workers
                )
                if config.measures.images and process.is_first
                else None
            )
            self.lock = open_run(
                run, config, stream.index, self.total, process, shards=shards, fingerprint=stream.plan.fingerprint,
                first_weights=None if self.first_weights is None else self.first_weights.digest(),
            )  # fmt: skip

        self.first = self._resume()
        agree(self.first, process, "the step to continue from")
        if process.is_first:
            provenance.begin(run, stream.index, config.method.name, first=self.first, total=self.total)

        parallel = in_parallel(self.method, process, device)
        model: nn.Module = torch.compile(parallel) if config.compile else parallel  # type: ignore[assignment]
        self.updates = Updates(
            self.method, model, parallel, self.optimizer,
            accumulate=config.accumulate, precision=self.precision, config=config.augment,
            regions=plan.regions, device=device, process=process, run=run, channels_last=config.channels_last,
        )  # fmt: skip
        self.stream = stream.starting_at(self.first)
        self.recorder: Recorder | SilentRecorder = SilentRecorder()
        if process.is_first:
            # A run that was finished before has nothing to log, and is not opened again elsewhere.
            loggers = Loggers(config.log, run, self.first, flat(config), say) if self.first < self.total else None
            self.recorder = Recorder(run, resumed=self.first, loggers=loggers)
        self.finished = self.first

    def beginning(self) -> Iterator[str]:
        """Yield lines about the run for a person: what was noted of its shards and settings, then what will be done."""
        yield from self.notes
        for part in (self.knn, self.measures):
            if part is not None:
                yield from part.notes()
        yield from words.of_length(self.length, self.config, self.process)
        yield from words.of_networks(self.method, self.config, self.frozen, self.first_weights)
        yield from words.of_rates(self.method, self.length, self.config)
        yield f"{self.device}, {str(self.precision).removeprefix('torch.')} ({self.why})"
        if self.boxes == 0 and self.config.views.instances and self.config.views.regions in ("mined", "naive-candidates"):
            yield "no image of these shards has a box: every instance will be a random box (views.regions=naive says so)"
        if self.first:
            yield f"continues after step {self.first} of {self.total}"
            if self.measures is not None and self.first < self.total:
                yield from self.measures.notes_on(settings_of(self.run))

    def steps(self, asked: Asked) -> Iterator[dict[str, Any]]:
        """Train to the end, and yield the values of each recorded step."""
        config = self.config
        if self.measures is not None and self.first == 0:
            self._look_at_the_first_weights(asked)
        patience = _PATIENCE if self.process.world_size == 1 else _PATIENCE_OF_RANKS
        with closing(asked.patiently(iter(self.stream), patience)) as batches:  # an error must not leave workers behind
            began, waited, recorded = time.perf_counter(), self.stream.wait_seconds, self.first
            for step in range(self.first, self.total):
                finished = step + 1
                last = finished == self.total
                record, save = last or finished % config.record_every == 0, last or finished % config.checkpoint_every == 0
                knn_due = config.knn.train is not None and (last or finished % config.knn.every == 0)
                measures_due = config.measures.images > 0 and (last or finished % config.measures.every == 0)
                record = record or knn_due or measures_due
                try:
                    self.updates.gradient(batches, step, keep_views=self.process.is_first and (step == self.first or save))
                except WaitedEnoughError:
                    raise self._leave(step) from None
                losses: dict[str, float] = {}
                stop = False
                if record or save or self.updates.look_due(finished):
                    losses, stop = self.updates.look(asked)
                rate = cosine_lr(step, self.total, config.optim.lr, self.length.warmup, config.optim.final_lr)
                momentum = self.method.target_momentum(step, self.total, config.ema)
                self.updates.apply(rate, momentum)
                self.finished = finished

                if record:
                    seconds = time.perf_counter() - began
                    values = {
                        "step": finished,
                        "epoch": round(finished / self.length.steps_per_epoch, 4),
                        **{name: losses[name] for name in self.updates.terms},
                        "lr": rate,
                        "momentum": momentum,
                        "filled": losses["filled"],
                        "images_per_second": round((finished - recorded) * config.stream.batch_size / seconds, 2),
                        "data_wait": round((self.stream.wait_seconds - waited) / seconds, 4),
                        **memory(self.device),
                    }
                    if knn_due and self.knn is not None:
                        values["knn_top1"] = self.knn.top1(self.method.backbone, self.device)
                        if self.knn.failed:
                            values["knn_failed"] = len(self.knn.failed)
                    if measures_due and self.measures is not None:
                        values |= self.measures.of(self.method.backbone, self.device)
                    self.recorder.write(values)
                    began, waited, recorded = time.perf_counter(), self.stream.wait_seconds, finished
                    yield values
                if self.updates.views is not None:
                    self.recorder.pictures(self.updates.views, config.augment, finished)
                    self.updates.views = None
                if save or stop:
                    self._save(finished)
                if stop and not last:
                    raise Interrupted(
                        f"stopped after step {finished} of {self.total}, saved; run the same command to continue"
                    )

    def _look_at_the_first_weights(self, asked: Asked) -> None:
        """Record the measures of before the first step. One process need not end it to stop: it is done again at the next start."""
        assert self.measures is not None
        with asked.waiting(_PATIENCE) if self.process.world_size == 1 else nullcontext():
            try:
                values = self.measures.of(self.method.backbone, self.device)
            except WaitedEnoughError:
                raise Interrupted(_BEFORE) from None
        self.recorder.write({"step": 0, "epoch": 0.0, **values})

    def _leave(self, finished: int) -> Interrupted:
        """Save and return the error of a stop while waiting for a batch; a step that is half computed is not saved."""
        if finished == self.first or self.updates.halfway:
            saved = "the last checkpoint stands" if self.checkpoints.steps() else "nothing was trained yet"
        else:
            self._save(finished)
            saved = "saved"
        return Interrupted(
            f"stopped after step {finished} of {self.total}, waiting for images; {saved}; run the same command to continue"
        )

    def _save(self, finished: int) -> None:
        bad = [name for name, values in self.method.state_dict().items() if not torch.isfinite(values).all()]
        if bad:
            raise InputError(
                f"after step {finished} the weights are no longer finite ({len(bad)} tensors, such as {bad[0]}): nothing is saved, "
                f"checkpoints before it in {self.run / 'checkpoints'} are as they were. A smaller optim.lr or precision=fp32 are "
                "what usually helps; it begins with another --out"
            )
        if self.process.is_first:
            self.checkpoints.save(
                finished,
                {
                    "method": self.method.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "rng": torch.get_rng_state(),
                    "config": json.dumps(to_dict(self.config)),
                },
            )

    def _resume(self) -> int:
        state = self.checkpoints.load_latest()
        if state is None:
            return 0
        step = int(state["step"])
        try:
            if step > self.total:
                raise ValueError(f"it is of step {step}, and the run has {self.total}")
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["rng"])
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            path = self.checkpoints.path(step)
            raise InputError(
                f"{path} does not fit this run: {' '.join(why(error).split())}; delete it to continue from the one before"
            ) from error
        return step

    def close(self) -> None:
        """Let go of the files, and of the run folder."""
        self.recorder.close(finished=self.finished == self.total)
        if self.lock is not None:
            os.close(self.lock)

    def export(self) -> None:
        """Write the backbone alone, under the names its library uses."""
        if not self.process.is_first:
            return
        weights = {name: value.detach().cpu().contiguous() for name, value in self.method.backbone.trunk.state_dict().items()}
        if provenance.stands(self.run):
            return  # a run that was finished before
        data = as_safetensors(weights, {**backbone_facts(self.config), "steps": str(self.total)})
        with written_atomically(self.run / BACKBONE, wanted=len(data)) as file:
            file.write(data)
        provenance.finish(self.run, self.method.backbone, self.total)
