"""The same global batches whoever reads them, also after a kill."""

import hashlib
import io
import multiprocessing
import os
import re
import shutil
import signal
import tarfile
import warnings
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from univip_stream.augment import AugmentConfig
from univip_stream.methods.univip import UniVIPPlan
from univip_stream.shards import expand_shards, open_index
from univip_stream.stream import Stream, StreamConfig
from univip_stream.views import ViewConfig

COUNTS = [31, 3, 40, 17, 5, 29, 12]
"""Images a shard: no number of ranks divides them, nor their sum."""
BATCH = 120
"""What 1, 2, 3, 5 and 8 ranks divide."""


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Seven small foreign shards of very different sizes."""
    folder = tmp_path_factory.mktemp("uneven")
    rng = np.random.default_rng(3)
    for shard, count in enumerate(COUNTS):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(count):
                data = cv2.imencode(".jpg", rng.integers(0, 255, (24, 32, 3), np.uint8))[1].tobytes()
                info = tarfile.TarInfo(f"{shard}-{number}.jpg")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder


def stream_of(folder, *, world_size=1, rank=0, workers=0, start_step=0):
    return Stream(
        str(folder),
        UniVIPPlan(ViewConfig(scene_size=8, instance_size=8, instances=2, min_scale=8), AugmentConfig()),
        StreamConfig(batch_size=BATCH, seed=9, workers=workers, prefetch=1, window=3, cache=str(folder / "cache")),
        rank=rank,
        world_size=world_size,
        start_step=start_step,
    )


def marks(batch):
    """What every image of a batch became, in order: its key and a digest of its pixels and draws."""
    found = []
    for b, key in enumerate(batch.keys):
        parts = (
            batch.pixels["scenes"][:, b],
            batch.pixels["instances"][b],
            batch.draws["scenes"][:, b],
            batch.draws["instances"][b],
            batch.windows["scenes"][:, b],
        )
        digest = hashlib.sha256(b"".join(part.contiguous().numpy().tobytes() for part in parts))
        found.append(f"{key}:{digest.hexdigest()[:12]}")
    return found


def global_batches(folder, count, *, world_size=1, workers=0, start_step=0):
    """The ranks' slices of each step, put together."""
    ranks = []
    for rank in range(world_size):
        stream = stream_of(folder, world_size=world_size, rank=rank, workers=workers, start_step=start_step)
        ranks.append([marks(batch) for batch in islice(stream, count)])
    assert {len(piece) for pieces in ranks for piece in pieces} == {BATCH // world_size}
    return [sum(pieces, []) for pieces in zip(*ranks, strict=True)]


@pytest.fixture(scope="module")
def expected(uneven):
    return global_batches(uneven, 6)


@pytest.mark.slow  # a process for each worker of each rank
@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
def test_ranks_and_workers_see_the_same_global_batches(uneven, expected, world_size, workers):
    assert global_batches(uneven, 2, world_size=world_size, workers=workers) == expected[:2]


def test_every_image_comes_once_an_epoch(uneven, expected):
    keys = [mark.split(":")[0] for batch in expected for mark in batch]
    everything = sorted(open_index(expand_shards(uneven)).key.to_pylist())
    count = sum(COUNTS)
    for epoch in range(len(keys) // count):
        assert sorted(keys[epoch * count : (epoch + 1) * count]) == everything
    assert len(keys) // count == 5


@pytest.fixture
def process():
    """Start a function in a forked process, from which a killed worker's SIGCHLD cannot reach the tests; gives its pipe too."""
    children = []

    def start(function, *arguments):
        read, write = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(target=function, args=(*arguments, write))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12's, of forks beside threads
            child.start()
        children.append(child)
        return child, read

    yield start
    for child in children:
        child.kill()
        child.join()


def lose_a_worker(folder, write):
    stream = iter(stream_of(folder, workers=2))
    write.send(marks(next(stream)))
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    try:
        list(islice(stream, 50))
    except RuntimeError as error:
        write.send(str(error))


def send_batches(folder, write):
    for batch in stream_of(folder, workers=2):
        write.send(marks(batch))


def test_a_killed_worker_ends_the_stream_and_the_rest_is_what_it_would_have_been(uneven, expected, tmp_path, process):
    _, read = process(lose_a_worker, uneven)
    assert read.recv() == expected[0]
    assert read.poll(30)
    assert "DataLoader worker" in read.recv()
    shutil.copytree(uneven, tmp_path / "moved")
    assert global_batches(tmp_path / "moved", 3, world_size=3, workers=1, start_step=1) == expected[1:4]


def test_a_killed_process_is_continued_by_others(uneven, expected, tmp_path, process):
    child, read = process(send_batches, uneven)
    seen = [read.recv() for _ in range(2)]
    child.kill()
    assert seen == expected[:2]
    shutil.copytree(uneven, tmp_path / "moved")
    assert global_batches(tmp_path / "moved", 4, world_size=5, workers=0, start_step=2) == expected[2:6]


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning", "ignore:.*fork:DeprecationWarning")
def test_the_readmes_example_runs(drawn_shards):
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    [example] = [block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "ShardDataset(" in block]
    spec = f"{drawn_shards}/<000..002>.tar"
    code = re.sub(r'ShardDataset\("[^"]*"', f"ShardDataset({spec!r}", example) + "\n    seen.append(sample)\n"
    seen = []
    exec(code, {"seen": seen})
    assert sorted(sample.key for sample in seen) == [f"{number:09d}" for number in range(12)]
    assert {tuple(sample.image.shape) for sample in seen} == {(3, 240, 320)}
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
