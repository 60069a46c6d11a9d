"""The Raspberry Pi camera source against the interface of picamera2 that it uses (github.com/raspberrypi/picamera2).

A module with that interface is placed on the path of a fresh process, where the system has no picamera2.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from edge_sdk.errors import BackendError, UsageError
from edge_sdk.sources import create

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = '''
"""Names, arguments and refusals of picamera2 0.3."""
import numpy as np

LOG = []


class CompletedRequest:
    def __init__(self, camera, number):
        self.camera, self.number, self.held = camera, number, True

    def make_array(self, name):
        if not self.held:
            raise RuntimeError("request has been released")
        if name not in self.camera.camera_config:
            raise RuntimeError(f"Stream {name!r} is not defined")
        width, height = self.camera.camera_config[name]["size"]
        array = np.zeros((height, width, 3), np.uint8)
        array[:, :, 0] = self.number
        return array

    def get_metadata(self):
        return {"SensorTimestamp": self.number * 33_000_000, "ExposureTime": 10_000}

    def release(self):
        if not self.held:
            raise RuntimeError("request released twice")
        self.held = False
        self.camera.held -= 1


class Picamera2:
    @staticmethod
    def global_camera_info():
        return [{"Model": "imx708", "Location": 2, "Rotation": 180, "Id": "/base/soc/i2c@1/imx708@1a", "Num": 0}]

    def __init__(self, camera_num=0, verbose_console=None, tuning=None, allocator=None):
        if not isinstance(camera_num, int) or camera_num >= 1:
            raise IndexError("list index out of range")
        self.camera_config, self.started, self.frames, self.held = None, False, 0, 0

    def create_video_configuration(self, main={}, lores=None, raw={}, transform=None, colour_space=None, buffer_count=6,
                                   controls={}, display="main", encode="main", queue=True):
        assert set(main) <= {"format", "size", "stride", "preserve_ar"}, main
        assert main["format"] in {"XBGR8888", "XRGB8888", "RGB888", "BGR888", "YUV420", "YVU420"}, main
        return {"main": dict(main), "controls": dict(controls), "buffer_count": buffer_count, "queue": queue}

    def configure(self, camera_config="preview"):
        if self.started:
            raise RuntimeError("Camera must be stopped before configuring")
        self.camera_config = camera_config
        return camera_config

    def start(self, config=None, show_preview=False):
        if self.camera_config is None:
            raise RuntimeError("Camera has not been configured")
        self.started = True

    def capture_request(self, wait=None, signal_function=None, flush=None):
        if not self.started:
            raise RuntimeError("Camera has not been started")
        if self.held >= self.camera_config["buffer_count"]:
            raise RuntimeError("all buffers are held: no frame will ever come")
        self.frames += 1
        if self.frames > 90:
            raise RuntimeError("Camera frontend has timed out!")
        self.held += 1
        return CompletedRequest(self, self.frames)

    def stop(self):
        self.started = False

    def close(self):
        LOG.append(("closed", self.held))
        self.started = False
'''
PROGRAM = """
import json, sys
import picamera2
from edge_sdk.errors import EdgeError
from edge_sdk.sources import create
from edge_sdk.sources.base import read

source = create(sys.argv[1])
out = {"live": source.live, "frames": [], "error": None, "kind": None}
try:
    source.open()
    for i in range(100):
        if not source.grab():
            break
        if i % 2 == 0:
            continue
        frame = source.retrieve()
        out["frames"].append([frame.index, list(frame.image.shape), int(frame.image[0, 0, 0]), int(frame.image.max())])
except EdgeError as error:
    out["error"], out["kind"], out["hint"] = error.message, error.kind, error.hint
source.close()
out["log"] = picamera2.LOG
print(json.dumps(out))
"""


def seen(tmp_path: Path, uri: str) -> dict:
    (tmp_path / "picamera2.py").write_text(STAND_IN)
    env = dict(os.environ) | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    words = [sys.executable, "-c", PROGRAM, uri]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_frames_are_bgr_of_the_wanted_size_and_dropped_ones_give_their_buffers_back(tmp_path):
    out = seen(tmp_path, "picamera:0?width=640&height=480&fps=30")
    assert out["live"]
    assert out["frames"][:2] == [[1, [480, 640, 3], 2, 2], [3, [480, 640, 3], 4, 4]]
    assert len(out["frames"]) == 45
    assert out["log"] == [["closed", 0]]


def test_a_camera_that_stops_is_an_error_of_the_source(tmp_path):
    out = seen(tmp_path, "picamera:")
    assert (out["kind"], out["error"]) == (
        "source",
        "Raspberry Pi camera 0 stopped giving frames: Camera frontend has timed out!",
    )


def test_a_camera_that_is_not_there_says_which_are(tmp_path):
    out = seen(tmp_path, "picamera:3")
    assert out["error"] == "Raspberry Pi camera 3 does not exist"
    assert out["hint"] == "cameras here: 0: imx708"


@pytest.mark.skipif(find_spec("picamera2") is not None, reason="picamera2 is installed here")
def test_without_picamera2_the_system_package_is_named_and_no_pip_line():
    with pytest.raises(BackendError, match="needs `picamera2`, which is not installed") as caught:
        create("picamera:0").open()
    assert "sudo apt install python3-picamera2" in caught.value.hint
    assert "--system-site-packages" in caught.value.hint


@pytest.mark.parametrize("uri", ["picamera:front", "picamera:0?widht=640", "picamera:0?width=1"])
def test_a_wrong_form_is_a_usage_error(uri):
    with pytest.raises(UsageError):
        create(uri)


def test_no_extra_asks_pip_for_picamera2():
    assert "picamera2" not in (ROOT / "pyproject.toml").read_text().split("[tool.", 1)[0]
