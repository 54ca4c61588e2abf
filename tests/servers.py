"""Real servers on loopback for the tests: an S3 protocol server, and a web server that can serve ranges or break."""

import functools
import http.server
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

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
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()
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
