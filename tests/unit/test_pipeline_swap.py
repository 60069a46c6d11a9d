"""Another model between two frames: nothing is lost, and a model that cannot work never gets in."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pipeline_parts import frames

from edge_sdk.errors import ArtifactError, ConfigError, UsageError
from edge_sdk.pipeline import Pipeline
from edge_sdk.testing import ListSource, build_artifact, tiny_classifier_onnx


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "colors.edge").path


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "colors2.edge", version="2.0.0").path


def test_a_swap_changes_the_model_between_two_frames_and_loses_none(artifact, other):
    step = threading.Semaphore(4)

    class Stepped(ListSource):
        def grab(self) -> bool:
            step.acquire()
            return super().grab()

    with Pipeline(Stepped(frames(60)), workers=2).classify(artifact) as pipe:
        seen = []
        for item in pipe:
            seen.append((item.frame.index, item.model))
            if len(seen) == 4:
                assert pipe.swap("classify", other)["artifact"] == "tiny-classification 2.0.0"
                step.release(100)
    assert [i for i, _ in seen] == list(range(60))
    models = [m for _, m in seen]
    assert len(set(models)) == 2
    first_new = models.index(models[-1])
    assert models == models[:1] * first_new + models[-1:] * (60 - first_new)


@pytest.fixture
def running(artifact):
    hold = threading.Event()

    class Held(ListSource):
        def grab(self) -> bool:
            if self._next >= 2:
                hold.wait(20)
            return super().grab()

    with Pipeline(Held(frames(6)), workers=1).classify(artifact) as pipe:
        yield pipe, hold
        hold.set()


@pytest.mark.parametrize("case", ["bad-golden", "not-an-artifact", "another-task"])
def test_a_swap_that_fails_keeps_the_old_model(running, tmp_path, case):
    pipe, hold = running
    before = pipe.describe()["model"]
    if case == "bad-golden":
        new = build_artifact(tmp_path / "new.edge", model=tiny_classifier_onnx(constant=0.0)).path
        expected = pytest.raises(ArtifactError, match="self-tests on this machine")
    elif case == "not-an-artifact":
        new = tmp_path / "new.edge"
        new.write_bytes(b"nothing")
        expected = pytest.raises(ArtifactError, match="not a zip")
    else:
        new = build_artifact(tmp_path / "new.edge", task="detection").path
        expected = pytest.raises(ConfigError, match="needs a model for classification")
    with expected:
        pipe.swap("classify", new)
    hold.set()
    assert [i.model for i in pipe] == [before] * 6


def test_a_swap_of_an_unknown_stage_names_the_stage_there_is(running, artifact):
    pipe, _ = running
    with pytest.raises(UsageError, match="no stage `detect`") as caught:
        pipe.swap("detect", artifact)
    assert "classify" in caught.value.hint
