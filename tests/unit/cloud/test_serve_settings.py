"""serve.toml and the options over it."""

from __future__ import annotations

import json
import os

import pytest

pytest.importorskip("fastapi", reason="needs edge-sdk[cloud]")

from cloud_sync.client import Client
from cloud_sync.errors import AuthError, ConflictError, NotFoundError, StoreError, from_json, http_status
from cloud_sync.settings import load_settings
from cloud_sync.store.lock import DataLock
from cloud_sync.text import age
from edge_sdk.errors import ConfigError, GuardrailError, SyncError, TrustError, UsageError


def test_options_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text(
        'port = 9000\nhost = "0.0.0.0"\ncontrol_period_s = 2\n[ingest]\nflush_ms = 5\n[devices]\nclaim_ttl_s = 60\n'
    )
    settings = load_settings(file, {"port": 9001, "host": None, "data": str(tmp_path / "d")})
    assert (settings.port, settings.host, settings.control_period_s) == (9001, "0.0.0.0", 2.0)
    assert settings.ingest.flush_ms == 5.0
    assert settings.ingest.batch_messages == 500
    assert settings.data == tmp_path / "d"


def test_every_wrong_key_is_reported_at_once(tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text(
        'prot = 1\ncontrol_period_s = "often"\n[ingest]\nflush = 1\nbatch_messages = 0\n[mqtt]\nport = 70000\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_settings(file, {})
    text = str(caught.value)
    for part in ("prot", "control_period_s: expected a number", "ingest.flush", "ingest.batch_messages: expected 1 to"):
        assert part in text
    assert "mqtt.port: expected 0 to 65535, found 70000" in text


def test_an_unknown_broker_or_tenant_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="broker: expected one of auto, mosquitto, embedded or mqtt://HOST:PORT"):
        load_settings(None, {"broker": "rabbit"})
    with pytest.raises(ConfigError, match="tenant 'A/B' is not an id"):
        load_settings(None, {"tenant": "A/B"})


def test_a_data_directory_has_one_service(tmp_path):
    with DataLock(tmp_path / "d") as held:
        assert (tmp_path / "d").stat().st_mode & 0o077 == 0
        assert held.path.read_text() == f"{os.getpid()}\n"
        with pytest.raises(SyncError, match=rf"in use by another `edge serve` \(pid {os.getpid()}\)") as caught:
            DataLock(tmp_path / "d")
        assert f"kill {os.getpid()}" in str(caught.value.hint)
    DataLock(tmp_path / "d").release()
    (tmp_path / "file").write_text("")
    with pytest.raises(SyncError, match="cannot use .* as data directory"):
        DataLock(tmp_path / "file" / "d")


@pytest.mark.parametrize(
    "cls", [UsageError, NotFoundError, ConflictError, AuthError, StoreError, GuardrailError, TrustError]
)
def test_an_error_is_the_same_on_both_sides_of_http(cls):
    error = cls("message", hint="hint")
    again = from_json(json.loads(json.dumps(error.to_json())))
    assert type(again) is cls
    assert (again.message, again.hint, again.exit_code) == ("message", "hint", cls.exit_code)
    assert 400 <= http_status(error) < 600


def test_an_error_of_a_newer_server_keeps_its_exit_code():
    assert from_json({"exit": 5, "kind": "brand-new", "message": "m"}).exit_code == 5
    assert from_json({"message": "m"}).exit_code == 7


def test_a_server_that_is_not_there_or_no_url_is_said(free_port):
    with pytest.raises(SyncError, match=f"cannot reach http://127.0.0.1:{free_port}") as caught:
        Client(f"http://127.0.0.1:{free_port}", "t").get("/healthz")
    assert "is `edge serve` running there?" in str(caught.value.hint)
    for wrong in ("localhost:8080", "ftp://x", ""):
        with pytest.raises(UsageError, match="is not a URL"):
            Client(wrong, "t")


def test_ages_are_for_people():
    assert [age(t, 1e6) for t in (None, 1e6 - 3, 1e6 - 600, 1e6 - 20_000, 1e6 - 500_000, 1e6 + 5)] == [
        "never", "3 s ago", "10 min ago", "6 h ago", "6 d ago", "0 s ago",
    ]  # fmt: skip
