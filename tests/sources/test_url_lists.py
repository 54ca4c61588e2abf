"""Lists of addresses, mined: what comes of every answer, what a server sees, and that the shards do not tell of it."""

import json
import shutil
import tarfile
import threading
import time

import pytest
from click.testing import CliRunner
from mined import column, mined
from servers import odd_server

from univip_stream import storage
from univip_stream.cli import cli
from univip_stream.errors import InputError
from univip_stream.mining import MiningConfig, ahead, mine
from univip_stream.sources import SourceImage
from univip_stream.storage import WebOptions, retry

SECRET = "Bearer 0123456789"


@pytest.fixture(autouse=True)
def as_before():
    yield
    storage.use_web(WebOptions())


@pytest.fixture
def server(drawn_folder):
    """Serves the drawn scenes below any folder; those below /noai/ with an opt-out, those below /gone/ not at all."""

    def answer(handler):
        folder, name = handler.path.split("/")[1:]
        if folder == "gone":
            handler.reply(404)
        elif folder == "slow":
            time.sleep(0.02 * (12 - int(name[5:7])))  # the first are the last to come
            handler.reply(200, (drawn_folder / name).read_bytes())
        else:
            tag = {"X_Robots_Tag": "noai, noimageai"} if folder == "noai" else {}
            handler.reply(200, (drawn_folder / name).read_bytes(), **tag)

    with odd_server(answer) as running:
        yield running


def listed(path, server, *names):
    path.write_text("".join(f"{server.url}/{name}\n" for name in names))
    return path


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_images_come_many_at_once_and_lie_in_the_lists_order(server, drawn_folder, tmp_path):
    names = [f"scene{number:02d}.jpg" for number in range(12)]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    slow = listed(tmp_path / "list.txt", server, *(f"slow/{name}" for name in names))
    at_once, most, lock = [0], [0], threading.Lock()
    answer = server.answer

    def counted(handler):
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        answer(handler)
        with lock:
            at_once[0] -= 1

    server.answer = counted
    rows, _ = mined(tmp_path / "out", slow)
    assert [row["data"] for row in rows] == [(drawn_folder / name).read_bytes() for name in names]
    assert len(server.asked) == 12
    assert 1 < most[0] <= 4
    mined(tmp_path / "one", slow, web=WebOptions(per_host=1))
    assert files(tmp_path / "out") == files(tmp_path / "one")


def test_an_opt_out_is_a_row_and_no_failure(server, tmp_path):
    images = listed(tmp_path / "list.txt", server, "ok/scene00.jpg", "noai/scene01.jpg", "ok/scene02.jpg")
    rows, report = mined(tmp_path / "out", images, max_failures="0", num_shards=1)
    assert column(rows, "status", "reason")[1] == ("opted_out", "its server asks not to use it (X-Robots-Tag: noai)")
    assert report.manifest.totals["opted_out"] == 1
    asked = len(server.asked)
    mined(tmp_path / "out", images, max_failures="0", num_shards=1, retry_failed=True)
    assert len(server.asked) == asked  # it was no failure, so it is not asked for again
    with pytest.raises(InputError, match="ignore_opt_out null there, true here"):
        mine(MiningConfig(sources=(images,), out=tmp_path / "out", proposals="none", num_shards=1, inline=True,
                          web=WebOptions(ignore_opt_out=True)))  # fmt: skip
    rows, _ = mined(tmp_path / "all", images, max_failures="0", web=WebOptions(ignore_opt_out=True))
    assert [row["status"] for row in rows] == ["no_boxes"] * 3


def test_how_servers_are_asked_leaves_no_trace_in_the_set(server, tmp_path):
    images = listed(tmp_path / "list.txt", server, "ok/scene00.jpg", "gone/scene01.jpg", "ok/scene02.jpg")
    (tmp_path / "headers").write_text(f"Authorization: {SECRET}\n\nX-Key: {SECRET}\n")
    arguments = ["mine", "--src", str(images), "--proposals", "none", "--inline", "--max-failures", "1", "--num-shards", "1"]
    plain = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "plain")])
    told = CliRunner().invoke(
        cli, [*arguments, "--out", str(tmp_path / "told"), "--http-header", f"@{tmp_path / 'headers'}",
              "--http-header", "Accept: image/*", "--user-agent", "mine/1 (me@example.org)", "--per-host", "2"],
    )  # fmt: skip
    assert (plain.exit_code, told.exit_code) == (0, 0), told.output
    assert files(tmp_path / "plain") == files(tmp_path / "told")
    sent = server.asked[-1].headers
    assert {name: sent[name] for name in ("Authorization", "X-Key", "Accept", "User-Agent")} == {
        "Authorization": SECRET, "X-Key": SECRET, "Accept": "image/*", "User-Agent": "mine/1 (me@example.org)"
    }  # fmt: skip
    assert SECRET not in told.output
    again = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "told"), "--json"])
    assert json.loads(again.stdout.splitlines()[-1])["mined"] == 0  # asked in another way it is the same set


@pytest.mark.parametrize(
    "text", ["Authorization", f"Two words: {SECRET}", f": {SECRET}", f"A: {SECRET}\r\nB: c", "@/nowhere"]
)
def test_what_is_no_header_is_wrong_use_and_not_repeated(text, tmp_path):
    done = CliRunner().invoke(cli, ["mine", "--src", "x", "--out", str(tmp_path), "--http-header", text])
    assert done.exit_code == 2
    assert "--http-header" in done.output
    assert SECRET not in done.output


def test_the_bound_of_a_host_is_shared_among_workers():
    from univip_stream.mining.pipeline import _shards_at_once

    def at_once(**place):
        return _shards_at_once(MiningConfig(sources=(), out="x", **place), 64)

    assert at_once(inline=True) == 1
    assert at_once(workers=3) == 3
    assert at_once(workers=100) == 64
    assert at_once(address="auto") == 64  # how many run there is not known here


def test_reading_ahead_stops_with_the_reader(server, monkeypatch):
    """What is on its way when mining fails is called off, rather than waited for."""
    server.answer = lambda handler: handler.reply(503, Retry_After="100")
    images = [SourceImage(source=str(number), path=f"{server.url}/ok/{number}") for number in range(40)]
    reader = ahead.read_ahead(iter(images), lambda image: image)
    threading.Timer(0.3, storage.give_up).start()
    _, read = next(reader)
    with pytest.raises(BaseException):  # noqa: B017, PT011 - its request was called off
        read()
    start = time.monotonic()
    reader.close()
    assert time.monotonic() - start < 5


def test_little_is_read_ahead_of_a_slow_reader(server, monkeypatch):
    """Bytes that wait are bounded, however large images are."""
    monkeypatch.setattr(ahead, "_AHEAD_BYTES", 50_000)
    images = [SourceImage(source=str(n), path=f"{server.url}/ok/scene{n % 12:02d}.jpg") for n in range(48)]
    reader = ahead.read_ahead(iter(images), lambda image: image)
    total = 0
    for number, (image, read) in enumerate(reader):
        assert image.source == str(number)
        total += len(read())
        time.sleep(0.005)
        assert len(server.asked) <= number + 1 + 8
    assert total > 0
    assert len(server.asked) == 48


def test_far_away_images_are_asked_for_by_the_dozen(server, tmp_path, drawn_folder):
    """No answer before forty have been asked for: with fewer at a time the images of far servers would come one by one."""
    together = threading.Barrier(40)

    def answer(handler):
        together.wait(timeout=20)
        handler.reply(200, (drawn_folder / "scene00.jpg").read_bytes())

    server.answer = answer
    images = listed(tmp_path / "list.txt", server, *(f"{number}.jpg" for number in range(80)))
    rows, _ = mined(tmp_path / "out", images, web=WebOptions(per_host=64), num_shards=1)
    assert {row["status"] for row in rows} == {"no_boxes"}


def test_a_slow_image_does_not_stop_those_behind_it(server, tmp_path, drawn_folder):
    others = threading.Semaphore(0)

    def answer(handler):
        if handler.path == "/0.jpg":
            for _ in range(200):
                assert others.acquire(timeout=20)
        else:
            others.release()
        handler.reply(200, (drawn_folder / "scene00.jpg").read_bytes())

    server.answer = answer
    images = listed(tmp_path / "list.txt", server, *(f"{number}.jpg" for number in range(240)))
    # The first image's time limit runs while two hundred others are fetched, on a machine that may be busy.
    rows, _ = mined(tmp_path / "out", images, web=WebOptions(per_host=8, seconds=600), num_shards=1)
    assert [row["source"] for row in rows] == [f"list/{server.url}/{number}.jpg" for number in range(240)]
    assert column((row for row in rows if row["status"] != "no_boxes"), "source", "status", "reason") == []


def test_members_of_a_tar_on_the_web_wait_for_their_turn_too(server, tmp_path, drawn_folder):
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for path in sorted(drawn_folder.iterdir()):
            tar.add(path, path.name)
    data = (tmp_path / "images.tar").read_bytes()
    at_once, most, lock = [0], [0], threading.Lock()

    def answer(handler):
        first, _, last = handler.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if handler.command == "HEAD" or not last:
            handler.reply(200, data)
            return
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.03)
        with lock:
            at_once[0] -= 1
        piece = data[int(first) : int(last) + 1]
        handler.reply(206, piece, Content_Range=f"bytes {first}-{int(first) + len(piece) - 1}/{len(data)}")

    server.answer = answer
    rows, _ = mined(tmp_path / "out", f"{server.url}/images.tar", web=WebOptions(per_host=2), num_shards=1)
    assert [row["data"] for row in rows] == [path.read_bytes() for path in sorted(drawn_folder.iterdir())]
    assert most[0] == 2


def test_local_images_wait_for_their_turn(drawn_folder, tmp_path):
    shutil.copy(drawn_folder / "scene00.jpg", tmp_path / "a.jpg")
    images = [
        SourceImage(source="a", path=str(tmp_path / "a.jpg")),
        None,
        SourceImage(source="b", path=str(tmp_path / "b.jpg")),
    ]
    reader = ahead.read_ahead(iter(images), lambda image: image)
    assert len(next(reader)[1]()) > 0
    assert next(reader)[0] is None
    shutil.copy(drawn_folder / "scene01.jpg", tmp_path / "b.jpg")
    assert next(reader)[1]() == (drawn_folder / "scene01.jpg").read_bytes()


def test_a_dead_server_costs_its_images_and_no_more(server, tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.01)
    with odd_server(lambda handler: None) as dead:
        pass
    (tmp_path / "list.txt").write_text(f"{server.url}/ok/scene00.jpg\n{dead.url}/a.jpg\n{server.url}/ok/scene01.jpg\n")
    rows, _ = mined(tmp_path / "out", tmp_path / "list.txt")
    assert [row["status"] for row in rows] == ["no_boxes", "unreadable", "no_boxes"]
    assert rows[1]["reason"].startswith("ConnectionError: no connection to 127.0.0.1:")
