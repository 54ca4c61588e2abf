"""Real servers on loopback for the tests: an S3 protocol server, and web servers that can serve ranges, break, or be odd."""

import contextlib
import datetime
import functools
import http.server
import ipaddress
import socket
import socketserver
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import boto3
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from moto.server import ThreadedMotoServer

from univip_stream.storage import limit

BUCKET = "bucket"


@contextmanager
def s3_server() -> Iterator[str]:
    """A running S3 server with one empty bucket; gives its endpoint, and sets the environment that clients look at."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        # What servers of this process held before is held by all of them.
        # An opener of its own: the common one keeps the proxies that a test had set when it was first used.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        direct.open(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ACCESS_KEY_ID", "test")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.setenv("AWS_ENDPOINT_URL", endpoint)
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield endpoint
    finally:
        server.stop()


class WebHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; ranges where the server says so; the next `server.failures` requests get a 503."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.server.failures > 0:
            self.server.failures -= 1
            self.send_error(503)
            return
        wanted = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if not (wanted and self.server.ranges and path.is_file()):
            super().do_GET()
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        data = path.read_bytes()
        if int(first) >= len(data):
            self.send_error(416)
            return
        piece = data[int(first) : int(last) + 1 if last else None]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(piece) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(piece)))
        self.end_headers()
        self.wfile.write(piece)

    def end_headers(self) -> None:
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        super().end_headers()


class WebServer(http.server.ThreadingHTTPServer):
    """`failures` and `ranges` may be set while it runs."""

    daemon_threads = True
    ranges = True
    failures = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def web_server(folder: Path) -> Iterator[WebServer]:
    """A web server of a folder on a free port."""
    server = WebServer(("127.0.0.1", 0), functools.partial(WebHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Asked(NamedTuple):
    """A request that a server got."""

    at: float
    """By `time.monotonic`."""
    method: str
    path: str
    headers: dict[str, str]


class OddHandler(http.server.BaseHTTPRequestHandler):
    """Answers as the server's `answer` does: a function of the handler, which has `reply`, `path` and `wfile`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(Asked(time.monotonic(), self.command, self.path, dict(self.headers)))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):  # who asked may leave at any time
            self.server.answer(self)

    do_HEAD = do_GET

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send a whole answer; underscores in the headers' names are hyphens."""
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class OddServer(http.server.ThreadingHTTPServer):
    """`answer` may be set while it runs; `asked` are the requests so far."""

    daemon_threads = True
    request_queue_size = 64
    scheme = "http"

    def __init__(self, answer: Callable[[OddHandler], None]):
        super().__init__(("127.0.0.1", 0), OddHandler)
        self.answer = answer
        self.asked: list[Asked] = []
        self._connections: set[socket.socket] = set()

    def process_request(self, request: socket.socket, client_address: object) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """End open connections too: a client would keep one, and a later server at this port be answered for by this one."""
        super().server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that does not trust our certificate leaves in the middle


@contextmanager
def odd_server(answer: Callable[[OddHandler], None], certificate: Path | None = None) -> Iterator[OddServer]:
    """A web server that does what it is told, on a free port; over TLS with a file of certificate and key."""
    server = OddServer(answer)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.scheme = "https"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def dripping(endpoint: str, drips: Callable[[str], bool]) -> Iterator[OddServer]:
    """A server in front of another for reading: of the paths that `drips` names it sends a byte now and then, without end.

    When it ends, so do the requests that were left to it.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def answer(handler: OddHandler) -> None:
        if ended.is_set():
            handler.reply(403)
            return
        request = urllib.request.Request(endpoint + handler.path, headers=dict(handler.headers), method=handler.command)
        try:
            with direct.open(request) as found:
                status, headers, body = found.status, dict(found.headers), found.read()
        except urllib.error.HTTPError as error:
            status, headers, body = error.code, dict(error.headers), error.read()
        kept = {name: value for name, value in headers.items() if name.lower() not in ("connection", "date", "server")}
        if handler.command == "HEAD" or not drips(handler.path.partition("?")[0]):
            handler.reply(status, body, **{"_".join(name.title().split("-")): value for name, value in kept.items()})
            return
        handler.send_response(status)
        for name, value in kept.items():
            handler.send_header(name, value)
        handler.end_headers()
        for byte in body[:-1]:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            if ended.wait(0.05):
                handler.close_connection = True
                return

    ended = threading.Event()
    with odd_server(answer) as running:
        try:
            yield running
        finally:
            ended.set()
            for thread in list(limit._left_behind):
                thread.join(60)


@contextmanager
def tls_in_front(endpoint: str, certificate: Path) -> Iterator[str]:
    """An address that speaks TLS with a file of certificate and key, and hands everything on to a server that does not."""
    host, _, port = endpoint.removeprefix("http://").rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def copied(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):  # a client that does not trust the certificate leaves
                client = context.wrap_socket(self.request, server_side=True)
                with client, socket.create_connection((host, int(port))) as server:
                    back = threading.Thread(target=copied, args=(server, client), daemon=True)
                    back.start()
                    copied(client, server)
                    back.join()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"https://127.0.0.1:{running.server_address[1]}"
        finally:
            running.shutdown()
            thread.join()


def of_private_authority(folder: Path) -> tuple[Path, Path]:
    """(the certificate of an authority that nobody knows, a file with key and certificate for 127.0.0.1 that it vouches for)."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("an authority of our own", "127.0.0.1")]
    now = datetime.datetime.now(datetime.UTC)
    made = []
    for key, name, authority in zip(keys, names, (True, False), strict=True):
        builder = (
            x509.CertificateBuilder().subject_name(name).issuer_name(names[0]).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )  # fmt: skip
        if not authority:
            address = x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        made.append(builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    secret = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "authority.pem").write_bytes(made[0])
    (folder / "server.pem").write_bytes(secret + made[1])
    return folder / "authority.pem", folder / "server.pem"


def self_signed(path: Path) -> Path:
    """A file with a key and a certificate for 127.0.0.1 that nobody else vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
    return path
