"""The device's HTTP service over real sockets: the protocol, bad input, limits, and the end."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import struct
import threading
import time

import cv2
import numpy as np
import pytest
from support import until

from edge_sdk.errors import BackendError
from edge_sdk.pipeline.models import ModelSet, load_models
from edge_sdk.serve_config import ServeConfig
from edge_sdk.serving.engine import Breaker
from edge_sdk.serving.exchange import Limits
from edge_sdk.serving.service import Service
from edge_sdk.testing import build_artifact, color_frame, fake_model, tiny_classifier_onnx

WAIT_S = 60
LIMITS = Limits(body_bytes=1_000_000, connections=8)
HASTY = Limits(head_s=0.5, body_s=0.5)
NAME = "tiny-classification"
SHAPE = [1, 32, 32, 3]


@contextlib.contextmanager
def serving(models, *, limits=LIMITS, **config):
    service = Service(ServeConfig(port=0, **config), limits=limits)
    service.open()
    service.serve(models)
    try:
        yield service
    finally:
        service.close()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return build_artifact(tmp_path_factory.mktemp("serve") / "m.edge").path


@pytest.fixture(scope="module")
def service(artifact):
    models = load_models(artifact, count=2, kind=None, params={}, test=True)
    with serving(models) as found:
        yield found


def port(service) -> int:
    return int(service.address[1].rstrip("/").rsplit(":", 1)[1])


def call(service, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port(service), timeout=WAIT_S)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        data = answer.read()
        return answer.status, dict(answer.headers), json.loads(data) if data.startswith((b"{", b"[")) else data
    finally:
        connection.close()


def raw(service, data: bytes, *, half_close: bool = True) -> tuple[int, bytes]:
    with socket.create_connection(("127.0.0.1", port(service)), timeout=WAIT_S) as sock:
        sock.sendall(data)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        found = b""
        while part := sock.recv(65536):
            found += part
    head, _, body = found.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body


def jpeg(color: str = "red") -> bytes:
    return cv2.imencode(".jpg", color_frame(color))[1].tobytes()


def tensor(**changes):
    row = {"name": "image", "datatype": "UINT8", "shape": SHAPE, "data": [0] * (32 * 32 * 3)} | changes
    return {k: v for k, v in row.items() if v is not None}


def infer(service, request, **kw):
    return call(service, "POST", f"/v2/models/{NAME}/infer", json.dumps(request), **kw)


def test_health_readiness_and_metadata_have_the_form_of_the_protocol(service):
    for path in ("/health", "/ready", "/v2/health/live", "/v2/health/ready", f"/v2/models/{NAME}/ready"):
        assert call(service, "GET", path)[0] == 200
    assert call(service, "GET", "/v2")[2]["extensions"] == ["binary_tensor_data"]
    expected = {
        "name": NAME,
        "versions": ["1.0.0"],
        "platform": "onnxruntime",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": SHAPE}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [1, 3]}],
    }
    assert call(service, "GET", f"/v2/models/{NAME}")[2] == expected
    assert call(service, "GET", f"/v2/models/{NAME}/versions/1.0.0")[2] == expected
    assert call(service, "POST", "/v2/repository/index", b"")[2][0]["name"] == NAME


def test_json_and_binary_tensors_give_the_same_answer(service):
    pixels = np.zeros(SHAPE, np.uint8)
    pixels[..., 2] = 255
    status, _, plain = infer(service, {"id": "7", "inputs": [tensor(data=pixels.ravel().tolist())]})
    assert (status, plain["id"], plain["model_version"]) == (200, "7", "1.0.0")
    assert plain["outputs"] == [{"name": "logits", "shape": [1, 3], "datatype": "FP32", "data": [0.0, 0.0, 8.0]}]
    assert infer(service, {"inputs": [tensor(data=pixels.tolist())]})[2]["outputs"] == plain["outputs"]

    row = tensor(data=None, parameters={"binary_data_size": pixels.nbytes})
    head = json.dumps({"inputs": [row], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    path = f"/v2/models/{NAME}/versions/1.0.0/infer"
    status, found, body = call_binary(service, path, head + pixels.tobytes(), headers)
    size = int(found["Inference-Header-Content-Length"])
    assert (status, found["Content-Type"]) == (200, "application/octet-stream")
    assert json.loads(body[:size])["outputs"][0]["parameters"] == {"binary_data_size": 12}
    assert struct.unpack("<3f", body[size:]) == (0.0, 0.0, 8.0)


def call_binary(service, path, body, headers):
    connection = http.client.HTTPConnection("127.0.0.1", port(service), timeout=WAIT_S)
    try:
        connection.request("POST", path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ([], "an infer request is a JSON object"),
        ({}, "`inputs` must be a list of one tensor, `image`"),
        ({"inputs": [tensor(name="x")]}, "the model's input is `image`, found `x`"),
        ({"inputs": [tensor(datatype="FP32")]}, "input `image` is UINT8, found FP32"),
        ({"inputs": [tensor(shape=[1, 3])]}, "has shape [1, 32, 32, 3], found [1, 3]"),
        ({"inputs": [tensor(shape=[True, 32, 32, 3])]}, "has shape"),
        ({"inputs": [tensor(data=[1, 2])]}, "has 3072 values, found 2"),
        ({"inputs": [tensor(data=[[1, 2], [3]])]}, "rows of different lengths"),
        ({"inputs": [tensor(data=["a"] * 3072)]}, "must be whole numbers"),
        ({"inputs": [tensor(data=[0.5] * 3072)]}, "must be whole numbers"),
        ({"inputs": [tensor(data=[256] * 3072)]}, "is UINT8, 0 to 255"),
        ({"inputs": [tensor(data=[10**30] * 3072)]}, "must be whole numbers"),
        ({"inputs": [tensor(data=None)]}, "has no `data`"),
        ({"inputs": [tensor(parameters={"binary_data_size": 5})]}, "needs 3072 bytes, binary_data_size is 5, found 0"),
        ({"inputs": [tensor()], "outputs": [{"name": "x"}]}, "the model has no output `x`, it has logits"),
        ({"inputs": [tensor()], "outputs": 3}, "`outputs` must be a list"),
        ({"inputs": [tensor()], "id": 7}, "`id` must be a string"),
        ({"inputs": [tensor()], "parameters": {"binary_data_output": "yes"}}, "must be true or false"),
    ],
)
def test_a_wrong_infer_request_is_told_what_is_wrong(service, request_, message):
    status, _, body = infer(service, request_)
    assert status == 400
    assert message in body["error"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"inputs": [NaN]}', "holds `NaN`, which is no JSON number"),
        (b'{"inputs": [-Infinity]}', "holds `-Infinity`"),
        (b'{"inputs"', "the body is no JSON"),
        (b"\xff\xfe\x00", "the body is no JSON"),
        (b"[" * 200_000, "nested too deeply"),
    ],
)
def test_a_body_that_is_no_json_is_refused(service, body, message):
    status, _, answer = call(service, "POST", f"/v2/models/{NAME}/infer", body)
    assert status == 400
    assert message in answer["error"]


def test_nan_from_the_model_is_said_and_is_no_failure_of_the_engine(tmp_path):
    model = build_artifact(tmp_path / "n.edge", model=tiny_classifier_onnx(constant=float("nan")), golden=False).path
    with serving(load_models(model, count=1, kind=None, params={}, test=False)) as service:
        status, _, body = infer(service, {"inputs": [tensor()]})
        assert (status, "output `logits` holds NaN" in body["error"]) == (422, True)
        status, _, body = call(service, "POST", "/v1/predict", jpeg())
        assert (status, body["error"]["kind"]) == (422, "nonfinite")
        assert call(service, "GET", "/ready")[0] == 200


def test_an_image_gives_a_result_and_a_batch_gives_one_for_each(service):
    status, _, body = call(service, "POST", "/v1/predict", jpeg("green"), {"Content-Type": "image/jpeg"})
    assert (status, body["classes"][0]["label"], body["width"], body["height"]) == (200, "green", 64, 48)
    png = cv2.imencode(".png", color_frame("blue"))[1].tobytes()
    assert call(service, "POST", "/v1/predict", png)[2]["classes"][0]["label"] == "blue"
    texts = [base64.b64encode(jpeg(c)).decode() for c in ("red", "green")]
    status, _, body = call(service, "POST", "/v1/predict/batch", json.dumps({"images": [*texts, "@@", texts[0][:80]]}))
    assert status == 200
    assert [r["classes"][0]["label"] for r in body["results"][:2]] == ["red", "green"]
    assert body["results"][2]["error"]["message"] == "image 2 is no base64"
    assert "image 3" in body["results"][3]["error"]["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (jpeg()[:-40], "image `body` is cut short: the JPEG has no end"),
        (b"", "image `body` is empty (0 bytes)"),
        (b"hello", "has no header of a known image format"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 60000, 60000) + b"\x08\x02\0\0\0", "refused undecoded"),
    ],
)
def test_an_image_that_is_none_is_told_so(service, body, message):
    status, _, answer = call(service, "POST", "/v1/predict", body)
    assert status == 400
    assert message in answer["error"]["message"]


@pytest.mark.parametrize("body", [b"{}", b'{"images": []}', b'{"images": [3]}', b'{"images": "x"}', b"[]"])
def test_a_batch_of_nothing_is_refused(service, body):
    status, _, answer = call(service, "POST", "/v1/predict/batch", body)
    assert (status, "expected {'images'" in answer["error"]["message"]) == (400, True)
    many = json.dumps({"images": ["aa"] * 33})
    assert call(service, "POST", "/v1/predict/batch", many)[0] == 413


def test_broken_http_is_answered_with_a_json_error(service):
    cases = [
        (b"nonsense\r\n\r\n", 400, b""),
        (b"GET /nothing\r\n\r\n", 404, b"nothing is served"),
        (b"GET /health HTTP/9.9\r\n\r\n", 505, b""),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 414, b"longer than 8192 bytes"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431, b""),
        (b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n\r\n", 411, b"says no length"),
        (b"POST /v1/predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411, b"chunked"),
        (b"POST /v1/predict HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400, b"must be one number of bytes"),
        (b"POST /v1/predict HTTP/1.1\r\nContent-Length: 2000000\r\n\r\n", 413, b"the limit is 1000000"),
        (b"POST /v1/predict HTTP/1.1\r\nContent-Length: 50\r\n\r\nabc", 400, b"ends after 3 of 50 bytes"),
        (b"BREW /health HTTP/1.1\r\n\r\n", 405, b"is for GET"),
        (b"POST /health HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 405, b"is for GET"),
        (b"GET /v1/predict HTTP/1.1\r\n\r\n", 405, b"is for POST"),
        (b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403, b"does not answer for host"),
    ]
    for request, expected, message in cases:
        status, body = raw(service, request)
        assert (status, request[:40]) == (expected, request[:40])
        assert message in body
        assert json.loads(body)["error"]["message"]


def test_a_body_over_the_limit_can_be_sent_whole_and_the_refusal_is_still_read(service):
    status, _, body = call(service, "POST", "/v1/predict", b"x" * 3_000_000)
    assert (status, "the limit is 1000000" in body["error"]["message"]) == (413, True)


def test_a_client_that_trickles_is_cut_off_and_told_so(artifact):
    with serving(load_models(artifact, count=1, kind=None, params={}, test=False), limits=HASTY) as service:
        body_begun = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\nx"
        for start in (b"GET /health HT", body_begun):
            status, body = raw(service, start, half_close=False)
            assert status == 408
            assert b"did not arrive within 0.5 s" in body


def test_more_connections_than_the_limit_are_told_to_come_again(service):
    with contextlib.ExitStack() as stack:
        for _ in range(LIMITS.connections):
            stack.enter_context(socket.create_connection(("127.0.0.1", port(service)), timeout=WAIT_S))
        status, body = raw(service, b"", half_close=False)
        assert (status, b"too many connections" in body) == (503, True)
    until(lambda: raw(service, b"GET /health HTTP/1.1\r\n\r\n")[0] == 200)


def test_an_unknown_model_version_or_page_is_named(service):
    status, _, body = call(service, "GET", "/v2/models/other")
    assert (status, body["error"]) == (404, f"no model `other` here, it is `{NAME}` 1.0.0")
    assert call(service, "GET", f"/v2/models/{NAME}/versions/9")[0] == 404
    assert call(service, "GET", "/nothing")[2]["error"]["hint"].startswith("/health")


def test_more_than_the_rate_is_answered_429_with_the_seconds_to_wait(artifact):
    with serving(load_models(artifact, count=1, kind=None, params={}, test=False), rate=0.001) as service:
        assert call(service, "POST", "/v1/predict", jpeg())[0] == 200
        status, headers, body = call(service, "POST", "/v1/predict", jpeg())
        assert (status, body["error"]["kind"]) == (429, "rate_limited")
        assert 1000 - 2 * WAIT_S <= int(headers["Retry-After"]) <= 1000
        assert body["error"]["message"] == "more than 0.001 inferences a second"
        assert call(service, "GET", "/health")[0] == 200


def test_an_engine_that_fails_again_and_again_is_given_a_pause_and_tried_again():
    works = threading.Event()

    def answer(_frame):
        if not works.is_set():
            raise BackendError("the accelerator is gone")
        return [0.0, 1.0, 0.0]

    with serving(ModelSet((fake_model(answer),))) as service:
        breaker = service._engine.breaker = Breaker(failures=3, pause_s=60)
        for _ in range(3):
            status, _, body = call(service, "POST", "/v1/predict", jpeg())
            assert (status, body["error"]["message"]) == (500, "the engine failed: the accelerator is gone")
        status, headers, body = call(service, "POST", "/v1/predict", jpeg())
        assert (status, body["error"]["kind"]) == (503, "circuit_open")
        assert 0 < int(headers["Retry-After"]) <= 60
        assert "failed 3 times in a row" in body["error"]["message"]
        assert "the accelerator is gone" in body["error"]["message"]
        assert call(service, "GET", "/ready")[0] == 503
        assert call(service, "GET", "/health")[0] == 200
        works.set()
        breaker._until = time.monotonic()  # the pause is over
        assert call(service, "POST", "/v1/predict", jpeg())[0] == 200
        assert call(service, "GET", "/ready")[0] == 200
        metrics = call(service, "GET", "/metrics")[2].decode()
        assert 'edge_http_errors_total{kind="infer"} 3' in metrics
        assert "edge_circuit_state 0" in metrics


def test_requests_in_flight_are_finished_when_the_service_stops():
    entered, go = threading.Event(), threading.Event()

    def answer(_frame):
        entered.set()
        assert go.wait(WAIT_S)
        return [0.0, 1.0, 0.0]

    found: list[int] = []
    with serving(ModelSet((fake_model(answer),))) as service:
        client = threading.Thread(target=lambda: found.append(call(service, "POST", "/v1/predict", jpeg())[0]))
        client.start()
        assert entered.wait(WAIT_S)
        address = ("127.0.0.1", port(service))
        closer = threading.Thread(target=service.close)
        closer.start()
        deadline = time.monotonic() + WAIT_S
        with contextlib.suppress(OSError):
            while True:
                socket.create_connection(address, timeout=1).close()
                assert time.monotonic() < deadline
        assert not found
        go.set()
        client.join(WAIT_S)
        closer.join(WAIT_S)
    assert found == [200]


def test_a_swap_answers_with_the_new_model_and_drops_no_request(tmp_path):
    first = load_models(build_artifact(tmp_path / "a.edge").path, count=1, kind=None, params={}, test=False)
    second = load_models(
        build_artifact(tmp_path / "b.edge", version="2.0.0").path, count=1, kind=None, params={}, test=False
    )
    codes: list[int] = []
    with serving(first) as service:
        stop = threading.Event()

        def ask():
            while not stop.is_set():
                codes.append(call(service, "POST", "/v1/predict", jpeg())[0])

        client = threading.Thread(target=ask)
        client.start()
        until(lambda: len(codes) >= 5)
        service.swap(second)
        before = len(codes)
        until(lambda: len(codes) >= before + 5)
        stop.set()
        client.join(WAIT_S)
        assert call(service, "GET", f"/v2/models/{NAME}")[2]["versions"] == ["2.0.0"]
    assert set(codes) == {200}


def test_metrics_can_be_read_line_by_line(service):
    call(service, "POST", "/v1/predict", jpeg())
    _, headers, body = call(service, "GET", "/metrics")
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    seen: dict[str, float] = {}
    typed: set[str] = set()
    for line in body.decode().splitlines():
        if line.startswith("# TYPE "):
            name = line.split()[2]
            assert name not in typed
            typed.add(name)
        elif not line.startswith("#"):
            key, value = line.rsplit(" ", 1)
            assert key not in seen
            seen[key] = float(value)
            family = key.partition("{")[0]
            assert family in typed or family.rsplit("_", 1)[0] in typed
    assert seen['edge_http_requests_total{route="/v1/predict",code="200"}'] >= 1
    buckets = [v for k, v in seen.items() if k.startswith("edge_inference_seconds_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == seen['edge_inference_seconds_count{of="http"}']
