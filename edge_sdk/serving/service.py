"""The device's HTTP service: inference (Open Inference Protocol and images), health, readiness, metrics."""

from __future__ import annotations

import hmac
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from edge_sdk import __version__
from edge_sdk.pipeline.models import ModelSet, StageModel
from edge_sdk.pipeline.report import Quantiles, memory_mb
from edge_sdk.serve_config import ServeConfig
from edge_sdk.serving import metrics, oip
from edge_sdk.serving.about import engine_metrics, gauge, pipeline_metrics
from edge_sdk.serving.batches import Batches
from edge_sdk.serving.callback import Callbacks
from edge_sdk.serving.engine import Engine, RateLimit, describe
from edge_sdk.serving.exchange import Answer, HttpError, Limits, Request, check_port, json_answer, refusal
from edge_sdk.serving.http import LocalServer
from edge_sdk.serving.images import base64_of, image_of

_BATCH = 32
_BATCH_ROUTE = re.compile(r"^/v1/batches/([A-Za-z0-9_-]{1,64})$")
_OPEN = frozenset({"/health", "/ready", "/v2/health/live", "/v2/health/ready"})
_MODEL = re.compile(r"^/v2/models/([^/]+)(?:/versions/([^/]+))?(/ready|/infer)?$")
_ROUTES_TEXT = "/health, /ready, /metrics, /v1/predict, /v1/predict/batch, /v1/batches, /v2"


class Service:
    """Answers from the moment it is open; ready once it has an engine."""

    def __init__(self, config: ServeConfig, *, limits: Limits | None = None) -> None:
        self._config = config = config.with_file_tokens()
        self._tokens = tuple(token.encode() for token in config.tokens)
        self._callbacks = Callbacks(config)
        self._batches = Batches(config.batches, self._callbacks, self._batch_image)
        self._server = LocalServer(config.host, check_port(config.port, "--serve"), self, limits=limits, name="serve")
        self._rate = RateLimit(config.rate)
        self._engine: Engine | None = None
        self._pipeline: Any = None
        self._watch: metrics.Watch | None = None
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._request_s = metrics.Histogram()
        self._infer_s = metrics.Histogram()
        self._latency_ms = Quantiles()
        self._stopping = False
        self._began = time.monotonic()
        self._routes: Mapping[tuple[str, str], Callable[[Request], Answer]] = {
            ("GET", "/"): self._index,
            ("GET", "/health"): lambda _: json_answer({"status": "ok"}),
            ("GET", "/ready"): self._ready,
            ("GET", "/metrics"): self._metrics,
            ("POST", "/v1/predict"): self._predict,
            ("POST", "/v1/predict/batch"): self._predict_batch,
            ("POST", "/v1/batches"): self._submit,
            ("GET", "/v1/batches"): lambda _: json_answer(self._batches.listing()),
            ("GET", "/v2"): self._server_metadata,
            ("GET", "/v2/health/live"): lambda _: json_answer({"live": True}),
            ("GET", "/v2/health/ready"): self._ready,
            ("POST", "/v2/repository/index"): self._repository,
        }

    @property
    def address(self) -> tuple[str, str]:
        """What it is and its URL, once it is open."""
        return "service", self._server.address

    def open(self) -> None:
        """Listen.

        Raises:
            SinkError: the address is taken.
        """
        self._server.open()

    def serve(self, models: ModelSet, *, pipeline: Any = None, watch: metrics.Watch | None = None) -> None:
        """Answer with `models`; the metrics of `pipeline` are those that `watch`, its observer, has seen."""
        self._pipeline, self._watch = pipeline, watch
        self._engine = Engine(models)
        self._batches.start()

    def swap(self, models: ModelSet) -> None:
        """Answer the next request with `models`."""
        if self._engine is not None:
            self._engine.replace(models)

    def close(self) -> None:
        """Finish requests and batches that are under way, refuse others, then close the models."""
        self._stopping = True
        deadline = time.monotonic() + self._config.drain_s
        # While batches are finished they can still be asked for.
        self._batches.close(self._config.drain_s)
        self._callbacks.close(max(2.0, deadline - time.monotonic()))
        self._batches.release()
        self._server.close(max(0.1, deadline - time.monotonic()))
        if self._engine is not None:
            self._engine.close()

    # -- what the worker asks --------------------------------------------------------------------------------------

    def busy(self, now: float) -> tuple[str, float]:
        """Return what the longest inference is in and for how many seconds."""
        return self._engine.busy(now) if self._engine is not None else ("load", 0.0)

    def stats(self) -> dict[str, Any]:
        """Return the counts in the form of a worker's `stats`; a frame is an inference."""
        errors = dict(self._engine.errors) if self._engine is not None else {}
        return {
            "frames": self._latency_ms.n + sum(errors.values()),
            "processed": self._latency_ms.n,
            "dropped": {},
            "errors": {k: n for k, n in errors.items() if k != "nonfinite"},
            "nonfinite": errors.get("nonfinite", 0),
            "latency_ms": self._latency(),
            "model": self._engine.current.digest if self._engine is not None else "",
            "t": time.time(),
        }

    def report(self) -> dict[str, Any]:
        """Return what the service did."""
        with self._lock:
            requests = {str(c): 0 for _, c in sorted(self._requests, key=lambda k: k[1])}
            for (_, code), n in self._requests.items():
                requests[str(code)] += n
        return {
            "requests": requests,
            "inferences": self._latency_ms.n,
            "errors": self.stats()["errors"],
            "batches": dict(self._batches.counts),
            "seconds": round(time.monotonic() - self._began, 3),
            "latency_ms": self._latency(),
            "rss_mb": memory_mb()[1],
            "model": self.stats()["model"],
        }

    # -- requests --------------------------------------------------------------------------------------------------

    def answer(self, request: Request) -> Answer:
        """Answer one request and count it."""
        began = time.monotonic()
        path = request.path.rstrip("/") or "/"
        model, batch = _MODEL.match(path), _BATCH_ROUTE.match(path)
        route = "/v2/models" + (model.group(3) or "") if model else "/v1/batches/ID" if batch else path
        try:
            self._admit(request, path)
            if model:
                answer = self._model(request, model)
            else:
                answer = self._one_batch(request, batch.group(1)) if batch else self._route(request, path)
        except HttpError as error:
            known = model or batch or any(path == known_path for _, known_path in self._routes)
            self._count(route if known else "other", error.status, began)
            raise
        self._count(route, answer.status, began)
        return answer

    def _admit(self, request: Request, path: str) -> None:
        """Let through who has a token, where tokens are asked for; probes need none."""
        if not self._tokens or path in _OPEN:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        raw = given.strip().encode(errors="replace")
        if kind.lower() != "bearer" or not any(hmac.compare_digest(raw, token) for token in self._tokens):
            error = HttpError(401, "a token is needed", kind="unauthorized", hint="Authorization: Bearer TOKEN")
            error.headers = {"WWW-Authenticate": "Bearer"}
            raise error

    def refuse(self, path: str, error: HttpError) -> Answer:
        """Return the error; clients of the Open Inference Protocol expect a string."""
        if path.startswith("/v2"):
            text = error.message + (f" ({error.hint})" if error.hint else "")
            return json_answer({"error": text}, status=error.status, headers=error.headers)
        return refusal(error)

    def _route(self, request: Request, path: str) -> Answer:
        method = "GET" if request.method == "HEAD" else request.method
        handler = self._routes.get((method, path))
        if handler is not None:
            return handler(request)
        methods = [m for m, p in self._routes if p == path]
        if methods:
            raise HttpError(405, f"`{path}` is for {' and '.join(methods)}, found {method[:10]}")
        raise HttpError(404, f"nothing is served at `{path[:80]}`", hint=_ROUTES_TEXT)

    def _model(self, request: Request, match: re.Match[str]) -> Answer:
        engine = self._loaded()
        manifest = engine.current.models[0].manifest
        name, version, action = unquote(match.group(1)), match.group(2), match.group(3)
        if name != manifest.name or (version is not None and unquote(version) != manifest.version):
            found = name if version is None else f"{name} {unquote(version)}"
            raise HttpError(404, f"no model `{found[:80]}` here, it is `{manifest.name}` {manifest.version}")
        method = "POST" if action == "/infer" else "GET"
        if request.method != method and (method, request.method) != ("GET", "HEAD"):
            raise HttpError(405, f"`{request.path[:80]}` is for {method}")
        if action == "/ready":
            return self._ready(request)
        if action is None:
            return json_answer(oip.metadata(manifest))
        asked = oip.InferRequest(request.body, request.headers, manifest)
        self._rate.take(time.monotonic())

        def infer(model: StageModel) -> dict[str, NDArray[Any]]:
            raw = getattr(model, "inner", model)
            values = raw.infer({manifest.input.name: asked.tensor})
            # The engine may write its buffers again as soon as the model is given back.
            return {key: np.array(value) for key, value in values.items()}

        return asked.answer(self._timed(engine, infer), manifest)

    def _predict(self, request: Request) -> Answer:
        engine = self._loaded()
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise HttpError(415, "forms are not read", hint="send the JPEG or PNG itself as the body")
        frame = image_of(request.body, "body")
        self._rate.take(time.monotonic())
        return json_answer(self._one(engine, frame))

    def _predict_batch(self, request: Request) -> Answer:
        engine = self._loaded()
        images, _ = _images_of(request)
        if len(images) > _BATCH:
            hint = "submit it to /v1/batches, or split it"
            raise HttpError(413, f"a batch has at most {_BATCH} images, found {len(images)}", hint=hint)
        self._rate.take(time.monotonic(), len(images))
        results: list[dict[str, Any]] = []
        for i, text in enumerate(images):
            try:
                results.append(self._one(engine, image_of(base64_of(text, i), f"image {i}")))
            except HttpError as error:
                if error.status >= 500:
                    raise
                results.append({"error": error.to_json()})
        return json_answer({"results": results})

    def _submit(self, request: Request) -> Answer:
        self._loaded()
        images, data = _images_of(request)
        unknown = sorted(set(data) - {"images", "webhook"})
        if unknown:
            raise HttpError(400, f"unknown key `{unknown[0][:40]}`", hint="known: images, webhook")
        state = self._batches.submit([base64_of(text, i) for i, text in enumerate(images)], data.get("webhook"))
        return json_answer(state, status=202, headers={"Location": state["url"]})

    def _one_batch(self, request: Request, name: str) -> Answer:
        if request.method == "DELETE":
            return json_answer(self._batches.cancel(name))
        if request.method not in ("GET", "HEAD"):
            raise HttpError(405, f"`/v1/batches/ID` is for GET and DELETE, found {request.method[:10]}")
        wanted = {key: _whole(request.query, key, default) for key, default in (("after", 0), ("limit", 100))}
        return json_answer(self._batches.state(name, **wanted))

    def _batch_image(self, data: bytes, number: int) -> dict[str, Any]:
        """Return the result of one image of a batch; what stops the service does not stop a batch at once."""
        if self._engine is None:
            raise HttpError(503, "the model is being loaded", kind="loading")
        frame = image_of(data, f"image {number}")
        self._rate.take(time.monotonic())
        return self._one(self._engine, frame)

    def _one(self, engine: Engine, frame: NDArray[Any]) -> dict[str, Any]:
        began = time.monotonic()

        def answer(model: StageModel) -> tuple[Any, str]:
            feeds, geometry = model.prepare(frame)
            return model.decode(model.infer(feeds), geometry), model.digest

        result, digest = self._timed(engine, answer)
        height, width = frame.shape[:2]
        latency_ms = round((time.monotonic() - began) * 1000, 3)
        head = {"v": 1, "model": digest, "width": width, "height": height, "latency_ms": latency_ms}
        return {**head, **result.to_json()}

    def _timed(self, engine: Engine, work: Callable[[StageModel], Any]) -> Any:
        def timed(model: StageModel) -> tuple[Any, float]:
            began = time.perf_counter()
            return work(model), time.perf_counter() - began

        result, seconds = engine.use(timed)
        self._infer_s.add(seconds)
        with self._lock:
            self._latency_ms.add(seconds * 1000)
        return result

    def _loaded(self) -> Engine:
        if self._stopping:
            raise HttpError(503, "the service is stopping", kind="stopping", retry_after_s=5)
        if self._engine is None:
            raise HttpError(503, "the model is being loaded", kind="loading", retry_after_s=1)
        return self._engine

    # -- about itself ------------------------------------------------------------------------------------------------

    def _index(self, _request: Request) -> Answer:
        model = describe(self._engine) if self._engine is not None else None
        return json_answer({"name": "edge-sdk", "version": __version__, "model": model, "routes": _ROUTES_TEXT})

    def _ready(self, _request: Request) -> Answer:
        engine = self._loaded()
        now = time.monotonic()
        state = engine.breaker.state(now)
        if state == "open":
            raise HttpError(503, f"the engine fails: {engine.breaker.reason}", kind="circuit_open", retry_after_s=5)
        body: dict[str, Any] = {"ready": True, "model": engine.current.digest, "circuit": state}
        if self._watch is not None:
            body["source"] = "up" if self._watch.source_up(now) else "lost"
        return json_answer(body)

    def _server_metadata(self, _request: Request) -> Answer:
        return json_answer({"name": "edge-sdk", "version": __version__, "extensions": ["binary_tensor_data"]})

    def _repository(self, _request: Request) -> Answer:
        manifest = self._loaded().current.models[0].manifest
        return json_answer([{"name": manifest.name, "version": manifest.version, "state": "READY", "reason": ""}])

    def _latency(self) -> dict[str, float | None]:
        with self._lock:
            return self._latency_ms.to_json()

    def _count(self, route: str, status: int, began: float) -> None:
        self._request_s.add(time.monotonic() - began)
        with self._lock:
            self._requests[route, status] += 1

    def _metrics(self, _request: Request) -> Answer:
        now = time.monotonic()
        with self._lock:
            requests = sorted(self._requests.items())
        rows = [metrics.sample("edge_http_requests_total", n, {"route": r, "code": str(c)}) for (r, c), n in requests]
        lines = metrics.family("edge_http_requests_total", "counter", "Requests answered.", rows)
        name = "edge_http_request_seconds"
        lines += metrics.family(name, "histogram", "Time to answer.", self._request_s.lines(name, {}))
        name = "edge_inference_seconds"
        series = self._infer_s.lines(name, {"of": "http"})
        if self._watch is not None:
            series += self._watch.latency.lines(name, {"of": "pipeline"})
        lines += metrics.family(name, "histogram", "Time of one inference with its pre- and postprocessing.", series)
        lines += gauge("edge_rss_bytes", "Memory of the worker process.", (memory_mb()[1] or 0) * 1e6)
        if self._engine is not None:
            lines += engine_metrics(self._engine, now)
        if self._watch is not None and self._pipeline is not None and self._pipeline.running:
            lines += pipeline_metrics(self._pipeline.stats(), self._watch, now)
        return Answer(body=("\n".join(lines) + "\n").encode(), content_type=metrics.CONTENT_TYPE)


def _images_of(request: Request) -> tuple[list[str], dict[str, Any]]:
    """Return the encoded images of a JSON body, and the body."""
    data = oip.parse_json(request.body)
    images = data.get("images") if isinstance(data, dict) else None
    if not isinstance(images, list) or not images or not all(isinstance(i, str) for i in images):
        raise HttpError(400, "expected {'images': [base64, …]} with at least one image")
    return images, data


def _whole(query: Mapping[str, str], key: str, default: int) -> int:
    text = query.get(key, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise HttpError(400, f"`{key}` must be a whole number, found `{text[:40]}`")
    return int(text)
