"""Web servers as they are, asked by the client that mines lists of addresses: real ones on loopback."""

import gzip
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import pytest
from servers import odd_server, self_signed

from univip_stream import storage
from univip_stream.errors import InputError
from univip_stream.storage import message, polite, retry, web
from univip_stream.storage.polite import USER_AGENT, WebOptions, opted_out, seconds_asked

DATA = bytes(range(256)) * 40
MOST = 1 << 20


@pytest.fixture
def server():
    with odd_server(lambda handler: handler.reply(200, DATA)) as running:
        yield running


def image(location, most=MOST):
    return storage.image(location, most)


def test_an_image_costs_one_request_that_says_who_asks(server):
    assert image(f"{server.url}/a%20b.jpg?x=1&y=2") == DATA
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("GET", "/a%20b.jpg?x=1&y=2")
    assert asked.headers["User-Agent"] == USER_AGENT
    assert "univip-stream/" in USER_AGENT
    assert "Range" not in asked.headers


def test_headers_go_to_the_server_that_is_named_and_to_no_other(server):
    storage.use_web(WebOptions(headers=(("Authorization", "Bearer s"), ("X-Key", "k")), user_agent="mine/1"))
    with odd_server(lambda handler: handler.reply(302, Location=f"{server.url}/there", Set_Cookie="a=b")) as first:
        assert image(f"{first.url}/here") == DATA
        assert {name: first.asked[0].headers.get(name) for name in ("Authorization", "X-Key", "User-Agent")} == {
            "Authorization": "Bearer s", "X-Key": "k", "User-Agent": "mine/1"
        }  # fmt: skip
    assert not {"Authorization", "X-Key", "Cookie"} & set(server.asked[0].headers)
    assert "Bearer" not in repr(WebOptions(headers=(("Authorization", "Bearer s"),)))


def test_the_proxy_of_the_environment_is_asked_and_no_proxy_obeyed(server, monkeypatch):
    """Clusters have no other way out. A proxy is asked for the whole address; ours does not reach any server itself."""
    with odd_server(lambda handler: handler.reply(200, b"by proxy")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy")
        assert image(f"{server.url}/a.jpg") == b"by proxy"
        assert image("http://images.invalid/a.jpg") == b"by proxy"
        assert proxy.asked[-1].path == "http://images.invalid/a.jpg"
        assert storage.size_of("http://images.invalid/a.jpg") == len(b"by proxy")
        monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
        assert image(f"{server.url}/a.jpg") == DATA
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ("http://127.0.0.1:1", "no connection to the proxy 127.0.0.1:1 .*http_proxy"),
        ("socks5://127.0.0.1:1", "a proxy of the kind socks5://; expected http://host:port in http_proxy"),
        ("http://[::1", "a proxy of the kind http://; expected http://host:port"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_said(proxy, words, monkeypatch):
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(OSError, match=words):
        image("http://images.invalid/a.jpg")


def test_a_reason_is_one_line(server):
    """The parser's words draw an arrow below the place, over four lines; a row of the index has one."""
    server.answer = lambda handler: handler.reply(200, DATA, Content_Length="abc")
    with pytest.raises(OSError, match="does not answer as web servers do") as caught:
        image(f"{server.url}/a.jpg")
    assert "\n" not in str(caught.value)


def test_retry_after_is_obeyed_and_the_server_left_alone_meanwhile(server):
    """Three images a second, as a limited server has it: all are had, and hardly more requests are made than images."""
    served = []

    def limited(handler):
        now = time.monotonic()
        if len([at for at in served if at > now - 1]) >= 3:
            handler.reply(429, Retry_After="1")
        else:
            served.append(now)
            handler.reply(200, DATA)

    server.answer = limited
    with ThreadPoolExecutor(9) as pool:
        assert list(pool.map(image, [f"{server.url}/{number}" for number in range(9)])) == [DATA] * 9
    assert len(server.asked) <= 9 + 8  # the old way made four requests for each image that came late, and lost it


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_may_be_a_date(server, status):
    said = formatdate(time.time() + 2, usegmt=True)
    server.answer = lambda h: h.reply(200, DATA) if len(server.asked) > 1 else h.reply(status, Retry_After=said)
    assert image(f"{server.url}/a") == DATA
    first, second = server.asked
    assert second.at - first.at > 0.9  # dates have no fractions of a second


def test_what_a_retry_after_can_say():
    assert seconds_asked("120") == 120
    assert 50 < seconds_asked(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert seconds_asked(formatdate(time.time() - 60)) == 0
    assert [seconds_asked(text) for text in (None, "", "soon", "-3", "1e9", "٣")] == [None] * 6


def test_a_server_is_not_waited_for_without_bound(server, monkeypatch):
    server.answer = lambda handler: handler.reply(429, Retry_After="100000")
    with pytest.raises(OSError, match=r"HTTP 429: the server asks to wait 100000 s, longer than is waited for"):
        image(f"{server.url}/a")
    assert len(server.asked) == 1
    monkeypatch.setattr(web, "MOST_WAITED", 1.5)
    monkeypatch.setattr(polite.Host, "busy", lambda self, seconds: None)
    server.answer = lambda handler: handler.reply(503, Retry_After="1")
    with pytest.raises(OSError, match="asks to wait 2 s"):
        image(f"{server.url}/b")
    assert len(server.asked) == 3


@pytest.mark.parametrize(("status", "kind"), [
    (400, OSError), (401, PermissionError), (403, PermissionError), (404, FileNotFoundError), (410, FileNotFoundError),
    (451, OSError), (501, OSError), (204, OSError), (302, OSError),
])  # fmt: skip
def test_what_cannot_pass_is_asked_for_once(server, status, kind):
    server.answer = lambda handler: handler.reply(status)
    with pytest.raises(kind, match=f"HTTP {status}"):
        image(f"{server.url}/a")
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_a_few_times(server, status):
    server.answer = lambda handler: handler.reply(status)
    with pytest.raises(OSError, match=f"HTTP {status}"):
        image(f"{server.url}/a")
    assert len(server.asked) == retry.TRIES
    server.answer = lambda handler: handler.reply(200, DATA) if len(server.asked) % 4 == 0 else handler.reply(status)
    assert image(f"{server.url}/a") == DATA


def test_one_server_is_asked_for_few_images_at_a_time(server):
    storage.use_web(WebOptions(per_host=2))
    lock, at_once, most = threading.Lock(), [0], [0]

    def slowly(handler):
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.05)
        with lock:
            at_once[0] -= 1
        handler.reply(200, DATA)

    server.answer = slowly
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(image, [f"{server.url}/{number}" for number in range(12)])) == [DATA] * 12
    assert most == [2]


@pytest.mark.parametrize(("tags", "word"), [
    (["noai"], "noai"),
    (["nofollow, NoImageAI"], "noimageai"),
    (["all", "noindex"], "noindex"),
    (["noimageindex"], "noimageindex"),
    (["nofollow", "none", "max-snippet: 3"], None),
    (["otherbot: noai, noindex"], None),
    (["otherbot: noindex", "noai"], "noai"),
    (["Univip-Stream: noai"], "noai"),
    (["mine: noindex"], "noindex"),
    (["*: noai"], "noai"),
    (["otherbot: all, univip-stream: noai"], "noai"),
    (["unavailable_after: 25 Jun 2010 15:00:00 PST, noai"], "noai"),
    (["unavailable_after: Friday, 25-Jun-10 15:00:00 PST, noai"], "noai"),
    ([], None),
])  # fmt: skip
def test_which_opt_outs_are_meant_for_us(tags, word):
    """The words are those of img2dataset; a name before them says whom they are meant for, as search engines read it."""
    assert opted_out(tags, "mine/1.0 (me@example.org)") == word


def test_an_image_whose_server_opts_out_is_left_alone(server):
    server.answer = lambda handler: handler.reply(200, DATA, X_Robots_Tag="noai, noimageai")
    with pytest.raises(storage.OptedOutError, match=r"asks not to use it \(X-Robots-Tag: noai\)"):
        image(f"{server.url}/a")
    assert len(server.asked) == 1
    storage.use_web(WebOptions(ignore_opt_out=True))
    assert image(f"{server.url}/a") == DATA


def hang_up(handler):
    handler.close_connection = True


def drip(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.05)


def test_an_image_that_drips_has_a_time_limit(server):
    storage.use_web(WebOptions(seconds=0.4))
    server.answer = drip
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"it takes longer than 0\.4 s"):
        image(f"{server.url}/a")
    assert time.monotonic() - start < 5
    assert len(server.asked) == 1


def test_the_time_limit_is_for_all_tries_and_not_for_waits_that_are_asked_for(server):
    storage.use_web(WebOptions(seconds=0.5))
    server.answer = lambda h: h.reply(200, DATA) if len(server.asked) > 1 else h.reply(503, Retry_After="1")
    assert image(f"{server.url}/a") == DATA
    server.answer = lambda handler: (time.sleep(0.3), handler.reply(500))
    with pytest.raises(TimeoutError, match=r"longer than 0\.5 s"):
        image(f"{server.url}/b")


def test_a_shard_that_drips_is_an_error_too(server, monkeypatch, tmp_path):
    monkeypatch.setattr(message, "SILENCE", 0.3)
    server.answer = drip
    with pytest.raises(TimeoutError, match="the server is silent, or all but silent"):
        storage.copy_in(f"{server.url}/000.tar", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("first", [0.3, 60])
def test_how_long_a_server_may_be_silent_does_not_depend_on_earlier_requests(first, server, monkeypatch):
    monkeypatch.setattr(message, "SILENCE", first)
    server.answer = lambda handler: handler.reply(200, DATA)
    assert storage.read(f"{server.url}/a") == DATA
    monkeypatch.setattr(message, "SILENCE", 60.3 - first)
    server.answer = lambda handler: (time.sleep(0.8), handler.reply(200, DATA))
    if first < 1:
        assert storage.read(f"{server.url}/a") == DATA
    else:
        with pytest.raises(TimeoutError, match="the server is silent"):
            storage.read(f"{server.url}/a")


def test_a_body_without_end_is_read_as_far_as_an_image_may_reach(server):
    def endless(handler):
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(1 << 16))

    server.answer = endless
    with pytest.raises(storage.TooLongError):
        image(f"{server.url}/a")
    server.answer = lambda handler: handler.reply(200, b"", Content_Length=str(MOST + 1))
    with pytest.raises(storage.TooLongError):
        image(f"{server.url}/a")
    assert storage.read(f"{server.url}/a", 0, 0) == b""


def test_a_length_that_is_a_lie_is_no_image(server):
    server.answer = lambda handler: (
        handler.reply(200, DATA[:500], Content_Length=str(len(DATA))),
        hang_up(handler),
    )
    with pytest.raises(ConnectionError, match=r"the answer ends before its end .*500 of 10240"):
        image(f"{server.url}/a")
    assert len(server.asked) == retry.TRIES


def test_a_server_that_compresses_unasked(server):
    packed = gzip.compress(DATA)
    server.answer = lambda handler: handler.reply(200, packed, Content_Encoding="gzip")
    assert image(f"{server.url}/a") == DATA
    assert server.asked[0].headers["Accept-Encoding"] == "identity"
    server.answer = lambda handler: handler.reply(
        206, packed[10:20], Content_Encoding="gzip", Content_Range=f"bytes 10-19/{len(packed)}"
    )
    with pytest.raises(OSError, match=r"asked for bytes from 10 on, the server sends .*gzip"):
        storage.read(f"{server.url}/a", 10, 10)


def test_a_server_that_sends_another_range(server):
    server.answer = lambda handler: handler.reply(206, DATA[:10], Content_Range="bytes 0-9/10240")
    with pytest.raises(OSError, match="asked for bytes from 100 on, the server sends 'bytes 0-9/10240'"):
        storage.read(f"{server.url}/a", 100, 10)


@pytest.mark.parametrize("range_too", [False, True])
def test_a_signed_address_that_allows_no_head_has_a_size(server, range_too):
    def signed(handler):
        if handler.command == "HEAD":
            handler.reply(403)
        elif range_too:
            handler.reply(206, DATA[:1], Content_Range=f"bytes 0-0/{len(DATA)}")
        else:
            handler.reply(200, DATA)

    server.answer = signed
    assert storage.size_of(f"{server.url}/a") == len(DATA)
    assert len(server.asked) == 2


@pytest.mark.parametrize(("target", "says"), [
    ("/a", r"redirects more than 10 times, at last to .*/a"),
    ("file:///etc/passwd", "redirects to file:///etc/passwd, which is not read"),
    ("ftp://127.0.0.1/x", "redirects to ftp://127.0.0.1/x, which is not read"),
])  # fmt: skip
def test_redirects_lead_to_web_servers_and_to_an_end(server, target, says):
    server.answer = lambda handler: handler.reply(302, Location=target)
    with pytest.raises(OSError, match=says):
        image(f"{server.url}/a")
    assert len(server.asked) <= 11


def test_certificates_are_checked(tmp_path, server):
    certificate = self_signed(tmp_path / "self.pem")
    with odd_server(lambda handler: handler.reply(200, DATA), certificate) as secure:
        with pytest.raises(ConnectionError, match=r"certificate is not trusted \(self-signed certificate\); SSL_CERT_FILE"):
            image(f"{secure.url}/a")
        assert secure.asked == []
    with pytest.raises(ConnectionError, match="no encrypted connection to 127"):
        image(f"{server.url}/a".replace("http:", "https:"))


def test_names_and_addresses_that_nobody_has(server):
    with pytest.raises(ConnectionError, match=r"the name of its server, nowhere\.invalid, is not found"):
        image("http://nowhere.invalid/a")
    for location in ("http://", "http:///a", "http://127.0.0.1:99999/a", "http://a b/c"):
        said = r"no address that can be asked for|is not found|no connection|names no host"
        with pytest.raises((OSError, InputError), match=said):
            image(location)


def test_what_is_no_web_server(server):
    server.answer = lambda handler: (handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n"), hang_up(handler))
    with pytest.raises(OSError, match="does not answer as web servers do"):
        image(f"{server.url}/a")


@pytest.mark.parametrize("ranges", [True, False])
def test_an_opened_file_can_be_read_from_anywhere(server, ranges):
    def answer(handler):
        first = int((handler.headers.get("Range") or "=0-")[6:].partition("-")[0] or 0) if ranges else 0
        if first:
            handler.reply(206, DATA[first:], Content_Range=f"bytes {first}-{len(DATA) - 1}/{len(DATA)}")
        else:
            handler.reply(200, DATA)

    server.answer = answer
    with storage.opened(f"{server.url}/a") as file:
        assert file.seek(-10, io.SEEK_END) == len(DATA) - 10
        assert file.read() == DATA[-10:]
        file.seek(100)
        assert file.read(20) == DATA[100:120]
        file.seek(0)
        assert file.read() == DATA
    for read in server.asked:
        assert read.method == "HEAD" or ("Range" in read.headers) or read.path == "/a"


def test_who_waits_can_be_called_off(server):
    server.answer = lambda handler: handler.reply(429, Retry_After="200")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(image, f"{server.url}/a")
        while not server.asked:
            time.sleep(0.01)
        time.sleep(0.1)
        storage.give_up()
        start = time.monotonic()
    assert time.monotonic() - start < 5
    assert waiting.exception() is not None
