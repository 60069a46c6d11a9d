"""Downloads over real HTTP: resumed, bounded, checked, and every failure named."""

from __future__ import annotations

import hashlib
import http.server
import itertools
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.agent.download import DownloadPolicy, download
from edge_sdk.agent.http import HttpStatus, Limits, basic_auth, post_json, stream
from edge_sdk.backoff import Backoff
from edge_sdk.errors import SyncError, TrustError, UsageError

DATA = random.Random(7).randbytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()
QUICK = Limits(stall_s=0.5, head_s=1.0, min_rate=2000.0, rate_window_s=0.5, total_s=10.0)
POLICY = DownloadPolicy(attempts=3, backoff=Backoff(first_s=0.01, max_s=0.01), limits=QUICK)
Answer = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers each request with the next function of the server's script, the last one again and again."""

    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(dict(self.headers))
        script = self.server.script
        (script.pop(0) if len(script) > 1 else script[0])(self)

    do_POST = do_GET

    def head(self, status: int, **headers: Any) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Answer] = []
        self.requests: list[dict[str, str]] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/artifacts/{SHA}"

    def handle_error(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def ranged(h: Handler) -> None:
    """What a good server does."""
    start = int(h.headers["Range"][6:-1]) if "Range" in h.headers else 0
    if start >= len(DATA):
        h.head(416, Content_Length=0)
    elif start:
        h.head(206, Content_Length=len(DATA) - start, Content_Range=f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")
        h.wfile.write(DATA[start:])
    else:
        h.head(200, Content_Length=len(DATA))
        h.wfile.write(DATA)


def truncated(h: Handler) -> None:
    start = int(h.headers["Range"][6:-1]) if "Range" in h.headers else 0
    h.head(206 if start else 200, Content_Length=len(DATA) - start,
           Content_Range=f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")  # fmt: skip
    h.wfile.write(DATA[start : start + 100_000])


def whole(h: Handler) -> None:
    h.head(200, Content_Length=len(DATA))
    h.wfile.write(DATA)


def wrong(h: Handler) -> None:
    h.head(200, Content_Length=len(DATA))
    h.wfile.write(DATA[:-1] + b"!")


def endless(h: Handler) -> None:
    h.head(200)
    while not h.server.over.is_set():
        h.wfile.write(b"x" * 65536)


def larger(h: Handler) -> None:
    h.head(200, Content_Length=10**12)


def drip(h: Handler) -> None:
    h.head(200, Content_Length=len(DATA))
    for byte in DATA:
        h.wfile.write(bytes([byte]))
        h.wfile.flush()
        if h.server.over.wait(0.05):
            return


def silence(h: Handler) -> None:
    h.head(200, Content_Length=len(DATA))
    h.server.over.wait(20)


def drip_headers(h: Handler) -> None:
    h.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not h.server.over.wait(0.05):
        h.wfile.write(b"X-A: b\r\n")


def status(code: int) -> Answer:
    return lambda h: h.head(code, Content_Length=0)


def fetch(server: Server, folder: Path, *script: Answer, size: int = len(DATA), **more: Any) -> Path:
    server.script = list(script)
    return download(server.url, folder / "artifact.edge", size=size, sha256=SHA, policy=POLICY, **more)


def test_a_good_download_is_complete_and_leaves_no_part(server: Server, tmp_path: Path) -> None:
    path = fetch(server, tmp_path, ranged, headers=basic_auth("cam-1", "secret"))
    assert path.read_bytes() == DATA
    assert [p.name for p in tmp_path.iterdir()] == ["artifact.edge"]
    assert server.requests[0]["Authorization"] == "Basic Y2FtLTE6c2VjcmV0"


def test_a_download_that_is_cut_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    assert fetch(server, tmp_path, truncated, truncated, ranged).read_bytes() == DATA
    assert [r.get("Range") for r in server.requests] == [None, "bytes=100000-", "bytes=200000-"]


def test_a_part_of_an_earlier_life_is_continued(server: Server, tmp_path: Path) -> None:
    (tmp_path / "artifact.edge.part").write_bytes(DATA[:250_000])
    assert fetch(server, tmp_path, ranged).read_bytes() == DATA
    assert server.requests[0]["Range"] == "bytes=250000-"


def test_a_part_that_the_power_cut_tore_is_thrown_away_once(server: Server, tmp_path: Path) -> None:
    (tmp_path / "artifact.edge.part").write_bytes(bytes(250_000))
    assert fetch(server, tmp_path, ranged).read_bytes() == DATA
    assert [r.get("Range") for r in server.requests] == ["bytes=250000-", None]


def test_a_part_that_is_complete_or_too_long_needs_no_trust_in_its_length(server: Server, tmp_path: Path) -> None:
    (tmp_path / "artifact.edge.part").write_bytes(DATA)
    assert fetch(server, tmp_path, status(500)).read_bytes() == DATA
    assert server.requests == []
    (tmp_path / "artifact.edge.part").write_bytes(DATA + b"more")
    assert fetch(server, tmp_path, ranged).read_bytes() == DATA


def test_a_server_without_ranges_starts_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "artifact.edge.part").write_bytes(DATA[:1000])
    assert fetch(server, tmp_path, whole).read_bytes() == DATA


def test_a_range_that_the_server_cannot_give_starts_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "artifact.edge.part").write_bytes(DATA[:1000])
    assert fetch(server, tmp_path, status(416), ranged).read_bytes() == DATA
    (tmp_path / "artifact.edge.part").write_bytes(DATA[:1000])

    def other_range(h: Handler) -> None:
        h.head(206, Content_Length=10, Content_Range=f"bytes 5-14/{len(DATA)}")
        h.wfile.write(DATA[5:15])

    assert fetch(server, tmp_path, other_range, ranged).read_bytes() == DATA


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (truncated, SyncError, None),
        (wrong, TrustError, r"has SHA-256 .*, expected"),
        (endless, SyncError, "sent more than the 300000 bytes expected"),
        (larger, SyncError, "announces 1000000000000 bytes, expected 300000"),
        (drip, SyncError, "sends fewer than 2000 bytes/s"),
        (silence, SyncError, "no answer in time"),
        (drip_headers, SyncError, "http://127"),
        (status(500), SyncError, "answered 500"),
        (status(404), SyncError, "answered 404"),
        (status(401), SyncError, "answered 401"),
    ],
)
def test_what_a_bad_server_does_is_named_and_never_installed(
    server: Server, tmp_path: Path, answer: Answer, kind: type[Exception], message: str | None
) -> None:
    if message is None:
        server.script = [answer]
        policy = DownloadPolicy(attempts=2, backoff=POLICY.backoff, limits=QUICK)
        with pytest.raises(SyncError, match="ended after 200000 of 300000 bytes"):
            download(server.url, tmp_path / "artifact.edge", size=len(DATA), sha256=SHA, policy=policy)
    else:
        with pytest.raises(kind, match=message):
            fetch(server, tmp_path, answer)
    assert not (tmp_path / "artifact.edge").exists()


def test_refusals_are_not_repeated_and_failures_are(server: Server, tmp_path: Path) -> None:
    with pytest.raises(HttpStatus):
        fetch(server, tmp_path, status(404))
    assert len(server.requests) == 1
    assert fetch(server, tmp_path, status(503), status(429), ranged).read_bytes() == DATA


def test_a_port_that_nobody_listens_on_is_named(tmp_path: Path, free_port: int) -> None:
    with pytest.raises(SyncError, match=rf"127\.0\.0\.1:{free_port}.*refused"):
        download(f"http://127.0.0.1:{free_port}/x", tmp_path / "a", size=1, sha256=SHA, policy=POLICY)


def test_a_full_disk_is_noticed_before_a_byte_is_fetched(server: Server, tmp_path: Path) -> None:
    with pytest.raises(SyncError, match=r"no space for artifact\.edge\.part: .* bytes free, .* needed"):
        fetch(server, tmp_path, ranged, size=2**60)
    assert server.requests == []


def test_a_stop_ends_a_transfer_and_the_part_stays(server: Server, tmp_path: Path) -> None:
    def half(h: Handler) -> None:
        h.head(200, Content_Length=len(DATA))
        h.wfile.write(DATA[:200_000])
        h.wfile.flush()
        h.server.over.wait(5)

    asked = itertools.count()
    with pytest.raises(SyncError, match="was interrupted"):
        fetch(server, tmp_path, half, should_stop=lambda: next(asked) >= 2)
    assert 0 < (tmp_path / "artifact.edge.part").stat().st_size < len(DATA)


def test_credentials_do_not_follow_a_redirect_to_another_host(server: Server, tmp_path: Path) -> None:
    def elsewhere(h: Handler) -> None:
        h.head(302, Location=server.url.replace("127.0.0.1", "localhost"), Content_Length=0)

    def here(h: Handler) -> None:
        h.head(307, Location="/artifacts/other", Content_Length=0)

    fetch(server, tmp_path, here, elsewhere, ranged, headers=basic_auth("d", "s"))
    assert ["Authorization" in r for r in server.requests] == [True, True, False]
    with pytest.raises(SyncError, match="redirects more than 3 times"):
        fetch(server, tmp_path, here)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "http://", "not a url", "http://host:99999/"])
def test_only_http_urls_are_fetched(url: str) -> None:
    with pytest.raises(UsageError, match="URL"), stream(url):
        pass


def test_an_answer_to_a_post_is_bounded(server: Server) -> None:
    server.script = [endless]
    with pytest.raises(SyncError, match="answered more than 100000 bytes"):
        post_json(server.url, {"token": "x"}, max_bytes=100_000)


def test_a_peer_that_speaks_no_http_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak() -> None:
            peer, _ = listener.accept()
            peer.sendall(b"SSH-2.0-OpenSSH_9\r\n")
            peer.close()

        threading.Thread(target=speak, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        policy = DownloadPolicy(attempts=1, limits=QUICK)
        with pytest.raises(SyncError, match="SSH-2.0"):
            download(url, tmp_path / "a", size=1, sha256=SHA, policy=policy)
