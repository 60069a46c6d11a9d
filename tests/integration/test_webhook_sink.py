"""Results POSTed to a real HTTP server that fails, hangs and refuses."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support import LIMIT_S

from edge_sdk.errors import SyncError, UsageError
from edge_sdk.pipeline import Pipeline
from edge_sdk.sinks import create, sink_name
from edge_sdk.testing import ListSource, build_artifact, color_frame


class Receiver:
    """Keeps what is posted; answers with `codes` in turn, then 204; waits while `hold` is set."""

    def __init__(self) -> None:
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.codes: list[int] = []
        self.release = threading.Event()
        self.release.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.release.wait(LIMIT_S)
                code = receiver.codes.pop(0) if receiver.codes else 204
                if code == 204:
                    receiver.bodies.append(body)
                    receiver.headers.append(dict(self.headers))
                self.send_response(code)
                self.send_header("Content-Length", "0")
                if code == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.release.set()
    receiver.server.shutdown()
    receiver.server.server_close()


@pytest.fixture
def artifact(tmp_path):
    return build_artifact(tmp_path / "m.edge").path


def pipe(artifact, n: int = 6) -> Pipeline:
    return Pipeline(ListSource([color_frame("red")] * n)).classify(artifact)


def test_every_result_is_posted_in_order_with_the_credentials_of_the_address(receiver, artifact):
    pipe(artifact).sink(f"http://hook:s3cret@127.0.0.1:{receiver.port}/in").run()
    assert [b["frame"] for b in receiver.bodies] == list(range(6))
    assert receiver.headers[0]["Authorization"] == "Basic " + base64.b64encode(b"hook:s3cret").decode()
    assert receiver.headers[0]["Content-Type"] == "application/json"


def test_a_server_in_trouble_is_tried_again_and_nothing_is_lost(receiver, artifact):
    receiver.codes = [503, 500, 204, 429]
    report = pipe(artifact).sink(f"http://127.0.0.1:{receiver.port}/in").run()
    assert [b["frame"] for b in receiver.bodies] == list(range(6))
    assert report.sinks[0]["written"] == 6


@pytest.mark.parametrize(("code", "words"), [(403, "answered 403"), (302, "answered 302")])
def test_a_refusal_ends_a_file_job_and_is_not_tried_again(receiver, artifact, code, words):
    receiver.codes = [code]
    with pytest.raises(SyncError, match=words) as caught:
        pipe(artifact).sink(f"http://u:s3cret@127.0.0.1:{receiver.port}/in").run()
    assert "s3cret" not in caught.value.message
    assert len(receiver.bodies) < 6


def test_a_server_that_hangs_slows_no_live_pipeline(receiver, artifact):
    receiver.release.clear()
    live = Pipeline("synthetic:64x48?fps=200&live=1").classify(artifact)
    live.sink(f"http://127.0.0.1:{receiver.port}/in", timeout_s=LIMIT_S, attempts=1)
    with live:
        for seen, _ in enumerate(live, 1):
            if seen == 200:  # more than wait for the sink; the server has not answered once
                assert receiver.bodies == []
                receiver.release.set()
                break
    report = live.report()
    assert report.processed >= 200
    assert report.sinks[0]["dropped"] > 0


def test_a_server_that_answers_a_byte_at_a_time_is_given_up(artifact):
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def drip() -> None:
        while not ended.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                while not ended.wait(0.05):
                    connection.sendall(b"H")

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    sink = create(f"http://127.0.0.1:{listener.getsockname()[1]}/in", {"timeout_s": 0.3, "attempts": 1})
    sink.open()
    item = next(iter(Pipeline(ListSource([color_frame("red")])).classify(artifact)))
    try:
        with pytest.raises(SyncError, match="webhook"):
            sink.write(item)
    finally:
        ended.set()
        listener.close()
        thread.join(LIMIT_S)


def test_results_can_be_thinned_out(receiver, artifact):
    pipe(artifact, 10).sink(f"http://127.0.0.1:{receiver.port}/in", every_s=0.35).run()
    assert [b["frame"] for b in receiver.bodies] == [0, 4, 8]


def test_an_http_address_is_a_webhook_and_a_wrong_one_is_refused():
    assert sink_name("https://h/x") == "webhook"
    with pytest.raises(UsageError, match="no webhook address"):
        create("http:///x")
    with pytest.raises(UsageError, match="unknown option `evry_s`"):
        create("http://h/x", {"evry_s": 1})
