"""ORL: its three losses in plain loops, the region about a region, and what the stream cuts out."""

import dataclasses
from itertools import islice

import numpy as np
import pytest
import torch

from univip_stream.augment import AugmentConfig
from univip_stream.boxes import iou, nearby_box
from univip_stream.errors import InputError
from univip_stream.methods import MethodConfig, build_method
from univip_stream.shards import expand_shards, open_index
from univip_stream.stream import Stream, StreamConfig
from univip_stream.stream.pairs import Pairs, write_pairs
from univip_stream.stream.reader import Reader
from univip_stream.views import ViewConfig

B, S, I = 3, 48, 32  # noqa: E741 - the legend's letter


def test_the_losses_are_byols_of_three_pairs_of_pictures_with_a_predictor_each():
    torch.manual_seed(0)
    config = MethodConfig(name="orl", backbone="resnet18", hidden=16, width=8)
    method, twin = build_method(config, instances=0), build_method(config, instances=0)
    twin.load_state_dict(method.state_dict())
    scenes, patches = torch.randn(2, B, 3, S, S), torch.randn(4, B, 3, I, I)
    found = method(scenes, patches=patches)

    def one_way(predictor, first, second):
        """2 - 2 cos of the prediction of one picture and the target's projection of the other, image by image."""
        q, z = predictor(twin.online(first)), twin.target(second).detach()
        return sum(2 - 2 * (q[n] @ z[n]) / (q[n].norm() * z[n].norm()) for n in range(B)) / B

    expected = {}
    for name, (first, second), predictor in (
        ("loss_global", scenes, twin.predictor),
        ("loss_intra", patches[:2], twin.intra_predictor),
        ("loss_inter", patches[2:], twin.inter_predictor),
    ):
        expected[name] = one_way(predictor, first, second) + one_way(predictor, second, first)
    offset = {name: found[name] - expected[name] for name in expected}
    # BYOL's loss up to a constant: -cos or 2 - 2 cos, the same for all three.
    scale = 1.0 if torch.allclose(found["loss_global"], expected["loss_global"], atol=1e-5) else 0.5
    for name, value in expected.items():
        constant = 0 if scale == 1 else -2.0
        torch.testing.assert_close(found[name], scale * value + constant, atol=1e-5, rtol=1e-5, msg=f"{name} {offset[name]}")
    torch.testing.assert_close(found["loss"], found["loss_global"] + found["loss_intra"] + found["loss_inter"])


def test_a_nearby_box_is_as_the_paper_draws_it(rng):
    box, drawn = np.array([60, 40, 80, 60], np.int32), []
    for _ in range(300):
        near = nearby_box(box, 200, 150, rng)
        x, y, w, h = near
        assert x >= 0
        assert x + w <= 200
        assert y + h <= 150
        assert iou(near[None], box[None])[0, 0] > 0.5
        drawn.append(near)
    shares = np.array([w * h / (80 * 60) for *_, w, h in drawn])
    assert 0.49 < shares.min() < 0.65
    assert 1.5 < shares.max() < 2.03
    whole = np.array([0, 0, 20, 15], np.int32)
    np.testing.assert_array_equal(nearby_box(whole[[0, 1, 2, 3]], 20, 15, rng)[2:] <= [20, 15], True)


def views(pairs, **more):
    return ViewConfig(scene_size=16, instance_size=16, instances=0, overlap=False, pairs=str(pairs), **more)


def stream_of(shards, pairs, *, rank=0, world_size=1, workers=0, start_step=0, batch=12):
    config = StreamConfig(batch_size=batch, seed=5, workers=workers)
    return Stream(str(shards), views(pairs), AugmentConfig(), config, rank=rank, world_size=world_size, start_step=start_step)


def taken(stream, steps):
    return [(batch.patches.clone(), batch.patch_draws.clone()) for batch in islice(stream, steps)]


def test_patches_are_the_same_for_any_ranks_workers_and_restart(drawn_shards, drawn_pairs):
    whole = taken(stream_of(drawn_shards, drawn_pairs), 3)
    assert whole[0][0].shape == (12, 4, 3, 16, 16)
    assert not torch.equal(whole[0][0], whole[1][0])
    ranks = [taken(stream_of(drawn_shards, drawn_pairs, rank=rank, world_size=2, workers=rank), 3) for rank in range(2)]
    later = taken(stream_of(drawn_shards, drawn_pairs, start_step=2), 1)
    for step, (pixels, draws) in enumerate(whole):
        torch.testing.assert_close(torch.cat([ranks[0][step][0], ranks[1][step][0]]), pixels, rtol=0, atol=0)
        torch.testing.assert_close(torch.cat([ranks[0][step][1], ranks[1][step][1]]), draws, rtol=0, atol=0)
    torch.testing.assert_close(later[0][0], whole[2][0], rtol=0, atol=0)


def test_the_last_patches_are_a_pair_of_the_file(drawn_shards, tmp_path):
    """One pair an image, both boxes of the patch's own size: the patches are pixels of the images."""
    index = open_index(expand_shards(str(drawn_shards)))
    count = len(index)
    pair = np.array([[3, 5, 16, 16, 20, 9, 16, 16]], np.int32)
    write_pairs(tmp_path / "pairs.parquet", index, ((at, (at + 1) % count, pair) for at in range(count)))
    batch = next(iter(stream_of(drawn_shards, tmp_path / "pairs.parquet")))
    reader, keys = Reader(index), index.key.to_pylist()
    for patches, key in zip(batch.patches, batch.keys, strict=True):
        sample = keys.index(key)
        own, other = reader.image(sample), reader.image((sample + 1) % count)
        np.testing.assert_array_equal(patches[2].permute(1, 2, 0), own[5:21, 3:19])
        np.testing.assert_array_equal(patches[3].permute(1, 2, 0), other[9:25, 20:36])


def test_pairs_of_other_shards_or_no_pairs_are_refused_in_words(drawn_shards, drawn_pairs, tmp_path):
    index = open_index(expand_shards(str(drawn_shards)))
    write_pairs(tmp_path / "other.parquet", dataclasses.replace(index, fingerprint="x"), [])
    write_pairs(tmp_path / "few.parquet", index, [(0, 1, np.zeros((1, 8), np.int32))])
    (tmp_path / "words.parquet").write_text("words")
    for name, words in (
        ("other", "pairs of other shards"),
        ("few", f"no pair for {len(index) - 1} samples"),
        ("words", "cannot be read as pairs"),
        ("none", "univip-stream retrieve"),
    ):
        with pytest.raises(InputError, match=words):
            Pairs(tmp_path / f"{name}.parquet", index)
