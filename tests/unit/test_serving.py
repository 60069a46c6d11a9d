"""Circuit breaker, rate limit, metrics format, and what `edge run` refuses around `--serve` and `--view`."""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from edge_sdk.errors import UsageError
from edge_sdk.output import Output
from edge_sdk.serving.engine import Breaker, RateLimit
from edge_sdk.serving.exchange import HttpError
from edge_sdk.serving.metrics import Histogram, Watch, sample
from edge_sdk.serving.oip import JSON_LENGTH, InferRequest
from edge_sdk.testing import fake_model
from edge_sdk.verbs import run


def test_a_breaker_opens_after_failures_in_a_row_and_closes_after_one_success():
    breaker = Breaker(failures=2, pause_s=5)
    breaker.failed("a", 0.0)
    breaker.succeeded()
    breaker.failed("b", 1.0)
    breaker.enter(1.0)
    breaker.failed("c", 1.0)
    assert breaker.state(2.0) == "open"
    with pytest.raises(HttpError, match="failed 2 times in a row and is given a pause: c") as refused:
        breaker.enter(2.0)
    assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "4"})
    assert breaker.state(6.0) == "half-open"
    breaker.enter(6.0)
    with pytest.raises(HttpError):
        breaker.enter(6.0)
    breaker.succeeded()
    assert breaker.state(6.0) == "closed"


def test_a_failed_attempt_doubles_the_pause_and_one_that_says_nothing_keeps_the_door_open():
    breaker = Breaker(failures=1, pause_s=5)
    breaker.failed("x", 0.0)
    breaker.enter(5.0)
    breaker.undecided()
    breaker.enter(5.0)
    breaker.failed("x", 5.0)
    assert breaker.state(14.9) == "open"
    assert breaker.state(15.0) == "half-open"


def test_a_rate_limit_lets_a_second_of_requests_through_at_once_and_then_its_rate():
    limit = RateLimit(4.0)
    for _ in range(4):
        limit.take(0.0)
    with pytest.raises(HttpError, match="more than 4 inferences a second") as refused:
        limit.take(0.1)
    assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "1"})
    limit.take(0.3)
    limit.take(10.0, 12)
    with pytest.raises(HttpError):
        limit.take(11.9)
    limit.take(12.3)
    RateLimit(None).take(0.0, 1000)


def test_a_histogram_is_cumulative_and_labels_are_escaped():
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7.0):
        histogram.add(seconds)
    assert histogram.lines("x", {}) == [
        'x_bucket{le="0.1"} 2',
        'x_bucket{le="1.0"} 3',
        'x_bucket{le="+Inf"} 4',
        "x_sum 7.65",
        "x_count 4",
    ]
    assert sample("m", 1, {"a": 'q"\\\n'}) == 'm{a="q\\"\\\\\\n"} 1'


def test_a_source_without_a_frame_is_not_up():
    watch = Watch()
    assert (watch.source_up(0.0), watch.age_s(0.0), watch.fps(0.0)) == (False, None, 0.0)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--serve", "8080"], "--model missing"),
        (["--model", "a.edge", "--serve", "70000"], "--serve takes a port, 0 to 65535, found 70000"),
        (["--model", "a.edge", "--source", "0", "--view", "-1"], "--view takes a port"),
        (["--model", "a.edge", "--source", "0", "--view", "80", "--serve", "80"], "cannot share port 80"),
        (["--model", "a.edge", "--source", "0", "--host", "::1"], "--host goes with --view or --serve"),
        (["--model", "a.edge", "--source", "0", "--rate", "3"], "--rate goes with --serve"),
        (["--model", "a.edge", "--serve", "0", "--rate", "0"], "--rate must be above 0"),
        (["--model", "a.edge", "--serve", "0", "--rate", "nan"], "--rate must be above 0"),
        (["--model", "a.edge", "--serve", "0", "--view", "0"], "--view needs a source"),
        (["--model", "a.edge", "--serve", "0", "--frames", "3"], "--frames needs a source"),
        (["--model", "a.edge", "--serve", "0", "--check"], "--check needs a source"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(argv, message):
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    with pytest.raises(UsageError, match=message):
        run.run(parser.parse_args(argv), Output(stdout=io.StringIO(), stderr=io.StringIO()))


def test_view_adds_a_live_sink_on_the_chosen_host():
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    argv = ["--model", "a.edge", "--source", "0", "--view", "8090", "--host", "0.0.0.0"]
    sink = run.pipeline_of(parser.parse_args(argv)).sinks[0]
    assert (sink.uri, sink.params) == ("live:8090", {"host": "0.0.0.0"})


def float_manifest():
    manifest = fake_model(lambda _: [0.0, 0.0, 0.0]).manifest
    return replace(manifest, input=replace(manifest.input, dtype="float32"))


def infer_body(value: float, *, binary: bool) -> tuple[bytes, dict[str, str]]:
    spec = float_manifest().input
    values = np.full(spec.shape, value if binary else 0.0, "<f4")
    row = {"name": spec.name, "datatype": "FP32", "shape": list(spec.shape)}
    if not binary:
        return json.dumps({"inputs": [row | {"data": [value] * values.size}]}).encode(), {}
    head = json.dumps({"inputs": [row | {"parameters": {"binary_data_size": values.nbytes}}]}).encode()
    return head + values.tobytes(), {JSON_LENGTH: str(len(head))}


@pytest.mark.parametrize("binary", [True, False])
def test_a_float_tensor_arrives_as_it_was_sent(binary):
    request = InferRequest(*infer_body(0.25, binary=binary), float_manifest())
    assert request.tensor.dtype == np.float32
    assert (request.tensor == 0.25).all()


def test_nan_and_numbers_too_large_for_the_type_are_refused():
    body, headers = infer_body(float("nan"), binary=True)
    with pytest.raises(HttpError, match="input `image` holds NaN or infinity"):
        InferRequest(body, headers, float_manifest())
    body, headers = infer_body(1e300, binary=False)
    with pytest.raises(HttpError, match="input `image` holds NaN or infinity"):
        InferRequest(body, headers, float_manifest())


def test_a_json_length_that_is_none_is_refused():
    for length in ("x", "-1", "99999999"):
        with pytest.raises(HttpError, match="Inference-Header-Content-Length is"):
            InferRequest(b"{}", {JSON_LENGTH: length}, float_manifest())


def test_compressed_bodies_are_refused():
    with pytest.raises(HttpError, match="compressed bodies are not read"):
        InferRequest(b"{}", {"content-encoding": "gzip"}, float_manifest())
