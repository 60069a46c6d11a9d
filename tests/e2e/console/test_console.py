"""The console in a real browser against a real service."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi", reason="needs edge-sdk[cloud]")
pytest.importorskip("websockets", reason="drives the browser")

from cloud_sync.client import Client
from cloud_sync.policies import RolloutPolicy
from edge_sdk.parsing import write_dataclass
from edge_sdk.schemas.codec import encode_batch

from .browser import Browser, find

pytestmark = pytest.mark.e2e
PAGES = ("/", "/drift", "/rollouts", "/releases", "/alarms", "/audit", "/login")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """(URL, token, data directory) of a running service with one device that has sent telemetry."""
    data = tmp_path_factory.mktemp("console") / "data"
    argv = [sys.executable, "-m", "edge_sdk", "serve", "--data", str(data), "--port", "0", "--json"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    about = json.loads(process.stdout.readline())
    token = (data / "operator.token").read_text().strip()
    _telemetry(Client(about["url"], token))
    yield about["url"], token, data
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    process.stdout.close()


def _telemetry(client: Client) -> None:
    mqtt = pytest.importorskip("paho.mqtt.client", reason="needs edge-sdk[agent]")
    claim = client.post("/api/v1/devices", {"device": "cam-1", "profile": "generic-cpu"})
    client.post("/api/v1/devices", {"device": "cam-new", "profile": "generic-cpu"})
    identity = client.post("/api/v1/enroll", {"token": claim["token"]})
    device = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="default.cam-1")
    device.username_pw_set("cam-1", identity["credential"])
    url = urlsplit(identity["broker_url"])
    device.connect(url.hostname, url.port)
    device.loop_start()
    now = time.time()
    events = [
        {
            "seq": i, "t": now - 600 + 60 * i, "t0": now - 660 + 60 * i, "t1": now - 600 + 60 * i, "kind": "window",
            "pipeline": "p", "model": "a" * 64, "n": 10, "confidence": 0.9, "latency_ms": {"p50": 5.0, "p95": 7.0},
            "counters": {"processed": 100},
        }
        for i in range(10)
    ]  # fmt: skip
    events.append({"seq": 10, "t": now, "kind": "alarm", "name": "source_failed", "message": "<b>no camera</b>"})
    state = {"v": 1, "online": True, "digest": "a" * 64, "phase": "COMMITTED", "outbox": {"rows": 3, "dropped": 0}}
    device.publish("edge/v1/default/cam-1/state", json.dumps(state), qos=1, retain=True).wait_for_publish(60)
    device.publish("edge/v1/default/cam-1/t", encode_batch("s1", events), qos=1).wait_for_publish(60)
    deadline = time.monotonic() + 60
    while not client.get("/api/v1/devices/cam-1")["alarms"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    device.disconnect()
    device.loop_stop()


def fetch(url: str, *, token: str | None = None, method: str = "GET", **headers: str):
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_, **__):
            return None

    request = urllib.request.Request(url, method=method, headers={k.replace("_", "-"): v for k, v in headers.items()})
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.build_opener(Stay).open(request) as response:
            return response.status, response.headers, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read().decode()


def test_pages_name_no_address_outside_the_service_and_forbid_it(service):
    url, token, _ = service
    linked = set()
    for path in (*PAGES, "/devices/cam-1", "/devices/nobody"):
        status, headers, html = fetch(url + path, token=token)
        assert status == (404 if path.endswith("nobody") else 200), path
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        found = re.findall(r"""(?:src|href|action|hx-get|data-series)=["']([^"']+)""", html)
        assert found
        assert all(f.startswith("/") and not f.startswith("//") for f in found), found
        assert not re.search(r"<style|style=|onclick=|<script>", html)
        linked |= {f for f in found if f.startswith("/static/")}
    for path in sorted(linked):
        status, headers, _ = fetch(url + path)
        assert status == 200, path
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_what_devices_say_is_text_and_never_markup(service):
    url, token, _ = service
    html = fetch(url + "/alarms", token=token)[2]
    assert "&lt;b&gt;no camera&lt;/b&gt;" in html
    assert "<b>no camera" not in html


def test_pages_need_a_login_and_the_login_leads_nowhere_else(service):
    url, token, _ = service
    for path in ("/", "/devices/cam-1", "/audit"):
        status, headers, _ = fetch(url + path)
        assert (status, headers["Location"]) == (303, "/login?next=" + path)
    assert fetch(url + "/", HX_Request="true")[1]["HX-Redirect"] == "/login?next=/"
    for wanted, target in (("/drift", "/drift"), ("//evil.example", "/"), ("https://evil.example", "/"), ("/\\e", "/")):
        request = urllib.request.Request(f"{url}/login?next={wanted}", data=f"token={token}".encode(), method="POST")

        class Stay(urllib.request.HTTPRedirectHandler):
            def redirect_request(self, *_, **__):
                return None

        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.build_opener(Stay).open(request)
        cookie = caught.value.headers["Set-Cookie"]
        assert caught.value.headers["Location"] == target
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert token not in cookie
        caught.value.close()
    session = cookie.split(";")[0]
    assert fetch(url + "/", Cookie=session)[0] == 200
    forged = fetch(url + "/rollouts/r1/abort", method="POST", Cookie=session, Origin="https://evil.example")
    assert forged[0] == 401
    assert "from another site" in forged[2]
    assert fetch(url + "/", Cookie=session[:-4] + "0000")[0] == 303
    assert fetch(url + "/login", method="POST")[0] == 401


def test_a_rollout_is_paused_and_resumed_from_its_page(service):
    url, token, data = service
    _rollout(data, "r7-digits")
    page = fetch(url + "/rollouts/r7-digits", token=token)[2]
    assert re.findall(r'action="/rollouts/r7-digits/(\w+)"', page) == ["pause", "abort"]
    status, headers, _ = fetch(url + "/rollouts/r7-digits/pause", token=token, method="POST")
    assert (status, headers["Location"]) == (303, "/rollouts/r7-digits")
    page = fetch(url + "/rollouts/r7-digits", token=token)[2]
    assert "paused by operator" in page
    assert re.findall(r'action="/rollouts/r7-digits/(\w+)"', page) == ["resume", "abort"]
    status, _, page = fetch(url + "/rollouts/r7-digits/pause", token=token, method="POST")
    assert status == 409
    assert "rollout `r7-digits` is PAUSED" in page
    assert fetch(url + "/rollouts/r7-digits/explode", token=token, method="POST")[0] == 404
    assert "r7-digits" in fetch(url + "/", token=token)[2]
    audit = fetch(url + "/audit", token=token)[2]
    assert "rollout.paused" in audit


def _rollout(data: Path, name: str) -> None:
    """Put a rollout that nothing moves on into the store: its only device is in a later stage."""
    policy = json.dumps(write_dataclass(RolloutPolicy(stages=(50, 100))))
    with sqlite3.connect(data / "fleet.db", timeout=20) as db:
        db.execute(
            "INSERT INTO rollouts (id, tenant, release, model, state, stage, salt, policy_json, whole_fleet,"
            " created_at, changed_at, stage_at, cursor)"
            " VALUES (?, 'default', 'rel', 'digits', 'RUNNING', 0, 's', ?, 0, 1, 1, 1, 0)",
            (name, policy),
        )
        db.execute(
            "INSERT INTO rollout_devices (rollout, device, profile, stage, bucket, state, sha256, size, took, waived)"
            " VALUES (?, 'cam-new', 'generic-cpu', 1, 0.9, 'QUEUED', ?, 1, 0, 0)",
            (name, "c" * 64),
        )
    db.close()


@pytest.mark.skipif(find() is None, reason="chromium is not installed")
def test_the_console_shows_a_device_live_and_asks_nobody_else(service, tmp_path: Path):
    url, token, _data = service
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(url)
        assert browser.evaluate("location.pathname") == "/login"
        submit = f"document.querySelector('#token').value = {token!r}; document.querySelector('form').requestSubmit()"
        browser.evaluate(submit)
        browser.wait(lambda: "cam-1" in browser.text(), "the fleet")
        row = browser.evaluate("document.querySelector('#d-cam-1').innerText")
        assert "generic-cpu" in row
        assert "committed" in row
        before = len(browser.requests)
        Client(url, token).post("/api/v1/devices", {"device": "cam-2", "profile": "generic-cpu"})
        browser.wait(lambda: "cam-2" in browser.text(), "the new device to appear by itself")
        assert len(browser.requests) > before
        browser.open(url + "/devices/cam-1")
        browser.wait(lambda: browser.evaluate("document.querySelectorAll('.uplot canvas').length") == 6, "six charts")
        outside = [r for r in browser.requests if not r.startswith((url, "data:", "about:"))]
        assert outside == []
        assert browser.problems == []
    finally:
        browser.close()
