"""`edge run --serve` and `--view` as people use them: real processes, real signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import cv2
import pytest
from support import children_of, until

from edge_sdk.testing import build_artifact, color_frame

pytestmark = pytest.mark.e2e
WAIT_S = 60


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "colors.edge").path


class Command:
    """`edge run …` and the addresses that it says it listens on."""

    def __init__(self, *words: object, expect: int) -> None:
        self.addresses: dict[str, str] = {}
        self.err: list[str] = []
        self._ready = threading.Event()
        self._expect = expect
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edge_sdk", "run", *map(str, words)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._ready.wait(WAIT_S), self.err

    def _read(self) -> None:
        for line in self.process.stderr:
            self.err.append(line)
            if match := re.match(r"(live view|service): (http://\S+)/", line):
                self.addresses[match[1]] = match[2]
                if len(self.addresses) == self._expect:
                    self._ready.set()

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(WAIT_S)
        self.process.stdout.close()
        self.process.stderr.close()

    def end(self) -> dict:
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.stdout.read(), self.process.wait(WAIT_S)
        assert self.process.returncode == 0, self.err
        return json.loads(out)


def get(url: str, body: bytes | None = None) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, data=body, timeout=WAIT_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_a_model_is_served_without_a_source_until_sigterm(artifact):
    with Command("--model", artifact, "--serve", 0, "--json", expect=1) as command:
        service = command.addresses["service"]
        image = cv2.imencode(".jpg", color_frame("green"))[1].tobytes()
        assert json.loads(get(f"{service}/v1/predict", image)[1])["classes"][0]["label"] == "green"
        assert get(f"{service}/v1/predict", image[:-30])[0] == 400
        report = command.end()
    assert report["requests"] == {"200": 1, "400": 1}
    assert report["inferences"] == 1
    assert not [line for line in command.err if "Traceback" in line]


def test_a_camera_is_watched_served_and_measured_at_once(artifact):
    source = "synthetic:64x48?fps=50&live=1"
    with Command("--model", artifact, "--source", source, "--view", 0, "--serve", 0, "--json", expect=2) as command:
        view, service = command.addresses["live view"], command.addresses["service"]
        assert get(f"{view}/snapshot.jpg")[1].startswith(b"\xff\xd8")
        deadline = time.monotonic() + WAIT_S
        while "edge_source_up 1" not in (text := get(f"{service}/metrics")[1].decode()):
            assert time.monotonic() < deadline
        assert 'edge_inference_seconds_count{of="pipeline"}' in text
        assert float(re.search(r"^edge_frames_processed_total (\S+)", text, re.M)[1]) > 0
        assert json.loads(get(f"{service}/ready")[1])["source"] == "up"
        report = command.end()
    assert report["frames"]["processed"] > 0
    assert report["sinks"][0]["error"] is None


def test_a_port_that_is_taken_ends_the_command_with_a_message(artifact):
    with Command("--model", artifact, "--serve", 0, expect=1) as command:
        port = command.addresses["service"].rsplit(":", 1)[1]
        done = subprocess.run(
            [sys.executable, "-m", "edge_sdk", "run", "--model", str(artifact), "--serve", port],
            capture_output=True, text=True, timeout=WAIT_S, check=False,
        )  # fmt: skip
    assert done.returncode == 6
    assert f"cannot listen on 127.0.0.1 port {port}: address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_served_model_that_crashes_its_process_is_served_again(artifact):
    with Command("--model", artifact, "--serve", 0, expect=1) as command:
        first = command.addresses["service"]
        os.kill(children_of(command.process.pid)[0], signal.SIGSEGV)
        until(lambda: command.addresses["service"] != first, "another address")
        assert get(command.addresses["service"] + "/ready")[0] == 200
