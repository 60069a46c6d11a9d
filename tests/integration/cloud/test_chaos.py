"""kill -9 of the broker and of the service while devices send: nothing is lost, nothing is stored twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import BROKERS, Device, Serve, need, wait_for


@pytest.fixture(params=BROKERS)
def own(request: pytest.FixtureRequest, tmp_path: Path):
    """A service that one test may kill."""
    need(request.param)
    service = Serve(tmp_path / "data", request.param).start()
    yield service
    if service.process is not None and service.process.poll() is None:
        service.stop()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_killed_brokers_and_services_lose_nothing_and_store_nothing_twice(own, devices):
    fleet = [devices(own.device(f"cam-{i}")).connect() for i in range(3)]

    def everybody_sends(rounds: int) -> None:
        for _ in range(rounds):
            for device in fleet:
                device.send(10)
            time.sleep(0.005)  # so that the kill comes in the middle of the stream

    def all_reconnect(before: list[int]) -> None:
        wait_for(lambda: all(d.connections > b for d, b in zip(fleet, before, strict=True)), why="reconnections")

    everybody_sends(20)
    before = [d.connections for d in fleet]
    os.kill(own.broker_pid, signal.SIGKILL)
    everybody_sends(20)
    all_reconnect(before)
    before = [d.connections for d in fleet]
    everybody_sends(10)
    broker = own.broker_pid
    own.kill()
    everybody_sends(20)
    wait_for(lambda: not alive(broker), why="the end of the broker after its service")
    own.start()
    all_reconnect(before)
    everybody_sends(5)

    def drained() -> bool:
        for device in fleet:
            if not device.drained():
                device.resend()
        return wait_soon(fleet)

    wait_for(drained, 120, why="all acknowledgements")
    for device in fleet:
        seqs, after = [], None
        while True:
            page = own.client.get(f"/api/v1/devices/{device.name}/events", {"after": after, "limit": 1000})
            seqs += [e["seq"] for e in page["events"]]
            after = page["next"]
            if after is None:
                break
        assert seqs == list(range(750)), "lost or stored twice"
    assert own.stop() == 0


def wait_soon(fleet: list[Device]) -> bool:
    """Give the acknowledgements of what was just sent again a moment."""
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        if all(d.drained() for d in fleet):
            return True
        time.sleep(0.02)
    return False


def test_the_desired_state_is_retained_again_after_the_broker_was_killed(own, devices):
    import sqlite3

    device = devices(own.device("cam-1"))
    own.stop()
    with sqlite3.connect(own.data / "fleet.db") as db:
        db.execute("UPDATE devices SET desired_rev = 3, desired_json = ? WHERE id = 'cam-1'", ('{"rev":3,"v":1}',))
    db.close()
    own.start()
    pid = own.broker_pid
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: own.broker_pid != pid and own.client.get("/readyz")["ok"] if ready(own) else False)
    device.connect()
    wait_for(lambda: any(t.endswith("/desired") and p == b'{"rev":3,"v":1}' for t, p in device.received))
    assert own.metric("edge_broker_restarts_total") == 1


def ready(own: Serve) -> bool:
    from edge_sdk.errors import EdgeError

    try:
        return bool(own.client.get("/readyz")["ok"])
    except EdgeError:
        return False


def test_a_second_service_on_the_same_data_is_refused_and_named(own):
    argv = [sys.executable, "-m", "edge_sdk", "serve", "--data", str(own.data), "--port", "0", "--json"]
    second = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 7
    assert f"is in use by another `edge serve` (pid {own.process.pid})" in second.stdout
    assert own.client.get("/readyz")["ok"]
    own.kill()
    assert own.start().client.get("/healthz")["ok"]  # a dead holder's lock holds nobody up


def test_a_service_that_is_stopped_in_the_middle_of_a_stream_ends_quietly(own, devices):
    import threading

    device = devices(own.device("cam-1")).connect()
    done = threading.Event()

    def pump() -> None:
        while not done.is_set():
            device.send(20)
            time.sleep(0.002)

    sender = threading.Thread(target=pump)
    sender.start()
    wait_for(lambda: device.acked, why="the first acknowledgement")
    code = own.stop()
    done.set()
    sender.join()
    log = (own.data.parent / "data.log").read_text()
    assert code == 0
    assert "Traceback" not in log
    assert "rror" not in log
