import shutil
import time
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from univip_stream import ShardDataset
from univip_stream import augment as augmentation
from univip_stream.augment import AugmentConfig
from univip_stream.boxes import inside
from univip_stream.errors import InputError, UsageError
from univip_stream.methods.univip import UniVIPPlan
from univip_stream.shards import expand_shards, open_index
from univip_stream.stream import Stream, StreamConfig
from univip_stream.views import ViewConfig

VIEWS = ViewConfig(scene_size=32, instance_size=16, instances=3, min_scale=32)


def batches(shards, count, *, rank=0, world_size=1, start_step=0, parts=1, **changes):
    settings = {"batch_size": 4, "seed": 5, "workers": 0} | changes
    stream = Stream(
        shards,
        UniVIPPlan(VIEWS, AugmentConfig()),
        StreamConfig(**settings),
        rank=rank,
        world_size=world_size,
        start_step=start_step,
        parts=parts,
    )
    return list(islice(stream, count))


def assert_same(one, other):
    for what in ("pixels", "draws", "windows"):
        ours, theirs = getattr(one, what), getattr(other, what)
        again = {"instances_again"} if what == "draws" else set()
        assert ours.keys() == theirs.keys() == {"scenes", "instances"} | again
        for name in ours:
            assert torch.equal(ours[name], theirs[name]), (what, name)
    for name in ("filled", "positions"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.keys == other.keys


def test_a_batch_is_what_its_boxes_say(drawn_shards):
    index = open_index(expand_shards(drawn_shards))
    [batch] = batches(str(drawn_shards), 1)
    assert batch.pixels["scenes"].shape == (2, 4, 3, 32, 32)
    assert batch.pixels["instances"].shape == (4, 3, 3, 16, 16)
    assert batch.pixels["scenes"].dtype == batch.pixels["instances"].dtype == torch.uint8
    assert batch.positions.tolist() == [0, 1, 2, 3]
    keys = index.key.to_pylist()
    for b in range(4):
        sample = keys.index(batch.keys[b])
        first, second = batch.windows["scenes"][:, b].numpy()
        low = np.maximum(first[:2], second[:2])
        overlap = np.concatenate([low, np.minimum(first[:2] + first[2:], second[:2] + second[2:]) - low])
        assert inside(batch.windows["instances"][b].numpy(), overlap).all()
        mined = {tuple(box) for box in index.boxes_of(sample)}
        taken = [tuple(box) in mined for box in batch.windows["instances"][b].tolist()]
        assert sum(taken) == 3 - batch.filled[b]


def test_a_cut_shows_its_box(drawn_shards):
    """Against Pillow, which resizes with its own code."""
    from PIL import Image

    index = open_index(expand_shards(drawn_shards))
    [batch] = batches(str(drawn_shards), 1)
    images = {sample.key: sample.image for sample in ShardDataset(index)}
    for b in range(4):
        image = Image.fromarray(images[batch.keys[b]].permute(1, 2, 0).numpy())
        for cut, (x, y, w, h) in zip(batch.pixels["scenes"][:, b], batch.windows["scenes"][:, b].tolist(), strict=True):
            expected = image.crop((x, y, x + w, y + h)).resize((32, 32), Image.Resampling.BILINEAR)
            difference = np.abs(cut.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected))
            assert difference.mean() < 1.0


@pytest.mark.parametrize(("world_size", "parts"), [(2, 1), (4, 1), (1, 2), (2, 2)])
def test_ranks_and_parts_together_see_the_global_batches(drawn_shards, world_size, parts):
    whole = batches(str(drawn_shards), 5)
    slices = [
        batches(str(drawn_shards), 5 * parts, rank=rank, world_size=world_size, parts=parts) for rank in range(world_size)
    ]
    for step, batch in enumerate(whole):
        pieces = [slices[rank][step * parts + part] for part in range(parts) for rank in range(world_size)]
        assert torch.equal(torch.cat([piece.pixels["scenes"] for piece in pieces], dim=1), batch.pixels["scenes"])
        assert torch.equal(torch.cat([piece.draws["instances"] for piece in pieces]), batch.draws["instances"])
        assert sum((piece.keys for piece in pieces), []) == batch.keys


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(drawn_shards, workers):
    alone = batches(str(drawn_shards), 7)
    helped = batches(str(drawn_shards), 7, workers=workers, prefetch=3)
    for one, other in zip(alone, helped, strict=True):
        assert_same(one, other)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "prefetch", "parts"), [(1, 1, 1), (3, 2, 2)])
def test_memory_used_again_holds_the_two_newest_batches(drawn_shards, workers, prefetch, parts):
    alone = batches(str(drawn_shards), 24, start_step=2, parts=parts)
    config = StreamConfig(batch_size=4, seed=5, workers=workers, prefetch=prefetch)
    stream = Stream(str(drawn_shards), UniVIPPlan(VIEWS, AugmentConfig()), config, start_step=2, parts=parts, reuse=True)
    given = []
    for one, other in zip(alone, islice(stream, len(alone)), strict=True):
        given.append(other)
        time.sleep(0.05)  # the workers go on as far as they may
        for expected, held in zip(alone[: len(given)][-2:], given[-2:], strict=True):
            assert_same(expected, held)
        assert_same(one, other)


def test_a_resumed_stream_yields_what_the_uninterrupted_one_would(drawn_shards):
    whole = batches(str(drawn_shards), 8)
    for start in (1, 3, 7):
        for one, other in zip(
            whole[start:], batches(str(drawn_shards), 8 - start, start_step=start, workers=start % 2), strict=True
        ):
            assert_same(one, other)


def test_a_moved_folder_yields_the_same_batches(drawn_shards, tmp_path):
    shutil.copytree(drawn_shards, tmp_path / "elsewhere")
    for one, other in zip(batches(str(drawn_shards), 3), batches(f"{tmp_path}/elsewhere/<000..002>.tar", 3), strict=True):
        assert_same(one, other)


def test_three_epochs_hold_every_image_three_times(drawn_shards):
    keys = [key for batch in batches(str(drawn_shards), 9) for key in batch.keys]
    assert sorted(keys) == sorted(open_index(expand_shards(drawn_shards)).key.to_pylist() * 3)


def test_the_same_image_gets_other_views_in_another_epoch(drawn_shards):
    seen = {}
    for batch in batches(str(drawn_shards), 6):
        for b, key in enumerate(batch.keys):
            seen.setdefault(key, []).append(batch.windows["scenes"][:, b].tolist())
    assert all(len(views) == 2 and views[0] != views[1] for views in seen.values())


@pytest.fixture
def broken(drawn_shards, tmp_path):
    """The shards with one byte of one image flipped, and that image's key."""
    folder = tmp_path / "broken"
    shutil.copytree(drawn_shards, folder)
    index = open_index(expand_shards(folder))
    with open(index.shards[1], "r+b") as file:
        sample = int(np.flatnonzero(index.shard == 1)[2])
        file.seek(int(index.offset[sample]) + 2000)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    return folder, index.text("key", sample)


def test_a_flipped_byte_stops_the_stream_and_names_the_sample(broken):
    folder, key = broken
    with pytest.raises(InputError, match=rf"001\.tar, sample {key} .*SHA-256 differs"):
        batches(str(folder), 3)
    with pytest.raises(InputError, match=rf"sample {key}") as raised:
        batches(str(folder), 3, workers=1)
    assert "Traceback" not in str(raised.value)


def test_a_skipped_sample_is_named_and_the_batch_stays_full(broken):
    folder, key = broken
    found = batches(str(folder), 3, on_bad_sample="skip")
    assert [len(batch.keys) for batch in found] == [4, 4, 4]
    assert key not in sum((batch.keys for batch in found), [])
    [said] = sum((batch.skipped for batch in found), [])
    assert key in said


def test_a_truncated_shard_is_refused_before_training(drawn_shards, tmp_path):
    shutil.copytree(drawn_shards, tmp_path / "cut")
    path = tmp_path / "cut" / "002.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(InputError, match=r"002\.tar has \d+ bytes but its index says"):
        batches(str(tmp_path / "cut"), 1)


def test_an_index_that_was_changed_is_refused(drawn_shards, tmp_path):
    """It holds the boxes, which no image's hash covers."""
    shutil.copytree(drawn_shards, tmp_path / "changed")
    path = tmp_path / "changed" / "001.parquet"
    path.write_bytes((tmp_path / "changed" / "000.parquet").read_bytes())
    with pytest.raises(InputError, match=r"001\.parquet is not the index its manifest was written for"):
        batches(str(tmp_path / "changed"), 1)


def test_shards_without_index_are_said(drawn_shards, tmp_path):
    shutil.copytree(drawn_shards, tmp_path / "bare")
    (tmp_path / "bare" / "001.parquet").unlink()
    with pytest.raises(InputError, match=r"001\.tar has no index 001\.parquet beside it"):
        batches(str(tmp_path / "bare"), 1)


def test_batches_that_cannot_be_are_refused(drawn_shards):
    with pytest.raises(UsageError, match="batch size 4 cannot be divided among 3 ranks"):
        batches(str(drawn_shards), 1, world_size=3)
    with pytest.raises(InputError, match="12 images, fewer than one batch of 16"):
        batches(str(drawn_shards), 1, batch_size=16)
    with pytest.raises(UsageError, match="workers is -1"):
        StreamConfig(batch_size=4, workers=-1)


@pytest.mark.slow
def test_shard_dataset_gives_every_image_with_its_boxes_in_any_loader(drawn_shards, drawn_folder):
    dataset = ShardDataset(str(drawn_shards))
    alone = list(dataset)
    assert len(dataset) == 12
    assert [sample.source.split("/")[1] for sample in alone] == sorted(path.name for path in drawn_folder.iterdir())
    for sample in alone:
        assert sample.image.dtype == torch.uint8
        assert sample.image.shape == (3, 240, 320)
        assert sample.boxes.dtype == torch.int64
        assert sample.boxes.shape[1] == 4
    loaded = list(DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="forkserver"))
    assert sorted(sample.key for sample in loaded) == [sample.key for sample in alone]


def test_shard_dataset_order_is_fixed_by_seed_and_epoch(drawn_shards):
    def keys(seed, epoch, **place):
        return [sample.key for sample in ShardDataset(str(drawn_shards), **place).epoch(seed, epoch)]

    assert keys(1, 0) == keys(1, 0) != keys(1, 1)
    shared = [keys(1, 0, rank=rank, world_size=5) for rank in range(5)]
    assert sorted(sum(shared, [])) == sorted(keys(1, 0))
    assert [key for turn in range(3) for rank in range(5) for key in shared[rank][turn : turn + 1]] == keys(1, 0)


@pytest.mark.slow
def test_instances_drawn_as_either_view_have_the_chances_of_both(drawn_shards):
    """Blurred always and solarised never in the first view, the other way round in the second: half of the instances each."""
    chances = AugmentConfig(blur_p=(1.0, 0.0), solarize_p=(0.0, 1.0))

    def draws(**views):
        plan = UniVIPPlan(replace(VIEWS, **views), chances)
        stream = Stream(str(drawn_shards), plan, StreamConfig(batch_size=12, seed=5, workers=0))
        names = [name for name in plan.cuts if name != "scenes"]
        found = torch.cat([torch.stack([b.draws[n].flatten(0, 1) for n in names]) for b in islice(stream, 8)], 1)
        return found[..., augmentation._SIGMA] > 0, found[..., augmentation._SOLARIZE] > 0

    blurred, solarised = draws(instance_augmentations=1)
    assert blurred.all()
    assert not solarised.any()
    blurred, solarised = draws()
    assert blurred.all(1).tolist() == [True, False]
    assert torch.equal(blurred, ~solarised)
    blurred, solarised = draws(instance_draws="either")
    assert torch.equal(blurred, ~solarised)
    share = blurred.float().mean(1)  # of 288 draws each, by chance
    assert ((share - 0.5).abs() < 4 * (0.25 / blurred.shape[1]) ** 0.5).all()
    assert not torch.equal(blurred[0], blurred[1])
