"""Results to an MQTT topic, QoS 1, with a bound on what is unacknowledged."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from typing import Any

import paho.mqtt.client as paho

from edge_sdk.errors import SyncError, UsageError
from edge_sdk.sinks.base import FrameResult
from edge_sdk.sinks.broker import Broker
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
        what, example = "a topic without wildcards", "mqtt://host:1883/cameras/door"
        self._broker = Broker.of(body, self.uri, what=what, example=example)
        self._topic = self._broker.path
        if set("+#") & set(self._topic):
            raise UsageError(f"`{self.uri}` must name a host and {what}", hint=example)
        live = merged.flag("live")
        self._timeout_s = merged.number("timeout_s", 2.0 if live else 30.0, low=0.1, high=3600) or 30.0
        self._limit = int(merged.number("inflight", 100, low=1, high=10_000) or 100)
        self._retain = merged.flag("retain")
        self._free = threading.Semaphore(self._limit)
        self._client: Any = None

    def open(self) -> None:
        self._client = self._broker.connect("edge-sink", timeout_s=max(5.0, self._timeout_s), prepare=self._prepare)

    def _prepare(self, client: paho.Client) -> None:
        client.max_inflight_messages_set(min(self._limit, 100))
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish

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
        missing = self._wait_for_acks()
        client.disconnect()
        client.loop_stop()
        if missing:
            raise SyncError(f"`{self.uri}`: {missing} results were not acknowledged by the broker")

    def _wait_for_acks(self) -> int:
        for done in range(self._limit):
            if not self._free.acquire(timeout=self._timeout_s):
                return self._limit - done
        return 0

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        logger.info("%s: disconnected: %s", self.uri, reason)

    def _on_publish(self, _client: Any, _data: Any, _mid: int, _reason: Any, _properties: Any) -> None:
        self._free.release()
