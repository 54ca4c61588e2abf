"""Whatever is wrong with a remote place, every command that takes one says it in a sentence and leaves with 1."""

import os
import threading
import time

import pytest
from click.testing import CliRunner
from servers import BUCKET, odd_server, s3_server, self_signed

from univip_stream import storage
from univip_stream.cli import cli
from univip_stream.storage import message, retry, web

COMMANDS = {
    "mine": ["mine", "--src", "{}", "--out", "out", "--inline", "--proposals", "none"],
    "mine out": ["mine", "--src", "{images}", "--out", "{}", "--inline", "--proposals", "none"],
    "train": ["train", "--shards", "{}", "--out", "out", "--recipe", "cpu-demo", "--steps", "1"],
    "verify": ["verify", "{}", "--inline"],
    "refilter": ["refilter", "{}", "--out", "out", "--inline"],
    "inspect": ["inspect", "{}"],
    "embed": ["embed", "{run}", "{}", "--out", "out.parquet", "--workers", "0"],
    "export boxes": ["export", "boxes", "{}", "--format", "soco", "--out", "out.json"],
    "knn": ["eval", "knn", "{run}", "--train", "{}", "--val", "{}", "--workers", "0"],
    "import": ["import", "boxes", "{}/x.json", "--format", "soco", "--src", "{images}", "--out", "out", "--inline"],
}


def end_client():
    """Have the next request begin a client of its own."""
    if client := web._clients.pop(os.getpid(), None):
        client.close()
        while client._loop.is_running():
            time.sleep(0.001)
        client._loop.close()


@pytest.fixture(autouse=True)
def few_short_tries(monkeypatch):
    monkeypatch.setattr(retry, "TRIES", 1)
    monkeypatch.setattr(message, "SILENCE", 0.3)
    end_client()  # one that another test began waits as long as was said then: a minute for each server that is silent
    yield
    end_client()


@pytest.fixture(scope="module")
def bucket():
    with s3_server():
        yield f"s3://{BUCKET}"


ANSWERS = {
    "certificate": (lambda handler: None, "not trusted"),
    "nobody": (lambda handler: None, "no connection to"),
    "loop": (lambda handler: handler.reply(302, Location=handler.path), "redirects more than 10 times"),
    "elsewhere": (lambda handler: handler.reply(301, Location="file:///etc/passwd"), "which is not read"),
    "refuses": (lambda handler: handler.reply(500), "HTTP 500"),
    "gone": (lambda handler: handler.reply(404), ""),
    "denied": (lambda handler: handler.reply(403), ""),
    "page": (lambda handler: handler.reply(200, b"<html>welcome</html>"), ""),
    "silent": (lambda handler: handler.server.done.wait(1), ""),
    "short": (
        lambda handler: (handler.reply(200, b"{", Content_Length="100"), setattr(handler, "close_connection", True)),
        "",
    ),
}


def said(name, place, drawn_folder, run_folder, tmp_path, monkeypatch):
    """What a command prints about a place, having left with 1 and without a traceback."""
    monkeypatch.chdir(tmp_path)
    arguments = [text.format(place, images=drawn_folder, run=run_folder) for text in COMMANDS[name]]
    done = CliRunner().invoke(cli, arguments)
    assert isinstance(done.exception, SystemExit), done.exc_info
    assert done.exit_code == 1, done.output
    assert "error: " in done.output, done.output
    assert "Traceback" not in done.output
    return done.output[done.output.index("error: ") :]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_bucket_that_does_not_exist(name, bucket, drawn_folder, run_folder, tmp_path, monkeypatch):
    text = said(name, "s3://elsewhere/shards", drawn_folder, run_folder, tmp_path, monkeypatch)
    assert "there is no bucket 'elsewhere'" in text
    assert text.count("s3://elsewhere") <= 2


@pytest.mark.parametrize("name", COMMANDS)
def test_an_endpoint_without_its_scheme(name, bucket, drawn_folder, run_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
    text = said(name, "s3://some/shards", drawn_folder, run_folder, tmp_path, monkeypatch)
    assert "AWS_ENDPOINT_URL is '127.0.0.1:9000'; expected a web address" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_with_an_empty_name(name, bucket, drawn_folder, run_folder, tmp_path, monkeypatch):
    text = said(name, f"{bucket}//shards", drawn_folder, run_folder, tmp_path, monkeypatch)
    assert "a path has no part that is empty" in text


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("name", ["mine", "train", "verify", "refilter", "inspect", "embed", "export boxes"])
def test_web_servers_that_give_no_shards(name, kind, drawn_folder, run_folder, tmp_path, monkeypatch):
    answer, expected = ANSWERS[kind]
    certificate = self_signed(tmp_path / "self.pem") if kind == "certificate" else None
    with odd_server(answer, certificate) as server:
        server.done = threading.Event()
        ending = "/list.txt" if name == "mine" else "/000.tar" if name in ("train", "inspect") else "/shards"
        if kind == "nobody":
            server.server_close()
        text = said(name, server.url + ending, drawn_folder, run_folder, tmp_path, monkeypatch)
        server.done.set()
    assert expected in text
    assert server.url.partition("://")[2] in text or (name, kind) == ("mine", "page")  # a page is a list of strange names


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from univip_stream.cli import main
main()
"""
"""A command whose files may not grow beyond 20 kB: what a full disk is to it, without a disk."""


@pytest.mark.parametrize("arguments", [
    ["verify", "{}", "--inline"],
    ["refilter", "{}", "--out", "out", "--inline"],
    ["embed", "{run}", "{}", "--out", "out.parquet", "--workers", "0", "--device", "cpu"],
])  # fmt: skip
def test_a_disk_that_is_full_is_not_taken_for_a_server_that_is_down(
    arguments, bucket, drawn_shards, run_folder, tmp_path, warm
):
    for path in drawn_shards.iterdir():
        if path.is_file() and not path.name.startswith("."):
            storage.copy_out(path, f"{bucket}/full/{path.name}")
    words = [text.format(f"{bucket}/full", run=run_folder) for text in arguments]
    done = warm.run(["-c", LIMITED, *words], env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    cures = {
        "verify": "make room there, or name another folder",  # of temporary files
        "refilter": "Make room, then run the same command again",
        "embed": "make room, set stream.cache_bytes lower",
    }
    assert cures[arguments[0]] in done.stderr
    assert "000." in done.stderr
    if arguments[0] == "embed":
        assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix == ".tmp"]
