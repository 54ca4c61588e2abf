"""Other boxes from stored candidates: as if mined with the other filter, but for what the index says of itself."""

import json

import pytest
from click.testing import CliRunner
from servers import BUCKET, s3_server
from shard_rows import all_rows, table_with_candidates

from univip_stream import storage
from univip_stream.boxes import BoxFilter, filter_boxes
from univip_stream.cli import cli
from univip_stream.errors import InputError
from univip_stream.mining import MiningConfig, RefilterConfig, mine, refilter
from univip_stream.shards.verify import verify_folder


@pytest.fixture(scope="module")
def mined(drawn_folder, tmp_path_factory):
    """Drawn scenes and one file that is no image, mined by our own search."""
    folder = tmp_path_factory.mktemp("refilter")
    images = folder / "images"
    images.mkdir()
    for path in drawn_folder.iterdir():
        (images / path.name).symlink_to(path)
    (images / "words.jpg").write_text("words")
    mine(MiningConfig(sources=(images,), out=folder / "shards", num_shards=3, inline=True, max_failures="1"))
    return folder


def test_it_gives_what_mining_with_that_filter_gives(mined, tmp_path):
    changes = {"min_scale": 40, "max_iou": 0.7, "max_boxes": 5}
    manifest = refilter(RefilterConfig(shards=mined / "shards", out=tmp_path / "new", inline=True, **changes))
    wanted = mine(
        MiningConfig(
            sources=(mined / "images",),
            out=tmp_path / "mined",
            num_shards=3,
            inline=True,
            max_failures="1",
            filter=BoxFilter(**changes),
        )
    ).manifest
    assert manifest.totals == wanted.totals
    for name in ("000", "001", "002"):
        assert (tmp_path / "new" / f"{name}.tar").read_bytes() == (tmp_path / "mined" / f"{name}.tar").read_bytes()
        new, other = (table_with_candidates(tmp_path / place / f"{name}.parquet") for place in ("new", "mined"))
        assert new.equals(other)
        for row in new.to_pylist():
            if row["boxes"] is not None:
                assert filter_boxes(row["candidates"], 40, 3.0, 0.7, 5).tolist() == row["boxes"]
    assert verify_folder(tmp_path / "new") == []


def test_it_continues_and_refuses_another_filter_there(mined, tmp_path):
    config = RefilterConfig(shards=mined / "shards", out=tmp_path / "new", inline=True, max_boxes=2)
    refilter(config)
    before = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    (tmp_path / "new" / "001.parquet").unlink()
    finished = []
    refilter(config, planned=lambda job, images: finished.append(images))
    assert finished == [9]
    assert {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()} == before
    with pytest.raises(InputError, match="max_boxes 2 there, 3 here"):
        refilter(RefilterConfig(shards=mined / "shards", out=tmp_path / "new", inline=True, max_boxes=3))
    with pytest.raises(InputError, match="is the folder of the shards themselves"):
        refilter(RefilterConfig(shards=mined / "shards", out=mined / "shards", inline=True))


def test_from_and_into_an_object_store(mined, tmp_path):
    with s3_server():
        for path in (mined / "shards").iterdir():
            storage.copy_out(path, f"s3://{BUCKET}/old/{path.name}")
        refilter(RefilterConfig(shards=f"s3://{BUCKET}/old", out=f"s3://{BUCKET}/new", inline=True, max_boxes=2))
        refilter(RefilterConfig(shards=mined / "shards", out=tmp_path / "new", inline=True, max_boxes=2))
        for path in (tmp_path / "new").iterdir():
            assert storage.read(f"s3://{BUCKET}/new/{path.name}") == path.read_bytes()


@pytest.mark.slow  # Ray
def test_the_command_on_ray_prints_totals(mined, tmp_path):
    arguments = ["refilter", str(mined / "shards"), "--out", str(tmp_path / "new"), "--min-scale", "100", "--json"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["images"] == 13
    rows = all_rows(tmp_path / "new")
    assert all(min(w, h) >= 100 for row in rows for _, _, w, h in row["boxes"] or [])


def test_what_is_no_finished_folder_is_said(tmp_path):
    done = CliRunner().invoke(cli, ["refilter", str(tmp_path), "--out", str(tmp_path / "new"), "--inline"])
    assert (done.exit_code, "no manifest.json" in done.output) == (1, True)
