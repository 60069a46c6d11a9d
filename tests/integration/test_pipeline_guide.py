"""What `docs/guides/pipelines.md` shows works as it stands there."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import cv2
import pytest

from edge_sdk.artifact import write_artifact
from edge_sdk.pipeline import Pipeline
from edge_sdk.pipeline_config import PipelineConfig
from edge_sdk.testing import color_frame, tiny_classifier_onnx, tiny_detector_onnx, tiny_manifest

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "pipelines.md"


def blocks(first: str) -> list[str]:
    """The indented blocks of the guide that begin with `first`."""
    found: list[str] = []
    lines: list[str] = []
    for line in [*GUIDE.read_text().splitlines(), "end"]:
        if line.startswith("    ") or (not line.strip() and lines):
            lines.append(line)
            continue
        text = textwrap.dedent("\n".join(lines)).strip()
        if text.startswith(first):
            found.append(text)
        lines = []
    return found


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the guide names."""
    for name, task, model, labels in (
        ("people.edge", "detection", tiny_detector_onnx(), "person\nbicycle\ncar\n"),
        ("people-v2.edge", "detection", tiny_detector_onnx(), "person\nbicycle\ncar\n"),
        ("helmet.edge", "classification", tiny_classifier_onnx(), "bare\nvest\nhelmet\n"),
    ):
        entries: dict[str, Any] = {"model/model.onnx": model, "labels.txt": labels.encode()}
        write_artifact(tmp_path / name, manifest=tiny_manifest(task), entries=entries, evidence={})
    video = cv2.VideoWriter(
        str(tmp_path / "site.mp4"), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (640, 480)
    )
    for i in range(25):
        video.write(color_frame("blue", width=640, height=480, box=(4 * i + 240, 160, 4 * i + 400, 320)))
    video.release()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", blocks("[source]"), ids=lambda text: str(text.count("[[stage]]")))
def test_every_pipeline_file_of_the_guide_runs(site: Path, text: str) -> None:
    (site / "p.toml").write_text(text)
    report = Pipeline.from_config(PipelineConfig.from_toml(site / "p.toml")).run()
    assert report.processed == 25
    assert not report.errors


@pytest.mark.parametrize("text", blocks("from edge_sdk"), ids=lambda text: str(text.count(".")))
def test_every_program_of_the_guide_runs(site: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    del site
    exec(compile(text, "guide", "exec"), {})
    assert capsys.readouterr().out


def test_the_cascade_of_the_guide_raises_its_alert(site: Path) -> None:
    text = next(t for t in blocks("[source]") if "after" in t)
    (site / "p.toml").write_text(text)
    Pipeline.from_config(PipelineConfig.from_toml(site / "p.toml")).run()
    lines = [json.loads(line) for line in (site / "results.jsonl").read_text().splitlines()]
    assert [e["name"] for line in lines for e in line.get("events", ())] == ["unprotected"]
    assert lines[-1]["detections"][0]["then"]["ppe"]["classes"][0]["label"] == "bare"
