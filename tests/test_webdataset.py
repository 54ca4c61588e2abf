"""webdataset's pipelines over our shards: the samples that `ShardDataset` gives, shared out among workers and nodes."""

import gc
import shutil
import subprocess
import sys
import tarfile

import pytest
import torch
import webdataset as wds
from torch.utils.data import DataLoader

from univip_stream import ShardDataset
from univip_stream.errors import InputError
from univip_stream.webdataset import pipeline

# webdataset itself leaves the tars that it opened to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def forgotten():
    """What webdataset left open is collected here, and not in another test."""
    yield
    gc.collect()


def keys(dataset, workers=0):
    return [sample["__key__"] for sample in DataLoader(dataset, batch_size=None, num_workers=workers)]


def test_samples_are_those_of_the_shards_in_their_order(drawn_shards):
    ours, theirs = list(ShardDataset(drawn_shards)), list(pipeline(drawn_shards))
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.image, other["image"])
        assert torch.equal(one.boxes, other["boxes"])
        assert (one.key, one.label, one.source) == (other["__key__"], other["label"], other["source"])
        assert other["json"]["width"] == other["image"].shape[2]


def test_workers_and_nodes_share_the_shards(drawn_shards, monkeypatch):
    every = sorted(keys(pipeline(drawn_shards)))
    assert sorted(keys(pipeline(drawn_shards), workers=2)) == every
    nodes = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        nodes += keys(pipeline(drawn_shards))
    assert sorted(nodes) == every


def test_shuffled_is_another_order_of_the_same_by_its_seed(drawn_shards):
    plain, shuffled = keys(pipeline(drawn_shards)), keys(pipeline(drawn_shards, shuffle=100, seed=1))
    assert plain != shuffled
    assert sorted(plain) == sorted(shuffled)
    assert keys(pipeline(drawn_shards, shuffle=100, seed=1)) == shuffled


def test_stages_can_be_added(drawn_shards):
    dataset = pipeline(drawn_shards).compose(wds.map(lambda sample: (len(sample["boxes"]),)), wds.batched(4))
    counts, *_ = next(iter(dataset))
    assert len(counts) == 4


def test_a_bad_image_is_an_error_or_is_left_out(drawn_shards, tmp_path):
    shutil.copytree(drawn_shards, tmp_path / "bad")
    shard = sorted((tmp_path / "bad").glob("*.tar"))[0]
    with tarfile.open(shard) as tar:
        member = next(member for member in tar if not member.name.endswith("json"))
    with shard.open("r+b") as file:
        file.seek(member.offset_data)
        file.write(b"no image at all")
    # In a process of its own: webdataset leaves the tar open that it was reading.
    code = """
import sys, warnings, webdataset
from univip_stream.errors import InputError
from univip_stream.webdataset import pipeline
try:
    list(pipeline(sys.argv[1]))
except InputError as error:
    print(error)
with warnings.catch_warnings(record=True) as said:
    print(len(list(pipeline(sys.argv[1], handler=webdataset.warn_and_continue))))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "bad")], capture_output=True, text=True, check=True)
    refused, left = done.stdout.splitlines()
    assert "not an image that can be read" in refused
    assert int(left) == len(keys(pipeline(drawn_shards))) - 1


@pytest.mark.slow
def test_shards_that_are_not_there_or_far_away_are_told(tmp_path):
    with pytest.raises(InputError, match="no such"):
        pipeline(tmp_path / "nowhere")
    with pytest.raises(InputError, match="ShardDataset"):
        pipeline("s3://bucket/000.tar")
