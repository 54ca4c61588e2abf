"""One limit of pixels: what mining took is read by everything after it, and what others wrote is measured by one setting."""

import json
import shutil
import struct
import zlib

import pytest
from click.testing import CliRunner

from univip_stream.cli import cli
from univip_stream.errors import InputError
from univip_stream.mining import MiningConfig, mine
from univip_stream.probe.labelled import ImageSource
from univip_stream.shards import expand_shards, open_index
from univip_stream.shards.verify import verify_folder
from univip_stream.stream.reader import Reader

WIDTH, HEIGHT = 10_240, 9_800
"""Just over the hundred million pixels that are decoded without being told."""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A folder with one picture of two greys, small on disk."""
    folder = tmp_path_factory.mktemp("scans")
    rows = zlib.compressobj(1)
    row = b"\0" + b"\xff" * (WIDTH // 16) + b"\0" * (WIDTH // 16)
    body = b"".join(rows.compress(row) for _ in range(HEIGHT)) + rows.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 1, 0, 0, 0, 0)), (b"IDAT", body), (b"IEND", b"")]
    (folder / "scan.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part)) for kind, part in chunks
        )
    )
    return folder


@pytest.fixture(scope="module")
def shards(large, tmp_path_factory):
    """It mined under a limit that allows it."""
    out = tmp_path_factory.mktemp("large") / "shards"
    report = mine(MiningConfig(sources=(large,), out=out, proposals="none", inline=True, max_pixels=WIDTH * HEIGHT))
    assert report.manifest.totals["samples"] == 1
    return out


@pytest.mark.slow
def test_what_was_mined_is_verified_and_read(shards):
    assert verify_folder(shards) == []
    image = Reader(open_index(expand_shards(shards))).image(0)
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert (image[0, 0, 0], image[0, -1, 0]) == (255, 0)


def test_a_row_beyond_the_manifests_limit_is_found_by_verify(shards, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(shards, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["parameters"]["max_pixels"] = 1000
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert any("the limit is 1000 pixels" in finding.problem for finding in verify_folder(folder))


@pytest.mark.slow
def test_images_that_nobody_mined_are_measured_by_the_setting(large):
    with pytest.raises(InputError, match=r"the limit is 100000000 pixels .*--max-pixels"):
        ImageSource(str(large))[0]
    assert ImageSource(str(large), max_pixels=WIDTH * HEIGHT)[0].image.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    "command",
    [
        ["eval", "knn"],
        ["eval", "linear"],
        ["eval", "finetune"],
        ["eval", "detect"],
        ["embed"],
        ["explain"],
        ["inspect"],
        ["retrieve"],
    ],
)
def test_every_command_that_reads_images_has_the_option(command):
    assert "--max-pixels" in CliRunner().invoke(cli, [*command, "--help"]).output
