"""Decoded images kept on disk: the same batches, and whatever happens to the files costs a decoding at most."""

import resource
from itertools import islice

import numpy as np
import pytest
from test_stream import VIEWS, assert_same

from univip_stream.augment import AugmentConfig
from univip_stream.errors import InputError
from univip_stream.methods.univip import UniVIPPlan
from univip_stream.shards import expand_shards, open_index
from univip_stream.stream import Stream, StreamConfig, reader
from univip_stream.stream.decoded import Decoded


@pytest.fixture
def decoded_now(monkeypatch):
    """The samples that are decoded from here on."""
    found = []
    real = reader.decode

    def counted(data, **keywords):
        found.append(len(data))
        return real(data, **keywords)

    monkeypatch.setattr(reader, "decode", counted)
    return found


def batches(shards, count, **changes):
    config = StreamConfig(batch_size=4, seed=5, **({"workers": 0} | changes))
    return list(islice(Stream(str(shards), UniVIPPlan(VIEWS, AugmentConfig()), config), count))


def test_the_second_epoch_decodes_nothing_and_nothing_else_changes(drawn_shards, tmp_path, decoded_now):
    plain = batches(drawn_shards, 6)
    decoded_now.clear()
    cached = batches(drawn_shards, 6, decoded_cache=str(tmp_path))
    assert len(decoded_now) == 12
    again = batches(drawn_shards, 6, decoded_cache=str(tmp_path), workers=2)
    for one, two, three in zip(plain, cached, again, strict=True):
        assert_same(one, two)
        assert_same(one, three)
    decoded_now.clear()
    batches(drawn_shards, 3, decoded_cache=str(tmp_path))
    assert decoded_now == []


def test_what_is_damaged_is_decoded_anew(drawn_shards, tmp_path, decoded_now):
    plain = batches(drawn_shards, 3, decoded_cache=str(tmp_path))
    pixels = sorted(tmp_path.glob("*.pixels"))
    whole = pixels[0].read_bytes()
    pixels[0].write_bytes(whole[:1000] + bytes([whole[1000] ^ 4]) + whole[1001:])  # one image of this shard
    pixels[1].write_bytes(b"")  # all four
    sorted(tmp_path.glob("*.crc32"))[2].write_bytes(b"\0" * 16 + b"\1")  # all four
    decoded_now.clear()
    for one, other in zip(plain, batches(drawn_shards, 3, decoded_cache=str(tmp_path)), strict=True):
        assert_same(one, other)
    assert len(decoded_now) == 9
    decoded_now.clear()
    batches(drawn_shards, 3, decoded_cache=str(tmp_path))
    assert decoded_now == []


def test_only_so_many_bytes_are_kept(drawn_shards, tmp_path, decoded_now):
    one_shard = 4 * (320 * 240 * 3 + 8)
    for _ in range(2):
        decoded_now.clear()
        batches(drawn_shards, 3, decoded_cache=str(tmp_path), decoded_bytes=2 * one_shard + 5)
    assert len(decoded_now) == 4
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 2 * one_shard


def test_a_disk_that_is_full_costs_nothing_but_time(drawn_shards, tmp_path):
    index = open_index(expand_shards(str(drawn_shards)))
    kept = Decoded(index, tmp_path, 1 << 30)
    images = [np.full((240, 320, 3), number, np.uint8) for number in range(4)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        for number, image in enumerate(images):
            kept.put(number, image)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    for number, image in enumerate(images):
        found = kept.get(number)
        assert (found is None) == (number >= 2)
        assert found is None or (found == image).all()
    kept.close()


def test_a_folder_that_cannot_be_made_is_said(drawn_shards, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="folder for decoded images"):
        batches(drawn_shards, 1, decoded_cache=str(tmp_path / "file" / "cache"))
