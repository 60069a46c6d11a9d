"""The device's MQTT session at a real mosquitto: what goes out, what comes in, what happens when the broker goes."""

from __future__ import annotations

import queue
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import LIMIT_S, MOSQUITTO, until

paho = pytest.importorskip("paho.mqtt.client", reason="needs edge-sdk[agent]")

from edge_sdk.agent.link import Event, InFlight, Link, LinkPolicy, delivered  # noqa: E402
from edge_sdk.errors import ConfigError, SchemaError  # noqa: E402
from edge_sdk.schemas import codec  # noqa: E402
from edge_sdk.schemas.ids import topic  # noqa: E402
from edge_sdk.schemas.state import LAST_WILL  # noqa: E402
from edge_sdk.telemetry.batching import Frozen  # noqa: E402
from edge_sdk.telemetry.outbox import Outbox  # noqa: E402

POLICY = LinkPolicy(reconnect_min_s=0.1, reconnect_max_s=0.3, keepalive_s=5)


class Broker:
    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self.url = f"mqtt://127.0.0.1:{port}"
        self.config = folder / "mosquitto.conf"
        self.config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert MOSQUITTO is not None
        self.process = subprocess.Popen([MOSQUITTO, "-c", str(self.config)], stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Cloud:
    """The other side: gets all that the device says."""

    def __init__(self, port: int) -> None:
        self.got: list[tuple[str, bytes, bool]] = []
        self.subscribed = False
        self.mqtt = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="cloud")
        self.mqtt.on_message = lambda _c, _d, m: self.got.append((m.topic.rpartition("/")[2], m.payload, m.retain))
        self.mqtt.on_connect = lambda c, *_: c.subscribe("edge/v1/#", qos=1)
        self.mqtt.on_subscribe = lambda *_: setattr(self, "subscribed", True)
        self.mqtt.reconnect_delay_set(0.1, 0.3)
        self.mqtt.connect_async("127.0.0.1", port)
        self.mqtt.loop_start()

    def of(self, leaf: str) -> list[bytes]:
        return [payload for found, payload, _ in self.got if found == leaf]

    def say(self, leaf: str, payload: bytes, *, retain: bool = False) -> None:
        self.mqtt.publish(topic("acme", "cam-1", leaf), payload, qos=1, retain=retain)

    def close(self) -> None:
        self.mqtt.disconnect()
        self.mqtt.loop_stop()


@pytest.fixture
def broker(tmp_path: Path, free_port: int) -> Iterator[Broker]:
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    broker = Broker(tmp_path, free_port)
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
def cloud(broker: Broker) -> Iterator[Cloud]:
    cloud = Cloud(broker.port)
    until(lambda: cloud.subscribed, "the cloud's subscription")
    yield cloud
    cloud.close()


@pytest.fixture
def link(broker: Broker) -> Iterator[Link]:
    link = Link(broker.url, tenant="acme", device="cam-1", credential="x", policy=POLICY)
    link.start()
    yield link
    link.stop()


def next_event(link: Link, name: str) -> Event:
    while True:
        event = link.events.get(timeout=LIMIT_S)
        if event.name == name:
            return event


def test_what_the_device_says_arrives_and_what_the_cloud_says_becomes_an_event(link: Link, cloud: Cloud) -> None:
    next_event(link, "connected")
    info = link.publish("state", b'{"v":1}', retain=True)
    until(lambda: delivered(info), "the broker's acknowledgement")
    until(lambda: cloud.of("state") == [b'{"v":1}'], "the state")
    cloud.say("desired", b"wish", retain=True)
    assert next_event(link, "desired").payload == b"wish"
    cloud.say("cmd", b"{}")
    assert next_event(link, "cmd").payload == b"{}"


def test_a_desired_state_that_was_said_while_the_device_was_away_is_waiting_for_it(
    broker: Broker, cloud: Cloud
) -> None:
    cloud.say("desired", b"wish", retain=True)
    link = Link(broker.url, tenant="acme", device="cam-1", credential="x", policy=POLICY)
    link.start()
    assert next_event(link, "desired").payload == b"wish"
    link.stop()


def test_a_device_that_dies_is_reported_offline_and_one_that_stops_says_so_itself(broker: Broker, cloud: Cloud) -> None:
    link = Link(broker.url, tenant="acme", device="cam-1", credential="x", policy=POLICY)
    link.start()
    next_event(link, "connected")
    link._client._sock.close()  # the process is gone, as the broker sees it
    until(lambda: LAST_WILL in cloud.of("state"), "the last will")
    next_event(link, "connected")
    cloud.got.clear()
    link.stop(b'{"farewell":1}')
    until(lambda: cloud.of("state") == [b'{"farewell":1}'], "the farewell")


def test_the_link_comes_back_after_the_broker_was_killed(link: Link, broker: Broker) -> None:
    next_event(link, "connected")
    epoch = link.epoch
    broker.kill()
    next_event(link, "disconnected")
    assert link.publish("t", b"lost") is None
    assert link.trouble
    broker.start()
    next_event(link, "connected")
    assert link.epoch == epoch + 1
    assert link.trouble is None


def test_a_message_above_the_limit_is_never_given_to_the_client(link: Link, cloud: Cloud) -> None:
    next_event(link, "connected")
    assert link.publish("t", bytes(codec.MAX_MESSAGE_BYTES + 1)) is None
    info = link.publish("t", bytes(codec.MAX_MESSAGE_BYTES))
    until(lambda: len(cloud.of("t")) == 1, "the largest message")
    until(lambda: delivered(info), "the word of the broker that it has it")


def test_an_error_in_a_callback_does_not_end_the_session(broker: Broker, cloud: Cloud) -> None:
    class Broken(queue.SimpleQueue):  # type: ignore[type-arg]
        failures = 0

        def put(self, item: Any, *args: Any, **kwargs: Any) -> None:
            if item.name == "cmd" and self.failures < 1:
                self.failures += 1
                raise RuntimeError("no")
            super().put(item, *args, **kwargs)

    link = Link(broker.url, tenant="acme", device="cam-1", credential="x", policy=POLICY, events=Broken())
    link.start()
    cloud.say("desired", b"wish", retain=True)
    next_event(link, "desired")  # it has subscribed
    cloud.say("cmd", b"1")
    cloud.say("cmd", b"2")
    assert next_event(link, "cmd").payload == b"2"
    link.stop()


def test_a_broker_that_is_not_there_leaves_a_word_and_stops_at_once(free_port: int) -> None:
    link = Link(f"mqtt://127.0.0.1:{free_port}", tenant="acme", device="cam-1", credential="x", policy=POLICY)
    link.start()
    until(lambda: "cannot be reached" in (link.trouble or ""), "the trouble")
    assert not link.connected
    link.stop()


@pytest.mark.parametrize("url", ["http://x", "mqtt://", "mqtt://host:99999", "broker"])
def test_a_wrong_broker_address_is_named(url: str) -> None:
    with pytest.raises(ConfigError, match="is not a broker URL"):
        Link(url, tenant="acme", device="cam-1", credential="x")


def test_ids_that_could_reach_other_topics_are_refused() -> None:
    with pytest.raises(SchemaError, match="is not an id"):
        Link("mqtt://h", tenant="acme", device="+/x", credential="x")


# -- what is sent when ------------------------------------------------------------------------------------------------


def batches(*numbers: int) -> list[Frozen]:
    return [Frozen(q0, 1, b"x") for q0 in numbers]


class Taken:
    def __init__(self, published: bool = True) -> None:
        self.published = published

    def is_published(self) -> bool:
        return self.published


def send(flight: InFlight, found: list[Frozen], epoch: int, now_s: float, info: Any = None) -> list[int]:
    due = flight.due(found, epoch, now_s)
    for batch in due:
        flight.note(batch.q0, epoch, now_s, info or Taken())
    return [b.q0 for b in due]


def test_no_more_batches_are_on_the_way_than_the_window_has() -> None:
    flight = InFlight(LinkPolicy(window=3, resend_s=10))
    assert send(flight, batches(0, 1, 2, 3, 4), 1, 0.0) == [0, 1, 2]
    assert send(flight, batches(0, 1, 2, 3, 4), 1, 5.0) == []
    assert send(flight, batches(1, 2, 3, 4), 1, 5.0) == [3]


def test_an_alarm_passes_a_full_window() -> None:
    flight = InFlight(LinkPolicy(window=1))
    send(flight, batches(0), 1, 0.0)
    assert send(flight, [*batches(0, 1), Frozen(9, 1, b"x", 2)], 1, 0.0) == [9]


def test_a_batch_is_sent_again_after_the_timeout_then_ever_later() -> None:
    flight = InFlight(LinkPolicy(window=3, resend_s=10, max_resend_s=25))
    assert send(flight, batches(0), 1, 0.0) == [0]
    assert send(flight, batches(0), 1, 9.9) == []
    assert send(flight, batches(0), 1, 10.0) == [0]
    assert send(flight, batches(0), 1, 29.0) == []
    assert send(flight, batches(0), 1, 30.0) == [0]
    assert send(flight, batches(0), 1, 55.0) == [0]


def test_everything_is_sent_again_on_a_new_connection_but_not_what_the_client_still_holds() -> None:
    flight = InFlight(LinkPolicy(window=3, resend_s=10))
    held = Taken(False)
    send(flight, batches(0, 1), 1, 0.0, held)
    assert [b.q0 for b in flight.due(batches(0, 1), 2, 1.0)] == [0, 1]
    assert flight.still_on_its_way(0)
    held.published = True
    assert not flight.still_on_its_way(0)


def test_batches_that_the_server_never_takes_do_not_hold_up_the_others() -> None:
    flight = InFlight(LinkPolicy(window=2, resend_s=1, max_resend_s=1))
    for second in range(5):
        assert send(flight, batches(0, 1), 1, float(second)) == [0, 1]
    assert flight.wanted() == 4
    assert send(flight, batches(0, 1, 2, 3), 1, 4.5) == [2, 3]


def test_acknowledged_batches_leave_the_outbox_and_the_others_are_sent_again(
    link: Link, cloud: Cloud, tmp_path: Path
) -> None:
    """The loop that the agent runs, with a server that acknowledges only every other batch at first."""
    flight = InFlight(LinkPolicy(window=4, resend_s=0.3))
    with Outbox.open(tmp_path / "outbox.db") as box:
        box.append([{"kind": "metric", "t": 1.0, "i": i} for i in range(1000)])
        answered: set[bytes] = set()
        stored: dict[int, int] = {}

        def turn() -> bool:
            now = time.monotonic()
            for batch in flight.due(box.next_batches(flight.wanted(), now=1e12), link.epoch, now):
                info = link.publish("t", batch.payload)
                if info is not None:
                    flight.note(batch.q0, link.epoch, now, info)
            for payload in cloud.of("t")[len(seen) :]:
                seen.append(payload)
                header, _ = codec.read_header(payload)
                stored[header.q0] = header.n
                if header.q0 % 200 or payload in answered:
                    cloud.say("ack", codec.encode_ack(box.stream, [(header.q0, header.q0 + header.n - 1)]))
                answered.add(payload)
            while not link.events.empty():
                event = link.events.get()
                if event.name == "ack":
                    stream, ranges = codec.decode_ack(event.payload)
                    box.ack(ranges, stream=stream)
            return box.stats().rows == 0

        seen: list[bytes] = []
        until(lambda: link.connected, "the connection")
        until(turn, "an empty outbox")
        assert sum(stored.values()) == 1000
        assert len(seen) > len(stored)
        assert len(set(seen)) == len(stored), "a batch is the same bytes at every sending"
