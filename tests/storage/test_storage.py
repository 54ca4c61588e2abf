"""Locations, against a real S3 protocol server and a real web server."""

import pytest
from servers import BUCKET, WebHandler, s3_server, web_server

from univip_stream import storage
from univip_stream.errors import InputError

DATA = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def bucket():
    with s3_server():
        yield f"s3://{BUCKET}"


@pytest.fixture
def web(tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "file").write_bytes(DATA)
    with web_server(tmp_path / "web") as server:
        yield server


@pytest.fixture(params=["local", "s3", "web", "web without ranges"])
def file(request, tmp_path):
    """The location of a file with DATA, in each kind of storage."""
    if request.param == "local":
        (tmp_path / "file").write_bytes(DATA)
        yield str(tmp_path / "file")
    elif request.param == "s3":
        location = f"{request.getfixturevalue('bucket')}/read/file"
        storage.write(location, DATA)
        yield location
    else:
        server = request.getfixturevalue("web")
        server.ranges = request.param == "web"
        yield f"{server.url}/file"


def test_a_file_is_read_whole_and_in_part(file, tmp_path):
    assert storage.size_of(file) == len(DATA)
    assert storage.read(file) == DATA
    assert storage.read(file, 7, 100) == DATA[7:107]
    assert storage.read(file, len(DATA) - 3, 100) == DATA[-3:]
    assert storage.read(file, len(DATA), 5) == b""
    with storage.opened(file) as opened:
        assert opened.read(10) + opened.read(10) == DATA[:20]
    assert storage.copy_in(file, tmp_path / "copy") == len(DATA)
    assert (tmp_path / "copy").read_bytes() == DATA


def test_a_file_that_is_not_there(file, tmp_path):
    assert storage.size_of(f"{file}.not") is None
    with pytest.raises(FileNotFoundError):
        storage.read(f"{file}.not")
    with pytest.raises(FileNotFoundError):
        storage.copy_in(f"{file}.not", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_what_is_written_is_listed_in_the_order_of_its_bytes(bucket, tmp_path):
    names = ["a/b.jpg", "a-b.jpg", "a/b/c.jpg", "a.jpg", "é.jpg", "Z.jpg"]
    (tmp_path / "file").write_bytes(DATA)
    for name in names:
        storage.copy_out(tmp_path / "file", f"{bucket}/listed/{name}")
    expected = [(name, len(DATA)) for name in sorted(names, key=str.encode)]
    assert list(storage.files_below(f"{bucket}/listed")) == list(storage.files_below(f"{bucket}/listed/")) == expected
    storage.remove(f"{bucket}/listed/a.jpg")
    storage.remove(f"{bucket}/listed/a.jpg")
    assert len(list(storage.files_below(f"{bucket}/listed"))) == len(names) - 1


def test_errors_that_pass_are_tried_again(web):
    web.failures = storage.retry.TRIES - 1
    assert storage.read(f"{web.url}/file") == DATA
    web.failures = storage.retry.TRIES
    with pytest.raises(OSError, match="503"):
        storage.read(f"{web.url}/file")


def test_a_server_that_is_down_is_not_a_file_that_is_missing(tmp_path):
    with web_server(tmp_path) as server:
        assert storage.size_of(f"{server.url}/file") is None
    with pytest.raises(OSError, match="no connection to"):
        storage.size_of(f"{server.url}/file")
    with pytest.raises(OSError, match="no connection to"), storage.opened(f"{server.url}/file"):
        pass


@pytest.mark.parametrize("location", ["pipe:cat x", "ftp://host/x", "s3:///x"])
def test_what_is_no_location_is_not_run(location):
    if location.startswith("pipe"):
        assert not storage.is_remote(location)  # a file of that name, and no command
        with pytest.raises(FileNotFoundError):
            storage.read(location)
    else:
        with pytest.raises(InputError, match=r"is not read|no bucket"):
            storage.read(location)


def test_a_web_server_cannot_be_listed_or_written(web):
    with pytest.raises(InputError, match="file by file"):
        list(storage.files_below(web.url))
    with pytest.raises(InputError, match="file by file"):
        storage.write(f"{web.url}/x", b"")


def test_locations_are_taken_apart_and_put_together():
    assert storage.join("s3://b/k/", "x") == "s3://b/k/x"
    assert storage.join("https://h/k?token=1", "x") == "https://h/k/x?token=1"
    assert storage.parent("https://h/k/x.tar?token=1") == "https://h/k?token=1"
    assert storage.name_of("https://h/k/x.tar?token=a/b") == "x.tar"
    assert storage.parent("s3://b/k/x.tar") == "s3://b/k"
    assert storage.join("/a", "x") == "/a/x"


def test_of_a_web_server_that_serves_ranges_only_the_range_is_asked_for(tmp_path, monkeypatch):
    asked = []
    answer = WebHandler.do_GET
    monkeypatch.setattr(WebHandler, "do_GET", lambda self: (asked.append(self.headers.get("Range")), answer(self)))
    (tmp_path / "file").write_bytes(DATA)
    with web_server(tmp_path) as server:
        assert storage.read(f"{server.url}/file", 1000, 24) == DATA[1000:1024]
    assert asked[-1] == "bytes=1000-1023"
    assert None not in asked
