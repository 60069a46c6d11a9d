"""Results over a real broker."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path

import pytest
from support import LIMIT_S, MOSQUITTO, listens, until

from edge_sdk.errors import SyncError
from edge_sdk.pipeline import Pipeline
from edge_sdk.sinks import create
from edge_sdk.testing import ListSource, build_artifact, color_frame

paho = pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")


@pytest.fixture
def broker(tmp_path, free_port):
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    (tmp_path / "passwords").write_text("")
    subprocess.run(
        [str(Path(MOSQUITTO).with_name("mosquitto_passwd")) if Path(MOSQUITTO).with_name("mosquitto_passwd").exists()
         else "mosquitto_passwd", "-b", str(tmp_path / "passwords"), "cam", "s3cret"],
        check=True, capture_output=True,
    )  # fmt: skip
    (tmp_path / "passwords").chmod(0o644)
    (tmp_path / "mosquitto.conf").write_text(
        f"listener {free_port} 127.0.0.1\nallow_anonymous false\npassword_file {tmp_path / 'passwords'}\n"
        "user root\nmax_queued_messages 100000\n"
    )
    process = subprocess.Popen([MOSQUITTO, "-c", str(tmp_path / "mosquitto.conf")], stderr=subprocess.DEVNULL)
    until(lambda: process.poll() is not None or listens(free_port), "mosquitto")
    assert process.poll() is None
    yield process, free_port
    process.kill()
    process.wait()


class Listener:
    def __init__(self, port: int, topic: str) -> None:
        self.messages: list[dict] = []
        self.subscribed = threading.Event()
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self.client.username_pw_set("cam", "s3cret")
        self.client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self.client.on_subscribe = lambda *_: self.subscribed.set()
        self.client.on_message = lambda _c, _d, m: self.messages.append(json.loads(m.payload))
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self.subscribed.wait(LIMIT_S)


def test_every_result_of_a_file_job_reaches_the_broker_in_order(broker, tmp_path):
    _, port = broker
    listener = Listener(port, "cameras/door")
    artifact = build_artifact(tmp_path / "m.edge").path
    images = [color_frame(("blue", "green", "red")[i % 3]) for i in range(300)]
    uri = f"mqtt://cam:s3cret@127.0.0.1:{port}/cameras/door"
    report = Pipeline(ListSource(images)).classify(artifact).sink(uri).run()
    until(lambda: len(listener.messages) >= 300, lambda: f"300 messages, {len(listener.messages)} came")
    listener.client.loop_stop()
    assert [m["frame"] for m in listener.messages] == list(range(300))
    assert report.sinks[0]["uri"] == f"mqtt://***@127.0.0.1:{port}/cameras/door"
    assert report.sinks[0]["written"] == 300


def test_a_wrong_password_is_refused_before_anything_runs(broker):
    _, port = broker
    sink = create(f"mqtt://cam:wr0ng@127.0.0.1:{port}/t")
    with pytest.raises(SyncError, match="refused: Not authorized") as caught:
        sink.open()
    assert "wr0ng" not in caught.value.message


def test_a_broker_that_is_not_there_is_a_sync_error(free_port):
    with pytest.raises(SyncError, match="cannot be reached: connection refused"):
        create(f"mqtt://127.0.0.1:{free_port}/t").open()


def test_a_broker_that_dies_during_a_file_job_ends_it_with_what_is_missing(broker, tmp_path):
    process, port = broker
    artifact = build_artifact(tmp_path / "m.edge").path
    images = [color_frame("red") for _ in range(400)]
    pipe = Pipeline(ListSource(images)).classify(artifact)
    pipe.sink(f"mqtt://cam:s3cret@127.0.0.1:{port}/t", timeout_s=0.5)
    with pytest.raises(SyncError, match="acknowledged nothing|were not acknowledged"):
        pipe.run(on_result=lambda item: process.kill() if item.frame.index == 20 else None)
