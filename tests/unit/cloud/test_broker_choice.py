"""Which broker `--broker` means, and what is said when there is none."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("fastapi", reason="needs edge-sdk[cloud]")

from cloud_sync.broker.choose import find_mosquitto, make_broker
from cloud_sync.settings import load_settings
from cloud_sync.store import open_store
from edge_sdk.errors import SyncError


@pytest.fixture
def choose(tmp_path):
    db = open_store(None, tmp_path)

    def make(broker: str):
        return make_broker(load_settings(None, {"broker": broker, "data": str(tmp_path)}), db)

    yield make
    db.close()


def test_auto_means_mosquitto_where_it_is_installed_and_the_embedded_one_elsewhere(choose):
    assert choose("auto").kind == ("mosquitto" if find_mosquitto() else "embedded")


def test_the_embedded_broker_says_its_limit_aloud(choose):
    pytest.importorskip("amqtt")
    assert "about 300 messages a second" in choose("embedded").notice


def test_a_url_means_somebody_elses_broker(choose):
    broker = choose("mqtts://user:secret@broker.example")
    assert (broker.kind, broker.url) == ("external", "mqtts://broker.example:8883")
    assert (broker.username, broker.password) == ("user", "secret")
    assert "broker/passwd" in broker.notice
    with pytest.raises(SyncError, match="names no host"):
        choose("mqtt://:1883")


@pytest.mark.parametrize(
    ("missing", "words", "message"),
    [
        ("fastapi", (), "`edge serve` needs `fastapi`, which is not installed"),
        ("gmqtt", (), "`edge serve` needs `gmqtt`, which is not installed"),
        ("amqtt", ("--broker", "embedded"), "there is no broker to start: neither mosquitto nor `amqtt` is installed"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path, missing, words, message):
    code = (
        "import sys, importlib.util as u\n"
        f"sys.modules[{missing!r}] = None; find = u.find_spec\n"
        f"u.find_spec = lambda name, *a: None if name == {missing!r} else find(name, *a)\n"
        "from edge_sdk.cli import main\n"
        f"sys.exit(main(['serve', '--data', {str(tmp_path / 'd')!r}, '--port', '0', '--json', *{words!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["message"] == message
    assert "edge-sdk[cloud]" in error["hint"]


def test_mosquitto_that_is_asked_for_and_absent_is_said(tmp_path):
    code = (
        "import sys, cloud_sync.broker.choose as b\nb.find_mosquitto = lambda: None\nfrom edge_sdk.cli import main\n"
        f"sys.exit(main(['serve', '--data', {str(tmp_path / 'd')!r}, '--port', '0', '--broker', 'mosquitto']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    assert "mosquitto is not installed" in done.stderr
    assert "--broker embedded" in done.stderr


def test_a_port_that_is_taken_is_named(tmp_path, free_port):
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", free_port))
        sock.listen()
        argv = [sys.executable, "-m", "edge_sdk", "serve", "--data", str(tmp_path / "d"), "--port", str(free_port)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 7
    assert f"cannot listen on 127.0.0.1:{free_port}" in done.stderr
    assert "--port N" in done.stderr
