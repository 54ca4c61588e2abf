"""Pairs of regions: those of plain loops, whole after being killed, the same by one process or two, of these shards only."""

import json
import math
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from torchvision.transforms.v2 import functional as TF

from univip_stream.augment import AugmentConfig, normalised
from univip_stream.boxes import BoxFilter
from univip_stream.cli import cli
from univip_stream.evaluation import retrieval
from univip_stream.evaluation.retrieval import Retrieval, nearest
from univip_stream.evaluation.subject import open_subject
from univip_stream.methods.orl.pairs import Pairs
from univip_stream.mining import MiningConfig, mine
from univip_stream.shards import expand_shards, open_index
from univip_stream.stream.reader import Reader

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def few(drawn_folder, tmp_path_factory):
    """Three shards of four images each, with a few boxes."""
    out = tmp_path_factory.mktemp("few") / "shards"
    boxes = BoxFilter(max_iou=0.1)
    mine(MiningConfig(sources=(drawn_folder,), out=out, num_shards=3, proposals="naive", filter=boxes, inline=True))
    return out


@pytest.fixture(scope="module")
def features(run_folder, few, tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "features.parquet"
    done = CliRunner().invoke(cli, ["embed", str(run_folder), str(few), "--out", str(out), "--workers", "0"])
    assert done.exit_code == 0, done.output
    return out


def command(run, shards, features, out, *more):
    return ["retrieve", str(run), str(shards), "--features", str(features), "--out", str(out), "--device", "cpu", *more]


def cosine(a, b):
    return np.dot(a, b) / math.sqrt(np.dot(a, a) * np.dot(b, b))


def test_neighbours_and_pairs_are_those_of_plain_loops(run, few, features, tmp_path):
    out = tmp_path / "pairs.parquet"
    more = [
        "--neighbours",
        "3",
        "--share",
        "0.4",
        "--image-size",
        "48",
        "--max-boxes",
        "6",
        "--workers",
        "1",
        "--batch-size",
        "7",
    ]
    done = CliRunner().invoke(cli, command(run, few, features, out, *more))
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "pairs.parquet.parts").exists()
    index = open_index(expand_shards(str(few)))
    backbone, reader = open_subject(run).backbone, Reader(index)
    whole = {row["key"]: np.array(row["vector"]) for row in pq.read_table(features).to_pylist()}

    def seen(sample):
        """The features of a sample's regions, each cut and run on its own."""
        image = torch.from_numpy(reader.image(sample).copy()).permute(2, 0, 1)
        found = []
        for x, y, w, h in index.boxes_of(sample).tolist()[:6]:
            crop = TF.resize(image[:, y : y + h, x : x + w], [48, 48], antialias=True)
            with torch.inference_mode():
                found.append(backbone(normalised(crop[None], AugmentConfig()))[0].double().numpy())
        return found

    regions = [seen(sample) for sample in range(len(index))]
    keys = index.key.to_pylist()
    rows = pq.read_table(out).to_pylist()
    assert [keys[row["sample"]] for row in rows] == [key for key in whole for _ in range(3)]
    counts = set()
    for row in rows:
        i, j = row["sample"], row["other"]
        expected = max(1, int(0.4 * len(regions[i])))
        between = np.array([[cosine(a, b) for b in regions[j]] for a in regions[i]])
        places = [
            tuple(index.boxes_of(sample).tolist().index(box) for sample, box in ((i, p[:4]), (j, p[4:])))
            for p in row["pairs"]
        ]
        assert len(set(places)) == len(places) == expected
        # Features of pairs were rounded to half precision: nearly equal ones may change places.
        ours = [between[place] for place in places]
        np.testing.assert_allclose(ours, sorted(between.ravel(), reverse=True)[:expected], atol=1e-4)
        counts.add(expected)
    assert len(counts) > 1
    assert max(map(len, regions)) == 6 < max(np.diff(index.box_start))
    for key, vector in whole.items():
        near = sorted(((cosine(vector, other), name) for name, other in whole.items() if name != key), reverse=True)
        assert [keys[row["other"]] for row in rows if keys[row["sample"]] == key] == [name for _, name in near[:3]]
    assert Pairs(out, index).draw(0, np.random.default_rng(0))[1].shape == (4, 4)


def test_equal_neighbours_come_in_their_order_and_none_is_its_own(rng):
    vectors = torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 0], [0, 1], [0.6, 0.8], [1, 0]])
    assert nearest(vectors, 0, 7, 3).tolist() == [
        [2, 3, 6], [4, 5, 0], [0, 3, 6], [0, 2, 6], [1, 5, 0], [1, 4, 0], [0, 2, 3],
    ]  # fmt: skip
    unit = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(40, 5))), dim=1)
    plain = unit @ unit.T
    plain.fill_diagonal_(-2)
    assert nearest(unit, 10, 25, 30).tolist() == plain.argsort(dim=1, descending=True)[10:25, :30].tolist()


def test_killed_then_run_again_only_the_rest_is_done(run, few, features, tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval, "CHUNK", 5)
    subject, index = open_subject(run), open_index(expand_shards(str(few)))
    seen = []

    def whole(out, stop=None):
        made = Retrieval(subject, index, features, out, neighbours=4)

        def count(images):
            seen.append(images)
            if len(seen) == stop:
                raise KeyboardInterrupt

        made.embed_regions(batch_size=8, workers=0, device=CPU, progress=count)
        made.match(device=CPU, progress=count)
        made.write()

    whole(tmp_path / "calm.parquet")
    assert seen == [5, 5, 2, 5, 5, 2]
    for stop in (2, 5):
        seen.clear()
        with pytest.raises(KeyboardInterrupt):
            whole(tmp_path / "out.parquet", stop)
    parts = tmp_path / "out.parquet.parts"
    assert len(list(parts.glob("regions-*/*"))) == 3
    (half,) = parts.glob("regions-*/000000005.f16")
    there = {path: path.stat().st_mtime_ns for path in parts.glob("*/*")}
    (pairs,) = parts.glob("pairs-*/000000000.parquet")
    for damaged in (half, pairs):  # files that another program cut off
        damaged.write_bytes(damaged.read_bytes()[:-2])
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        whole(tmp_path / "out.parquet", 6)
    assert {path for path, time in there.items() if path.stat().st_mtime_ns != time} == {half, pairs}
    whole(tmp_path / "out.parquet")
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "calm.parquet").read_bytes()
    assert not parts.exists()


def test_two_processes_write_what_one_writes(run, few, features, tmp_path, monkeypatch, warm):
    # Chunks of 5, so that both have some.
    code = "import univip_stream.evaluation.retrieval as p; p.CHUNK = 5; from univip_stream.cli import main; main()"
    words = ["-c", code, *command(run, few, features, tmp_path / "two.parquet"), "--workers", "0"]
    statuses, said = warm.ranks(2, words)
    assert statuses == [0, 0], said
    monkeypatch.setattr(retrieval, "CHUNK", 5)
    done = CliRunner().invoke(cli, command(run, few, features, tmp_path / "one.parquet", "--workers", "0"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_an_image_without_boxes_is_one_region(run, labelled_folder, tmp_path):
    mine(MiningConfig(sources=(labelled_folder,), out=tmp_path / "s", num_shards=1, proposals="none", inline=True))
    for words in (
        ["embed", str(run), str(tmp_path / "s"), "--out", str(tmp_path / "f.parquet"), "--workers", "0"],
        command(run, tmp_path / "s", tmp_path / "f.parquet", tmp_path / "p.parquet", "--neighbours", "99", "--workers", "0"),
    ):
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0, done.output
    rows = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert len(rows) == 24 * 23
    assert all(row["pairs"] == [[0, 0, 160, 120] * 2] for row in rows)


def test_features_that_do_not_fit_are_refused_in_words(run, few, drawn_shards, drawn_folder, features, tmp_path):
    first = str(min(few.glob("*.tar")))
    of_files = tmp_path / "files.parquet"
    CliRunner().invoke(cli, ["embed", str(run), str(drawn_folder), "--out", str(of_files), "--workers", "0"])
    pq.write_table(pq.read_table(features).replace_schema_metadata({}), tmp_path / "old.parquet")
    facts = pq.read_schema(features).metadata
    pq.write_table(pq.read_table(features, columns=["key"]).replace_schema_metadata(facts), tmp_path / "less.parquet")
    (tmp_path / "text.parquet").write_text("features")
    for path, shards, words in (
        (of_files, few, "holds features of 12 images, and not of the 12 of these shards as they are now"),
        (features, drawn_shards, "not of the 12 of these shards"),  # the same keys, other boxes
        (features, first, "holds features of 12 images, and not of the 4 of these shards"),
        (tmp_path / "old.parquet", few, "does not say which images its features are of"),
        (tmp_path / "less.parquet", few, "cannot be read as features"),
        (tmp_path / "text.parquet", few, "cannot be read as features"),
        (tmp_path / "none.parquet", few, "`univip-stream embed` makes them"),
    ):
        done = CliRunner().invoke(cli, command(run, shards, path, tmp_path / "out.parquet"))
        assert (done.exit_code, words in done.output) == (1, True), done.output
    done = CliRunner().invoke(cli, command(run, few, features, tmp_path))
    assert (done.exit_code, "expected a file" in done.output) == (2, True), done.output


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_damaged_image_is_named_without_a_traceback(workers, run, features, few, tmp_path):
    shutil.copytree(few, tmp_path / "bad")
    index = open_index(expand_shards(str(tmp_path / "bad")))
    with open(index.shards[1], "r+b") as tar:
        tar.seek(int(index.offset[5]) + int(index.size[5]) // 2)
        tar.write(b"damaged")
    out = tmp_path / "out.parquet"
    done = CliRunner().invoke(cli, command(run, tmp_path / "bad", features, out, "--workers", workers, "-q"))
    assert done.exit_code == 1
    assert "SHA-256 differs" in done.output
    assert index.text("key", 5) in done.output
    assert "Traceback" not in done.output
    assert not out.exists()
    done = CliRunner().invoke(
        cli, command(run, tmp_path / "bad", features, out, "--workers", workers, "--max-failures", "1", "--json")
    )
    assert done.exit_code == 0, done.output
    (failed,) = json.loads(done.stdout)["failed"]
    assert failed["source"] == index.text("source", 5)
    table = pq.read_table(out)
    own, others = (table.column(name).to_numpy() for name in ("sample", "other"))
    assert set(own) == set(range(12))
    assert others[own == 5].tolist() == [5]
    assert 5 not in others[own != 5]
    assert (own != 5).sum() == 11 * json.loads(done.stdout)["neighbours"]


def test_an_image_without_features_is_nobodys_neighbour(run, few, features, tmp_path):
    table = pq.read_table(features)
    vectors = table.column("vector").to_pylist()
    vectors[2] = None
    place = table.column_names.index("vector")
    table = table.set_column(place, "vector", pa.array(vectors, table.schema.field("vector").type))
    pq.write_table(table, tmp_path / "features.parquet")
    out = tmp_path / "out.parquet"
    stopped = CliRunner().invoke(cli, command(run, few, tmp_path / "features.parquet", out))
    assert (stopped.exit_code, "has no features of it" in stopped.output) == (1, True), stopped.output
    done = CliRunner().invoke(cli, command(run, few, tmp_path / "features.parquet", out, "--max-failures", "1"))
    assert done.exit_code == 0, done.output
    pairs = pq.read_table(out)
    own, others = (pairs.column(name).to_numpy() for name in ("sample", "other"))
    assert others[own == 2].tolist() == [2]
    assert 2 not in others[own != 2]


def test_orl_trains_from_what_retrieve_wrote(run, few, features, tmp_path):
    done = CliRunner().invoke(cli, command(run, few, features, tmp_path / "pairs.parquet", "--workers", "0"))
    assert done.exit_code == 0, done.output
    settings = ["method.backbone=test_resnet", "method.hidden=16", "method.width=8", "views.scene_size=32",
                "stream.workers=0", "views.instance_size=32", "stream.batch_size=4", "steps=2",
                f"views.pairs={tmp_path / 'pairs.parquet'}"]  # fmt: skip
    texts = [argument for setting in settings for argument in ("--set", setting)]
    words = ["train", "--shards", str(few), "--out", str(tmp_path / "run"), "--recipe", "cpu-demo", "--method", "orl"]
    done = CliRunner().invoke(cli, [*words, *texts])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run" / "backbone.safetensors").exists()
