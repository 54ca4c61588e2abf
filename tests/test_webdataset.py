"""webdataset's pipelines over our shards: the samples that `ShardDataset` gives, shared out among workers and nodes."""

import shutil
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
    with pytest.raises(InputError):
        keys(pipeline(tmp_path / "bad"))
    with pytest.warns(UserWarning, match="not an image that can be read"):
        left = keys(pipeline(tmp_path / "bad", handler=wds.warn_and_continue))
    assert len(left) == len(keys(pipeline(drawn_shards))) - 1


def test_shards_that_are_not_there_or_far_away_are_told(tmp_path):
    with pytest.raises(InputError, match="no such"):
        pipeline(tmp_path / "nowhere")
    with pytest.raises(InputError, match="ShardDataset"):
        pipeline("s3://bucket/000.tar")
