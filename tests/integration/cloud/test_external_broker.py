"""A broker that somebody else runs."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
from pathlib import Path

import pytest

from cloud_sync.broker.choose import find_mosquitto

from .conftest import Device, Serve, need, wait_for


@pytest.fixture
def foreign(tmp_path: Path, free_port: int):
    """The port of a mosquitto that knows no device yet and reads the service's files when it is told to."""
    need("mosquitto")
    executable = find_mosquitto()
    assert executable is not None
    files = tmp_path / "data" / "broker"
    files.mkdir(parents=True, mode=0o700)
    (files / "passwd").write_text("")
    (files / "acl").write_text("")
    config = tmp_path / "mosquitto.conf"
    user = pwd.getpwuid(os.geteuid()).pw_name
    config.write_text(
        f"listener {free_port} 127.0.0.1\nallow_anonymous false\npassword_file {files}/passwd\nacl_file {files}/acl\n"
        f"user {user}\nuse_username_as_clientid true\n"
    )
    process = subprocess.Popen([executable, "-c", str(config)], stderr=subprocess.DEVNULL)

    def listens() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", free_port)) == 0

    wait_for(listens, why="mosquitto")
    yield free_port, process
    process.terminate()
    process.wait()


def test_a_foreign_broker_serves_with_the_files_that_the_service_keeps(foreign, tmp_path, devices):
    port, process = foreign
    service = Serve(tmp_path / "data", f"mqtt://service.ingest:s3cret@127.0.0.1:{port}")
    # The service writes its own password into the file at its start; whoever runs the broker reloads it then.
    seed = tmp_path / "data" / "broker" / "passwd"
    from cloud_sync.broker.access import render_acl
    from cloud_sync.credentials import hash_credential

    seed.write_text(f"service.ingest:{hash_credential('s3cret')}\n")
    (tmp_path / "data" / "broker" / "acl").write_text(render_acl(["default"]))
    process.send_signal(1)
    service.start()
    assert service.about["broker"] == "external"
    device: Device = devices(service.device("cam-1"))
    assert device.identity["broker_url"] == f"mqtt://127.0.0.1:{port}"
    process.send_signal(1)
    device.connect(wait=False)
    wait_for(lambda: device.connections, why="the device's connection")
    device.send(3)
    wait_for(device.drained)
    assert service.stop() == 0


@pytest.mark.slow
def test_a_foreign_broker_that_is_not_there_is_named(tmp_path, free_port):
    import sys

    argv = [sys.executable, "-m", "edge_sdk", "serve", "--data", str(tmp_path / "d"), "--port", "0"]
    argv += ["--broker", f"mqtt://u:p@127.0.0.1:{free_port}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 7
    assert f"cannot open a session at the broker mqtt://127.0.0.1:{free_port}" in done.stderr
    assert "u:p" not in done.stderr
