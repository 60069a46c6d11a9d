"""A shadow's engine is in a process of its own: what it does there, dying included, does not reach the pipeline."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pipeline_parts import Watcher, eventually, frames

from edge_sdk.artifact import Artifact
from edge_sdk.errors import BackendError
from edge_sdk.pipeline import Pipeline
from edge_sdk.pipeline.contained import Contained
from edge_sdk.testing import CollectingSink, ListSource, build_artifact, color_frame
from edge_sdk.verbs.run_text import shadow_text

RUNTIME = """
import ctypes, os, time
import numpy as np
from edge_sdk.runtimes.base import TensorSpec

class Odd:
    name = "odd"
    inputs = (TensorSpec(name="image", shape=(1, 32, 32, 3), dtype="uint8"),)
    outputs = (TensorSpec(name="logits", shape=(1, 3), dtype="float32"),)

    def __init__(self, model, options):
        self._does, self._calls = options["does"], 0
        if self._does == "crash at load":
            ctypes.string_at(0)

    def infer(self, feeds):
        print("engines print on stdout when they like")
        self._calls += 1
        if self._does == "crash" and self._calls > 2:
            ctypes.string_at(0)
        if self._does == "hang" and self._calls > 2:
            time.sleep(1000)
        return {"logits": np.array([[1, 2, 3]], np.float32)}

    def close(self):
        pass
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: Any) -> Path:
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "colors.edge").path


@pytest.fixture
def odd(tmp_path: Path) -> Any:
    """Return what runs `edge run` with a shadow whose engine, a real third-party one, crashes or hangs."""
    site = tmp_path / "site"
    info = site / "odd-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "odd_runtime.py").write_text(RUNTIME)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edge_sdk.runtime]\nodd = odd_runtime:Odd\n")

    def run(does: str, artifact: Path) -> dict[str, Any]:
        shadow = build_artifact(
            tmp_path / "odd.edge", golden=False, runtime={"name": "odd", "options": {"does": does}}
        ).path
        file = tmp_path / "pipeline.toml"
        file.write_text(
            f'[source]\nuri = "synthetic:64x48?n=60"\n\n[[stage]]\nmodel = "{artifact}"\n'
            f'shadow = "{shadow}"\nshadow_every = 5\n\n[[sink]]\nuri = "{tmp_path}/out.jsonl"\n'
        )
        env = dict(os.environ) | {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
        words = [sys.executable, "-m", "edge_sdk", "run", str(file), "--json"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=env)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["frames"]["processed"] == len((tmp_path / "out.jsonl").read_text().splitlines()) == 60
        return report["stages"][0]["shadow"] | {"stderr": done.stderr}

    return run


def ended(pid: int) -> bool:
    """Whether a process is gone, or nothing of it is left but its exit code."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("does", ["crash", "crash at load"])
def test_a_shadow_whose_engine_crashes_natively_is_reported_dead_and_the_pipeline_goes_on(odd, artifact, does):
    shadow = odd(does, artifact)
    assert shadow["error"] == "the engine of `odd.edge` took its process down: killed by SIGSEGV"
    assert shadow["failed"] == ({"died": 1} if does == "crash" else {})
    assert "started again" not in shadow["stderr"]
    text = shadow_text("classify", shadow)
    assert text.startswith("shadow of classify: ")
    assert text.endswith("took its process down: killed by SIGSEGV")


def test_a_shadow_whose_engine_hangs_is_ended_with_the_run(odd, artifact):
    shadow = odd("hang", artifact)
    assert shadow["error"] == "it did not finish in time"
    eventually(lambda: ended(shadow["pid"]))


def test_a_shadow_that_dies_in_mid_run_is_told_to_the_telemetry_and_nothing_else_changes(artifact):
    class Killing(ListSource):
        def grab(self) -> bool:
            if self._next == 30:
                eventually(lambda: pipe.report().to_json()["stages"][0]["shadow"]["compared"])
                os.kill(pipe.report().to_json()["stages"][0]["shadow"]["pid"], signal.SIGSEGV)
            return super().grab()

    watcher, sink = Watcher(), CollectingSink()
    pipe = Pipeline(Killing(frames(60))).classify(artifact, shadow=artifact, shadow_every=1)
    report = pipe.observe(watcher).sink(sink).run()
    assert (report.processed, dict(report.errors), dict(report.dropped)) == (60, {}, {})
    assert len(sink.items) == 60
    shadow = report.to_json()["stages"][0]["shadow"]
    assert "took its process down: killed by SIGSEGV" in shadow["error"]
    assert watcher.metrics[-1]["error"] == shadow["error"]
    assert watcher.errors == []


def test_an_engine_in_a_process_of_its_own_answers_as_in_this_one(artifact):
    image = color_frame("green")
    with Artifact.open(artifact).load() as here, Contained(Artifact.open(artifact)).load() as there:
        np.testing.assert_array_equal(here(image).probs, there(image).probs)
        assert there.digest == here.digest


def test_what_the_engine_refuses_is_said_as_it_says_it(artifact, tmp_path):
    with Contained(Artifact.open(artifact)).load() as model:
        with pytest.raises(BackendError, match="other"):
            model.runtime.infer({"other": np.zeros(3, np.uint8)})
        assert model(color_frame("red")).class_id == 2
    model.runtime.close()
    with pytest.raises(BackendError, match="the model is closed"):
        model(color_frame("red"))
    missing = build_artifact(tmp_path / "odd.edge", golden=False, runtime={"name": "none", "options": {}}).path
    with pytest.raises(BackendError, match="none"):
        Contained(Artifact.open(missing)).load()
