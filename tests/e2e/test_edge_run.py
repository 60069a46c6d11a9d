"""`edge run` as people use it: real processes, real signals, real broken files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from support import children_of, lines, until, until_lines

from edge_sdk.artifact import write_artifact
from edge_sdk.testing import build_artifact, color_frame, tiny_classifier_onnx

pytestmark = pytest.mark.e2e
EDGE = [sys.executable, "-m", "edge_sdk"]
LONG = "synthetic:64x48?n=10000000"
LIVE = "synthetic:64x48?fps=50&live=1"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "colors.edge").path


@pytest.fixture(scope="module")
def yolox(testdata, tmp_path_factory):
    """YOLOX-nano as it is published, preprocessing in the manifest."""
    manifest = {
        "name": "yolox-nano", "version": "1.0.0", "profile": "generic-cpu", "task": "detection",
        "source_sha256": "0" * 64, "parent": None,
        "input": {
            "name": "images", "shape": [1, 3, 416, 416], "dtype": "float32", "layout": "NCHW", "color": "bgr",
            "resize": {"mode": "letterbox", "align": "topleft", "pad": 114},
        },
        "outputs": [{"name": "output", "shape": [1, 3549, 85], "dtype": "float32"}],
        "decoder": {"name": "yolox", "params": {}},
        "runtime": {"name": "onnxruntime", "options": {}},
    }  # fmt: skip
    labels = [str(i) for i in range(80)]
    labels[39], labels[2] = "bottle", "car"
    entries = {
        "model/model.onnx": testdata / "models" / "yolox_nano_416.onnx",
        "labels.txt": "\n".join(labels).encode(),
    }
    path = tmp_path_factory.mktemp("artifacts") / "yolox.edge"
    return write_artifact(path, manifest=manifest, entries=entries, evidence={}).path


def edge(*words: object, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*EDGE, *map(str, words)], capture_output=True, text=True, timeout=timeout_s, check=False)


def side_by_side(paths: list[Path], run: Callable[[Path], Any]) -> list[tuple[Path, Any]]:
    with ThreadPoolExecutor(4) as pool:
        return list(zip(paths, pool.map(run, paths), strict=True))


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen([*EDGE, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def worker_of(process: subprocess.Popen[str], *, not_pid: int = 0) -> int:
    """Wait for the child of `edge run` and return its pid."""

    def found() -> list[int]:
        assert process.poll() is None, process.stderr.read()
        return [pid for pid in children_of(process.pid) if pid != not_pid]

    return until(found, "a worker")[0]


def test_a_bottle_is_found_on_a_real_video(yolox, testdata, tmp_path):
    video = testdata / "videos" / "bottle-detection.mp4"
    done = edge("run", "--model", yolox, "--source", video, "--frames", 60, "--json",
                "--out", tmp_path / "o.jsonl", "--save", tmp_path / "o.mp4")  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["results"]["bottle"]["frames"] >= 55
    assert report["frames"] == {"in": 60, "processed": 60, "dropped": {}}
    assert {"fps", "cpu_ms_per_frame", "latency_ms", "frame_age_ms", "rss_mb", "stages", "model"} <= set(report)
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(60))
    assert lines[0]["detections"][0]["label"] == "bottle"
    assert cv2.VideoCapture(str(tmp_path / "o.mp4"), cv2.CAP_FFMPEG).get(cv2.CAP_PROP_FRAME_COUNT) == 60


def test_boxes_lie_in_the_upright_frame_of_a_rotated_video(yolox, testdata, tmp_path):
    done = edge("run", "--model", yolox, "--source", testdata / "videos" / "rot90.mov", "--score", 0.01,
                "--out", tmp_path / "o.jsonl")  # fmt: skip
    assert done.returncode == 0, done.stderr
    boxes = [
        d["box"] for line in (tmp_path / "o.jsonl").read_text().splitlines() for d in json.loads(line)["detections"]
    ]
    assert boxes
    assert max(b[2] for b in boxes) <= 320
    assert 320 < max(b[3] for b in boxes) <= 568


def test_a_folder_is_classified_with_its_file_names(artifact, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for color in ("blue", "green", "red"):
        cv2.imwrite(str(folder / f"{color}.png"), color_frame(color))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    done = edge("run", "--model", artifact, "--source", folder, "--out", tmp_path / "o.csv")
    assert done.returncode == 0, done.stderr
    assert "1 image could not be decoded: broken.png" in done.stderr
    rows = [line.split(",") for line in (tmp_path / "o.csv").read_text().splitlines()[1:]]
    assert {Path(r[2]).stem: r[4] for r in rows} == {"blue": "blue", "green": "green", "red": "red"}


def test_check_opens_everything_and_runs_nothing(artifact, tmp_path):
    (tmp_path / "p.toml").write_text(
        f'[source]\nuri = "synthetic:64x48?n=3"\n[[stage]]\nmodel = "{artifact}"\n[[sink]]\nuri = "o.jsonl"\n'
    )
    done = edge("run", tmp_path / "p.toml", "--check", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"]
    assert report["stages"][0]["selftests"] == 3
    assert report["source"]["size"] == [64, 48]
    assert not (tmp_path / "o.jsonl").exists()


def test_check_finds_a_model_that_fails_on_this_machine(tmp_path):
    bad = build_artifact(tmp_path / "bad.edge", model=tiny_classifier_onnx(constant=0.0)).path
    done = edge("run", "--model", bad, "--source", "synthetic:64x48?n=3", "--check")
    assert done.returncode == 4
    assert "self-tests on this machine" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ([], 2, "--model and --source missing"),
        (["--model", "a.edge"], 2, "--source missing"),
        (["a.edge"], 2, "no pipeline.toml"),
        (["none.toml"], 2, "no such file"),
        (["--model", "none.edge", "--source", "synthetic:?n=1"], 4, "no such artifact"),
        (["--model", "a.edge", "--source", "syntetic:?n=1"], 2, "unknown source"),
        (["--model", "a.edge", "--source", "synthetic:", "--frames", "0"], 2, "--frames must be at least 1"),
        (["--model", "a.edge", "--source", "synthetic:", "--sink", "mqt://h/t"], 2, "did you mean `mqtt`?"),
    ],
)
def test_wrong_words_are_answered_with_what_was_expected(words, code, text):
    done = edge("run", *words)
    assert done.returncode == code
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_source_is_one_json_object_with_its_exit_code(artifact, tmp_path):
    done = edge("run", "--model", artifact, "--source", tmp_path / "none.mp4", "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["exit"], error["kind"]) == (6, 6, "source")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_dies_on_a_file_is_exit_6_with_the_name_of_the_signal(artifact, tmp_path, number):
    process = start("run", "--model", artifact, "--source", LONG, "--json", "--out", tmp_path / "o.jsonl")
    pid = worker_of(process)
    until_lines(tmp_path / "o.jsonl")
    os.kill(pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 6
    assert f"killed by {number.name}" in json.loads(out)["error"]["message"]
    assert "Traceback" not in err
    assert all(json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines())


def test_a_worker_that_dies_on_a_live_source_is_started_again(artifact, tmp_path):
    process = start("run", "--model", artifact, "--source", LIVE, "--json", "--out", tmp_path / "o.jsonl")
    first = worker_of(process)
    until_lines(tmp_path / "o.jsonl")
    os.kill(first, signal.SIGKILL)
    before = lines(tmp_path / "o.jsonl")
    worker_of(process, not_pid=first)
    until_lines(tmp_path / "o.jsonl", before + 5)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["frames"]["processed"] > 0
    assert "killed by SIGKILL: starting it again" in err
    assert [json.loads(line)["frame"] for line in (tmp_path / "o.jsonl").read_text().splitlines()].count(0) == 2


def test_sigterm_ends_cleanly_with_readable_files_and_the_report(yolox, testdata, tmp_path):
    process = start("run", "--model", yolox, "--source", testdata / "videos" / "bottle-detection.mp4", "--json",
                    "--out", tmp_path / "o.jsonl", "--save", tmp_path / "o.mp4")  # fmt: skip
    until_lines(tmp_path / "o.jsonl", 20)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    processed = json.loads(out)["frames"]["processed"]
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(processed))
    capture = cv2.VideoCapture(str(tmp_path / "o.mp4"), cv2.CAP_FFMPEG)
    assert sum(1 for _ in iter(lambda: capture.read()[0], False)) == processed


def test_control_c_is_exit_130_and_still_reports(artifact, tmp_path):
    process = start("run", "--model", artifact, "--source", LIVE, "--json", "--out", tmp_path / "o.jsonl")
    until_lines(tmp_path / "o.jsonl")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert json.loads(out)["frames"]["processed"] > 0


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the ffmpeg command to make the video")
def test_a_video_on_which_the_decoder_aborts_is_exit_6_or_a_right_answer(artifact, tmp_path):
    video = tmp_path / "raw.avi"
    subprocess.run(
        ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "color=red:s=48x48:d=1:r=10", "-c:v", "rawvideo",
         "-pix_fmt", "bgr24", str(video)], check=True,
    )  # fmt: skip
    done = edge("run", "--model", artifact, "--source", video, "--json")
    answer = json.loads(done.stdout)
    if done.returncode == 0:
        assert answer["results"]["red"]["frames"] == 10
    else:
        assert done.returncode == 6
        assert "killed by SIG" in answer["error"]["message"]
    assert "Traceback" not in done.stderr


def test_a_folder_of_nothing_but_broken_images_is_exit_6(artifact, tmp_path):
    for n in range(2):
        (tmp_path / f"{n}.jpg").write_bytes(b"no image")
    done = edge("run", "--model", artifact, "--source", tmp_path)
    assert done.returncode == 6
    assert "none of 2 images can be decoded; the first: image `0.jpg`" in done.stderr


def test_a_full_disk_ends_a_file_job_with_exit_6(artifact):
    done = edge("run", "--model", artifact, "--source", "synthetic:64x48?n=50", "--sink", "jsonl:/dev/full")
    assert done.returncode == 6
    assert "no space left on device" in done.stderr


GOOD = {
    "16bit.pgm", "corrupted.mp4", "exif_orientation.jpg", "g4_1bit.tif", "invalid-exif.jpg", "one_white_frame_hevc.mp4",
    "rgba_alpha.png", "sugarshack_bad_mpo_header.jpg", "unordered_pts.mov",
}  # fmt: skip


def test_all_broken_material_gives_an_answer_or_a_clear_error(artifact, testdata):
    paths = sorted((testdata / "bad").iterdir())
    for path, done in side_by_side(paths, lambda path: edge("run", "--model", artifact, "--source", path, "--json")):
        answer = json.loads(done.stdout)
        assert "Traceback" not in done.stderr, path.name
        if path.name in GOOD:
            assert done.returncode == 0, (path.name, answer)
            assert answer["frames"]["processed"] >= 1, path.name
        else:
            assert done.returncode == 6, (path.name, answer)
            assert path.name in answer["error"]["message"], path.name


def test_what_is_no_artifact_is_exit_4_by_name(testdata):
    paths = sorted((testdata / "bad").glob("*.[otx]*"))
    words = ("--source", "synthetic:64x48?n=1", "--json")
    for path, done in side_by_side(paths, lambda path: edge("run", "--model", path, *words)):
        error = json.loads(done.stdout)["error"]
        assert (done.returncode, error["kind"]) == (4, "artifact"), path.name
        assert path.name in error["message"]


def test_bench_reports_engine_decode_and_pipeline(artifact):
    done = edge("bench", artifact, "--source", "synthetic:320x240?n=50", "--frames", 50, "--rounds", 2, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    keys = {"engine_cpu_ms", "decode_cpu_ms", "pipeline_cpu_ms", "ratio", "latency_ms", "rss_mb"}
    assert keys <= set(report)
    expected = (report["engine_cpu_ms"] + report["decode_cpu_ms"]) / report["pipeline_cpu_ms"]
    rounding = (0.001 + 0.0005 * expected) / report["pipeline_cpu_ms"] + 0.001  # figures have three decimals
    assert report["ratio"] == pytest.approx(expected, abs=rounding)


def test_bench_says_in_words_what_its_figures_are(artifact):
    done = edge("bench", artifact, "--source", "synthetic:320x240?n=20", "--frames", 20, "--rounds", 1, "--workers", 1)
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert {"engine", "decode", "pipeline", "around", "ratio", "latency", "memory"} <= set(lines)
    assert lines["engine"].endswith("ms CPU a frame, alone on 1 thread")
    assert "preprocessing, postprocessing, hand-over" in lines["around"]


def test_bench_refuses_a_source_that_never_ends(artifact):
    done = edge("bench", artifact, "--source", LIVE)
    assert done.returncode == 2
    assert "never ends" in done.stderr


def test_doctor_says_what_works_and_the_pip_line_for_the_rest():
    done = edge("doctor", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {"machine", "runtimes", "profile", "opencv", "cameras", "broker", "missing"} <= set(report)
    rows = {r["name"]: r for r in report["runtimes"]}
    assert {"name", "version", "ok"} <= set(rows["onnxruntime"])
    assert rows["onnxruntime"]["ok"]
    assert report["opencv"]["installed"][0]["distribution"].startswith("opencv")
    assert all(row["pip"].startswith("pip install") for row in report["missing"])
    assert np.isfinite(report["machine"]["memory"]["total_mb"])
