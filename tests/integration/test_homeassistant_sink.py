"""A device in Home Assistant, over a real broker."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time

import numpy as np
import pytest
from support import MOSQUITTO, listens, until

from edge_sdk.errors import SyncError, UsageError
from edge_sdk.sinks import create
from edge_sdk.sinks.base import FrameResult
from edge_sdk.sources.base import Frame
from edge_sdk.tasks.base import Detections
from edge_sdk.testing import color_frame

paho = pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")
WAIT_S = 60
LABELS = ("person", "dining table")


@pytest.fixture
def broker(tmp_path, free_port):
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    conf = tmp_path / "mosquitto.conf"
    conf.write_text(f"listener {free_port} 127.0.0.1\nallow_anonymous true\nuser root\n")
    process = subprocess.Popen([MOSQUITTO, "-c", str(conf)], stderr=subprocess.DEVNULL)
    until(lambda: process.poll() is not None or listens(free_port))
    assert process.poll() is None
    yield free_port
    process.kill()
    process.wait()


class Hub:
    """Listens as Home Assistant does: discovery, states, availability."""

    def __init__(self, port: int) -> None:
        self.last: dict[str, str] = {}
        self.states: list[dict] = []
        self.availability: list[str] = []
        self.retained: set[str] = set()
        subscribed = threading.Event()
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self.client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.on_message = self._message
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert subscribed.wait(WAIT_S)

    def _message(self, _client, _data, message) -> None:
        text = message.payload.decode()
        self.last[message.topic] = text
        if message.retain:
            self.retained.add(message.topic)
        if message.topic.endswith("/state"):
            self.states.append(json.loads(text))
        if message.topic.endswith("/availability"):
            self.availability.append(text)

    def configs(self) -> dict[str, dict]:
        return {t: json.loads(v) for t, v in self.last.items() if t.endswith("/config")}

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def hub(broker):
    found = Hub(broker)
    yield found
    found.close()


def item(*classes: int, problems=()) -> FrameResult:
    n = len(classes)
    found = Detections(
        np.tile(np.array([[2, 2, 20, 20]], np.float32), (n, 1)),
        np.full(n, 0.9, np.float32),
        np.array(classes, np.int32),
        LABELS,
    )
    counts = {"camera": {"problems": list(problems)}} if problems else {}
    return FrameResult(Frame(color_frame("red"), 0, 0.0, time.monotonic(), "x"), found, "digest", 3.0, 2.0, [], counts)


def sink_of(port: int, **options):
    sink = create(f"homeassistant:mqtt://127.0.0.1:{port}/door", {"every_s": 0.1, "live": True, **options})
    sink.open()
    return sink


def feed_until(sink, result, done) -> None:
    deadline = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline
        sink.write(result)
        time.sleep(0.01)


def test_the_device_its_sensors_and_each_label_are_announced_retained(broker, hub):
    sink = sink_of(broker, labels="person", name="Front door")
    feed_until(sink, item(0, 0, 1), lambda: "homeassistant/sensor/edge_door/count_dining_table/config" in hub.last)
    configs = hub.configs()
    assert set(configs) == {
        "homeassistant/sensor/edge_door/fps/config",
        "homeassistant/sensor/edge_door/total/config",
        "homeassistant/binary_sensor/edge_door/camera/config",
        "homeassistant/sensor/edge_door/count_person/config",
        "homeassistant/sensor/edge_door/count_dining_table/config",
    }
    assert len({c["unique_id"] for c in configs.values()}) == 5
    assert {c["device"]["name"] for c in configs.values()} == {"Front door"}
    person = configs["homeassistant/sensor/edge_door/count_person/config"]
    assert person["state_topic"] == "edge-sdk/door/state"
    assert person["value_template"] == "{{ value_json.objects['person'] | default(0) }}"
    assert configs["homeassistant/binary_sensor/edge_door/camera/config"]["device_class"] == "problem"
    late = Hub(broker)
    until(lambda: len(late.configs()) == 5 and "edge-sdk/door/availability" in late.last)
    assert set(configs) <= late.retained
    late.close()
    sink.close()
    until(lambda: hub.last["edge-sdk/door/availability"] == "offline")


def test_states_say_the_most_seen_at_once_and_the_camera_trouble(broker, hub):
    sink = sink_of(broker)
    assert hub.last.get("edge-sdk/door/availability", "online") == "online"
    feed_until(sink, item(0, 0, 1), lambda: hub.states and hub.states[-1]["objects"].get("person") == 2)
    assert (hub.states[-1]["objects"], hub.states[-1]["total"]) == ({"person": 2, "dining_table": 1}, 3)
    assert hub.states[-1]["problem"] == "OFF"
    assert hub.states[-1]["fps"] >= 0
    feed_until(sink, item(problems=["black"]), lambda: hub.states[-1]["problem"] == "ON")
    feed_until(sink, item(problems=["black"]), lambda: hub.states[-1]["objects"] == {"person": 0, "dining_table": 0})
    assert hub.states[-1]["problems"] == ["black"]
    sink.close()


def test_a_label_that_goes_away_is_zero_in_the_next_state(broker, hub):
    sink = sink_of(broker)
    for _ in range(30):
        sink.write(item(0))
        time.sleep(0.01)
    until(lambda: hub.states and hub.states[-1]["objects"] == {"person": 1})
    written, deadline = 0, time.monotonic() + WAIT_S
    while hub.states[-1]["objects"]["person"] and time.monotonic() < deadline:
        sink.write(item())
        written += 1
        time.sleep(0.01)
    assert written < 400
    sink.close()


def test_no_more_states_are_sent_than_every_s_allows(broker, hub):
    sink = sink_of(broker, every_s=3600)
    for i in range(200):
        sink.write(item(*[0] * (i % 5)))
    sink.close()
    until(lambda: hub.last.get("edge-sdk/door/availability") == "offline")
    assert len(hub.states) == 1


def test_a_pipeline_that_dies_is_shown_offline_by_the_broker(broker, hub):
    sink = sink_of(broker)
    until(lambda: hub.availability == ["online"])
    sink._client.socket().shutdown(socket.SHUT_RDWR)
    # What was sent just before the end, and not yet acknowledged, comes a second time.
    until(
        lambda: "offline" in hub.availability and hub.availability[-1] == "online",
        lambda: f"the device's return: {hub.availability}",
    )
    assert hub.availability[0] == "online"
    sink.close()


def test_a_broker_that_is_not_there_is_named_without_its_password(free_port):
    sink = create(f"homeassistant:mqtt://ha:s3cret@127.0.0.1:{free_port}/door", {})
    with pytest.raises(SyncError, match="cannot be reached: connection refused") as raised:
        sink.open()
    assert "s3cret" not in str(raised.value) + sink.uri


@pytest.mark.parametrize("rest", ["mqtt://host", "mqtt://host/a/b", "mqtt://host/a+", "http://host/door", "door", ""])
def test_an_address_that_is_none_is_refused(rest):
    with pytest.raises(UsageError, match="must name a host and the device"):
        create(f"homeassistant:{rest}", {})
    with pytest.raises(UsageError, match="unknown option `lable`"):
        create("homeassistant:mqtt://host/door", {"lable": 1})
