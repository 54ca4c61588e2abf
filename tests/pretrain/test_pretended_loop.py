"""The loop of a training on a pretended GPU: between two looks it asks for nothing, and what it trains lies as the GPU wants it."""

import itertools
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended import CUDA, PretendedGpu
from small_runs import tiny
from test_pretended_gpu import batch_of
from torch import nn

from univip_stream.distributed import Process
from univip_stream.methods import build_plan
from univip_stream.pretrain.asked import Asked
from univip_stream.pretrain.optim import build_optimizer
from univip_stream.pretrain.train import _Trainer
from univip_stream.pretrain.update import Updates
from univip_stream.stream import Stream
from univip_stream.stream import stream as module


class LookedError(Exception):
    """The run looks at its losses: here the host may wait."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedGpu]:
    pretended = PretendedGpu(monkeypatch)
    yield pretended
    pretended.close()


class Fed:
    """Batches without end, in place of a stream."""

    wait_seconds = 0.0

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Any]:
        return (self.batch for _ in itertools.count())


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [True, False])
def test_the_loop_asks_for_nothing_between_two_looks(
    channels_last: bool, gpu: PretendedGpu, drawn_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["method.name=simclr", "steps=20", "record_every=1000", "checkpoint_every=1000", "optim.warmup_epochs=0"]
    config = tiny(*few, f"channels_last={str(channels_last).lower()}")
    trainer = _Trainer(config, str(drawn_shards), tmp_path / "run", torch.device("cpu"), Process(), lambda line: None)
    with closing(trainer):
        convolutions = [
            layer for layer in trainer.method.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size > (1, 1)
        ]
        assert convolutions
        for layer in convolutions:
            assert layer.weight.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        assert trainer.updates.channels_last is channels_last
        if not channels_last:
            return
        gpu.place(trainer.method)
        trainer.device = CUDA
        trainer.updates = Updates(
            trainer.method, trainer.method, trainer.method, build_optimizer(trainer.method, config.optim), accumulate=1,
            precision=torch.bfloat16, config=config.augment, regions=2, device=CUDA, process=Process(), run=tmp_path,
        )  # fmt: skip
        batch = batch_of(gpu, build_plan(config.method, config.views, config.augment))
        trainer.stream = Fed(batch)  # type: ignore[assignment]
        trainer.process = Process(rank=1)  # the first process shows people a step's pictures, and waits for them

        def look(asked: Asked) -> None:
            raise LookedError

        monkeypatch.setattr(trainer.updates, "look", look)
        with gpu.running(copies_may_wait=True):
            trainer.updates.gradient(iter(trainer.stream), 0)  # constants go to the GPU once a run
        with gpu.running(), pytest.raises(LookedError):
            next(trainer.steps(Asked()))
        assert trainer.finished >= 9, "a look makes the host wait, so there are few"


def test_where_there_is_a_gpu_batches_are_pinned(drawn_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, object] = {}

    def loaded(batches: object, **words: object) -> Iterator[object]:
        told.update(words)
        yield from ()

    config = tiny()
    stream = Stream(str(drawn_shards), build_plan(config.method, config.views, config.augment), config.stream, reuse=True)
    monkeypatch.setattr(module, "loaded", loaded)
    for found in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=found: found)
        with pytest.raises((StopIteration, RuntimeError)):
            next(iter(stream))
        assert told["pin_memory"] is found
