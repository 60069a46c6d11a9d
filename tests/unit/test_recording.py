"""Which recorded segments stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_sdk.errors import BackendError, ConfigError, SinkError, UsageError
from edge_sdk.pipeline import Pipeline
from edge_sdk.pipeline_config import PipelineConfig
from edge_sdk.sources import decoding
from edge_sdk.sources.record import Recorder
from edge_sdk.sources.recording import MB, RecordingConfig, Segment, segments, to_delete

PLENTY = 10**12
KEPT = [Segment(60.0 * i, Path(f"{i}.mkv"), 10 * MB) for i in range(5)]


def gone(config: RecordingConfig, *, now_s: float = 300.0, free_bytes: int = PLENTY, kept=KEPT) -> list[str]:
    return [s.path.name for s in to_delete(kept, config, now_s=now_s, free_bytes=free_bytes)]


@pytest.mark.parametrize(
    ("config", "facts", "expected"),
    [
        (RecordingConfig(), {}, []),
        (RecordingConfig(max_mb=30), {}, ["0.mkv", "1.mkv"]),
        (RecordingConfig(max_mb=1), {}, ["0.mkv", "1.mkv", "2.mkv", "3.mkv"]),
        (RecordingConfig(max_age_h=0.05), {"now_s": 300.0}, ["0.mkv"]),
        (RecordingConfig(max_age_h=0.05), {"now_s": 10_000.0}, ["0.mkv", "1.mkv", "2.mkv", "3.mkv"]),
        (RecordingConfig(min_free_mb=100), {"free_bytes": 85 * MB}, ["0.mkv", "1.mkv"]),
        (RecordingConfig(min_free_mb=0), {"free_bytes": 0}, ["0.mkv", "1.mkv"]),
        (RecordingConfig(max_mb=1), {"kept": KEPT[:1]}, []),
        (RecordingConfig(max_mb=1), {"kept": []}, []),
    ],
)
def test_the_oldest_go_first_by_size_age_and_free_space_and_the_newest_stays(config, facts, expected):
    assert gone(config, **facts) == expected


def test_only_segments_of_a_recorder_are_counted(tmp_path):
    for name in ("20260101T000000Z.mkv", "20260101T000100Z.mkv", "holiday.mkv", "20260101T000000Z.mp4"):
        (tmp_path / name).write_bytes(b"1234")
    found = segments(tmp_path)
    assert [(s.path.name, s.size) for s in found] == [("20260101T000000Z.mkv", 4), ("20260101T000100Z.mkv", 4)]
    assert found[1].start_s - found[0].start_s == 60
    assert segments(tmp_path / "none") == []


def test_the_keys_of_a_recording_stand_in_the_pipeline_and_its_folder_beside_the_file(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text(
        '[source]\nuri = "rtsp://cam/sub"\ndecode = "auto"\nrecord = "rtsp://cam/main"\n'
        '[source.recording]\nfolder = "door"\nsegment_s = 30\nmax_mb = 500\nmax_age_h = 24\n'
        '[[stage]]\nmodel = "m.edge"\n'
    )
    source = PipelineConfig.from_toml(path).source
    assert (source.record, source.options) == ("rtsp://cam/main", {"decode": "auto"})
    assert source.recording == RecordingConfig(folder=str(tmp_path / "door"), segment_s=30, max_mb=500, max_age_h=24)
    again = PipelineConfig.from_mapping(PipelineConfig.from_toml(path).to_json())
    assert again.source == source


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ('record = "clip.mp4"', "source.record: expected the address of a stream, rtsp://… or http://…"),
        ("recording = { max_mb = 5 }", "source.recording: `record` is missing"),
        ('record = "rtsp://c/1"\nrecording = { max_gb = 5 }', "source.recording.max_gb: unknown key"),
        ('decode = "vappi"', "source.decode: expected one of auto, software, vaapi, v4l2m2m, nvdec"),
    ],
)
def test_wrong_keys_of_a_source_are_named(tmp_path, keys, words):
    path = tmp_path / "p.toml"
    path.write_text(f'[source]\nuri = "rtsp://c/1"\n{keys}\n[[stage]]\nmodel = "m.edge"\n')
    with pytest.raises(ConfigError) as caught:
        PipelineConfig.from_toml(path)
    assert words in caught.value.message


def test_decode_goes_with_a_video_or_a_stream(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text('[source]\nuri = "0"\ndecode = "auto"\n[[stage]]\nmodel = "m.edge"\n')
    with pytest.raises(ConfigError, match="source.decode: goes with a video or a stream"):
        PipelineConfig.from_toml(path)


def test_what_is_no_stream_cannot_be_recorded():
    with pytest.raises(UsageError, match="`clip.mp4` cannot be recorded"):
        Pipeline("synthetic:64x48").record("clip.mp4")


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    if decoding.ffmpeg()[0] is None:
        pytest.skip("no ffmpeg command")
    (tmp_path / "file").write_text("")
    recorder = Recorder("rtsp://u:s3cret@cam/1", RecordingConfig(folder=str(tmp_path / "file" / "x")))
    with pytest.raises(SinkError, match="cannot record to `.*file/x`: not a directory"):
        recorder.start()
    recorder.close()


def test_recording_without_ffmpeg_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    decoding.ffmpeg.cache_clear()
    try:
        with pytest.raises(BackendError, match="`record` needs the ffmpeg command"):
            Recorder("rtsp://cam/1", RecordingConfig(folder=str(tmp_path))).start()
    finally:
        decoding.ffmpeg.cache_clear()
