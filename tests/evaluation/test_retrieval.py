"""`univip-stream retrieve`: against plain loops, killed and continued, and trained from."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from torchvision.transforms.v2 import functional as TF

from univip_stream.cli import cli
from univip_stream.evaluation.retrieval import SIDE, nearest
from univip_stream.evaluation.subject import open_subject
from univip_stream.probe.features import normalised
from univip_stream.shards import expand_shards, open_index
from univip_stream.stream.reader import Reader

COMMAND = str(Path(sys.executable).parent / "univip-stream")


@pytest.fixture(scope="module")
def features(run_folder, drawn_shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "features.parquet"
    done = CliRunner().invoke(cli, ["embed", str(run_folder), str(drawn_shards), "--out", str(out), "--workers", "0"])
    assert done.exit_code == 0, done.output
    return out


def words(run, shards, features, out, *more):
    return ["retrieve", *map(str, (run, shards)), "--features", str(features), "--out", str(out), "--workers", "0", *more]


def retrieve(*arguments):
    return CliRunner().invoke(cli, words(*arguments))


def test_nearest_others_by_cosine_without_oneself(rng):
    vectors = rng.normal(size=(40, 6)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = []
    for one in range(40):
        others = sorted((other for other in range(40) if other != one), key=lambda other: -float(unit[one] @ unit[other]))
        expected.append(others[:5])
    np.testing.assert_array_equal(nearest(vectors, 5, torch.device("cpu")), expected)


def test_pairs_are_the_most_alike_of_each_two_images(run_folder, drawn_shards, features, tmp_path):
    done = retrieve(
        run_folder,
        drawn_shards,
        features,
        tmp_path / "pairs.parquet",
        "--neighbours",
        "2",
        "--share",
        "0.3",
        "--max-boxes",
        "5",
    )
    assert done.exit_code == 0, done.output
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.parquet"]
    index = open_index(expand_shards(str(drawn_shards)))
    keys, reader, network = index.key.to_pylist(), Reader(index), open_subject(run_folder).backbone

    def looked(sample):
        image = torch.from_numpy(reader.image(sample)).permute(2, 0, 1)
        crops = [
            TF.resized_crop(image, y, x, h, w, [SIDE, SIDE], antialias=True)
            for x, y, w, h in index.boxes_of(sample)[:5].tolist()
        ]
        with torch.no_grad():
            return torch.nn.functional.normalize(network(normalised(torch.stack(crops))), dim=1)

    rows = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    assert len(rows) == 2 * len(index)
    for row in rows[::9]:
        one, two = keys.index(row["key"]), keys.index(row["other"])
        own, theirs = looked(one), looked(two)
        similarity = own @ theirs.T
        wanted = max(1, int(0.3 * len(own)))
        pairs = np.array(row["pairs"]).reshape(-1, 8)
        assert len(pairs) == wanted
        boxes = [index.boxes_of(at)[:5].tolist() for at in (one, two)]
        values = [float(similarity[boxes[0].index(p[:4].tolist()), boxes[1].index(p[4:].tolist())]) for p in pairs]
        # Features are kept with 11 bits: pairs may stand in for others that are as good to that.
        assert values == pytest.approx(similarity.flatten().sort(descending=True).values[:wanted].tolist(), abs=2e-3)


def test_killed_and_continued_it_is_the_undisturbed_file(run_folder, drawn_shards, features, tmp_path):
    retrieve(run_folder, drawn_shards, features, tmp_path / "whole.parquet", "--neighbours", "2", "--max-boxes", "3")
    code = (
        "import sys\nfrom univip_stream.evaluation import retrieval\nretrieval._CHUNK = 2\n"
        "from univip_stream.cli import main\nmain()"
    )  # fmt: skip
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            *words(
                run_folder,
                drawn_shards,
                features,
                tmp_path / "parts.parquet",
                "--neighbours",
                "2",
                "--max-boxes",
                "3",
                "--batch-size",
                "1",
            ),
        ]
    )
    note = tmp_path / "parts.parquet.parts" / "done.json"
    until = time.monotonic() + 60
    while not note.exists() and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    reached = json.loads(note.read_bytes())["images"]
    assert reached < len(open_index(expand_shards(str(drawn_shards))))
    again = retrieve(run_folder, drawn_shards, features, tmp_path / "parts.parquet", "--neighbours", "2", "--max-boxes", "3")
    assert again.exit_code == 0, again.output
    whole, parts = (pq.read_table(tmp_path / name) for name in ("whole.parquet", "parts.parquet"))
    assert whole.column("other").equals(parts.column("other"))
    assert whole.column("pairs").equals(parts.column("pairs"))


def test_orl_trains_from_what_retrieve_wrote(run_folder, drawn_shards, features, tmp_path):
    retrieve(run_folder, drawn_shards, features, tmp_path / "pairs.parquet", "--neighbours", "3", "--max-boxes", "3")
    settings = ["method.backbone=resnet18", "method.hidden=16", "method.width=8", "views.scene_size=32",
                "views.instance_size=32", f"views.pairs={tmp_path / 'pairs.parquet'}"]  # fmt: skip
    texts = [argument for setting in settings for argument in ("--set", setting)]
    done = CliRunner().invoke(
        cli, ["train", "--shards", str(drawn_shards), "--out", str(tmp_path / "run"), "--recipe", "cpu-demo", "--method", "orl",
              "--steps", "1", "--batch-size", "4", "--workers", "0", "--set", "accumulate=1", *texts]
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert {"loss_global", "loss_intra", "loss_inter"} <= set(json.loads((tmp_path / "run" / "metrics.jsonl").read_text()))


def test_bad_input_is_said_in_words(run_folder, drawn_shards, labelled_folder, features, tmp_path):
    other = tmp_path / "other.parquet"
    CliRunner().invoke(cli, ["embed", str(run_folder), str(labelled_folder), "--out", str(other), "--workers", "0"])
    for arguments, said in (
        ((drawn_shards, other, tmp_path / "x"), "has features of 24 images, the shards hold"),
        ((drawn_shards, tmp_path / "none", tmp_path / "x"), "`univip-stream embed RUN SHARDS` makes them"),
        ((drawn_shards, features, tmp_path / "x", "--neighbours", "500"), "expected more than 500"),
    ):
        done = retrieve(run_folder, *arguments)
        assert (done.exit_code, said in done.output) == (1, True), done.output
