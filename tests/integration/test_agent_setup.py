"""What an agent needs before it runs: its configuration, an identity, enrolment."""

from __future__ import annotations

import http.server
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

for name, extra in (("paho.mqtt", "agent"), ("tuf", "agent"), ("onnxruntime", "ort")):
    pytest.importorskip(name, reason=f"needs edge-sdk[{extra}]")

from agent_parts import AGENT, PIPELINE, SECRET, Device, edge  # noqa: E402

from edge_sdk.agent.config import AgentConfig, Paths, load_identity  # noqa: E402
from edge_sdk.errors import ConfigError  # noqa: E402
from edge_sdk.pipeline_config import PipelineConfig  # noqa: E402


@pytest.fixture
def device(tmp_path: Path, free_port: int) -> Iterator[Device]:
    device = Device(tmp_path / "device", free_port)
    yield device
    if device.process is not None:
        device.end(signal.SIGKILL)


# -- configuration and identity ---------------------------------------------------------------------------------------


def test_every_wrong_key_of_agent_toml_is_named_at_once(device: Device) -> None:
    (device.root / "agent.toml").write_text(
        'state_dirr = "x"\npipeline = 3\n[telemetry]\nwindow_n = 0\n[health]\nmax_crash = 1\n[link]\nwindow = 100\n'
    )
    done = edge("agent", "--config", str(device.root / "agent.toml"), "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["kind"]) == (2, "config")
    for expected in (
        "state_dirr: unknown key, did you mean `state_dir`?",
        "state_dir: missing",
        "pipeline: expected a path, found an integer 3",
        "telemetry.window_n: expected 1 to 100000, found 0",
        "health.max_crash: unknown key, did you mean `max_crashes`?",
        "link.window: expected 1 to 64, found 100",
    ):
        assert expected in error["message"]


def test_a_missing_pipeline_file_is_named(device: Device) -> None:
    (device.root / "pipeline.toml").unlink()
    with pytest.raises(ConfigError, match=r"no such file: .*pipeline\.toml"):
        AgentConfig.from_toml(device.root / "agent.toml")


def test_a_pipeline_with_a_model_of_its_own_is_refused_with_the_way_to_do_it(device: Device) -> None:
    (device.root / "pipeline.toml").write_text(PIPELINE.replace('"slot"', '"mine.edge"'))
    with pytest.raises(ConfigError, match=r'stage model is `.*mine\.edge`, under an agent it must be "slot"') as caught:
        AgentConfig.from_toml(device.root / "agent.toml")
    assert "`factory`" in (caught.value.hint or "")


def test_a_second_model_is_the_pipeline_files_own_beside_the_one_from_the_slot(device: Device) -> None:
    second = '\n[[stage]]\nname = "color"\nafter = "{}"\nmodel = "colors.edge"\n'
    name = PipelineConfig.from_toml(device.root / "pipeline.toml").model_stage.label
    (device.root / "pipeline.toml").write_text(PIPELINE + second.format(name))
    config = AgentConfig.from_toml(device.root / "agent.toml")
    stages = PipelineConfig.from_toml(config.pipeline).with_model("slot.edge").stages
    assert [s.model for s in stages if not s.is_step] == ["slot.edge", str(device.root / "colors.edge")]


def test_an_agent_that_has_not_enrolled_says_how(device: Device) -> None:
    device.paths.identity.unlink()
    done = edge("agent", "--config", str(device.root / "agent.toml"))
    assert done.returncode == 2
    assert "this device has not enrolled" in done.stderr
    assert "edge enroll TOKEN --server URL --state-dir" in done.stderr


def test_an_identity_of_another_device_is_refused(device: Device) -> None:
    (device.root / "agent.toml").write_text(f'device = "cam-2"\n{AGENT}')
    config = AgentConfig.from_toml(device.root / "agent.toml")
    with pytest.raises(ConfigError, match="names device `cam-2`"):
        load_identity(device.paths, config)


def test_an_identity_that_others_could_read_is_closed(device: Device) -> None:
    device.paths.identity.chmod(0o644)
    config = AgentConfig.from_toml(device.root / "agent.toml")
    identity, _ = load_identity(device.paths, config)
    assert device.paths.identity.stat().st_mode & 0o777 == 0o600
    assert SECRET not in repr(identity)


def test_telemetry_settings_of_the_cloud_go_over_those_of_the_file(device: Device) -> None:
    config = AgentConfig.from_toml(device.root / "agent.toml")
    assert config.with_telemetry({"window_n": 50}).telemetry.window_n == 50
    assert config.with_telemetry({"window_n": 50}).telemetry.sample_period_s == 0.05
    assert config.with_telemetry(None) is config
    for wrong in ({"window": 1}, [], {"window_n": "many"}):
        with pytest.raises(ConfigError, match="telemetry"):
            config.with_telemetry(wrong)


# -- enrolment --------------------------------------------------------------------------------------------------------


class Cloud(http.server.BaseHTTPRequestHandler):
    answers: list[tuple[int, Any]]
    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        status, answer = self.answers.pop(0)
        if status == 0:
            self.connection.close()
            return
        raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def cloud() -> Iterator[tuple[str, type[Cloud]]]:
    handler = type("Handler", (Cloud,), {"answers": [], "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign, assignment]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    server.server_close()


GOOD = {
    "tenant": "acme",
    "device": "cam-1",
    "broker_url": "mqtt://h:1883",
    "credential": SECRET,
    "tuf_root": '{"signed": {}}',
}


def test_enrolment_writes_an_identity_that_only_its_user_reads(cloud: tuple[str, type[Cloud]], tmp_path: Path) -> None:
    url, handler = cloud
    handler.answers += [(0, b""), (200, GOOD)]
    lost = edge("enroll", "token-1", "--server", url, "--state-dir", str(tmp_path / "state"))
    assert lost.returncode == 7
    done = edge("enroll", "token-1", "--server", url + "/", "--state-dir", str(tmp_path / "state"), "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert (shown["device"], shown["tenant"], shown["server"]) == ("cam-1", "acme", url)
    assert SECRET not in done.stdout + done.stderr
    paths = Paths(tmp_path / "state")
    assert paths.identity.stat().st_mode & 0o777 == 0o600
    assert json.loads(paths.identity.read_text())["credential"] == SECRET
    assert paths.trust_root.read_text() == GOOD["tuf_root"]
    assert handler.asked[0]["nonce"] == handler.asked[1]["nonce"], "an answer that was lost is asked for again"
    again = edge("enroll", "token-2", "--server", url, "--state-dir", str(tmp_path / "state"))
    assert again.returncode == 2
    assert "this device has enrolled" in again.stderr


@pytest.mark.parametrize(
    ("status", "answer", "code", "message"),
    [
        (401, {"error": {"message": "the claim token is unknown", "hint": "ask for a new one"}}, 7, "token is unknown"),
        (502, b"<html>", 7, "answered 502"),
        (200, b"[]", 4, "expected an object"),
        (200, {**GOOD, "tuf_root": None}, 4, "`tuf_root` is missing"),
        (200, {**GOOD, "tuf_root": "no json"}, 4, "tuf_root is not valid JSON"),
        (200, {k: v for k, v in GOOD.items() if k != "credential"}, 4, "credential: missing"),
        (200, {**GOOD, "device": "../x"}, 4, "is not an id"),
    ],
)
def test_a_refusal_or_a_strange_answer_leaves_no_identity(
    cloud: tuple[str, type[Cloud]], tmp_path: Path, status: int, answer: Any, code: int, message: str
) -> None:
    url, handler = cloud
    handler.answers.append((status, answer))
    done = edge("enroll", "t", "--server", url, "--state-dir", str(tmp_path))
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not Paths(tmp_path).identity.exists()
