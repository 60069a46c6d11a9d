"""Tells whoever asked that a batch has ended: signed POSTs from a thread of their own."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from edge_sdk.backoff import Backoff
from edge_sdk.errors import EdgeError, UsageError
from edge_sdk.serve_config import ServeConfig
from edge_sdk.serving.exchange import HttpError
from edge_sdk.sinks.post import Poster

logger = logging.getLogger(__name__)
_TIMEOUT_S = 10.0


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """Return the value of `X-Edge-Signature`: HMAC-SHA256 of timestamp, full stop and body (RFC 2104), in hex."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class Callbacks:
    """Delivers one document after the other; one that cannot be delivered is given up after its attempts."""

    def __init__(self, config: ServeConfig, *, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._clock = clock
        self._stopping = threading.Event()
        self._waiting: queue.SimpleQueue[tuple[Poster, Mapping[str, Any], Callable[[str | None], None]] | None]
        self._waiting = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="callbacks", daemon=True)
        self._thread.start()

    def poster(self, address: Any) -> Poster:
        """Return what will post to an address that a client names.

        Raises:
            HttpError: it is none, or this service may not call it.
        """
        if not isinstance(address, str) or len(address) > 2000:
            raise HttpError(400, "webhook: expected an address such as https://host/path")
        batches = self._config.batches
        try:
            poster = Poster(
                address,
                timeout_s=_TIMEOUT_S,
                attempts=batches.webhook_attempts,
                backoff=Backoff(first_s=0.5, max_s=60.0),
                stopping=self._stopping,
            )
        except UsageError as error:
            raise HttpError(400, f"webhook: {error.message}", hint=error.hint) from None
        allowed = poster.host in batches.webhook_hosts or (not batches.webhook_hosts and self._config.local)
        if not allowed:
            raise HttpError(
                403,
                f"webhook: this service may not call host `{poster.host[:80]}`",
                kind="forbidden",
                hint="name it in `webhook_hosts` of [serve.batches]",
            )
        return poster

    def tell(self, poster: Poster, document: Mapping[str, Any], told: Callable[[str | None], None]) -> None:
        """Post `document` soon; `told` gets None, or why it was not delivered."""
        self._waiting.put((poster, document, told))

    def close(self, timeout_s: float) -> None:
        """Deliver what waits, each tried once more at most, for so many seconds."""
        self._stopping.set()
        self._waiting.put(None)
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while (taken := self._waiting.get()) is not None:
            poster, document, told = taken
            body = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
            timestamp = str(int(self._clock()))
            headers = {"X-Edge-Timestamp": timestamp}
            if self._config.batches.webhook_secret is not None:
                headers["X-Edge-Signature"] = signature(self._config.batches.webhook_secret, timestamp, body)
            try:
                poster.post(body, headers)
                told(None)
            except EdgeError as error:
                logger.warning("%s", error.message)
                told(error.message)
            except Exception as error:
                logger.exception("a webhook failed")
                told(str(error))
