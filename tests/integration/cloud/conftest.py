"""A real `edge serve` in a process of its own, and a tiny device that keeps an outbox."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi", reason="needs edge-sdk[cloud]")
paho = pytest.importorskip("paho.mqtt.client", reason="needs edge-sdk[agent]")

from cloud_sync.broker.choose import find_mosquitto  # noqa: E402
from cloud_sync.client import Client  # noqa: E402
from edge_sdk.schemas import codec  # noqa: E402
from edge_sdk.schemas.ids import topic  # noqa: E402
from edge_sdk.schemas.state import LAST_WILL  # noqa: E402


def wait_for(what: Callable[[], Any], timeout_s: float = 60.0, *, why: str = "") -> Any:
    """Return the first true value of `what`; fails the test when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = what()
        if value:
            return value
        time.sleep(0.02)
    pytest.fail(f"waited {timeout_s} s in vain{f' for {why}' if why else ''}")


class Serve:
    """One `edge serve`; `kill` and `start` keep its data directory and ports."""

    def __init__(self, data: Path, broker: str, *options: str) -> None:
        self.data, self.broker, self.options = data, broker, options
        self.port = 0
        self.process: subprocess.Popen[str] | None = None
        self.about: dict[str, Any] = {}

    def start(self) -> Serve:
        argv = [sys.executable, "-m", "edge_sdk", "serve", "--data", str(self.data), "--port", str(self.port)]
        argv += ["--broker", self.broker, "--json", *self.options]
        log = (self.data.parent / f"{self.data.name}.log").open("a")
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True)
        log.close()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (self.data.parent / f"{self.data.name}.log").read_text()
        self.about = json.loads(line)
        self.port = urlsplit(self.about["url"]).port or 0
        return self

    @property
    def client(self) -> Client:
        return Client(self.about["url"], (self.data / "operator.token").read_text().strip())

    @property
    def broker_pid(self) -> int:
        return int((self.data / "broker" / "pid").read_text())

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def metric(self, name: str) -> float:
        import urllib.request

        with urllib.request.urlopen(self.about["url"] + "/metrics") as response:
            text = response.read().decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    def device(self, name: str, profile: str = "generic-cpu") -> Device:
        token = self.client.post("/api/v1/devices", {"device": name, "profile": profile})["token"]
        identity = self.client.post("/api/v1/enroll", {"token": token})
        return Device(identity)


class Device:
    """A device on the wire: keeps every batch until the server acknowledges it, sends again on reconnection."""

    def __init__(self, identity: dict[str, Any], *, client_id: str | None = None, will: str | None = None) -> None:
        self.identity = identity
        self.tenant, self.name = identity["tenant"], identity["device"]
        self.stream = f"s-{os.urandom(6).hex()}"
        self.outbox: dict[int, tuple[int, bytes]] = {}
        self.next_seq = 0
        self.received: list[tuple[str, bytes]] = []
        self.granted: list[int] = []
        self.refused: list[Any] = []
        self.acked: set[int] = set()
        self.connections = 0
        self._lock = threading.Lock()
        self.mqtt = paho.Client(
            paho.CallbackAPIVersion.VERSION2, client_id=client_id or f"{self.tenant}.{self.name}", clean_session=False
        )
        self.mqtt.username_pw_set(self.name, identity["credential"])
        self.mqtt.will_set(will or topic(self.tenant, self.name, "state"), LAST_WILL, qos=1, retain=True)
        self.mqtt.reconnect_delay_set(0.1, 0.5)
        self.mqtt.on_connect = self._on_connect
        self.mqtt.on_message = self._on_message
        self.mqtt.on_subscribe = lambda *a: self.granted.extend(int(c.value) for c in a[3])

    def connect(self, *, wait: bool = True) -> Device:
        url = urlsplit(self.identity["broker_url"])
        self.mqtt.connect(url.hostname, url.port, keepalive=10)
        self.mqtt.loop_start()
        if wait:
            wait_for(lambda: self.connections, why=f"the connection of {self.name}")
        return self

    def close(self) -> None:
        self.mqtt.disconnect()
        self.mqtt.loop_stop()
        left = self.mqtt.socket()  # a refused or cut connection may leave it open
        if left is not None:
            left.close()

    def publish(self, leaf: str, payload: bytes, *, as_device: str | None = None, retain: bool = False) -> None:
        info = self.mqtt.publish(topic(self.tenant, as_device or self.name, leaf), payload, qos=1, retain=retain)
        del info

    def send(self, n: int = 5, *, kind: str = "result") -> None:
        events = [{"seq": self.next_seq + i, "t": time.time(), "kind": kind, "i": i} for i in range(n)]
        self.send_events(events)

    def send_events(self, events: list[dict[str, Any]]) -> None:
        payload = codec.encode_batch(self.stream, events)
        with self._lock:
            self.outbox[self.next_seq] = (len(events), payload)
        self.publish("t", payload)
        self.next_seq += len(events)

    def resend(self) -> None:
        with self._lock:
            waiting = list(self.outbox.values())
        for _, payload in waiting:
            self.publish("t", payload)

    def drained(self) -> bool:
        return not self.outbox

    def _on_connect(self, client: Any, _: Any, __: Any, code: Any, ___: Any) -> None:
        if code.is_failure:
            self.refused.append(code)
            return
        client.subscribe([(topic(self.tenant, self.name, leaf), 1) for leaf in ("ack", "desired")])
        self.connections += 1
        if self.connections > 1:
            self.resend()

    def _on_message(self, _: Any, __: Any, message: Any) -> None:
        self.received.append((message.topic, message.payload))
        if message.topic.endswith("/ack"):
            stream, ranges = codec.decode_ack(message.payload)
            if stream != self.stream:
                return
            with self._lock:
                for first, last in ranges:
                    self.acked.update(range(first, last + 1))
                    for q0, (n, _) in list(self.outbox.items()):
                        if first <= q0 and q0 + n - 1 <= last:
                            del self.outbox[q0]


BROKERS = ["mosquitto", "embedded"]


def need(broker: str) -> None:
    if broker == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    if broker == "embedded":
        pytest.importorskip("amqtt")


@pytest.fixture(scope="module", params=BROKERS)
def serve(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A service that the tests of one module share, once per kind of broker."""
    need(request.param)
    service = Serve(tmp_path_factory.mktemp(request.param) / "data", request.param).start()
    yield service
    assert service.stop() == 0


@pytest.fixture
def devices() -> Iterator[Callable[[Device], Device]]:
    """Closes the devices that a test opened."""
    opened: list[Device] = []

    def keep(device: Device) -> Device:
        opened.append(device)
        return device

    yield keep
    for device in opened:
        device.close()
