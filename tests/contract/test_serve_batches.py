"""Batches over real HTTP: submitted now, fetched later, cancelled, expired, interrupted; webhooks; tokens."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import pytest

from edge_sdk.errors import BackendError, ConfigError
from edge_sdk.pipeline.models import ModelSet, load_models
from edge_sdk.serve_config import BatchConfig, ServeConfig
from edge_sdk.serving.callback import signature
from edge_sdk.serving.service import Service
from edge_sdk.testing import build_artifact, color_frame, fake_model

WAIT_S = 60


@contextlib.contextmanager
def serving(models, **config):
    service = Service(ServeConfig(port=0, **config))
    service.open()
    service.serve(models)
    try:
        yield service
    finally:
        service.close()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return build_artifact(tmp_path_factory.mktemp("serve") / "m.edge").path


def load(artifact) -> ModelSet:
    return load_models(artifact, count=1, kind=None, params={}, test=False)


class Held:
    """Models whose engine waits until it is released; `inside` says that an inference has begun."""

    def __init__(self) -> None:
        self.inside, self.release = threading.Event(), threading.Event()
        self.error: Exception | None = None

        def infer(feeds):
            self.inside.set()
            assert self.release.wait(WAIT_S)
            if self.error is not None:
                raise self.error
            import numpy as np

            return {"logits": np.zeros((1, 3), np.float32)}

        self.models = ModelSet((fake_model(infer),))


@pytest.fixture
def held():
    held = Held()
    yield held
    held.release.set()


class Receiver:
    """Keeps posts and their headers; answers with `codes` in turn, then 204; hangs while `release` is not set."""

    def __init__(self) -> None:
        self.posts: list[tuple[dict, bytes]] = []
        self.codes: list[int] = []
        self.release = threading.Event()
        self.release.set()
        self.changed = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.release.wait(WAIT_S)
                with receiver.changed:
                    receiver.posts.append((dict(self.headers), body))
                    code = receiver.codes.pop(0) if receiver.codes else 204
                    receiver.changed.notify_all()
                self.send_response(code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def wait(self, n: int) -> list[tuple[dict, bytes]]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.posts) >= n, WAIT_S)
            return list(self.posts)


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.release.set()
    receiver.server.shutdown()
    receiver.server.server_close()


def port(service) -> int:
    return int(service.address[1].rstrip("/").rsplit(":", 1)[1])


def call(service, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port(service), timeout=WAIT_S)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, body=data, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), json.loads(answer.read())
    finally:
        connection.close()


def picture(color: str = "red") -> str:
    return base64.b64encode(cv2.imencode(".jpg", color_frame(color))[1].tobytes()).decode()


def submit(service, colors=("red",), **more):
    return call(service, "POST", "/v1/batches", {"images": [picture(c) for c in colors], **more})


def ended(service, name: str) -> dict:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        state = call(service, "GET", f"/v1/batches/{name}?limit=1000")[2]
        if state["status"] not in ("queued", "running"):
            return state
        time.sleep(0.02)
    raise AssertionError(state)


def test_a_batch_is_accepted_with_an_address_and_answered_in_order(artifact):
    with serving(load(artifact)) as service:
        status, headers, state = submit(service, ["red", "green", "blue"] * 20)
        assert status == 202
        assert headers["Location"] == f"/v1/batches/{state['id']}" == state["url"]
        assert (state["images"], state["failed"]) == (60, 0)
        found = ended(service, state["id"])
        assert (found["status"], found["done"], found["next"]) == ("done", 60, None)
        labels = [r["classes"][0]["label"] for r in found["results"]]
        assert labels == ["red", "green", "blue"] * 20
        page = call(service, "GET", f"/v1/batches/{state['id']}?after=58&limit=1")[2]
        assert [r["classes"][0]["label"] for r in page["results"]] == ["green"]
        assert page["next"] == 59


def test_progress_and_partial_results_can_be_read_while_it_runs_and_other_requests_are_answered(artifact, held):
    with serving(held.models) as service:
        _, _, state = submit(service, ["red"] * 3)
        assert held.inside.wait(WAIT_S)
        running = call(service, "GET", state["url"])[2]
        assert (running["status"], running["done"], running["results"], running["next"]) == ("running", 0, [], 0)
        assert call(service, "GET", "/health")[0] == 200
        assert [b["id"] for b in call(service, "GET", "/v1/batches")[2]["batches"]] == [state["id"]]
        held.release.set()
        assert ended(service, state["id"])["done"] == 3


def test_an_image_that_is_none_is_an_error_in_its_place_and_the_others_are_answered(artifact):
    with serving(load(artifact)) as service:
        images = [picture(), base64.b64encode(b"no image").decode(), picture("blue")]
        _, _, state = call(service, "POST", "/v1/batches", {"images": images})
        found = ended(service, state["id"])
        assert (found["status"], found["failed"]) == ("done", 1)
        assert found["results"][1]["error"]["kind"] == "image"
        assert found["results"][2]["classes"][0]["label"] == "blue"


def test_a_submission_that_is_wrong_is_told_what_is_wrong(artifact):
    limits = BatchConfig(images=2, pending_mb=0.001)
    with serving(load(artifact), batches=limits) as service:
        for body, status, words in (
            ({"images": []}, 400, "at least one image"),
            ({"images": ["%%%"]}, 400, "image 0 is no base64"),
            ({"images": [picture()], "hook": 1}, 400, "unknown key `hook`"),
            ({"images": [picture()] * 3}, 413, "at most 2 images, found 3"),
            ({"images": [base64.b64encode(b"x" * 2000).decode()]}, 413, "the images are 2000 bytes, the limit is 1000"),
            ({"images": [picture()], "webhook": 5}, 400, "expected an address"),
            ({"images": [picture()], "webhook": "ftp://h/x"}, 400, "no webhook address"),
        ):
            found = call(service, "POST", "/v1/batches", body)
            assert found[0] == status, found
            assert words in found[2]["error"]["message"]
        assert call(service, "GET", "/v1/batches/nothing")[0] == 404
        assert call(service, "PUT", "/v1/batches/nothing", b"")[0] == 405
        assert call(service, "GET", "/v1/batches/nothing?after=x")[0] == 400


def test_a_full_queue_is_429_with_the_time_to_wait(held):
    with serving(held.models, batches=BatchConfig(queued=2)) as service:
        first = submit(service)[2]
        assert held.inside.wait(WAIT_S)
        second = submit(service)[2]
        assert second["status"] == "queued"
        status, headers, body = submit(service)
        assert (status, headers["Retry-After"]) == (429, "5")
        assert "2 batches wait or run, the limit is 2" in body["error"]["message"]
        held.release.set()
        assert ended(service, second["id"])["status"] == ended(service, first["id"])["status"] == "done"
        assert submit(service)[0] == 202


def test_a_cancelled_batch_answers_no_more_and_makes_room(held):
    with serving(held.models, batches=BatchConfig(queued=1)) as service:
        _, _, state = submit(service, ["red"] * 5)
        assert held.inside.wait(WAIT_S)
        status, _, found = call(service, "DELETE", state["url"])
        assert (status, found["status"]) == (200, "cancelled")
        held.release.set()
        other = submit(service)[2]
        assert ended(service, other["id"])["status"] == "done"
        assert call(service, "GET", state["url"])[2]["done"] == 0
        assert call(service, "DELETE", state["url"])[0] == 200
        assert call(service, "GET", state["url"])[0] == 410


def test_results_expire_and_are_then_said_to_be_gone(artifact):
    with serving(load(artifact), batches=BatchConfig(keep_s=0.1)) as service:
        _, _, state = submit(service)
        deadline = time.monotonic() + WAIT_S
        while (found := call(service, "GET", state["url"]))[0] == 200 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert found[0] == 410
        assert "have expired" in found[2]["error"]["message"]


def test_the_oldest_results_go_when_there_are_too_many(artifact):
    with serving(load(artifact), batches=BatchConfig(results_mb=0.0015)) as service:
        names = [ended(service, submit(service, ["red"] * 3)[2]["id"])["id"] for _ in range(3)]
        codes = [call(service, "GET", f"/v1/batches/{name}")[0] for name in names]
        assert codes[0] == 410
        assert codes[2] == 200
        assert ended(service, submit(service, ["red"] * 20)[2]["id"])["error"].startswith("its results are more than")


def test_a_batch_waits_for_the_rate_that_is_allowed_instead_of_failing(artifact):
    with serving(load(artifact), rate=20) as service:
        _, _, state = submit(service, ["red"] * 25)
        found = ended(service, state["id"])
        assert (found["status"], found["failed"], found["done"]) == ("done", 0, 25)


def test_an_engine_that_fails_is_the_result_of_each_image(held):
    held.error = BackendError("out of memory")
    held.release.set()
    with serving(held.models) as service:
        found = ended(service, submit(service, ["red"] * 3)[2]["id"])
        assert found["failed"] == 3
        assert "out of memory" in found["results"][0]["error"]["message"]


def test_the_end_is_posted_with_a_signature_and_tried_again(artifact, receiver):
    receiver.codes = [503]
    batches = BatchConfig(webhook_secret="s3cret")
    with serving(load(artifact), batches=batches) as service:
        _, _, state = submit(service, ["red", "blue"], webhook=receiver.url)
        (_, first), (headers, body) = receiver.wait(2)
        assert first == body
        document = json.loads(body)
        assert (document["event"], document["id"], document["status"]) == ("batch", state["id"], "done")
        assert [r["classes"][0]["label"] for r in document["results"]] == ["red", "blue"]
        assert headers["X-Edge-Signature"] == signature("s3cret", headers["X-Edge-Timestamp"], body)
        deadline = time.monotonic() + WAIT_S
        while (hook := ended(service, state["id"])["webhook"])["delivered"] is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert hook == {"host": "127.0.0.1", "delivered": True}


def test_a_webhook_that_refuses_is_said_and_the_results_stay(artifact, receiver):
    receiver.codes = [403]
    with serving(load(artifact)) as service:
        _, _, state = submit(service, webhook=receiver.url)
        receiver.wait(1)
        deadline = time.monotonic() + WAIT_S
        while (found := ended(service, state["id"]))["webhook"]["delivered"] is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert found["webhook"]["delivered"] is False
        assert "answered 403" in found["webhook"]["error"]
        assert found["results"]


def test_a_webhook_that_hangs_holds_up_neither_requests_nor_other_batches(artifact, receiver):
    receiver.release.clear()
    with serving(load(artifact), drain_s=0.5) as service:
        submit(service, webhook=receiver.url)
        assert ended(service, submit(service)[2]["id"])["status"] == "done"
        assert call(service, "GET", "/health")[0] == 200
        receiver.release.set()


def test_only_hosts_that_are_named_may_be_told_when_others_can_connect(artifact, receiver):
    with serving(load(artifact), host="0.0.0.0") as service:
        status, _, body = submit(service, webhook=receiver.url)
        assert status == 403
        assert "may not call host `127.0.0.1`" in body["error"]["message"]
    with serving(load(artifact), host="0.0.0.0", batches=BatchConfig(webhook_hosts=("127.0.0.1",))) as service:
        assert submit(service, webhook=receiver.url)[0] == 202
        receiver.wait(1)


def test_a_client_that_goes_away_does_not_end_its_batch(artifact):
    with serving(load(artifact)) as service:
        connection = http.client.HTTPConnection("127.0.0.1", port(service))
        connection.request("POST", "/v1/batches", json.dumps({"images": [picture()] * 10}))
        connection.close()
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            found = call(service, "GET", "/v1/batches")[2]["batches"]
            if found and found[0]["status"] == "done":
                break
            time.sleep(0.02)
        assert found[0]["done"] == 10


def test_a_service_that_stops_finishes_what_it_can(artifact):
    with serving(load(artifact)) as service:
        names = [submit(service, ["red"] * 20)[2]["id"] for _ in range(3)]
    assert service.report()["batches"] == {"submitted": 3, "done": 3}
    assert len(names) == 3


def test_what_a_stopping_service_could_not_finish_is_reported_to_the_webhook(held, receiver):
    with serving(held.models, drain_s=0.2) as service:
        submit(service, ["red"] * 3, webhook=receiver.url)
        assert held.inside.wait(WAIT_S)
    ((_, body),) = receiver.wait(1)
    document = json.loads(body)
    assert document["status"] == "interrupted"
    assert document["error"] == "the service stopped after 0 of 3 images"
    assert service.report()["batches"]["interrupted"] == 1


def test_with_tokens_everything_but_the_probes_needs_one(artifact, tmp_path):
    (tmp_path / "tokens").write_text("# of the line\nfile-token\n")
    with serving(load(artifact), tokens=("abc",), token_file=tmp_path / "tokens") as service:
        for path in ("/health", "/ready", "/v2/health/live", "/v2/health/ready"):
            assert call(service, "GET", path)[0] == 200
        status, headers, body = call(service, "GET", "/v1/batches")
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert body["error"]["kind"] == "unauthorized"
        for wrong in ("Bearer abd", "Basic abc", "abc", "Bearer ", "Bearer é"):
            assert call(service, "GET", "/v1/batches", Authorization=wrong.encode("latin-1"))[0] == 401
        for token in ("abc", "file-token"):
            assert call(service, "GET", "/v1/batches", Authorization=f"Bearer {token}")[0] == 200


def test_a_token_file_that_is_missing_or_empty_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"token_file: cannot read .*no such file"):
        Service(ServeConfig(port=0, token_file=tmp_path / "none"))
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="has no token"):
        Service(ServeConfig(port=0, token_file=tmp_path / "empty"))
