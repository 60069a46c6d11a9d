"""Batches that are submitted now and fetched later: a bounded queue, one worker thread, results that expire.

The pattern is that of RFC 9110, 202 Accepted: submit, get an address, ask there. Nothing depends on the connection that
submitted. With a folder for them, nothing depends on the process either.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any

from edge_sdk.errors import SinkError
from edge_sdk.serve_config import BatchConfig
from edge_sdk.serving.batch import Batch, Status
from edge_sdk.serving.batch_store import BatchStore
from edge_sdk.serving.callback import Callbacks
from edge_sdk.serving.exchange import HttpError

logger = logging.getLogger(__name__)
_PAGE = 1000
_GONE_KEPT = 1000
_CALLBACK_BYTES = 1 << 20
_GIVE_UP_S = 600.0
_TRIES = 2
_LATER = frozenset({"busy", "rate_limited", "circuit_open", "loading"})


class Batches:
    """Answers the images of batches one after the other, beside the requests that wait for their answer.

    With a `folder` in the configuration an accepted batch is on the disk before its id is given out. The next process
    goes on with the first image that has no result; an image that two processes died of is answered with an error.

    Args:
        answer: returns the result of one image (JSON types); raises HttpError, of which those that say `busy`,
            `rate_limited`, `circuit_open` or `loading` are tried again and others are the image's result.

    Raises:
        SinkError: the folder cannot be used.
    """

    def __init__(
        self,
        config: BatchConfig,
        callbacks: Callbacks,
        answer: Callable[[bytes, int], dict[str, Any]],
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._callbacks = callbacks
        self._answer = answer
        self._clock, self._monotonic = clock, monotonic
        self._changed = threading.Condition()
        self._batches: OrderedDict[str, Batch] = OrderedDict()
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._stopping = threading.Event()
        self._deadline = float("inf")
        self.counts: Counter[str] = Counter()
        self._store = BatchStore(config.folder) if config.folder is not None else None
        if self._store is not None:
            self._restore(self._store)
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)

    def start(self) -> None:
        """Begin to answer; what is submitted before waits. Once is enough."""
        if self._thread.ident is None:
            self._thread.start()

    # -- what clients ask ------------------------------------------------------------------------------------------

    def submit(self, images: Sequence[bytes], webhook: Any = None) -> dict[str, Any]:
        """Queue a batch and return its state.

        Raises:
            HttpError: 400 for a wrong webhook, 413 for too many images, 429 when the queue is full, 503 when stopping.
        """
        limits = self._config
        if len(images) > limits.images:
            raise HttpError(413, f"a batch has at most {limits.images} images, found {len(images)}", hint="split it")
        poster = None if webhook is None else self._callbacks.poster(webhook)
        size = sum(map(len, images))
        with self._changed:
            self._expire()
            if self._stopping.is_set():
                raise HttpError(503, "the service is stopping", kind="stopping", retry_after_s=5)
            open_ = [b for b in self._batches.values() if not b.status.ended]
            if len(open_) >= limits.queued:
                message = f"{len(open_)} batches wait or run, the limit is {limits.queued}"
                raise HttpError(429, message, kind="queue_full", hint="fetch one that has ended", retry_after_s=5)
            most = int(limits.pending_mb * 1e6)
            pending = sum(b.pending_bytes for b in open_)
            if size > most:
                raise HttpError(413, f"the images are {size} bytes, the limit is {most}", hint="split the batch")
            if pending + size > most:
                message = f"{pending} bytes of images wait, with these it would be more than {most}"
                raise HttpError(429, message, kind="queue_full", hint="wait for a batch to end", retry_after_s=5)
            batch = Batch(secrets.token_urlsafe(12), deque(images), len(images), self._clock(), poster)
            if poster is not None:
                batch.webhook = {"host": poster.host, "delivered": None}
            if self._store is not None:
                try:
                    self._store.add(batch, webhook)
                except SinkError as error:
                    raise HttpError(507, error.message, kind="storage", hint=error.hint) from None
            self._batches[batch.id] = batch
            self.counts["submitted"] += 1
            self._changed.notify_all()
            return self._describe(batch)

    def state(self, name: str, *, after: int = 0, limit: int = 100) -> dict[str, Any]:
        """Return a batch's state and its results from number `after` on, `limit` at most.

        Raises:
            HttpError: 404 when it never was, 410 when its results have expired.
        """
        with self._changed:
            batch = self._find(name)
            rows = [json.loads(row) for row in batch.results[after : after + min(limit, _PAGE)]]
            more = after + len(rows) < len(batch.results) or not batch.status.ended
            return self._describe(batch) | {"results": rows, "next": after + len(rows) if more else None}

    def listing(self) -> dict[str, Any]:
        """Return the state of every batch that is known."""
        with self._changed:
            self._expire()
            return {"batches": [self._describe(b) for b in self._batches.values()]}

    def cancel(self, name: str) -> dict[str, Any]:
        """Answer no more of a batch and return its state; one that has ended is forgotten.

        Raises:
            HttpError: as `state`.
        """
        with self._changed:
            batch = self._find(name)
            if batch.status.ended:
                self._forget(batch)
            else:
                self._end(batch, Status.CANCELLED, None)
            return self._describe(batch)

    def close(self, drain_s: float) -> None:
        """Finish what is queued for at most `drain_s`.

        What is kept on the disk goes on with the next process; without a folder the rest is `interrupted`, and whoever
        asked is told.
        """
        with self._changed:
            self._stopping.set()
            self._deadline = self._monotonic() + drain_s
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(drain_s + 1.0)
        with self._changed:
            for batch in list(self._batches.values()):
                if not batch.status.ended and self._store is not None:
                    self._store.begin(batch, batch.tries)
                    logger.warning("batch %s goes on when the service runs again", batch.id)
                elif not batch.status.ended:
                    why = f"the service stopped after {len(batch.results)} of {batch.total} images"
                    logger.warning("batch %s: %s", batch.id, why)
                    self._end(batch, Status.INTERRUPTED, why)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _find(self, name: str) -> Batch:
        self._expire()
        batch = self._batches.get(name)
        if batch is not None:
            return batch
        if name in self._gone:
            message = f"the results of batch `{name[:40]}` have expired"
            raise HttpError(410, message, kind="gone", hint="submit it again")
        raise HttpError(
            404, f"no batch `{name[:40]}`", hint=None if self._store else "batches end with the service that took them"
        )

    def _describe(self, batch: Batch) -> dict[str, Any]:
        out: dict[str, Any] = {
            "id": batch.id,
            "status": batch.status.value,
            "images": batch.total,
            "done": len(batch.results),
            "failed": batch.failed,
            "created": round(batch.created, 3),
            "url": f"/v1/batches/{batch.id}",
        }
        for name in ("started", "ended"):
            if (value := getattr(batch, name)) is not None:
                out[name] = round(value, 3)
        if batch.ended is not None:
            out["expires"] = round(batch.ended + self._config.keep_s, 3)
        if batch.why is not None:
            out["error"] = batch.why
        if batch.webhook is not None:
            out["webhook"] = dict(batch.webhook)
        return out

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            try:
                self._run(batch)
            except Exception as error:
                logger.exception("batch %s", batch.id)
                with self._changed:
                    self._end(batch, Status.FAILED, f"a defect of the server: {type(error).__name__}")

    def _next(self) -> Batch | None:
        with self._changed:
            while True:
                if self._monotonic() >= self._deadline:
                    return None
                queued = next((b for b in self._batches.values() if b.status is Status.QUEUED), None)
                if queued is not None:
                    queued.status, queued.started = Status.RUNNING, self._clock()
                    return queued
                if self._stopping.is_set():
                    return None
                self._changed.wait()

    def _run(self, batch: Batch) -> None:
        while True:
            with self._changed:
                if not batch.is_running() or self._monotonic() >= self._deadline:
                    return
                if not batch.images:
                    self._end(batch, Status.DONE, None)
                    return
                image, number = batch.images[0], len(batch.results)
                if self._store is not None:
                    self._store.begin(batch, batch.tries + 1)
            row = self._one(batch, image, number) if batch.tries < _TRIES else _deadly()
            if row is None:
                return
            text = json.dumps(row, separators=(",", ":"), allow_nan=False).encode()
            with self._changed:
                if not batch.is_running():
                    return
                batch.images.popleft()
                batch.tries = 0
                batch.failed += "error" in row
                if self._store is not None:
                    self._store.answered(batch, number, text, failed="error" in row)
                batch.results.append(text)
                batch.result_bytes += len(text)
                if batch.result_bytes > self._config.results_mb * 1e6:
                    self._end(batch, Status.FAILED, f"its results are more than {self._config.results_mb:g} MB")

    def _one(self, batch: Batch, image: bytes, number: int) -> dict[str, Any] | None:
        """Return the result of one image, tried until the engine has time for it; None when the batch ends first."""
        since = self._monotonic()
        while True:
            try:
                return self._answer(image, number)
            except HttpError as error:
                if error.kind not in _LATER:
                    return {"error": error.to_json()}
                with self._changed:
                    now = self._monotonic()
                    if now - since > _GIVE_UP_S:
                        self._end(batch, Status.FAILED, f"given up after {_GIVE_UP_S:g} s: {error.message}")
                    if not batch.is_running() or now >= self._deadline:
                        return None
                    self._changed.wait(min(0.2, max(0.0, self._deadline - now)))

    def _end(self, batch: Batch, status: Status, why: str | None) -> None:
        """End a batch, make room, and tell whoever asked; the caller holds the lock."""
        batch.status, batch.why = status, why
        batch.ended, batch.ended_s = self._clock(), self._monotonic()
        batch.images.clear()
        if self._store is not None:
            self._store.ended(batch)
        self.counts[status.value] += 1
        self._changed.notify_all()
        self._tell(batch)
        self._expire()

    def _tell(self, batch: Batch) -> None:
        """Tell whoever asked that a batch has ended."""
        poster, webhook = batch.poster, batch.webhook
        if poster is None or webhook is None:
            return
        document = {"event": "batch", **self._describe(batch)}
        if batch.result_bytes <= _CALLBACK_BYTES:
            document["results"] = [json.loads(row) for row in batch.results]

        def told(why: str | None) -> None:
            webhook.update({"delivered": why is None} | ({"error": why} if why else {}))
            # One that the end of the service cut short is told by the next.
            with self._changed:
                if self._store is not None and (why is None or not self._stopping.is_set()):
                    self._store.told(batch)

        self._callbacks.tell(poster, document, told)

    def _restore(self, store: BatchStore) -> None:
        """Go on with what an earlier process accepted, and tell of what it did not tell."""
        for batch, address in store.load():
            if address is not None and batch.webhook is not None and batch.webhook["delivered"] is None:
                try:
                    batch.poster = self._callbacks.poster(address)
                except HttpError as error:
                    batch.webhook |= {"delivered": False, "error": error.message}
            self._batches[batch.id] = batch
            if batch.status.ended:
                batch.ended_s = self._monotonic() - max(0.0, self._clock() - (batch.ended or 0.0))
                self._tell(batch)
        waiting = [b for b in self._batches.values() if not b.status.ended]
        if waiting:
            logger.warning("%d batches of an earlier run go on", len(waiting))

    def release(self) -> None:
        """Let go of the folder, once nothing is told any more."""
        with self._changed:
            store, self._store = self._store, None
            if store is not None:
                store.close()

    def _expire(self) -> None:
        """Forget ended batches that are too old, and the oldest ones while they are too large."""
        ended = sorted((b for b in self._batches.values() if b.status.ended), key=lambda b: b.ended_s)
        now, size = self._monotonic(), sum(b.result_bytes for b in ended)
        for i, batch in enumerate(ended):
            too_large = size > self._config.results_mb * 1e6 and i < len(ended) - 1
            if now - batch.ended_s <= self._config.keep_s and not too_large and len(ended) - i <= _GONE_KEPT:
                continue
            size -= batch.result_bytes
            self._forget(batch)

    def _forget(self, batch: Batch) -> None:
        self._batches.pop(batch.id, None)
        if self._store is not None:
            self._store.forget(batch.id)
        self._gone[batch.id] = None
        while len(self._gone) > _GONE_KEPT:
            self._gone.popitem(last=False)


def _deadly() -> dict[str, Any]:
    """Return the result of an image that no process lived to answer."""
    message = f"the process ended {_TRIES} times while this image was answered"
    error = HttpError(500, message, kind="worker", hint="the image makes native code crash, or the device lost power")
    return {"error": error.to_json()}
