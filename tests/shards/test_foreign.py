"""Shards that other programs wrote, and those that someone wrote to do harm."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import time
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from servers import web_server

from univip_stream import ShardDataset
from univip_stream.errors import InputError
from univip_stream.shards import expand_shards, open_index
from univip_stream.shards.cache import Cache


def jpeg(seed=0, width=96, height=64, **options):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def member(name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


def good(number=0):
    """One sample as img2dataset writes it."""
    key = f"{number:09d}"
    return [
        member(f"{key}.jpg", jpeg(number)),
        member(f"{key}.json", json.dumps({"key": key, "url": "http://x", "boxes": [[1, 2, 30, 40]]}).encode()),
        member(f"{key}.txt", b"a caption"),
    ]


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def open_tar(tmp_path, cache):
    """Open a foreign shard of these members; an open that fails raises."""

    def opened(members, mode="w"):
        folder = tmp_path / "foreign"
        folder.mkdir(exist_ok=True)
        return open_index([str(write_tar(folder / "00000.tar", members, mode))], cache)

    return opened


def test_img2dataset_shards_are_read_whole(tmp_path, cache):
    folder = tmp_path / "laion"
    folder.mkdir()
    for shard in range(2):
        write_tar(folder / f"{shard:05d}.tar", [m for n in range(3) for m in good(10 * shard + n)])
        # img2dataset's own Parquet and statistics lie beside its tars; they are not ours.
        pq.write_table(pa.table({"url": ["http://x"]}), folder / f"{shard:05d}.parquet")
        (folder / f"{shard:05d}_stats.json").write_text("{}")
    index = open_index(expand_shards(folder), cache)
    assert index.key.to_pylist() == [f"{10 * shard + n:09d}" for shard in range(2) for n in range(3)]
    assert index.source[4].as_py() == "00001.tar/000000011.jpg"
    assert index.notes == []
    for number, sample in zip([0, 1, 2, 10, 11, 12], ShardDataset(index), strict=True):
        assert (sample.image.permute(1, 2, 0).numpy() == np.asarray(Image.open(io.BytesIO(jpeg(number))))).all()
        assert sample.boxes.tolist() == [[1, 2, 30, 40]]


def test_plain_shards_have_labels_folders_and_no_boxes(open_tar):
    index = open_tar(
        [
            member("train", type=tarfile.DIRTYPE),
            member("train/a.PNG", _png(40, 30)),
            member("train/a.cls", b"7\n"),
            member("./b.jpeg", jpeg(exif=_turned())),
            member("b.json", b'{"label": "dog", "width": "nonsense"}'),
        ]
    )
    assert index.key.to_pylist() == ["train/a", "b"]
    assert index.label.to_pylist() == ["7", "dog"]
    assert index.width.tolist() == [40, 64]
    assert len(index.boxes) == 0
    assert [tuple(sample.image.shape) for sample in ShardDataset(index)] == [(3, 30, 40), (3, 96, 64)]


def test_the_stream_draws_boxes_for_images_without(tmp_path, cache):
    from itertools import islice

    from univip_stream.augment import AugmentConfig
    from univip_stream.methods.univip import UniVIPPlan
    from univip_stream.stream import Stream, StreamConfig
    from univip_stream.views import ViewConfig

    shard = write_tar(tmp_path / "0.tar", [member(f"{n}.jpg", jpeg(n, 320, 240)) for n in range(4)])
    views = ViewConfig(scene_size=32, instance_size=16, instances=3)
    config = StreamConfig(batch_size=4, workers=0, cache=str(tmp_path / "cache"))
    [batch] = islice(Stream(str(shard), UniVIPPlan(views, AugmentConfig()), config), 1)
    assert batch.filled.tolist() == [3, 3, 3, 3]


def test_a_shard_is_indexed_once_and_anew_when_it_changed(tmp_path, cache):
    shard = write_tar(tmp_path / "0.tar", good(0))
    open_index([str(shard)], cache)
    kept = tmp_path / "0.univip-index.parquet"
    written = kept.stat().st_mtime_ns
    open_index([str(shard)], cache)
    assert kept.stat().st_mtime_ns == written
    os.utime(shard, ns=(0, 0))
    open_index([str(shard)], cache)
    assert kept.stat().st_mtime_ns > written
    before = shard.stat()
    write_tar(shard, good(0)[:1] + good(1)[1:])
    os.utime(shard, ns=(0, 1))
    assert open_index([str(shard)], cache).notes == ["1 samples without an image (first in " + str(shard) + ")"]
    assert before.st_size == shard.stat().st_size
    kept.write_bytes(b"damaged")
    assert len(open_index([str(shard)], cache)) == 1


def test_a_foreign_shard_behind_a_web_server_is_fetched_and_indexed_once(tmp_path, cache):
    (tmp_path / "web").mkdir()
    shard = write_tar(tmp_path / "web" / "0.tar", [m for n in range(3) for m in good(n)])
    with web_server(tmp_path / "web") as server:
        [first] = {sample.boxes.shape for sample in ShardDataset(open_index([f"{server.url}/0.tar"], cache))}
        assert first == (1, 4)
        again = open_index([f"{server.url}/0.tar"], cache)
    assert len(list(ShardDataset(again))) == 3  # the server is gone
    assert again.fingerprint == open_index([str(shard)], cache).fingerprint


def test_where_the_folder_cannot_be_written_the_cache_keeps_the_index(tmp_path, cache, monkeypatch):
    """Root may write anywhere: a folder in the index's place says no to root too."""
    shard = write_tar(tmp_path / "0.tar", good(0))
    (tmp_path / "0.univip-index.parquet").mkdir()
    open_index([str(shard)], cache)
    [kept] = (cache.folder / "indexes").glob("*.parquet")
    written = kept.stat().st_mtime_ns
    open_index([str(shard)], cache)
    assert kept.stat().st_mtime_ns == written


def test_several_processes_index_at_once(tmp_path):
    for shard in range(2):
        write_tar(tmp_path / f"{shard}.tar", [m for n in range(20) for m in good(n)])
    code = (
        "import sys; from univip_stream.shards import expand_shards, open_index; from univip_stream.shards.cache import Cache\n"
        "print(open_index(expand_shards(sys.argv[1]), Cache(sys.argv[2])).fingerprint)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "cache")]
    children = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(3)]
    assert len({child.communicate()[0] for child in children}) == 1
    assert all(child.returncode == 0 for child in children)


@pytest.mark.parametrize("left", [".mining.json", "parquet"])
def test_our_own_unfinished_shards_are_not_taken_for_foreign(drawn_shards, tmp_path, cache, left):
    shutil.copy(drawn_shards / "000.tar", tmp_path)
    if left == "parquet":
        shutil.copy(drawn_shards / "000.parquet", tmp_path)
    else:
        (tmp_path / left).write_text("{}")
    with pytest.raises(InputError, match=r"no manifest\.json, so its shards are not complete"):
        open_index(expand_shards(tmp_path), cache)


@pytest.mark.parametrize(
    "suffix", ["pyd", "pkl", "pickle", "pth", "pt", "npy", "gz", "PKL", "pkl.gz", "jpg.pyd", "pickle.jpg.gz"]
)
def test_a_dangerous_member_is_counted_and_never_opened(open_tar, tmp_path, suffix):
    trap = f"cos\nsystem\n(S'touch {tmp_path}/owned'\ntR.".encode()  # a pickle that runs a command when it is loaded
    index = open_tar([*good(0), member(f"000000000.{suffix}", trap), *good(1)])
    assert index.key.to_pylist() == ["000000000", "000000001"]
    assert index.notes == [f"1 members ending in .{suffix.lower()}, not read (first in {index.shards[0]})"]
    assert len(list(ShardDataset(index))) == 2
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["../../owned.jpg", "/tmp/owned.jpg", "a/../../owned.jpg", "..\\owned.jpg"])
def test_a_key_that_leads_outside_is_counted_and_not_read(open_tar, name):
    index = open_tar([*good(0), member(name, jpeg())])
    assert index.key.to_pylist() == ["000000000"]
    assert index.notes[0].startswith("1 members whose names lead outside the tar, not read")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_counted_and_not_followed(open_tar, kind):
    index = open_tar([*good(0), member("000000001.jpg", type=kind, linkname="/etc/passwd")])
    assert index.key.to_pylist() == ["000000000"]
    assert index.notes[0].startswith("1 links, devices or other special members, not followed")


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_tar_is_refused(open_tar, mode):
    with pytest.raises(InputError, match=r"00000\.tar: it is compressed; .*decompress it"):
        open_tar(good(0), mode)


def test_a_decompression_bomb_is_counted_and_not_decoded(open_tar):
    began = time.monotonic()
    index = open_tar([*good(0), member("bomb.png", _png(30_000, 30_000, empty=True))])
    assert index.key.to_pylist() == ["000000000"]
    assert index.notes[0].startswith(f"1 images too large (first in {index.shards[0]}: 00000.tar/bomb.png: ")
    assert "900000000 pixels" in index.notes[0]
    assert time.monotonic() - began < 5


def test_a_json_of_a_gigabyte_is_counted_and_not_read(tmp_path, cache):
    """A hole in the file stands for the gigabyte."""
    shard = write_tar(tmp_path / "0.tar", good(0)[:1])
    info = tarfile.TarInfo("000000000.json")
    info.size = 1 << 30
    with shard.open("r+b") as file:
        file.seek(512 + 512 * -(-len(good(0)[0][1]) // 512))
        file.write(info.tobuf())
        file.truncate(file.tell() + info.size + 1024)
    code = (
        "import resource, sys; from univip_stream.shards.foreign import _Scan\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with open(sys.argv[1], 'rb') as file: scan = _Scan(file, '0.tar')\n"
        "print(len(scan.rows), dict(scan.ignored), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(shard)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1 {'JSON members over 16 MiB, not read': 1} True"


def test_a_huge_header_is_refused(tmp_path, cache):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 32
    with (tmp_path / "0.tar").open("wb") as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        file.truncate((1 << 32) + 2048)
    from univip_stream.shards.foreign import _Scan

    with open(tmp_path / "0.tar", "rb") as file, pytest.raises(InputError, match="header of 4294967296 bytes"):
        _Scan(file, "0.tar")


@pytest.mark.parametrize(
    "boxes",
    [
        "[[-1, 0, 5, 5]]", "[[0, 0, 1e300, 5]]", "[[0, 0, 999999999999999999999, 5]]", "[[NaN, 0, 5, 5]]",
        "[[0, 0, Infinity, 5]]", '[["0", "0", "5", "5"]]', "[[0, 0, 0, 5]]", "[[90, 0, 7, 5]]", "[[1, 2, 3]]", "[7]",
        "[[true, 0, 5, 5]]", "[null]", '[{"x": 1}]',
    ],
)  # fmt: skip
def test_boxes_of_nonsense_are_counted_and_left_out(open_tar, boxes):
    fields = f'{{"boxes": [[1.4, 2, 30, 40], {boxes[1:]}}}'.encode()
    index = open_tar([member("a.jpg", jpeg()), member("a.json", fields)])
    assert index.boxes.tolist() == [[1, 2, 30, 40]]
    assert index.notes[0].startswith("1 boxes that are none inside their image")


@pytest.mark.parametrize("text", [b"[" * 100_000, b"{", b"\xff\xfe", b"7", b'{"boxes": 7}', b'{"boxes": "x"}', b"9" * 5000])
def test_json_of_nonsense_is_counted(open_tar, text):
    index = open_tar([member("a.jpg", jpeg()), member("a.json", text)])
    assert len(index) == 1
    assert len(index.boxes) == 0
    assert index.notes[0].startswith("1 JSON members")


def test_a_truncation_anywhere_is_an_error(tmp_path, cache):
    shard = write_tar(tmp_path / "0.tar", [m for n in range(2) for m in good(n)])
    whole = shard.read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for size in [*range(0, end + 512, 512), 700, 5001]:
        shard.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"0\.tar: "):
            open_index([str(shard)], cache)
    shard.write_bytes(whole[: end + 512])
    assert len(open_index([str(shard)], cache)) == 2


def test_a_damaged_header_and_a_second_tar_are_errors(tmp_path, cache):
    shard = write_tar(tmp_path / "0.tar", [m for n in range(2) for m in good(n)])
    whole = bytearray(shard.read_bytes())
    second = whole.index(b"000000001.jpg")
    whole[second + 3] ^= 1
    shard.write_bytes(whole)
    with pytest.raises(InputError, match=rf"the header at byte {second} is damaged"):
        open_index([str(shard)], cache)
    whole[second + 3] ^= 1
    shard.write_bytes(whole + whole)
    with pytest.raises(InputError, match="goes on after its end mark"):
        open_index([str(shard)], cache)


def test_an_unreadable_image_is_counted_and_a_damaged_one_found_when_read(open_tar):
    index = open_tar([member("a.jpg", b"no image"), member("b.jpg", jpeg()), member("c.jpg", jpeg(width=8))])
    assert index.key.to_pylist() == ["b"]
    assert len(index.notes) == 2
    with open(index.shards[0], "r+b") as file:
        file.seek(int(index.offset[0]) + 900)
        file.write(b"\0")
    with pytest.raises(InputError, match=r"sample b .*SHA-256 differs"):
        list(ShardDataset(index))


def test_a_hostile_index_beside_a_tar_reads_nothing_outside(tmp_path, cache):
    """Its numbers are checked against the image that it leads to."""
    shard = write_tar(tmp_path / "0.tar", good(0))
    open_index([str(shard)], cache)
    kept = tmp_path / "0.univip-index.parquet"
    table = pq.read_table(kept)

    def changed(name, value):
        column = pa.array([value], table.schema.field(name).type)
        at = table.schema.get_field_index(name)
        pq.write_table(table.set_column(at, table.schema.field(name), column), kept)
        return list(ShardDataset(open_index([str(shard)], cache)))

    for name, value, words in (
        ("offset", -5, "Invalid argument"),
        ("offset", 1 << 50, "cut off"),
        ("size", 1 << 40, "expected 1 to"),
        ("width", 32_000, "not to the size in its row"),
        ("boxes", [[1, 2, 3000, 4]], "1 boxes outside their images, the first in sample 000000000"),
        ("sha256", "00", "SHA-256 differs"),
        ("sha256", None, "without sha256"),
    ):
        with pytest.raises(InputError, match=words):
            changed(name, value)


def test_webdatasets_environment_means_nothing(drawn_shards, tmp_path):
    """It expands `${X}` from WDS_X and rewrites URLs, which can lead to `pipe:`; reading must not so much as import it."""
    env = os.environ | {
        "WDS_X": f"pipe:touch {tmp_path}/owned",
        "GOPEN_REWRITE": f"{drawn_shards}=pipe:touch {tmp_path}/owned;",
        "WDS_SECURE": "0",
    }
    code = (
        "import sys\nfrom univip_stream import ShardDataset\nfrom univip_stream.errors import InputError\n"
        "print(len(list(ShardDataset(sys.argv[1]))))\n"
        "try: ShardDataset('${WDS_X}')\nexcept InputError as error: print('refused')\n"
        "try: ShardDataset('${X}/000.tar')\nexcept InputError as error: print('refused')\n"
        "print('webdataset' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(drawn_shards)], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout.split() == ["12", "refused", "refused", "False"]
    assert not (tmp_path / "owned").exists()


def _png(width, height, *, empty=False):
    """A PNG of one colour; `empty` has the header of its size, and no pixels."""
    if not empty:
        file = io.BytesIO()
        Image.new("RGB", (width, height), "red").save(file, "PNG")
        return file.getvalue()

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif
