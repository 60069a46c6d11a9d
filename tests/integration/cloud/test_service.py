"""Devices and operators against a running service, over both brokers."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
import zlib
from base64 import b64encode
from typing import Any

import pytest

from cloud_sync.client import Client
from edge_sdk.errors import SyncError, UsageError
from edge_sdk.schemas import codec

from .conftest import Device, wait_for


def events_of(serve: Any, name: str) -> list[dict[str, Any]]:
    out, after = [], None
    while True:
        page = serve.client.get(f"/api/v1/devices/{name}/events", {"after": after, "limit": 7})
        out += page["events"]
        after = page["next"]
        if after is None:
            return out


def test_batches_are_acknowledged_after_the_commit_and_shown_in_order(serve, devices):
    device = devices(serve.device("cam-a")).connect()
    for n in (3, 20, 1):
        device.send(n)
    wait_for(device.drained, why="the acknowledgements")
    found = events_of(serve, "cam-a")
    assert [e["seq"] for e in found] == list(range(24))
    assert {e["stream"] for e in found} == {device.stream}


def test_a_batch_that_is_sent_again_is_acknowledged_again_and_stored_once(serve, devices):
    device = devices(serve.device("cam-again")).connect()
    device.send(4)
    kept = dict(device.outbox)
    wait_for(device.drained)
    for _ in range(3):
        device.acked.clear()
        device.outbox.update(kept)
        device.resend()
        wait_for(lambda: device.acked == {0, 1, 2, 3}, why="another acknowledgement")
    assert len(events_of(serve, "cam-again")) == 4


def test_windows_and_alarms_of_a_batch_become_rows_of_their_own(serve, devices):
    device = devices(serve.device("cam-windows")).connect()
    now = time.time()
    window = {"kind": "window", "t": now, "t0": now - 60, "t1": now, "pipeline": "p", "model": "m" * 64, "n": 12}
    device.send_events(
        [
            {"seq": 0, **window},
            {"seq": 1, "t": now, "kind": "alarm", "alarm": "overheat", "message": "91 C"},
            {"seq": 2, "t": now, "kind": "window", "t0": "not a number"},
            {"seq": 3, "t": now, "kind": "of-a-later-version"},
        ]
    )
    wait_for(device.drained)
    shown = serve.client.get("/api/v1/devices/cam-windows")
    assert shown["alarms"] == [{"t": now, "kind": "overheat", "message": "91 C"}]
    assert len(events_of(serve, "cam-windows")) == 4
    assert serve.metric('edge_ingest_rejected_total{reason="bad_window"}') >= 1


def test_a_device_can_neither_speak_as_another_nor_hear_it(serve, devices):
    victim = devices(serve.device("victim")).connect()
    thief = devices(serve.device("thief")).connect()
    thief.mqtt.subscribe([("#", 1), ("edge/v1/#", 1), (f"edge/v1/{thief.tenant}/victim/ack", 1), ("$share/g/#", 1)])
    wait_for(lambda: len(thief.granted) == 6, why="the answer to the subscriptions")
    forged = codec.encode_batch(victim.stream, [{"seq": 0, "t": 1.0, "kind": "result"}])
    thief.publish("t", forged, as_device="victim")
    thief.publish("state", b'{"v":1,"error":"forged"}', as_device="victim", retain=True)
    thief.publish("desired", b'{"v":1}', as_device="victim", retain=True)
    victim.publish("state", b'{"v":1,"online":true,"slot":"a"}', retain=True)
    victim.send(2)
    thief.send(1)
    wait_for(lambda: victim.drained() and thief.drained())
    assert [e["kind"] for e in events_of(serve, "victim")] == ["result", "result"]
    assert serve.client.get("/api/v1/devices/victim")["error"] is None
    assert {t.rpartition("/")[0] for t, _ in thief.received} == {f"edge/v1/{thief.tenant}/thief"}
    assert not any(t.endswith("/desired") for t, _ in victim.received)


def test_a_client_id_that_belongs_to_another_device_takes_nothing_over(serve, devices):
    victim = devices(serve.device("id-victim")).connect()
    thief = serve.device("id-thief")
    imposter = devices(Device(thief.identity, client_id=f"{victim.tenant}.id-victim")).connect()
    imposter.send(1)
    victim.send(1)
    wait_for(lambda: victim.drained() and imposter.drained())
    assert victim.connections == 1


def test_a_wrong_credential_is_refused(serve, devices):
    device = serve.device("cam-pw")
    wrong = devices(Device({**device.identity, "credential": "x" * 43}))
    wrong.connect(wait=False)
    wait_for(lambda: wrong.refused, why="the refusal")
    assert not wrong.connections


def test_a_last_will_on_another_devices_topic_has_no_effect(serve, devices):
    victim = devices(serve.device("will-victim")).connect()
    victim.publish("state", b'{"v":1,"online":true}', retain=True)
    wait_for(lambda: serve.client.get("/api/v1/devices/will-victim")["status"] == "online")
    thief = devices(Device(serve.device("will-thief").identity, will=f"edge/v1/{victim.tenant}/will-victim/state"))
    thief.connect(wait=False)
    wait_for(lambda: thief.refused or thief.connections, why="an answer")
    if thief.connections:  # mosquitto takes the connection and checks the will when it would be sent
        thief.mqtt.socket().shutdown(2)
        wait_for(lambda: thief.connections == 2, why="the next connection")
    victim.send(1)
    wait_for(victim.drained)
    assert serve.client.get("/api/v1/devices/will-victim")["status"] == "online"


def test_bad_messages_are_counted_with_their_reason_and_stop_nothing(serve, devices):
    device = devices(serve.device("cam-bad")).connect()
    stream = device.stream

    def head(**change: Any) -> bytes:
        fields = {"v": 1, "stream": stream, "q0": 1000, "n": 1, "enc": "json", **change}
        return json.dumps(fields).encode() + b"\n"

    bad = [
        ("t", b""),
        ("t", b"\xff" * 100),
        ("t", b"{}\n[]"),
        ("t", head(v=9) + b"[]"),
        ("t", head(q0=-1) + b"[]"),
        ("t", head(q0=2**70) + b"[]"),
        ("t", head(n=2) + b'[{"seq":1000,"t":1,"kind":"result"}]'),
        ("t", head(q0=1100) + b"[" * 5000),
        ("t", head(q0=1200) + b'[{"seq":1200,"t":NaN,"kind":"result"}]'),
        ("t", head(q0=1300) + b'[{"seq":7,"t":1,"kind":"result"}]'),
        ("t", head(q0=1400, enc="json+zlib") + b"not zlib"),
        ("t", head(q0=1500, enc="json+zlib") + zlib.compress(b"[" + b" " * 8_000_000 + b"]", 9)),
        ("t", head(q0=1600, enc="json+zstd") + b"not zstd"),
        (
            "t",
            head(q0=1700)
            + b'[{"seq":1700,"t":1,"kind":"window","t0":0,"t1":1,"pipeline":"\\ud800","model":"m","n":1}]',
        ),
        ("t", b"x" * 66_000),
        ("state", b"[]"),
        ("state", b'{"v":1,"online":"yes"}'),
        ("state", b'{"v":1,"outbox":{"rows":' + b"9" * 40 + b"}}"),
        ("ota", b'{"v":1,"seq":1}'),
        ("alarm", b"not a batch"),
    ]
    before = serve.metric("edge_ingest_rejected_total")
    for leaf, payload in bad:
        device.publish(leaf, payload)
    device.send(2)
    wait_for(device.drained, why="the good batch")
    assert serve.metric("edge_ingest_rejected_total") >= before + len(bad) - 2
    assert len(events_of(serve, "cam-bad")) == 2
    # A batch whose header is right and whose body can never be read is acknowledged, or it would be sent for ever.
    wait_for(lambda: {1000, 1200, 1300, 1400, 1500, 1600, 1700} <= device.acked)
    assert serve.client.get("/api/v1/devices/cam-bad")["last_seen"]


def test_state_is_merged_key_by_key_and_the_last_will_says_offline(serve, devices):
    device = devices(serve.device("cam-state")).connect()
    device.publish(
        "state", b'{"v":1,"online":true,"slot":"a","digest":"d","error":"bad","outbox":{"rows":7,"dropped":2}}'
    )
    device.publish("state", b'{"v":1,"error":null,"phase":"IDLE","vendor":{"x":1}}')

    def shown() -> dict[str, Any]:
        return serve.client.get("/api/v1/devices/cam-state")

    found = wait_for(lambda: shown() if shown()["phase"] == "IDLE" else None)
    assert (found["status"], found["slot"], found["digest"], found["error"]) == ("online", "a", "d", None)
    assert found["outbox"] == {"rows": 7, "dropped": 2}
    assert found["state"]["vendor"] == {"x": 1}
    device.mqtt.loop_stop()
    device.mqtt.socket().shutdown(2)  # the process dies without saying goodbye
    assert wait_for(lambda: shown()["status"] == "offline")


def test_transitions_of_an_update_are_kept_once(serve, devices):
    device = devices(serve.device("cam-ota")).connect()
    step = {
        "v": 1,
        "seq": 4,
        "t": 9.5,
        "rev": 2,
        "release": "r-1",
        "sha256": "0" * 64,
        "from": "TRIAL",
        "to": "COMMITTED",
    }
    for _ in range(3):
        device.publish("ota", json.dumps(step).encode())
    found = wait_for(lambda: serve.client.get("/api/v1/devices/cam-ota")["transitions"])
    device.send(1)
    wait_for(device.drained)
    assert len(found) == 1
    assert (found[0]["from_phase"], found[0]["to_phase"], found[0]["release"]) == ("TRIAL", "COMMITTED", "r-1")


def test_a_retired_device_can_no_longer_connect_and_its_history_stays(serve, devices):
    device = devices(serve.device("cam-old")).connect()
    device.send(3)
    wait_for(device.drained)
    device.mqtt.disconnect()
    assert serve.client.delete("/api/v1/devices/cam-old") == {"device": "cam-old", "retired": True}
    again = devices(Device(device.identity))
    again.connect(wait=False)
    wait_for(lambda: again.refused, why="the refusal")
    assert len(events_of(serve, "cam-old")) == 3
    assert "cam-old" not in [d["id"] for d in serve.client.get("/api/v1/devices")["devices"]]
    with pytest.raises(UsageError, match="no device `cam-old`"):
        serve.client.delete("/api/v1/devices/cam-old")


def test_a_connected_device_is_disconnected_when_it_is_retired(serve, devices):
    device = devices(serve.device("cam-kicked")).connect()
    serve.client.delete("/api/v1/devices/cam-kicked")
    wait_for(lambda: device.refused, why="the disconnection and the refusal")


def test_the_service_is_ready_and_answers_errors_in_one_form(serve):
    base = serve.about["url"]
    assert serve.client.get("/readyz") == {"ok": True, "broker": True, "store": True}
    assert serve.client.get("/healthz")["ok"] is True
    for path, status, kind in [
        ("/api/v1/devices", 401, "auth"),
        ("/nothing", 404, "not_found"),
        ("/api/v1/enroll", 405, "usage"),
    ]:
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(base + path)
        assert caught.value.code == status
        error = json.loads(caught.value.read())["error"]
        assert set(error) == {"exit", "kind", "message", "hint"}
        assert error["kind"] == kind
    with pytest.raises(SyncError, match="the operator token is wrong"):
        Client(base, "x" * 43).get("/api/v1/devices")
    with pytest.raises(UsageError, match="profile: Field required"):
        serve.client.post("/api/v1/devices", {"device": "x"})
    with pytest.raises(UsageError, match="the request body is above 1048576 bytes"):
        serve.client.post("/api/v1/devices", {"device": "x" * 1_100_000, "profile": "p"})
    assert "/api/v1/devices/{device}/events" in serve.client.get("/openapi.json")["paths"]


def test_a_claim_token_works_once_and_again_only_for_the_device_that_asked_first(serve):
    token = serve.client.post("/api/v1/devices", {"device": "cam-claim", "profile": "generic-cpu"})["token"]
    nobody = Client(serve.about["url"], "")
    first = nobody.post("/api/v1/enroll", {"token": token, "nonce": "my-own-nonce"})
    again = nobody.post("/api/v1/enroll", {"token": token, "nonce": "my-own-nonce"})
    assert first["device"] == again["device"] == "cam-claim"
    assert first["credential"] != again["credential"]
    assert json.loads(first["tuf_root"])["signed"]["_type"] == "root"
    for body in ({"token": token}, {"token": token, "nonce": "another-nonce"}):
        with pytest.raises(SyncError, match="the claim token of `cam-claim` has been used"):
            nobody.post("/api/v1/enroll", body)
    with pytest.raises(SyncError, match="the claim token is unknown or was replaced"):
        nobody.post("/api/v1/enroll", {"token": "guess"})
    with pytest.raises(UsageError, match="device `cam-claim` is enrolled"):
        serve.client.post("/api/v1/devices", {"device": "cam-claim", "profile": "generic-cpu"})
    auth = b64encode(f"cam-claim:{first['credential']}".encode()).decode()
    request = urllib.request.Request(
        serve.about["url"] + "/artifacts/" + "0" * 64, headers={"Authorization": f"Basic {auth}"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    with caught.value as answer:
        assert answer.code in (401, 404)


def test_a_large_upload_without_the_right_token_gets_an_answer_not_a_broken_pipe(serve, tmp_path):
    file = tmp_path / "large.edge"
    file.write_bytes(bytes(20_000_000))
    with pytest.raises(SyncError, match="the operator token is wrong"):
        Client(serve.about["url"], "x" * 43).upload("/artifacts", file)
    with pytest.raises(UsageError, match="cannot read"):
        serve.client.upload("/artifacts", tmp_path / "absent")


def test_nothing_of_a_retired_device_stays_retained(serve, devices):
    gone = devices(serve.device("cam-gone")).connect()
    gone.publish("state", b'{"v":1,"online":true}', retain=True)
    wait_for(lambda: serve.client.get("/api/v1/devices/cam-gone")["online"])
    serve.client.delete("/api/v1/devices/cam-gone")
    token = serve.client.post("/api/v1/devices", {"device": "cam-gone", "profile": "generic-cpu"})["token"]
    identity = serve.client.post("/api/v1/enroll", {"token": token})
    back = devices(Device(identity)).connect()
    back.send(1)
    wait_for(back.drained)
    assert serve.client.get("/api/v1/devices/cam-gone")["online"] is False
