"""The models behind the HTTP service: a pool of equal ones, a circuit breaker and a rate limit."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from edge_sdk.errors import EdgeError, NonFiniteError
from edge_sdk.pipeline.models import ModelSet, StageModel
from edge_sdk.serving.exchange import HttpError
from edge_sdk.sources.base import BrokenFrame

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Breaker:
    """Refuses work after `failures` in a row for `pause_s` seconds, then lets one attempt through to see.

    A failed attempt doubles the pause, up to a minute. Thread-safe; `now` is the monotonic clock.
    """

    def __init__(self, *, failures: int = 5, pause_s: float = 5.0) -> None:
        self._limit, self._first_pause_s = failures, pause_s
        self._lock = threading.Lock()
        self._failures = 0
        self._pause_s = pause_s
        self._until: float | None = None
        self._trying = False
        self.reason = ""

    def state(self, now: float) -> str:
        """Return closed, open or half-open."""
        if self._until is None:
            return "closed"
        return "open" if now < self._until else "half-open"

    def enter(self, now: float) -> None:
        """Pass, or refuse.

        Raises:
            HttpError: 503 with the reason and when to come back.
        """
        with self._lock:
            if self._until is None:
                return
            if now >= self._until and not self._trying:
                self._trying = True
                return
            left = max(1.0, self._until - now)
            message = f"the engine failed {self._failures} times in a row and is given a pause: {self.reason}"
            raise HttpError(503, message, kind="circuit_open", hint="nothing is inferred meanwhile", retry_after_s=left)

    def succeeded(self) -> None:
        with self._lock:
            self._failures, self._until, self._trying, self._pause_s = 0, None, False, self._first_pause_s

    def undecided(self) -> None:
        """The attempt ended for a reason that says nothing about the engine."""
        with self._lock:
            self._trying = False

    def failed(self, reason: str, now: float) -> None:
        with self._lock:
            self._failures += 1
            self.reason = reason
            if self._trying:
                self._pause_s = min(60.0, 2 * self._pause_s)
            if self._trying or self._failures >= self._limit:
                self._until, self._trying = now + self._pause_s, False


class RateLimit:
    """A token bucket: `per_s` requests a second on average, at most a second's worth at once; None is no limit."""

    def __init__(self, per_s: float | None) -> None:
        self._per_s = per_s
        self._most = max(1.0, per_s or 0.0)
        self._tokens = self._most
        self._then: float | None = None
        self._lock = threading.Lock()

    def take(self, now: float, n: int = 1) -> None:
        """Take the tokens of `n` inferences; a batch larger than the bucket waits for a full one and leaves a debt.

        Raises:
            HttpError: 429 with the seconds after which they are there.
        """
        if self._per_s is None:
            return
        with self._lock:
            if self._then is not None:
                self._tokens = min(self._most, self._tokens + (now - self._then) * self._per_s)
            self._then = now
            need = min(float(n), self._most)
            if self._tokens + 1e-9 < need:
                raise HttpError(
                    429,
                    f"more than {self._per_s:g} inferences a second",
                    kind="rate_limited",
                    hint="wait for the seconds in Retry-After",
                    retry_after_s=(need - self._tokens) / self._per_s,
                )
            self._tokens -= n


class Engine:
    """Lends a loaded model to one request at a time; a swap waits for the requests that are in the old one."""

    def __init__(self, models: ModelSet, *, wait_s: float = 10.0, breaker: Breaker | None = None) -> None:
        self.breaker = breaker or Breaker()
        self._wait_s = wait_s
        self._changed = threading.Condition()
        self._set = models
        self._free = list(models.models)
        self._lent: Counter[int] = Counter()
        self._since: dict[int, float] = {}
        self.errors: Counter[str] = Counter()

    @property
    def current(self) -> ModelSet:
        return self._set

    def use(self, work: Callable[[StageModel], T]) -> T:
        """Return what `work` makes of a model.

        Raises:
            HttpError: 503 while the circuit is open or no model gets free in time, 500 when the engine fails, 422 when
                its answer is not finite; what `work` raises as HttpError passes.
        """
        self.breaker.enter(time.monotonic())
        decided = False
        try:
            models, model = self._acquire()
            try:
                result = work(model)
                self.breaker.succeeded()
                decided = True
                return result
            except (HttpError, BrokenFrame):
                raise
            except NonFiniteError as error:
                self._count("nonfinite")
                raise HttpError(422, error.message, kind="nonfinite", hint=error.hint) from None
            except Exception as error:
                decided = True
                self._count("infer")
                self.breaker.failed(str(error), time.monotonic())
                logger.warning("inference failed: %s", error, exc_info=not isinstance(error, EdgeError))
                raise HttpError(500, f"the engine failed: {error}", kind="backend") from None
            finally:
                self._release(models, model)
        finally:
            if not decided:
                self.breaker.undecided()

    def replace(self, new: ModelSet) -> None:
        """Let the next request get one of `new`, and close the old models when nobody uses them."""
        with self._changed:
            old, self._set = self._set, new
            self._free = list(new.models)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._lent[id(old)] == 0, timeout=60)
        self.breaker.succeeded()
        old.close()

    def busy(self, now: float) -> tuple[str, float]:
        """Return what the longest inference is in and for how many seconds."""
        with self._changed:
            since = min(self._since.values(), default=now)
        return ("infer", now - since) if now > since else ("idle", 0.0)

    def close(self) -> None:
        """Close the models; one that is still lent is left to the end of the process."""
        with self._changed:
            if self._changed.wait_for(lambda: self._lent[id(self._set)] == 0, timeout=2):
                self._set.close()

    def _acquire(self) -> tuple[ModelSet, StageModel]:
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._free), timeout=self._wait_s):
                raise HttpError(503, f"no model got free in {self._wait_s:g} s", kind="busy", retry_after_s=1)
            model = self._free.pop()
            self._lent[id(self._set)] += 1
            self._since[id(model)] = time.monotonic()
            return self._set, model

    def _release(self, models: ModelSet, model: StageModel) -> None:
        with self._changed:
            self._lent[id(models)] -= 1
            self._since.pop(id(model), None)
            if models is self._set:
                self._free.append(model)
            self._changed.notify_all()

    def _count(self, kind: str) -> None:
        with self._changed:
            self.errors[kind] += 1


def describe(engine: Engine) -> dict[str, Any]:
    """Return name, version, task, runtime and digest of the model that answers."""
    models = engine.current
    manifest = models.models[0].manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "task": manifest.task,
        "runtime": manifest.runtime.name,
        "digest": models.digest,
    }
