"""Counts, rate and camera trouble as a device in Home Assistant, announced by MQTT discovery."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar

import paho.mqtt.client as paho

from edge_sdk.errors import SyncError, UsageError
from edge_sdk.sinks.base import FrameResult
from edge_sdk.sinks.broker import Broker
from edge_sdk.sources.uri import Options, query_options, redact
from edge_sdk.tasks.summary import label_counts

logger = logging.getLogger(__name__)
_KNOWN = frozenset({"prefix", "every_s", "labels", "name", "timeout_s", "fps", "live", "append"})
_LABELS = 50
_AGAIN_S = 10.0
_EXPIRE_S = 60


class HomeAssistant:
    """`homeassistant:mqtt://[user:pass@]host[:port]/ID`, `mqtts://` for TLS; ID names the device, such as `door`.

    Options: `name` shown, `labels` (announced from the start, others when they are first seen), `every_s` (at most one
    state in that time), `prefix` of discovery topics (homeassistant), `timeout_s`. A label's state is the most that
    were seen at once since the last state. Format: home-assistant.io, MQTT discovery of single components.
    """

    changeable: ClassVar[frozenset[str]] = frozenset({"every_s"})

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        body, query = query_options(uri.partition(":")[2])
        merged: dict[str, Any] = {**query, **options}
        merged = Options(merged, _KNOWN, "a Home Assistant sink")
        self.uri = redact(f"homeassistant:{body}")
        what, example = "the device, of letters, digits, - and _", "homeassistant:mqtt://host:1883/door"
        self._broker = Broker.of(body, self.uri, what=what, example=example)
        self._id = self._broker.path.strip("/")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", self._id):
            raise UsageError(f"`{self.uri}` must name a host and {what}", hint=example)
        self._timeout_s = merged.number("timeout_s", 5.0, low=0.1, high=3600) or 5.0
        self._every_s = merged.number("every_s", 1.0, low=0.1, high=3600) or 1.0
        self._prefix = str(merged.get("prefix", "homeassistant")).strip("/")
        self._name = str(merged.get("name", self._id))
        self._base = f"edge-sdk/{self._id}"
        self._most: dict[str, int] = dict.fromkeys(_names(merged.get("labels", ())), 0)
        self._total = 0
        self._problems: list[str] = []
        self._times: deque[float] = deque(maxlen=30)
        self._sent: dict[str, Any] = {}
        self._sent_at = self._due = float("-inf")
        self._lock = threading.Lock()
        self._client: Any = None

    def adopt(self, other: HomeAssistant) -> None:
        """Take over the options of another that was made for the same device."""
        self._every_s = other._every_s

    def open(self) -> None:
        self._client = self._broker.connect(
            "edge-ha", timeout_s=self._timeout_s, prepare=self._prepare, on_connect=self._announce
        )

    def _prepare(self, client: paho.Client) -> None:
        client.max_queued_messages_set(200)
        client.will_set(f"{self._base}/availability", "offline", qos=1, retain=True)

    def write(self, item: FrameResult) -> None:
        now = time.monotonic()
        self._times.append(now)
        counts = label_counts(item.result)
        for label, n in counts.items():
            if label not in self._most:
                if len(self._most) >= _LABELS:
                    continue
                with self._lock:
                    self._most[label] = 0
                self._announce_label(label)
            self._most[label] = max(self._most[label], n)
        self._total = max(self._total, sum(counts.values()))
        self._problems = sorted({p for c in item.counts.values() if isinstance(c, dict) for p in c.get("problems", ())})
        if now >= self._due:
            self._send_state(now)

    def close(self) -> None:
        """Send the last state and say that the device is off.

        Raises:
            SyncError: the broker did not acknowledge it.
        """
        if self._client is None:
            return
        client, self._client = self._client, None
        info = client.publish(f"{self._base}/availability", "offline", qos=1, retain=True)
        try:
            info.wait_for_publish(self._timeout_s)
            arrived = info.is_published()
        except (RuntimeError, ValueError):
            arrived = False
        client.disconnect()
        client.loop_stop()
        if not arrived:
            raise SyncError(f"`{self.uri}`: the broker did not acknowledge the end")

    def _send_state(self, now: float) -> None:
        span = self._times[-1] - self._times[0]
        state: dict[str, Any] = {
            "objects": {_slug(label): n for label, n in self._most.items()},
            "total": self._total,
            "problem": "ON" if self._problems else "OFF",
            "problems": self._problems,
        }
        self._most = dict.fromkeys(self._most, 0)
        self._total = 0
        self._due = now + self._every_s
        if state == self._sent and now - self._sent_at < _AGAIN_S:
            return
        self._sent, self._sent_at = state, now
        fps = round((len(self._times) - 1) / span, 1) if span > 0 else 0.0
        payload = json.dumps({**state, "fps": fps}, separators=(",", ":"))
        self._client.publish(f"{self._base}/state", payload, qos=0, retain=True)

    # -- discovery -------------------------------------------------------------------------------------------------

    def _announce(self, client: Any) -> None:
        with self._lock:
            labels = list(self._most)
        rate = {"value_template": "{{ value_json.fps }}", "unit_of_measurement": "fps", "icon": "mdi:speedometer"}
        total = {"value_template": "{{ value_json.total }}", "icon": "mdi:shape"}
        trouble = {
            "value_template": "{{ value_json.problem }}",
            "device_class": "problem",
            "json_attributes_topic": f"{self._base}/state",
            "json_attributes_template": "{{ {'problems': value_json.problems} | tojson }}",
        }
        measured = {"state_class": "measurement"}
        self._configure(client, "sensor", "fps", "Frame rate", rate | measured | {"entity_category": "diagnostic"})
        self._configure(client, "sensor", "total", "Objects", total | measured)
        self._configure(client, "binary_sensor", "camera", "Camera problem", trouble)
        for label in labels:
            self._announce_label(label, client)
        client.publish(f"{self._base}/availability", "online", qos=1, retain=True)

    def _announce_label(self, label: str, client: Any = None) -> None:
        slug = _slug(label)
        template = "{{ value_json.objects['" + slug + "'] | default(0) }}"
        extra = {"value_template": template, "state_class": "measurement", "icon": "mdi:counter"}
        self._configure(client or self._client, "sensor", f"count_{slug}", f"{label} count", extra)

    def _configure(self, client: Any, component: str, key: str, name: str, extra: Mapping[str, Any]) -> None:
        identity = f"edge_{self._id}_{key}"
        config = {
            "name": name,
            "unique_id": identity,
            "object_id": identity,
            "state_topic": f"{self._base}/state",
            "availability_topic": f"{self._base}/availability",
            "expire_after": max(_EXPIRE_S, int(3 * self._every_s)),
            "device": {"identifiers": [f"edge_{self._id}"], "name": self._name, "manufacturer": "edge-sdk"},
            "origin": {"name": "edge-sdk"},
            **extra,
        }
        topic = f"{self._prefix}/{component}/edge_{self._id}/{key}/config"
        client.publish(topic, json.dumps(config, ensure_ascii=False), qos=1, retain=True)


def _names(value: Any) -> list[str]:
    names = value.split(",") if isinstance(value, str) else list(value)
    return [str(name).strip() for name in names if str(name).strip()][:_LABELS]


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "_", label.lower()).strip("_") or "object"
