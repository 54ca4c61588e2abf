"""Features in Parquet: those of the network, whole after being killed, the same by one process or two, never taken when damaged."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from univip_stream.augment import AugmentConfig
from univip_stream.cli import cli
from univip_stream.evaluation import embedding
from univip_stream.evaluation.subject import open_subject
from univip_stream.probe.features import extract
from univip_stream.probe.labelled import ImageSource, LabelledSource

CPU = torch.device("cpu")


def vectors_of(path):
    table = pq.read_table(path)
    return np.array(table.column("vector").to_pylist(), np.float32), table


def test_rows_are_the_images_and_the_networks_features(run, coloured, drawn_folder, tmp_path):
    out = tmp_path / "features.parquet"
    done = CliRunner().invoke(cli, ["embed", str(run), str(coloured / "val"), "--out", str(out), "--workers", "1"])
    assert done.exit_code == 0, done.output
    found, table = vectors_of(out)
    source = LabelledSource(str(coloured / "val"))
    subject = open_subject(run)
    expected = extract(subject.backbone, source, size=subject.size, pixels=AugmentConfig(), batch_size=5, device=CPU)
    np.testing.assert_allclose(found, expected.vectors_ND, atol=1e-5)
    assert table.column("label").to_pylist() == source.labels
    assert table.column("key").to_pylist() == source.keys
    unlabelled = CliRunner().invoke(cli, ["embed", str(run), str(drawn_folder), "--out", str(out), "--workers", "0"])
    assert unlabelled.exit_code == 0, unlabelled.output
    assert vectors_of(out)[1].column("label").to_pylist() == [None] * 12


def test_killed_then_run_again_only_the_rest_is_done(run, coloured, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "CHUNK", 5)
    subject, source = open_subject(run), ImageSource(str(coloured / "val"))
    embedding.embed(subject, source, tmp_path / "calm.parquet", device=CPU)
    real = embedding.vectors
    asked = []

    def dying(backbone, source, numbers, **more):
        asked.append(int(numbers[0]))
        if asked == [0, 5, 10]:
            raise KeyboardInterrupt
        return real(backbone, source, numbers, **more)

    monkeypatch.setattr(embedding, "vectors", dying)
    with pytest.raises(KeyboardInterrupt):
        embedding.embed(subject, source, tmp_path / "out.parquet", device=CPU)
    embedding.embed(subject, source, tmp_path / "out.parquet", device=CPU)
    assert asked == [0, 5, 10, 10, 15]
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "calm.parquet").read_bytes()
    assert not (tmp_path / "out.parquet.parts").exists()


def test_kept_features_are_made_once_and_not_taken_damaged_or_of_other_images(run, coloured, tmp_path, monkeypatch):
    subject = open_subject(run)
    passes = []
    real = embedding.vectors
    monkeypatch.setattr(embedding, "vectors", lambda *a, **k: passes.append(1) or real(*a, **k))

    def made(subject=subject, part="val"):
        source = ImageSource(str(coloured / part))
        return embedding.features(subject, source, tmp_path, batch_size=64, workers=0, device=CPU).vectors_ND

    first = made()
    assert (made() == first).all()
    assert len(passes) == 1
    (chunk,) = tmp_path.glob("*/*.parquet")
    whole = chunk.read_bytes()
    for at in range(4, len(whole), max(1, len(whole) // 10)):
        chunk.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert (made() == first).all()
        chunk.write_bytes(whole)
    before = len(passes)
    assert made(part="train").shape == (36, subject.backbone.width)
    made(subject=open_subject(run, image_size=40))
    made(subject=open_subject(run, untrained=True))
    assert len(passes) == before + 3


def test_two_processes_write_what_one_writes(run, coloured, tmp_path, warm):
    for count, out in ((1, "one.parquet"), (2, "two.parquet")):
        words = ["embed", run, coloured / "val", "--out", tmp_path / out, "--workers", "0", "--device", "cpu"]
        statuses, said = warm.ranks(count, ["-m", "univip_stream", *words])
        assert statuses == [0] * count, said
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_what_an_interrupted_embed_of_a_larger_source_left_is_in_nobodys_way(run, coloured, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "CHUNK", 5)
    subject, out = open_subject(run), tmp_path / "out.parquet"
    embedding.make_chunks(
        subject, ImageSource(str(coloured / "train")), tmp_path / "out.parquet.parts", max_failures="0", batch_size=5, workers=0,
        device=CPU,
    )  # fmt: skip
    smaller = ImageSource(str(coloured / "val"))
    assert len(smaller) < len(ImageSource(str(coloured / "train")))
    embedding.embed(subject, smaller, out, device=CPU)
    assert vectors_of(out)[1].column("key").to_pylist() == smaller.keys
