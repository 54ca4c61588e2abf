"""Servers that never stop and never end: a byte now and then, for as long as one listens. Every read ends, with its name."""

import subprocess
import sys
import time
from threading import Thread

import boto3
import pytest
from servers import BUCKET, dripping, odd_server, s3_server
from shard_rows import all_rows

from univip_stream import storage
from univip_stream.augment import AugmentConfig
from univip_stream.methods.univip import UniVIPPlan
from univip_stream.shards.cache import FetchError
from univip_stream.storage import WebOptions, limit, message
from univip_stream.stream import Stream, StreamConfig
from univip_stream.views import ViewConfig

DATA = bytes(range(256)) * 40


@pytest.fixture
def store(monkeypatch):
    """An S3 server whose keys with `drip` in their names come a byte at a time."""
    with s3_server() as endpoint, dripping(endpoint, lambda path: "drip" in path) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield boto3.client("s3", endpoint_url=endpoint)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(limit, "PATIENCE", 0.6)
    monkeypatch.setattr(limit, "SLOWEST", 1 << 20)
    storage.use_web(WebOptions(seconds=0.5))


@pytest.mark.parametrize("how", ["read", "part", "image", "member", "copy", "opened"])
def test_an_object_that_drips_has_a_time_limit(how, store, impatient, tmp_path):
    for key in ("drip", "calm"):
        store.put_object(Bucket=BUCKET, Key=key, Body=DATA)

    def opened(location):
        with storage.opened(location) as file:
            file.seek(10)
            return file.read(100)

    reading = {
        "read": storage.read,
        "part": lambda location: storage.read(location, 10, 1000),
        "image": lambda location: storage.image(location, 1 << 20),
        "member": lambda location: storage.member(location, 10, 1000),
        "copy": lambda location: storage.copy_in(location, tmp_path / "copy"),
        "opened": opened,
    }[how]
    assert reading(f"s3://{BUCKET}/calm") in (DATA, DATA[10:1010], DATA[10:110], len(DATA))
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=rf"s3://{BUCKET}/drip: it takes longer than 0\.[56]\d* s for \d+ bytes"):
        reading(f"s3://{BUCKET}/drip")
    assert time.monotonic() - began < 5
    assert not (tmp_path / "copy").exists() or how != "copy"


def test_a_large_object_has_time_for_its_bytes(store, monkeypatch):
    store.put_object(Bucket=BUCKET, Key="drip", Body=DATA[:40])  # two seconds of drops, and then it ends a byte early
    monkeypatch.setattr(limit, "SLOWEST", 4)
    storage.use_web(WebOptions(seconds=1.0))
    with pytest.raises(TimeoutError, match=r"it takes longer than 11 s for 40 bytes"):
        storage.image(f"s3://{BUCKET}/drip", 1000)


@pytest.mark.parametrize("inline", [True, pytest.param(False, marks=pytest.mark.ray)])
def test_an_image_that_drips_is_a_row_and_the_command_ends(inline, store, drawn_folder, tmp_path):
    for number in range(5):
        name = f"{number}{'-drip' * (number == 3)}.jpg"
        store.put_object(Bucket=BUCKET, Key=f"photos/{name}", Body=(drawn_folder / f"scene0{number}.jpg").read_bytes())
    command = [
        "mine",
        "--src",
        f"s3://{BUCKET}/photos",
        "--out",
        tmp_path / "shards",
        "--num-shards",
        "1",
        "--proposals",
        "naive",
    ]
    how = ["--inline"] if inline else ["--workers", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "univip_stream", *map(str, command), *how, "--max-failures", "1", "--image-timeout", "1"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    rows = all_rows(tmp_path / "shards")
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "unreadable", "ok"]
    assert rows[3]["reason"].startswith("TimeoutError: it takes longer than ")


def test_more_images_that_drip_than_may_fail_end_the_command_with_its_status(store, drawn_folder, tmp_path):
    for number in range(4):
        store.put_object(Bucket=BUCKET, Key=f"drip/{number}.jpg", Body=(drawn_folder / f"scene0{number}.jpg").read_bytes())
    command = ["mine", "--src", f"s3://{BUCKET}/drip", "--out", tmp_path / "shards", "--inline", "--image-timeout", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "univip_stream", *map(str, command)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "it takes longer than" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_drips_stops_the_stream_with_its_name(workers, store, impatient, drawn_shards, tmp_path):
    for path in drawn_shards.iterdir():
        store.put_object(Bucket=BUCKET, Key=f"shards/{path.name}", Body=path.read_bytes())
    with (
        dripping(store.meta.endpoint_url, lambda path: path.endswith("1.tar")) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        settings = StreamConfig(batch_size=4, seed=5, workers=workers, window=3, cache=str(tmp_path))
        with pytest.raises(FetchError, match=r"001\.tar cannot be fetched.*it takes longer than"):
            list(
                zip(
                    range(6),
                    Stream(f"s3://{BUCKET}/shards", UniVIPPlan(ViewConfig(), AugmentConfig()), settings),
                    strict=False,
                )
            )


def drops(*, before: bytes, drop: bytes):
    def answer(handler):
        handler.wfile.write(before)
        while True:
            handler.wfile.write(drop)
            handler.wfile.flush()
            time.sleep(0.05)

    return answer


HEADERS = drops(before=b"HTTP/1.1 200 OK\r\n", drop=b"X")
CHUNK = drops(before=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;", drop=b"a")


@pytest.mark.parametrize(("answer", "reading"), [
    (HEADERS, storage.read), (HEADERS, storage.size_of), (CHUNK, storage.read)
], ids=["headers", "headers alone", "no body"])  # fmt: skip
def test_a_web_server_that_drips_anything_but_a_body_is_all_but_silent(answer, reading, monkeypatch):
    from univip_stream.storage import web

    monkeypatch.setattr(message, "SILENCE", 0.3)
    monkeypatch.setattr(web, "CONNECT", 0.1)
    with odd_server(answer) as server:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="the server is silent, or all but silent"):
            reading(f"{server.url}/000.tar")
        assert time.monotonic() - began < 15


def test_who_waits_for_a_store_can_be_called_off(store):
    store.put_object(Bucket=BUCKET, Key="drip", Body=DATA)
    began = time.monotonic()

    def soon():
        time.sleep(0.5)
        storage.give_up()

    Thread(target=soon, daemon=True).start()
    with pytest.raises(OSError, match="the request was called off"):
        storage.read(f"s3://{BUCKET}/drip")
    assert time.monotonic() - began < 10
