"""Object stores that refuse, lack or name things oddly: a real S3 protocol server, and servers that are none."""

import os
import subprocess
import sys
import threading
import urllib.request

import boto3
import pytest
from servers import BUCKET, odd_server, of_private_authority, s3_server, self_signed, tls_in_front

from univip_stream import storage
from univip_stream.errors import InputError
from univip_stream.shards.verify import verify_folder
from univip_stream.storage import objects, retry

DATA = bytes(range(256)) * 40


@pytest.fixture
def endpoint():
    with s3_server() as running:
        yield running


@pytest.fixture
def asks(monkeypatch):
    """Make the variables of the environment name another server."""

    def asks(endpoint):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)

    return asks


@pytest.mark.parametrize("keys", [
    ["/double.jpg", "ok.jpg"],
    ["a//b.jpg", "a//c//d.jpg", "a/x.jpg", "ok.jpg"],
    ["/", "ok.jpg"],
    ["///deep.jpg", "a/ok.jpg"],
    ["./dot.jpg", "../up.jpg"],
])  # fmt: skip
def test_every_key_is_listed_whatever_its_slashes(endpoint, keys):
    for key in keys:
        boto3.client("s3").put_object(Bucket=BUCKET, Key=f"odd/{key}", Body=b"" if key.endswith("/") else DATA)
    found = list(storage.files_below(f"s3://{BUCKET}/odd"))
    assert found == [(key, len(DATA)) for key in sorted(keys, key=str.encode) if not key.endswith("/")]
    assert set(storage.names_in(f"s3://{BUCKET}/odd")) >= {key for key in keys if "/" not in key}
    for path, _ in found:
        location = storage.join(f"s3://{BUCKET}/odd", path)
        if not storage.is_odd(path):
            assert storage.read(location) == DATA
            continue
        for reading in (storage.read, storage.size_of, lambda where: storage.image(where, 1 << 20)):
            with pytest.raises(InputError, match=r"a path has no part that is empty, '\.' or '\.\.'"):
                reading(location)


def test_a_bucket_that_does_not_exist_is_not_an_empty_one(endpoint, tmp_path):
    (tmp_path / "file").write_bytes(DATA)
    calls = [
        lambda: list(storage.files_below("s3://elsewhere/a")),
        lambda: list(storage.names_in("s3://elsewhere")),
        lambda: storage.size_of("s3://elsewhere/a"),
        lambda: storage.write("s3://elsewhere/a", DATA),
        lambda: storage.copy_out(tmp_path / "file", "s3://elsewhere/a"),
    ]
    for call in calls:
        with pytest.raises(OSError, match=r"s3://elsewhere.*: there is no bucket 'elsewhere'; asked was http://127"):
            call()
    assert list(storage.files_below(f"s3://{BUCKET}/nothing")) == []
    assert storage.size_of(f"s3://{BUCKET}/nothing") is None


@pytest.fixture
def guarded(endpoint, monkeypatch):
    """A server that checks keys, with a file for all and one for its owner."""
    for name, acl in (("public.jpg", "public-read"), ("private.jpg", "private")):
        boto3.client("s3").put_object(Bucket=BUCKET, Key=f"some/{name}", Body=DATA, ACL=acl)

    def check(after):
        # Numbers of calls that go unchecked: the server's way to begin.
        headers = {"Content-Type": "application/octet-stream"}
        request = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", after.encode(), headers, method="POST")
        urllib.request.urlopen(request).close()

    yield check
    check("inf")


def test_wrong_keys_are_said_at_once_with_what_sets_them(guarded, monkeypatch):
    guarded("0")
    monkeypatch.setattr(retry, "TRIES", 1_000_000)  # a second try would have no end
    for call in (
        lambda: list(storage.files_below(f"s3://{BUCKET}/some")),
        lambda: storage.read(f"s3://{BUCKET}/some/private.jpg"),
        lambda: storage.write(f"s3://{BUCKET}/some/new", DATA),
        lambda: storage.size_of(f"s3://{BUCKET}/some/private.jpg"),
    ):
        with pytest.raises(
            PermissionError, match=r"the store refuses it \([A-Z_]+: .*AWS_ACCESS_KEY_ID.*AWS_NO_SIGN_REQUEST"
        ):
            call()


@pytest.mark.parametrize("said", ["YES", "true", BUCKET, f"other, {BUCKET}"])
def test_public_files_are_read_without_keys(endpoint, guarded, monkeypatch, said):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", said)
    assert storage.read(f"s3://{BUCKET}/some/public.jpg") == DATA
    assert [name for name, _ in storage.files_below(f"s3://{BUCKET}/some")] == ["private.jpg", "public.jpg"]
    with pytest.raises(PermissionError, match="the store refuses it"):
        storage.read(f"s3://{BUCKET}/some/private.jpg")


def test_keys_may_sign_for_one_bucket_and_not_for_another(endpoint, guarded, monkeypatch):
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "elsewhere")
    assert storage.read(f"s3://{BUCKET}/some/private.jpg") == DATA


def test_a_public_bucket_of_google_is_asked_without_keys(monkeypatch):
    from pyarrow.fs import GcsFileSystem

    monkeypatch.setenv("GS_NO_SIGN_REQUEST", "YES")
    assert objects._store("gs://some/file")[0] == GcsFileSystem(anonymous=True)


@pytest.mark.parametrize("said", ["127.0.0.1:9000", "s3.example.org", "ftp://host", "http://", "://x"])
def test_an_endpoint_that_is_no_address_is_said(asks, said):
    asks(said)
    for call in (lambda: storage.read("s3://some/file"), lambda: list(storage.files_below("s3://some"))):
        with pytest.raises(InputError, match=r"AWS_ENDPOINT_URL is '.*'; expected a web address such as https://"):
            call()


def test_threads_that_read_the_first_images_together_share_a_client(asks):
    asks("http://127.0.0.1:9")
    objects._client.cache_clear()
    together, made = threading.Barrier(8), []

    def ask(number):
        together.wait()
        made.append(objects._store(f"s3://{BUCKET}/{number}")[0])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(client) for client in made}) == 1


def test_a_server_that_nobody_runs(asks, monkeypatch):
    monkeypatch.setattr(retry, "TRIES", 1)  # pyarrow has tries of its own
    with odd_server(lambda handler: None) as server:
        pass
    asks(server.url)
    with pytest.raises(
        ConnectionError, match=r"no connection to the store \(.*; asked was http://127.0.0.1:\d+ \(AWS_ENDPOINT"
    ):
        storage.size_of("s3://some/file")


def test_a_name_that_nobody_has(asks, monkeypatch):
    monkeypatch.setattr(retry, "TRIES", 1)  # pyarrow has tries of its own
    asks("http://nowhere.invalid")
    with pytest.raises(ConnectionError, match=r"the name of the store's server is not found .*nowhere\.invalid"):
        storage.read("s3://some/file")


def test_a_certificate_that_is_not_trusted(asks, tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "TRIES", 1)
    with odd_server(lambda handler: handler.reply(200), self_signed(tmp_path / "self.pem")) as server:
        asks(server.url)
        with pytest.raises(ConnectionError, match=r"certificate is not trusted.*SSL_CERT_FILE"):
            storage.read("s3://some/file")


def test_a_bucket_of_another_region(asks):
    """As Amazon's servers say it."""
    body = (
        b'<?xml version="1.0"?><Error><Code>PermanentRedirect</Code><Message>The bucket you are attempting to access must '
        b"be addressed using the specified endpoint.</Message></Error>"
    )

    def elsewhere(handler):
        handler.reply(301, body, x_amz_bucket_region="eu-west-1")

    with odd_server(elsewhere) as server:
        asks(server.url)
        for call in (lambda: storage.read("s3://some/file"), lambda: list(storage.files_below("s3://some/folder"))):
            before = len(server.asked)
            with pytest.raises(OSError, match="the bucket lies in another region than asked for; set AWS_REGION"):
                call()
            assert len(server.asked) == before + 1


def test_a_store_with_an_authority_of_its_own(drawn_folder, tmp_path):
    """Mined over TLS into a store whose certificate only a private authority vouches for, as the two variables name it."""
    authority, certificate = of_private_authority(tmp_path)
    with s3_server() as endpoint, tls_in_front(endpoint, certificate) as secure:

        def mined(out, **variables):
            command = [
                "mine",
                "--src",
                str(drawn_folder),
                "--out",
                out,
                "--proposals",
                "naive",
                "--num-shards",
                "3",
                "--inline",
            ]
            environment = {
                name: value for name, value in os.environ.items() if name not in ("SSL_CERT_FILE", "AWS_CA_BUNDLE")
            }
            words = [sys.executable, "-m", "univip_stream", *command]
            environment |= {"AWS_ENDPOINT_URL": secure, **variables}
            return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)

        refused = mined(f"s3://{BUCKET}/none")
        assert refused.returncode == 1
        assert "certificate is not trusted" in refused.stderr
        assert "SSL_CERT_FILE or AWS_CA_BUNDLE" in refused.stderr
        of_another, own = str(self_signed(tmp_path / "another.pem")), str(authority)
        for number, variables in enumerate(
            (
                {"SSL_CERT_FILE": own},
                {"AWS_CA_BUNDLE": own},
                {"SSL_CERT_FILE": own, "AWS_CA_BUNDLE": of_another},
                {"SSL_CERT_FILE": of_another, "AWS_CA_BUNDLE": own, "TMPDIR": str(tmp_path)},
            )
        ):
            out = f"s3://{BUCKET}/set{number}"
            done = mined(out, **variables)
            assert done.returncode == 0, done.stderr
            assert verify_folder(out) == []  # read without TLS: the store is the same
        assert not list(tmp_path.glob("univip-stream-*"))
        wrong = mined(f"s3://{BUCKET}/none", AWS_CA_BUNDLE="/nowhere.pem")
        assert (wrong.returncode, "AWS_CA_BUNDLE is '/nowhere.pem'; expected a file of certificates" in wrong.stderr) == (
            1,
            True,
        )


def test_no_client_is_left_when_pyarrow_finalizes_s3(tmp_path):
    """It waits for ever, now and then, while one of its file systems is alive."""
    code = f"""
import atexit
from pyarrow import fs
from univip_stream import storage
from univip_stream.storage import objects
atexit.register(lambda: print("at the end", objects._client.cache_info().currsize))  # between pyarrow's function and ours
storage.write("s3://{BUCKET}/a", b"1")
print("before", objects._client.cache_info().currsize)
"""
    with s3_server():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "before 1\nat the end 0\n", done.stderr
