"""Shards in an object store and behind a web server, through the cache, against real servers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice

import pytest
import torch
from servers import BUCKET, s3_server, web_server

from univip_stream import ShardDataset, storage
from univip_stream.augment import AugmentConfig
from univip_stream.errors import InputError
from univip_stream.methods.univip import UniVIPPlan
from univip_stream.shards import expand_shards, open_index
from univip_stream.shards.cache import Cache, FetchError
from univip_stream.stream import Stream, StreamConfig
from univip_stream.views import ViewConfig

VIEWS = ViewConfig(scene_size=32, instance_size=16, instances=3, min_scale=32)


@pytest.fixture(scope="module")
def bucket(drawn_shards):
    """The drawn shards in an S3 server; gives their folder."""
    with s3_server():
        folder = f"s3://{BUCKET}/some/shards"
        for path in sorted(drawn_shards.iterdir()):
            if path.is_file() and not path.name.startswith("."):
                storage.copy_out(path, f"{folder}/{path.name}")
        yield folder


@pytest.fixture
def web(drawn_shards):
    with web_server(drawn_shards) as server:
        yield server


def batches(shards, count, **changes):
    settings = {"batch_size": 4, "seed": 5, "workers": 0} | changes
    return list(islice(Stream(shards, UniVIPPlan(VIEWS, AugmentConfig()), StreamConfig(**settings)), count))


def keys(found):
    return [batch.keys for batch in found]


def files_in(cache):
    return [path for path in cache.iterdir() if path.is_file() and not path.name.endswith(".lock")]


@pytest.mark.parametrize(
    "spec", ["<000..002>.tar", "{000..002}.tar", "*.tar", "00[0-2].tar", "", "/", "manifest.json", "{000,001,002}.tar"]
)
def test_every_spec_names_the_shards_of_a_bucket(bucket, spec):
    expected = [f"{bucket}/{number:03d}.tar" for number in range(3)]
    assert expand_shards(f"{bucket}{spec}" if spec == "/" else f"{bucket}/{spec}".rstrip("/")) == expected


@pytest.mark.parametrize("spec", ["<000..002>.tar", "{000..002}.tar", "", "manifest.json"])
def test_every_spec_names_the_shards_of_a_web_server(web, spec):
    assert expand_shards(f"{web.url}/{spec}") == [f"{web.url}/{number:03d}.tar" for number in range(3)]


def test_local_and_remote_shards_mix(bucket, drawn_shards):
    assert expand_shards([f"{bucket}/001.tar", drawn_shards / "000.tar"]) == [f"{bucket}/001.tar", f"{drawn_shards}/000.tar"]


def test_remote_specs_that_mean_nothing_are_said(bucket, web):
    with pytest.raises(InputError, match=r"some/shards/003\.tar: no such shard"):
        expand_shards(f"{bucket}/<000..003>.tar")
    with pytest.raises(InputError, match=r"/003\.tar: no such shard"):
        expand_shards(f"{web.url}/<002..003>.tar")
    with pytest.raises(InputError, match="matches nothing"):
        expand_shards(f"{bucket}/9*.tar")
    with pytest.raises(InputError, match="does not list folders"):
        expand_shards(f"{web.url}/*.tar")
    with pytest.raises(InputError, match="does not list folders"):
        expand_shards(f"{web.url}/elsewhere")
    with pytest.raises(InputError, match="has no meaning here"):
        expand_shards(f"simplecache::{bucket}/000.tar")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bucket_gives_the_batches_of_the_folder(bucket, drawn_shards, tmp_path, workers):
    """Two forked workers fetch for themselves, in a process whose client has been at work before."""
    remote = batches(f"{bucket}/<000..002>.tar", 7, workers=workers, cache=str(tmp_path))
    for one, other in zip(remote, batches(str(drawn_shards), 7), strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.pixels["scenes"], other.pixels["scenes"])
    assert len(files_in(tmp_path)) == 6


def test_a_web_server_gives_every_image(web, drawn_shards, tmp_path):
    found = [sample.key for sample in ShardDataset(f"{web.url}/manifest.json", cache=tmp_path).epoch(1, 2)]
    assert found == [sample.key for sample in ShardDataset(drawn_shards).epoch(1, 2)]


def test_what_was_fetched_is_not_fetched_again_wherever_it_lies(bucket, web, tmp_path, drawn_shards):
    """Named by their contents, so the same shards at another address are the same files."""
    batches(bucket, 3, cache=str(tmp_path))
    before = {path.name: path.stat().st_ino for path in files_in(tmp_path)}
    asked = []
    web.RequestHandlerClass.keywords["directory"] = str(drawn_shards)
    original = web.RequestHandlerClass.func.do_GET
    try:
        web.RequestHandlerClass.func.do_GET = lambda handler: (asked.append(handler.path), original(handler))[1]
        batches(f"{web.url}/", 3, cache=str(tmp_path))
    finally:
        web.RequestHandlerClass.func.do_GET = original
    assert {path.name: path.stat().st_ino for path in files_in(tmp_path)} == before
    assert {path for path in asked if path.endswith(("tar", "parquet"))} == set()


def test_a_cache_of_one_shard_is_enough_and_stays_bounded(bucket, drawn_shards, tmp_path):
    limit = max(path.stat().st_size for path in drawn_shards.glob("*.tar"))
    seen = []
    stream = Stream(
        bucket,
        UniVIPPlan(VIEWS, AugmentConfig()),
        StreamConfig(batch_size=4, seed=5, workers=2, cache=str(tmp_path), cache_bytes=limit),
    )
    for batch in islice(stream, 6):
        seen.append(batch.keys)
        assert sum(path.stat().st_size for path in files_in(tmp_path)) <= limit
    assert seen == keys(batches(str(drawn_shards), 6))
    with pytest.raises(InputError, match=r"00\d\.tar has \d+ bytes, the cache in .* may have 50000 in all"):
        batches(bucket, 3, cache=str(tmp_path / "small"), cache_bytes=50_000)


def test_a_file_that_someone_reads_survives_its_eviction(bucket, tmp_path):
    index = open_index(expand_shards(bucket), Cache(tmp_path / "other"))
    shards = [index.remote(number) for number in range(3)]
    cache = Cache(tmp_path / "cache", max(remote.size for remote in shards))
    first = cache.open(shards[0])
    os.close(cache.open(shards[1]))
    assert [path.name for path in files_in(tmp_path / "cache")] == [shards[1].sha256]
    assert len(os.pread(first, shards[0].size, 0)) == shards[0].size
    os.close(first)


def test_what_is_open_goes_last(bucket, tmp_path):
    index = open_index(expand_shards(bucket), Cache(tmp_path / "other"))
    shards = [index.remote(number) for number in range(3)]
    cache = Cache(tmp_path / "cache", sum(remote.size for remote in shards) - 1)
    oldest = cache.open(shards[0])
    for remote in shards[1:]:
        os.close(cache.open(remote))
    assert {path.name for path in files_in(tmp_path / "cache")} == {shards[0].sha256, shards[2].sha256}
    os.close(oldest)


def test_eviction_deletes_nothing_that_is_not_of_the_cache(bucket, tmp_path):
    """Who names a folder with other files in it keeps them."""
    (tmp_path / "thesis.tex").write_bytes(bytes(1 << 20))
    (tmp_path / "000.tar.tmp").write_bytes(bytes(1 << 20))
    index = open_index(expand_shards(bucket), Cache(tmp_path))
    cache = Cache(tmp_path, max(index.tar_bytes))
    for shard in range(3):
        os.close(cache.open(index.remote(shard)))
    assert {path.name for path in files_in(tmp_path)} == {"thesis.tex", "000.tar.tmp", index.tar_sha256[2]}


def test_a_source_that_dies_is_named(drawn_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(storage.retry, "FIRST_WAIT", 0.01)
    limit = max(path.stat().st_size for path in drawn_shards.glob("*.tar"))
    settings = StreamConfig(
        batch_size=4, seed=5, workers=1, window=1, cache=str(tmp_path), cache_bytes=limit, on_bad_sample="skip"
    )
    with web_server(drawn_shards) as server:
        stream = iter(Stream(server.url, UniVIPPlan(VIEWS, AugmentConfig()), settings))
        next(stream)
        server.failures = 1_000_000  # a forked worker holds the listening socket: closing it here would hang, not refuse
        with pytest.raises(FetchError, match=r"/00\d\.(tar|parquet) cannot be fetched, after 4 tries"):
            list(islice(stream, 12))


def test_a_server_that_stops_is_named(drawn_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(storage.retry, "FIRST_WAIT", 0.01)
    limit = max(path.stat().st_size for path in drawn_shards.glob("*.tar"))
    with web_server(drawn_shards) as server:
        samples = iter(ShardDataset(server.url, window=1, cache=tmp_path, cache_bytes=limit))
        next(samples)
    with pytest.raises(FetchError, match=r"/001\.(tar|parquet) cannot be fetched, after 4 tries"):
        list(samples)


def test_a_source_that_stumbles_is_tried_again(web, drawn_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(storage.retry, "FIRST_WAIT", 0.01)
    index = open_index(expand_shards(web.url), Cache(tmp_path))
    web.failures = 2
    os.close(index.cache.open(index.remote(1)))


@pytest.mark.parametrize("change", ["flip", "cut", "longer"])
def test_other_bytes_than_the_manifest_says_are_never_read(drawn_shards, tmp_path, monkeypatch, change):
    monkeypatch.setattr(storage.retry, "FIRST_WAIT", 0.01)
    shutil.copytree(drawn_shards, tmp_path / "web")
    with web_server(tmp_path / "web") as server:
        index = open_index(expand_shards(server.url), Cache(tmp_path / "cache"))
        data = bytearray((tmp_path / "web" / "001.tar").read_bytes())
        data[5000] ^= 1 if change == "flip" else 0
        (tmp_path / "web" / "001.tar").write_bytes({"flip": data, "cut": data[:-512], "longer": data + bytes(512)}[change])
        with pytest.raises(FetchError, match=r"001\.tar.*(changed or damaged|it ended after)"):
            index.cache.open(index.remote(1))
        assert not index.cache.has(index.remote(1))
        assert not [path for path in files_in(tmp_path / "cache") if path.suffix == ".tmp"]


def test_a_copy_that_was_damaged_here_is_fetched_again(bucket, drawn_shards, tmp_path):
    expected = [sample.image for sample in ShardDataset(drawn_shards)]
    list(ShardDataset(bucket, cache=tmp_path))
    index = open_index(expand_shards(bucket), Cache(tmp_path))
    path = tmp_path / index.tar_sha256[1]
    data = bytearray(path.read_bytes())
    data[int(index.offset[5]) + 2000] ^= 1
    path.write_bytes(data)
    (tmp_path / index.tar_sha256[2]).write_bytes(b"short")
    for path in tmp_path.iterdir():
        if path.is_file() and path.read_bytes()[:4] == b"PAR1":
            path.write_bytes(b"PAR1" + path.read_bytes()[4:][::-1])
    index = open_index(expand_shards(bucket), Cache(tmp_path))
    assert all(torch.equal(one.image, other) for one, other in zip(ShardDataset(index), expected, strict=True))


def test_a_full_disk_is_said_and_leaves_nothing(bucket, drawn_shards, tmp_path):
    """A limit on the size of files stands in for the disk: the same error from the same call."""
    code = (
        "import resource, sys; from univip_stream.shards import expand_shards, open_index\n"
        "from univip_stream.shards.cache import Cache\n"
        "index = open_index(expand_shards(sys.argv[1]), Cache(sys.argv[2]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
        "try: index.cache.open(index.remote(0))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code, bucket, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"InputError no room in {tmp_path} for the")
    assert len(files_in(tmp_path)) == 3  # the indexes


def test_a_killed_fetch_leaves_nothing_that_is_trusted(bucket, drawn_shards, tmp_path):
    index = open_index(expand_shards(bucket), Cache(tmp_path))
    remote = index.remote(0)
    code = (
        "import sys, time, univip_stream.shards.cache as c\n"
        "cache, remote = c.Cache(sys.argv[1]), c.Remote(location=sys.argv[2], size=int(sys.argv[3]), sha256=sys.argv[4])\n"
        "c._PIECE = 20_000\n"
        "def slow():\n  print('piece', flush=True); time.sleep(0.3)\n"
        "cache.fetch_if_free(remote, slow)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path), remote.location, str(remote.size), remote.sha256]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE)
    child.stdout.readline()
    child.stdout.readline()
    assert not index.cache.fetch_if_free(remote, lambda: False)  # someone is about it
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert (tmp_path / f"{remote.sha256}.tmp").exists()
    assert not index.cache.has(remote)
    os.close(index.cache.open(remote))
    assert not (tmp_path / f"{remote.sha256}.tmp").exists()
    assert (tmp_path / remote.sha256).read_bytes() == (drawn_shards / "000.tar").read_bytes()


def test_many_processes_fetch_each_shard_once(web, drawn_shards, tmp_path):
    asked = []
    original = web.RequestHandlerClass.func.do_GET
    code = (
        "import os, sys; from univip_stream.shards import expand_shards, open_index; from univip_stream.shards.cache import Cache\n"
        "index = open_index(expand_shards(sys.argv[1]), Cache(sys.argv[2]))\n"
        "print(*(len(os.pread(index.cache.open(index.remote(n)), 1 << 30, 0)) for n in range(3)))"
    )
    try:
        web.RequestHandlerClass.func.do_GET = lambda handler: (asked.append(handler.path), original(handler))[1]
        argv = [sys.executable, "-c", code, web.url, str(tmp_path)]
        found = [child.communicate()[0] for child in [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(3)]]
    finally:
        web.RequestHandlerClass.func.do_GET = original
    sizes = " ".join(str((drawn_shards / f"00{number}.tar").stat().st_size) for number in range(3))
    assert [text.decode().strip() for text in found] == [sizes] * 3
    fetched = [path for path in asked if path.endswith((".tar", ".parquet"))]
    assert sorted(fetched) == sorted(set(fetched))


def test_the_next_window_is_fetched_while_this_one_is_read(bucket, tmp_path):
    dataset = ShardDataset(bucket, window=1, cache=tmp_path).epoch(0, 0)
    samples = iter(dataset)
    next(samples)
    second = dataset._epoch[0].near(0)[1]
    until = time.monotonic() + 20
    while not dataset.index.cache.has(dataset.index.remote(int(second[0]))) and time.monotonic() < until:
        time.sleep(0.01)
    assert dataset.index.cache.has(dataset.index.remote(int(second[0])))
    samples.close()


@pytest.mark.parametrize("name", ["../000.tar", "/etc/000.tar", "a/b.tar", "000.tar\n", ".000.tar", 7])
def test_a_manifest_names_files_of_its_own_folder_only(tmp_path, drawn_shards, name):
    manifest = json.loads((drawn_shards / "manifest.json").read_text())
    manifest["shards"][1]["name"] = name
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"expected (a file of its own folder|text)"):
        expand_shards(tmp_path)


def test_a_hash_that_is_a_path_is_refused(bucket, tmp_path, drawn_shards):
    manifest = json.loads((drawn_shards / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = "../../owned"
    storage.write(f"{bucket}-hostile/manifest.json", json.dumps(manifest).encode())
    storage.copy_out(drawn_shards / "000.tar", f"{bucket}-hostile/000.tar")
    with pytest.raises(InputError, match=r"entry of .*000\.tar cannot be used .*is not a SHA-256"):
        open_index(expand_shards(f"{bucket}-hostile/000.tar"), Cache(tmp_path))
