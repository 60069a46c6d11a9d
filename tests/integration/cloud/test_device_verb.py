"""`edge device` over a running service."""

from __future__ import annotations

import json

import pytest

from edge_sdk.cli import main

from .conftest import Serve, wait_for


@pytest.fixture
def edge(serve: Serve, capsys, monkeypatch):
    """Run `edge WORDS --server …` and return (exit code, stdout, stderr)."""
    monkeypatch.setenv("EDGE_TOKEN", (serve.data / "operator.token").read_text().strip())

    def run(*words: str):
        code = main([*words, "--server", serve.about["url"]])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_device_is_added_shown_listed_and_retired(serve, edge, devices):
    code, out, err = edge("device", "add", "v-1", "--profile", "generic-cpu")
    token = out.strip()
    assert code == 0
    assert f"edge enroll --server {serve.about['url']}" in err
    assert serve.client.post("/api/v1/enroll", {"token": token})["device"] == "v-1"
    code, out, _ = edge("device", "list", "--json")
    listed = {d["id"]: d for d in json.loads(out)["devices"]}
    assert {"id", "profile", "online", "digest", "state"} <= set(listed["v-1"])
    assert listed["v-1"]["status"] == "offline"
    code, out, _ = edge("device", "list", "--profile", "generic-cpu")
    assert "v-1" in out
    code, out, _ = edge("device", "show", "v-1")
    assert out.startswith("v-1  offline, last seen never")
    code, out, _ = edge("device", "retire", "v-1", "--json")
    assert json.loads(out) == {"device": "v-1", "retired": True}
    code, out, _ = edge("device", "show", "v-2", "--json")
    assert code == 2
    assert json.loads(out)["error"]["message"] == "no device `v-2`"


def test_what_a_device_went_through_is_shown(serve, edge, devices):
    device = devices(serve.device("v-3")).connect()
    device.publish("state", b'{"v":1,"online":true,"digest":"abc","slot":"a","phase":"IDLE","error":"camera lost"}')
    device.send_events([{"seq": 0, "t": 1.0, "kind": "alarm", "name": "source_failed", "message": "no frames"}])
    wait_for(device.drained)
    _, out, _ = edge("device", "show", "v-3")
    for part in ("v-3  online", "abc (slot a, IDLE)", "error     camera lost", "alarm source_failed: no frames"):
        assert part in out


def test_an_operator_without_the_token_is_told_where_it_is(serve, edge, monkeypatch):
    monkeypatch.setenv("EDGE_TOKEN", "")
    code, out, _ = edge("device", "list", "--json")
    error = json.loads(out)["error"]
    assert code == error["exit"] == 7
    assert error["message"] == "the operator token is missing"
    assert "operator.token" in error["hint"]
