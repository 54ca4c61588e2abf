"""Feature maps: their mean is the pooled feature, they are at the places they are of, and whole after being killed."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from univip_stream.cli import cli
from univip_stream.errors import InputError
from univip_stream.evaluation import dense
from univip_stream.evaluation.subject import open_subject
from univip_stream.networks import build_backbone
from univip_stream.probe.dense import dense_map, principal_colours
from univip_stream.probe.features import extract
from univip_stream.probe.labelled import ImageSource, LabelledSource

CPU = torch.device("cpu")


def called(*words):
    return CliRunner().invoke(cli, [*map(str, words)])


def test_the_mean_of_a_map_is_the_feature_that_embed_gives(run, coloured, tmp_path):
    out = tmp_path / "maps"
    done = called("embed", run, coloured / "val", "--dense", "--out", out, "--workers", "0", "--json")
    assert done.exit_code == 0, done.output
    said, facts = json.loads(done.stdout), json.loads((out / "maps.json").read_text())
    source, subject = LabelledSource(str(coloured / "val")), open_subject(run)
    assert said["map"] == [facts["height"], facts["width"], facts["channels"]]
    assert facts["weights_sha256"] == subject.weights_hash()
    maps, index = np.load(out / "000000.npy", mmap_mode="r"), pq.read_table(out / "000000.parquet")
    assert maps.dtype == np.float32
    assert maps.shape == (len(source), facts["height"], facts["width"], subject.backbone.width)
    expected = extract(subject.backbone, source, size=subject.size, pixels=subject.config.augment, batch_size=5, device=CPU)
    np.testing.assert_allclose(maps.mean((1, 2)), expected.vectors_ND, atol=1e-5)
    assert index.column("key").to_pylist() == source.keys
    assert index.column("label").to_pylist() == source.labels
    assert index.column("row").to_pylist() == list(range(len(source)))


def test_the_part_that_a_map_is_of_is_where_the_crop_was(run, drawn_folder, tmp_path):
    """320 x 240: the short side becomes 256/224 of the crop's, so the crop is 210 px of 240, in the middle."""
    done = called("embed", run, drawn_folder, "--dense", "--out", tmp_path / "maps", "--workers", "0", "--image-size", 224)
    assert done.exit_code == 0, done.output
    first = pq.read_table(tmp_path / "maps" / "000000.parquet").to_pylist()[0]
    assert (first["x"], first["y"], first["width"], first["height"]) == (55.0, 15.0, 210.0, 210.0)


@pytest.mark.parametrize(
    ("name", "h", "pooled"),
    [("resnet18", 2, True), ("test_vit", 4, False), ("test_convnext", 2, False), ("test_byobnet", 2, False)],
)
def test_every_kind_of_network_has_maps_row_by_row(name, h, pooled):
    """Each place's feature comes from its part of the image: a change in the upper right corner shows there."""
    torch.manual_seed(0)
    backbone = build_backbone(name).eval()
    images = torch.randn(1, 3, 64, 64)
    other = images.clone()
    other[..., :16, 48:] += 3
    with torch.inference_mode():
        before, after = (dense_map(backbone, one, name) for one in (images, other))
        assert before.shape[:3] == (1, h, h)
        moved = (after - before).norm(dim=-1)[0]
        assert moved.argmax() == h - 1
        if pooled:
            torch.testing.assert_close(before.mean((1, 2)), backbone(images))


def test_killed_then_run_again_only_the_rest_is_done(run, coloured, tmp_path, monkeypatch):
    monkeypatch.setattr(dense, "CHUNK", 5)
    subject, source = open_subject(run), ImageSource(str(coloured / "val"))
    real, asked = dense.batches, []

    def dying(source, numbers, *more, **options):
        asked.append(int(numbers[0]))
        if asked == [0, 5, 10]:
            raise KeyboardInterrupt
        return real(source, numbers, *more, **options)

    monkeypatch.setattr(dense, "batches", dying)
    with pytest.raises(KeyboardInterrupt):
        dense.embed_dense(subject, source, tmp_path / "maps", device=CPU)
    assert not (tmp_path / "maps" / "maps.json").exists()
    dense.embed_dense(subject, source, tmp_path / "maps", device=CPU)
    assert asked == [0, 5, 10, *range(10, len(source), 5)]
    damaged = tmp_path / "maps" / "000001.npy"
    data = bytearray(damaged.read_bytes())
    data[-3] ^= 1
    damaged.write_bytes(bytes(data))
    asked[:] = ["again"]
    dense.embed_dense(subject, source, tmp_path / "maps", device=CPU)
    assert asked == ["again", 5]


def test_an_image_that_cannot_be_read_is_a_row_without_a_map(run, drawn_folder, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, path in enumerate(sorted(drawn_folder.iterdir())[:4]):
        (photos / f"{number}.jpg").write_bytes(path.read_bytes() if number != 1 else b"no picture")
    done = called("embed", run, photos, "--dense", "--out", tmp_path / "maps", "--workers", "0", "--max-failures", "1")
    assert done.exit_code == 0, done.output
    index = pq.read_table(tmp_path / "maps" / "000000.parquet").to_pylist()
    assert [row["row"] for row in index] == [0, None, 1, 2]
    assert [row["status"] for row in index] == ["ok", "unreadable", "ok", "ok"]
    assert len(np.load(tmp_path / "maps" / "000000.npy")) == 3
    facts = json.loads((tmp_path / "maps" / "maps.json").read_text())
    assert (facts["images"], facts["maps"]) == (4, 3)


def test_what_is_in_the_way_is_told_and_stays(run, drawn_folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    done = called("embed", run, drawn_folder, "--dense", "--out", tmp_path / "mine", "--workers", "0")
    assert done.exit_code == 1
    assert "notes.txt, which is none of ours" in done.stderr
    done = called("embed", run, drawn_folder, "--out", tmp_path / "mine", "--workers", "0")
    assert done.exit_code == 2
    assert "--dense" in done.stderr


def test_a_network_without_maps_is_told(run, coloured, tmp_path, monkeypatch):
    subject = open_subject(run)
    monkeypatch.setattr(subject.backbone.trunk, "forward_features", lambda images: images.flatten(1), raising=False)
    with pytest.raises(InputError, match="has no map of features"):
        dense.embed_dense(subject, ImageSource(str(coloured / "val")), tmp_path / "maps", device=CPU)
    assert not (tmp_path / "maps").exists()


def test_colours_are_the_main_directions():
    """A map of two regions that differ along one direction: that direction is red, and has all variance."""
    found = torch.zeros(4, 6, 8)
    found[:, 3:, 5] = 2.0
    colours, shares = principal_colours(found)
    assert shares[0] == pytest.approx(1)
    assert (colours[:, 3:, 0] == 1).all()
    assert (colours[:, :3, 0] == 0).all()
    turned, _ = principal_colours(found.flip(1))
    torch.testing.assert_close(turned, colours.flip(1))
