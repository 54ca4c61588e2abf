"""Pairs in the stream: cut where they say, the same whoever reads them, and refused in words where they do not fit."""

import shutil
from itertools import islice

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from univip_stream.augment import AugmentConfig
from univip_stream.errors import InputError
from univip_stream.methods.orl.method import ORLPlan
from univip_stream.methods.orl.pairs import Pairs, pairs_table
from univip_stream.methods.scenes import ScenePlan
from univip_stream.shards import expand_shards, open_index
from univip_stream.stream import Stream, StreamConfig
from univip_stream.stream.reader import Reader
from univip_stream.views import ViewConfig

I = 32  # noqa: E741 - the legend's letter: side of a patch


def stream_of(shards, pairs, *, batch_size=4, workers=0, rank=0, world_size=1, start_step=0, reuse=False, **more):
    views = ViewConfig(scene_size=16, instance_size=I, instances=0, overlap=False, pairs=pairs and str(pairs))
    plan = (ORLPlan if pairs else ScenePlan)(views, AugmentConfig())
    config = StreamConfig(batch_size=batch_size, seed=3, workers=workers, antialias=False, **more)
    return Stream(str(shards), plan, config, rank=rank, world_size=world_size, start_step=start_step, reuse=reuse)


def marks(batches):
    """What every image became, by its position."""
    return {
        int(position): (batch.keys[b], batch.pixels["patches"][:, b].clone(), batch.draws["patches"][:, b])
        for batch in batches
        for b, position in enumerate(batch.positions)
    }


def same(one, other):
    assert one.keys() == other.keys()
    for position, (key, pixels, draws) in one.items():
        assert key == other[position][0]
        assert torch.equal(pixels, other[position][1])
        assert torch.equal(draws, other[position][2])


@pytest.mark.slow
def test_patches_are_a_region_twice_and_a_pair_of_the_file(drawn_shards, drawn_pairs):
    index = open_index(expand_shards(str(drawn_shards)))
    reader, rows = Reader(index), pq.read_table(drawn_pairs).to_pylist()
    number = {index.text("key", sample): sample for sample in range(len(index))}

    def patch(key, box):
        x, y, w, h = box
        return cv2.resize(reader.image(number[key])[y : y + h, x : x + w], (I, I), interpolation=cv2.INTER_LINEAR)

    used = set()
    for key, patches, draws in marks(islice(stream_of(drawn_shards, drawn_pairs), 30)).values():
        first, near, own, like = (np.asarray(pixels) for pixels in patches.permute(0, 2, 3, 1))
        assert any((first == patch(key, box)).all() for box in index.boxes_of(number[key]).tolist())
        assert (first != near).any()
        found = [
            (row["other"], at)
            for row in rows
            if row["sample"] == number[key]
            for at, pair in enumerate(row["pairs"])
            if (own == patch(key, pair[:4])).all() and (like == patch(index.text("key", row["other"]), pair[4:])).all()
        ]
        assert found
        used.add((key, *found[0]))
        assert draws.shape == (4, 12)
    assert len(used) > 40  # of the 60 there are: neighbours and pairs are drawn at random


def test_patches_are_the_same_for_any_ranks_workers_memory_and_start(drawn_shards, drawn_pairs):
    whole = marks(islice(stream_of(drawn_shards, drawn_pairs), 6))
    same(whole, marks(islice(stream_of(drawn_shards, drawn_pairs, workers=2, reuse=True), 6)))
    ranks = {}
    for rank in range(2):
        ranks |= marks(islice(stream_of(drawn_shards, drawn_pairs, rank=rank, world_size=2), 6))
    same(whole, dict(sorted(ranks.items())))
    later = marks(islice(stream_of(drawn_shards, drawn_pairs, start_step=4), 2))
    same({position: mark for position, mark in whole.items() if position >= 16}, later)


def test_pairs_change_nothing_else(drawn_shards, drawn_pairs):
    for plain, paired in islice(zip(stream_of(drawn_shards, None), stream_of(drawn_shards, drawn_pairs), strict=True), 3):
        for what in ("pixels", "draws", "windows"):
            assert torch.equal(getattr(plain, what)["scenes"], getattr(paired, what)["scenes"])
        assert (plain.pixels.keys(), paired.pixels.keys()) == ({"scenes"}, {"scenes", "patches"})


@pytest.mark.slow
def test_a_bad_neighbour_is_named_and_its_pair_is_the_region_twice(drawn_shards, drawn_pairs, tmp_path):
    shutil.copytree(drawn_shards, tmp_path / "bad")
    index = open_index(expand_shards(str(tmp_path / "bad")))
    with open(index.shards[0], "r+b") as tar:
        tar.seek(int(index.offset[2]) + int(index.size[2]) // 2)
        tar.write(b"damaged")
    with pytest.raises(InputError, match="SHA-256 differs"):
        list(islice(stream_of(tmp_path / "bad", drawn_pairs), 12))
    batches = list(islice(stream_of(tmp_path / "bad", drawn_pairs, on_bad_sample="skip"), 30))
    said = [line for batch in batches for line in batch.skipped]
    assert set(said) == {said[0]}
    assert index.text("key", 2) in said[0]
    found = marks(batches)
    assert index.text("key", 2) not in {key for key, _, _ in found.values()}
    good = marks(islice(stream_of(drawn_shards, drawn_pairs), 30))
    twice = [position for position, (_, patches, _) in found.items() if torch.equal(patches[:2], patches[2:])]
    neighbours = [position for position in twice if found[position][0] == good[position][0]]
    assert len(neighbours) > 5  # of 120 images a sixth have it for a neighbour, half of the time
    for position in set(found) - set(twice):
        if found[position][0] == good[position][0]:
            assert torch.equal(found[position][1], good[position][1])


def test_rows_may_stand_in_any_order(drawn_shards, drawn_pairs, tmp_path, rng):
    index, table = open_index(expand_shards(str(drawn_shards))), pq.read_table(drawn_pairs)
    pq.write_table(table.take(rng.permutation(len(table))[:-1]), tmp_path / "mixed.parquet")
    pairs, rows = Pairs(tmp_path / "mixed.parquet", index), pq.read_table(tmp_path / "mixed.parquet").to_pylist()
    for sample in range(len(index)):
        drawn = [pairs.draw(sample, rng) for _ in range(60)]
        own = [row for row in rows if row["sample"] == sample]
        assert {(other, *boxes[2:].ravel().tolist()) for other, boxes in drawn} == {
            (row["other"], *pair) for row in own for pair in row["pairs"]
        }


def test_folders_whose_keys_repeat_can_be_joined(drawn_shards, tmp_path, rng):
    shutil.copytree(drawn_shards, tmp_path / "again")
    index = open_index(expand_shards([str(drawn_shards), str(tmp_path / "again")]))
    assert len(set(index.key.to_pylist())) == len(index) // 2
    box = np.array([[0, 0, 9, 9, 0, 0, 9, 9]])
    rows = [(at, (at + 1) % len(index), box) for at in range(len(index))]
    pq.write_table(pairs_table(index, rows, {}), tmp_path / "pairs.parquet")
    pairs = Pairs(tmp_path / "pairs.parquet", index)
    assert [pairs.draw(at, rng)[0] for at in range(len(index))] == [other for _, other, _ in rows]


def edited(path, out, **columns):
    """The file with other columns, its metadata kept."""
    table = pq.read_table(path)
    for name, change in columns.items():
        values = change(table.column(name).to_pylist())
        table = table.set_column(table.column_names.index(name), name, pa.array(values, table.schema.field(name).type))
    pq.write_table(table, out)
    return out


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"sample": lambda places: [1] * len(places)}, "has no row for 11 samples, such as 000000000"),
        ({"other": lambda places: [12, *places[1:]]}, "names 1 samples of 12 that the shards lack, such as 12"),
        ({"other": lambda places: [None, *places[1:]]}, "rows that lack something"),
        ({"pairs": lambda pairs: [[], *pairs[1:]]}, "rows without a pair, such as row 0"),
        ({"pairs": lambda pairs: [[[0, 0, 9, 9, 0, 0, 321, 9]], *pairs[1:]]}, "outside their images, the first in .* 000000001"),
        ({"pairs": lambda pairs: [[[0, 0, 0, 9, 0, 0, 9, 9]], *pairs[1:]]}, "outside their images, the first in .* 000000000"),
    ],
)  # fmt: skip
def test_pairs_that_were_spoilt_are_refused_in_words(columns, words, drawn_shards, drawn_pairs, tmp_path):
    index = open_index(expand_shards(str(drawn_shards)))
    path = edited(drawn_pairs, tmp_path / "edited.parquet", **columns)
    with pytest.raises(InputError, match=words):
        Pairs(path, index)


def test_what_is_no_file_of_pairs_of_these_shards_is_refused_in_words(drawn_shards, drawn_pairs, tmp_path):
    index = open_index(expand_shards(str(drawn_shards)))
    part = open_index(sorted(map(str, drawn_shards.glob("*.tar")))[:2])
    one = [(0, 1, np.array([[0, 0, 9, 9, 0, 0, 9, 9]]))]
    pq.write_table(pairs_table(part, one, {}), tmp_path / "others.parquet")
    pq.write_table(pairs_table(index, one, {}).drop_columns(["pairs"]), tmp_path / "less.parquet")
    (tmp_path / "text.parquet").write_text("pairs")
    for name, words in (
        ("others", "holds no pairs of these shards but of others; `univip-stream retrieve` makes them"),
        ("less", "is not a file of pairs"),
        ("text", "cannot be read as pairs of regions"),
        ("none", "there is no such file of pairs; `univip-stream retrieve` makes one"),
    ):
        with pytest.raises(InputError, match=words):
            Pairs(tmp_path / f"{name}.parquet", index)
