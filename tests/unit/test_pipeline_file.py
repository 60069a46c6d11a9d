"""Pipelines as TOML, and the small parts that fit nowhere else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pipeline_parts import COLORS, frames

from edge_sdk.backoff import Backoff
from edge_sdk.errors import ConfigError, UsageError
from edge_sdk.pipeline import Pipeline
from edge_sdk.pipeline.report import Quantiles
from edge_sdk.pipeline_config import PipelineConfig
from edge_sdk.testing import ListSource, build_artifact, color_frame


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "colors.edge").path


def test_a_pipeline_file_runs_with_paths_relative_to_itself(artifact, tmp_path, monkeypatch):
    import cv2

    (tmp_path / "photos").mkdir()
    for i, color in enumerate(COLORS):
        cv2.imwrite(str(tmp_path / "photos" / f"{i}.png"), color_frame(color))
    (tmp_path / "m.edge").write_bytes(Path(artifact).read_bytes())
    (tmp_path / "p.toml").write_text(
        '[source]\nuri = "photos"\n[[stage]]\nname = "sort"\nkind = "classify"\nmodel = "m.edge"\n'
        '[[sink]]\nuri = "out.jsonl"\n'
    )
    monkeypatch.chdir("/")
    report = Pipeline.from_config(PipelineConfig.from_toml(tmp_path / "p.toml")).run()
    assert report.stage["name"] == "sort"
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["classes"][0]["label"] for line in lines] == list(COLORS)
    assert set(lines[0]) == {"v", "frame", "t_s", "source", "model", "classes"}


def test_every_wrong_key_of_a_pipeline_file_is_named_at_once(tmp_path):
    (tmp_path / "p.toml").write_text(
        '[source]\nuri = "a.mp4"\npolicy = "newest"\n[[stage]]\nknd = "detect"\n[[sink]]\nuri = 3\n[extra]\n'
    )
    with pytest.raises(ConfigError) as caught:
        PipelineConfig.from_toml(tmp_path / "p.toml")
    text = caught.value.message
    for words in (
        "source.policy: expected one of",
        "stage[0].knd: unknown key, did you mean `kind`?",
        "extra: unknown key",
    ):
        assert words in text
    assert "sink[0].uri: expected a string" in text


def test_values_that_cannot_work_are_named_at_once(tmp_path):
    (tmp_path / "p.toml").write_text(
        '[source]\nuri = "rtp://u:s3cret@cam"\n[[stage]]\nmodel = "a.edge"\n'
        '[[sink]]\nuri = "out.xyz"\n[[sink]]\nuri = "mqt://h/t"\n[[sink]]\nuri="a.csv"\n[[sink]]\nuri="csv:a.csv"\n'
    )
    with pytest.raises(ConfigError) as caught:
        PipelineConfig.from_toml(tmp_path / "p.toml")
    text = caught.value.message
    assert "4 problems" in text
    assert "source.uri: unknown source `rtp`" in text
    assert "sink[0].uri" in text
    assert "unknown sink `mqt`, did you mean `mqtt`?" in text
    assert "sink[3].uri: `a.csv` is written twice" in text
    assert "s3cret" not in text


def test_a_stage_that_waits_for_a_slot_cannot_be_run_alone():
    config = PipelineConfig.from_mapping({"source": {"uri": "0"}, "stage": [{}]})
    with pytest.raises(UsageError, match="takes its model from a slot"):
        Pipeline.from_config(config)
    assert config.with_model("a.edge").stages[0].model == "a.edge"


def test_a_model_of_another_task_is_refused(artifact):
    with pytest.raises(ConfigError, match="stage kind `detect` needs a model for detection"):
        Pipeline(ListSource(frames(1))).detect(artifact).run()


def test_quantiles_of_many_values_stay_within_one_per_cent():
    quantiles = Quantiles()
    for value in range(1, 10_001):
        quantiles.add(value / 10)
    assert quantiles.at(0.5) == pytest.approx(500, rel=0.01)
    assert quantiles.at(0.99) == pytest.approx(990, rel=0.01)
    assert Quantiles().to_json() == {"p50": None, "p95": None, "p99": None}


def test_waits_double_with_jitter_and_stop_growing():
    backoff = Backoff(first_s=1.0, max_s=8.0)
    assert [backoff.delay_s(n, lambda: 1.0) for n in range(6)] == [1, 2, 4, 8, 8, 8]
    assert backoff.delay_s(1, lambda: 0.0) == 1.0
