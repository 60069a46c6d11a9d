"""The demo's own parts: scenes, cameras, files, display."""

from __future__ import annotations

import io
import itertools
import json
import signal
import subprocess
import sys
import urllib.request

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the demo's scenes are made of scikit-learn's digits")

from cloud_sync.demo import config, scenes
from cloud_sync.demo.camera import Cameras
from cloud_sync.demo.display import Display
from cloud_sync.policies import DriftPolicy, RetrainPolicy, RolloutPolicy
from cloud_sync.settings import load_settings
from edge_sdk.agent.config import AgentConfig
from edge_sdk.output import Output

SPLITS = ("train", "calibration", "golden", "test", "live")


def test_no_digit_image_is_in_two_splits_and_none_is_left_out():
    parts = [set(scenes.split_indices(name).tolist()) for name in SPLITS]
    assert all(not (a & b) for a, b in itertools.combinations(parts, 2))
    assert set.union(*parts) == set(range(1797))


def test_frames_are_a_function_of_the_seed():
    first = list(scenes.samples("golden", 4, 3, scenes.DUSK))
    again = list(scenes.samples("golden", 4, 3, scenes.DUSK))
    other = list(scenes.samples("golden", 4, 4, scenes.DUSK))
    assert all(np.array_equal(a, b) and i == j for (a, i), (b, j) in zip(first, again, strict=True))
    assert not np.array_equal(first[0][0], other[0][0])
    assert first[0][0].shape == (scenes.HEIGHT, scenes.WIDTH, 3)


def test_dusk_is_darker_than_day():
    day = np.mean([frame.mean() for frame, _ in scenes.samples("live", 10, 0)])
    dusk = np.mean([frame.mean() for frame, _ in scenes.samples("live", 10, 0, scenes.DUSK)])
    assert dusk < 0.6 * day


def test_two_viewers_of_a_camera_see_the_same_picture_and_another_camera_shows_another():
    with Cameras(fps=50) as cameras:
        seen = cameras.next_picture("cam-1", 0)
        again = cameras.next_picture("cam-1", seen[0] - 1)
        other = cameras.next_picture("cam-2", 0)
    assert seen[1].startswith(b"\xff\xd8")
    assert again[1].startswith(b"\xff\xd8")
    assert other[1] not in (seen[1], again[1])


def test_a_camera_says_its_light_and_changes_it_while_it_runs():
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with Cameras(fps=50) as cameras:
        cameras.light = scenes.DUSK
        with opener.open(f"{cameras.address}/light.json", timeout=20) as answer:
            assert scenes.Light.from_json(json.load(answer)) == scenes.DUSK
        with pytest.raises(urllib.error.HTTPError, match="404"):
            opener.open(f"{cameras.address}/../etc/passwd", timeout=20)


def test_the_demo_s_files_are_the_product_s(tmp_path):
    serve = tmp_path / "serve.toml"
    serve.write_text(config.serve_toml([sys.executable, "-m", "trainer"]))
    settings = load_settings(serve, {})
    assert isinstance(settings.rollout, RolloutPolicy)
    assert isinstance(settings.drift, DriftPolicy)
    assert isinstance(settings.retrain, RetrainPolicy)
    assert settings.retrain.command == (sys.executable, "-m", "trainer")

    (tmp_path / "pipeline.toml").write_text(config.pipeline_toml("http://127.0.0.1:1/cam-1.mjpg"))
    (tmp_path / "agent.toml").write_text(
        config.agent_toml(
            server="http://127.0.0.1:2",
            device="cam-1",
            state_dir=tmp_path / "state",
            pipeline=tmp_path / "pipeline.toml",
        )
    )
    agent = AgentConfig.from_toml(tmp_path / "agent.toml")
    assert agent.device == "cam-1"
    assert agent.telemetry.window_n == config.WINDOW_N


def test_the_shortened_periods_are_said():
    assert f"{config.WINDOW_N} to a window" in config.shortened()
    assert f"trial {config.TRIAL_S:g} s" in config.shortened()


def test_steps_are_lines_where_nobody_watches_and_a_failed_one_is_marked():
    err, clock = io.StringIO(), iter([0.0, 0.0, 1.5, 2.0, 2.0, 4.0]).__next__
    display = Display(Output(stderr=err), [("a", "First"), ("b", "Second")], clock=clock)
    display.begin("a")
    display.end("done well", ok=True)
    display.begin("b")
    display.end("it broke", ok=False)
    lines = err.getvalue().splitlines()
    assert lines[0].split() == ["✓", "First", "1.5", "s", "done", "well"]
    assert lines[1].split() == ["✗", "Second", "2.0", "s", "it", "broke"]
    assert [s.to_json() for s in display.steps] == [
        {"name": "a", "ok": True, "seconds": 1.5, "detail": "done well"},
        {"name": "b", "ok": False, "seconds": 2.0, "detail": "it broke"},
    ]


INTERRUPTED = """
import os, signal, sys
from cloud_sync.demo.processes import uninterrupted

number = int(sys.argv[1])
def interrupt(*_):
    raise KeyboardInterrupt
before = signal.signal(number, interrupt)
try:
    with uninterrupted():
        os.kill(os.getpid(), number)
        print("whole")
    print("never")
except KeyboardInterrupt:
    print("then interrupted", signal.getsignal(number) is interrupt)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_waits_until_what_was_started_is_known(number):
    words = [sys.executable, "-c", INTERRUPTED, str(int(number))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["whole", "then interrupted True"]
