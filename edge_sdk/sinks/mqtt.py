"""Results to an MQTT topic, QoS 1, with a bound on what is unacknowledged."""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edge_sdk.errors import SyncError, UsageError
from edge_sdk.sinks.base import FrameResult
from edge_sdk.sources.uri import Options, query_options, redact

logger = logging.getLogger(__name__)


class Mqtt:
    """`mqtt://[user:pass@]host[:port]/topic`, `mqtts://` for TLS; one JSON object per frame.

    Options: `timeout_s` (how long a connection or an acknowledgement may take), `inflight` (unacknowledged results),
    `retain`. `write` blocks while `inflight` results are unacknowledged.
    """

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        body, query = query_options(uri)
        merged: dict[str, Any] = {**query, **options}
        merged = Options(
            merged, frozenset({"timeout_s", "inflight", "retain", "fps", "live", "append"}), "an MQTT sink"
        )
        self.uri = redact(body)
        try:
            parts = urlsplit(body)
            self._host, port = parts.hostname, parts.port
        except ValueError:
            raise UsageError(f"`{self.uri}` is no MQTT address", hint="mqtt://host:1883/topic") from None
        self._topic = unquote(parts.path[1:])
        if not self._host or not self._topic or set("+#") & set(self._topic):
            raise UsageError(
                f"`{self.uri}` must name a host and a topic without wildcards", hint="mqtt://host:1883/cameras/door"
            )
        self._tls = parts.scheme == "mqtts"
        self._port = port or (8883 if self._tls else 1883)
        self._user = unquote(parts.username) if parts.username else None
        self._password = unquote(parts.password) if parts.password else None
        live = merged.flag("live")
        self._timeout_s = merged.number("timeout_s", 2.0 if live else 30.0, low=0.1, high=3600) or 30.0
        self._limit = int(merged.number("inflight", 100, low=1, high=10_000) or 100)
        self._retain = merged.flag("retain")
        self._free = threading.Semaphore(self._limit)
        self._connected = threading.Event()
        self._refused: str | None = None
        self._client: Any = None

    def open(self) -> None:
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"edge-sink-{uuid.uuid4().hex[:12]}")
        if self._user is not None:
            client.username_pw_set(self._user, self._password)
        if self._tls:
            client.tls_set()
        client.max_inflight_messages_set(min(self._limit, 100))
        client.reconnect_delay_set(1, 30)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        try:
            client.connect(self._host or "", self._port, keepalive=30)
        except OSError as error:
            raise SyncError(
                f"broker of `{self.uri}` cannot be reached: {(error.strerror or str(error)).lower()}",
                hint="check host and port",
            ) from None
        client.loop_start()
        self._client = client
        if not self._connected.wait(max(5.0, self._timeout_s)) or self._refused:
            why = self._refused or "no answer"
            self.close()
            raise SyncError(f"broker of `{self.uri}` refused: {why}", hint="check user, password and port")

    def write(self, item: FrameResult) -> None:
        payload = json.dumps(item.to_json(), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        if not self._free.acquire(timeout=self._timeout_s):
            raise SyncError(f"`{self.uri}`: the broker acknowledged nothing for {self._timeout_s:g} s")
        info = self._client.publish(self._topic, payload, qos=1, retain=self._retain)
        if info.rc not in (paho.MQTT_ERR_SUCCESS, paho.MQTT_ERR_NO_CONN):
            self._free.release()
            raise SyncError(f"`{self.uri}`: {paho.error_string(info.rc)}")

    def close(self) -> None:
        if self._client is None:
            return
        client, self._client = self._client, None
        missing = self._wait_for_acks() if self._connected.is_set() else self._outstanding()
        client.disconnect()
        client.loop_stop()
        if missing:
            raise SyncError(f"`{self.uri}`: {missing} results were not acknowledged by the broker")

    def _outstanding(self) -> int:
        taken = 0
        while self._free.acquire(blocking=False):
            taken += 1
        for _ in range(taken):
            self._free.release()
        return self._limit - taken

    def _wait_for_acks(self) -> int:
        for done in range(self._limit):
            if not self._free.acquire(timeout=self._timeout_s):
                return self._limit - done
        return 0

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._refused = str(reason) if reason.is_failure else None
        self._connected.set()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        logger.info("%s: disconnected: %s", self.uri, reason)

    def _on_publish(self, _client: Any, _data: Any, _mid: int, _reason: Any, _properties: Any) -> None:
        self._free.release()
