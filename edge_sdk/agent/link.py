"""The device's MQTT session: what it wants to say goes out, what the cloud says comes in as events."""

from __future__ import annotations

import logging
import queue
import random
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edge_sdk.errors import ConfigError
from edge_sdk.schemas.codec import MAX_MESSAGE_BYTES
from edge_sdk.schemas.ids import DOWN, check_id, topic
from edge_sdk.schemas.state import LAST_WILL
from edge_sdk.telemetry.batching import Frozen

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkPolicy:
    """`[link]`: at most `window` unacknowledged batches on the way, each sent again after `resend_s`, doubling."""

    window: int = field(default=8, metadata={"min": 1, "max": 64})
    resend_s: float = field(default=20.0, metadata={"min": 0.1})
    max_resend_s: float = field(default=600.0, metadata={"min": 0.1})
    reconnect_min_s: float = field(default=1.0, metadata={"min": 0.1})
    reconnect_max_s: float = field(default=60.0, metadata={"min": 0.1})
    keepalive_s: int = field(default=30, metadata={"min": 5, "max": 3600})


@dataclass(frozen=True, slots=True)
class Event:
    """What happened: `connected`, `disconnected` or the leaf of a topic (`desired`, `ack`, `cmd`) with its payload."""

    name: str
    payload: bytes = b""


@dataclass(slots=True)
class _Sent:
    at_s: float
    epoch: int
    times: int
    info: Any


class InFlight:
    """Which batches to send now: each once per connection, and again when no acknowledgement came in time."""

    def __init__(self, policy: LinkPolicy) -> None:
        self._policy = policy
        self._sent: dict[int, _Sent] = {}

    def due(self, batches: Sequence[Frozen], epoch: int, now_s: float) -> list[Frozen]:
        """Return the batches to send; batches that were acknowledged since are forgotten.

        A batch that was sent 5 times without an answer no longer counts against the window, so that one that the server
        cannot take holds up no other.
        """
        present = {b.q0 for b in batches}
        self._sent = {q0: s for q0, s in self._sent.items() if q0 in present}
        room = self._policy.window - sum(1 for s in self._sent.values() if s.epoch == epoch and s.times < 5)
        out: list[Frozen] = []
        for batch in batches:
            before = self._sent.get(batch.q0)
            if before is None or before.epoch != epoch:
                if room > 0 or batch.priority >= 2:
                    room -= 1
                    out.append(batch)
            elif now_s - before.at_s >= self._wait_s(before.times):
                out.append(batch)
        return out

    def wanted(self) -> int:
        """Return how many batches to ask the outbox for."""
        return self._policy.window + min(64, sum(1 for s in self._sent.values() if s.times >= 5))

    def still_on_its_way(self, q0: int) -> bool:
        """Say whether the client still holds the message of the last sending, and will deliver it itself."""
        before = self._sent.get(q0)
        return before is not None and before.info is not None and not delivered(before.info)

    def note(self, q0: int, epoch: int, now_s: float, info: Any) -> None:
        """Remember a sending; without `info` the one before goes on."""
        before = self._sent.get(q0)
        times = before.times + 1 if before else 1
        kept = info if info is not None else (before.info if before else None)
        self._sent[q0] = _Sent(now_s, epoch, times, kept)

    def _wait_s(self, times: int) -> float:
        return float(min(self._policy.max_resend_s, self._policy.resend_s * 2.0 ** (times - 1)))


def delivered(info: Any) -> bool:
    """Say whether the broker has a message; one of unknown fate counts as delivered, twice is harmless."""
    try:
        return bool(info.is_published())
    except (ValueError, RuntimeError):
        return True


class Link:
    """One MQTT 3.1.1 session with QoS 1, persistent at the broker; a thread of the client's does the network.

    Events go to `events`; callbacks never raise into the client's thread. Nothing is queued while there is no
    connection: publishing then returns None, and what matters is kept in the outbox and in `state.json`.
    """

    def __init__(
        self,
        url: str,
        *,
        tenant: str,
        device: str,
        credential: str,
        policy: LinkPolicy | None = None,
        events: queue.SimpleQueue[Event] | None = None,
    ) -> None:
        self._policy = policy or LinkPolicy()
        self._host, self._port, tls = _parse(url)
        self._tenant, self._device = check_id(tenant, "tenant"), check_id(device, "device")
        self.events: queue.SimpleQueue[Event] = events if events is not None else queue.SimpleQueue()
        self.epoch = 0
        self.trouble: str | None = "not connected yet"
        self._connected = threading.Event()
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=f"{tenant}.{device}", clean_session=False, protocol=mqtt.MQTTv311
        )
        client.username_pw_set(device, credential)
        client.will_set(topic(tenant, device, "state"), LAST_WILL, qos=1, retain=True)
        client.max_inflight_messages_set(100)
        client.max_queued_messages_set(500)
        if tls:
            client.tls_set_context(ssl.create_default_context())
        client.on_connect = self._guard(self._on_connect)
        client.on_disconnect = self._guard(self._on_disconnect)
        client.on_connect_fail = self._guard(self._on_connect_fail)
        client.on_message = self._guard(self._on_message)
        self._client = client

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    def start(self) -> None:
        """Connect in the background, again and again until `stop`."""
        self._jitter()
        self._client.connect_async(self._host, self._port, keepalive=self._policy.keepalive_s)
        self._client.loop_start()

    def stop(self, farewell: bytes | None = None, timeout_s: float = 2.0) -> None:
        """Publish a last retained state, if there is one, and end the session's connection."""
        if farewell is not None and self.connected:
            info = self.publish("state", farewell, retain=True)
            deadline = time.monotonic() + timeout_s
            while info is not None and not delivered(info) and self.connected and time.monotonic() < deadline:
                time.sleep(0.02)
        self._client.disconnect()
        self._client.loop_stop()
        self._connected.clear()

    def publish(self, leaf: str, payload: bytes, *, retain: bool = False) -> Any:
        """Publish to one of the device's topics with QoS 1; None without a connection or when the message is too large.

        `delivered(value)` says whether the broker has it.
        """
        if len(payload) > MAX_MESSAGE_BYTES:
            logger.error("a message of %d bytes for `%s` is above the limit and is not sent", len(payload), leaf)
            return None
        if not self.connected:
            return None
        info = self._client.publish(topic(self._tenant, self._device, leaf), payload, qos=1, retain=retain)
        return None if info.rc == mqtt.MQTT_ERR_QUEUE_SIZE else info

    def _guard(self, callback: Callable[..., None]) -> Callable[..., None]:
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                callback(*args, **kwargs)
            except Exception:  # it would end the client's thread while the client still calls itself connected
                logger.exception("an MQTT callback failed")

        return guarded

    def _on_connect(self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self.trouble = f"the broker refused the connection: {reason}"
            logger.error("%s", self.trouble)
            return
        client.subscribe([(topic(self._tenant, self._device, leaf), 1) for leaf in DOWN])
        self.epoch += 1
        self.trouble = None
        self._connected.set()
        self._jitter()
        logger.info("connected to %s:%d", self._host, self._port)
        self.events.put(Event("connected"))

    def _on_disconnect(self, _client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        was = self.connected
        self._connected.clear()
        if self.trouble is None:
            self.trouble = f"the connection was lost: {reason}"
        if was:
            logger.warning("disconnected from %s:%d: %s", self._host, self._port, reason)
            self.events.put(Event("disconnected"))

    def _on_connect_fail(self, _client: mqtt.Client, _data: Any) -> None:
        self.trouble = f"the broker at {self._host}:{self._port} cannot be reached"
        logger.info("%s", self.trouble)

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        leaf = message.topic.rpartition("/")[2]
        if message.topic == topic(self._tenant, self._device, leaf) and leaf in DOWN:
            self.events.put(Event(leaf, bytes(message.payload)))

    def _jitter(self) -> None:
        """Choose this connection's reconnect delays at random, so that a fleet does not come back all at once."""
        spread = 0.5 + random.random()
        low, high = self._policy.reconnect_min_s * spread, self._policy.reconnect_max_s * spread
        self._client.reconnect_delay_set(min_delay=low, max_delay=max(low, high))  # type: ignore[arg-type]


def _parse(url: str) -> tuple[str, int, bool]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
        raise ConfigError(f"`{url}` is not a broker URL", hint="expected mqtt://HOST:PORT or mqtts://HOST:PORT")
    tls = parts.scheme == "mqtts"
    return parts.hostname, port or (8883 if tls else 1883), tls
