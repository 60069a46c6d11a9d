"""`edge run` with several pipelines, and with frames on standard input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from support import children_of, lines, until_lines

from edge_sdk.testing import build_artifact, color_frame

pytestmark = pytest.mark.e2e
EDGE = [sys.executable, "-m", "edge_sdk"]
LIVE = "synthetic:64x48?fps=50&live=1"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "colors.edge").path


@pytest.fixture
def camera(tmp_path, artifact):
    """A function that writes the pipeline.toml of a camera."""

    def write(name: str, uri: str, *, sink: str | None = None) -> Path:
        path = tmp_path / f"{name}.toml"
        text = f'[source]\nuri = "{uri}"\n[[stage]]\nname = "color"\nmodel = "{artifact}"\n'
        path.write_text(text + f'[[sink]]\nuri = "{sink or name + ".jsonl"}"\n')
        return path

    return write


def edge(*words: object, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*EDGE, *map(str, words)], capture_output=True, timeout=60, input=data)


def test_two_files_give_a_report_each_with_the_usual_keys_and_totals(camera, artifact):
    done = edge("run", camera("a", "synthetic:64x48?n=30"), camera("b", "synthetic:64x48?n=20&seed=1"), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    alone = json.loads(edge("run", "--model", artifact, "--source", "synthetic:64x48?n=5", "--json").stdout)
    assert {frozenset(row) for row in report["cameras"].values()} == {frozenset(alone)}
    assert report["cameras"]["a"]["frames"]["processed"] == 30
    assert report["totals"]["frames"] == {"in": 50, "processed": 50, "dropped": {}}
    assert report["totals"]["cpu_ms_per_frame"] > 0
    (model,) = report["models"]
    assert (model["pipelines"], model["shared"], model["why"]) == (2, True, None)
    assert "error" not in report


def test_a_file_that_fails_is_the_exit_code_and_the_others_are_read_to_their_ends(camera, tmp_path):
    good, bad = camera("good", "synthetic:64x48?n=200"), camera("bad", str(tmp_path / "none.mp4"))
    done = edge("run", good, bad, "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["error"]["exit"], report["error"]["kind"]) == (6, 6, "source")
    assert "no such file" in report["cameras"]["bad"]["error"]["message"]
    assert report["cameras"]["good"]["frames"]["processed"] == 200
    assert lines(tmp_path / "good.jsonl") == 200
    text = edge("run", good, bad)
    assert text.returncode == 6
    assert b"bad: no such file" in text.stderr
    assert b"failed" in text.stdout


def test_a_camera_that_is_not_there_yet_is_tried_again_while_the_other_runs(camera, tmp_path, free_port):
    away = camera("away", f"http://admin:s3cret@127.0.0.1:{free_port}/video.mjpg")
    process = subprocess.Popen(
        [*EDGE, "run", str(away), str(camera("here", LIVE)), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    until_lines(tmp_path / "here.jsonl", 100)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    report = json.loads(out)
    assert report["cameras"]["here"]["frames"]["processed"] >= 100
    assert report["cameras"]["away"]["frames"]["processed"] == 0
    assert b"connection refused: trying again" in err
    assert b"s3cret" not in err + out


def test_sigterm_ends_all_of_them_with_0_and_whole_lines(camera, tmp_path):
    names = ("a", "b", "c")
    process = subprocess.Popen(
        [*EDGE, "run", *(str(camera(n, LIVE)) for n in names), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    for name in names:
        until_lines(tmp_path / f"{name}.jsonl")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    for name, row in json.loads(out)["cameras"].items():
        found = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line)["frame"] for line in found] == sorted(json.loads(line)["frame"] for line in found)
        assert row["sinks"][0]["written"] == len(found)


def test_a_worker_that_dies_is_started_again_with_all_its_cameras(camera, tmp_path):
    process = subprocess.Popen(
        [*EDGE, "run", str(camera("a", LIVE)), str(camera("b", LIVE)), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    for name in ("a", "b"):
        until_lines(tmp_path / f"{name}.jsonl")
    os.kill(children_of(process.pid)[0], signal.SIGSEGV)
    for name in ("a", "b"):
        until_lines(tmp_path / f"{name}.jsonl", lines(tmp_path / f"{name}.jsonl") + 20)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert b"killed by SIGSEGV: starting it again" in err


def test_check_opens_every_camera_and_names_the_one_that_is_wrong(camera, tmp_path):
    good, bad = camera("good", "synthetic:64x48?n=3"), camera("bad", str(tmp_path / "none.mp4"))
    done = edge("run", good, camera("other", "synthetic:64x48?n=3"), "--check", "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["cameras"]) == {"good", "other"}
    done = edge("run", good, bad, "--check", "--json")
    assert done.returncode == 6
    assert json.loads(done.stdout)["error"]["message"].startswith("bad: no such file")
    assert not (tmp_path / "good.jsonl").exists()


@pytest.mark.parametrize(
    ("make", "words", "text"),
    [
        (lambda c: [c("a", LIVE), c("a", LIVE)], [], "a pipeline.toml is given twice"),
        (lambda c: [c("a", LIVE), "b.mp4"], [], "`b.mp4` is no pipeline.toml"),
        (lambda c: [c("a", LIVE, sink="o.jsonl"), c("b", LIVE, sink="o.jsonl")], [], "as a does"),
        (lambda c: [c("a", "-"), c("b", "-")], [], "b: reads standard input, as a does"),
        (lambda c: [c("a", LIVE), c("b", LIVE)], ["--out", "o.jsonl"], "--out goes with one pipeline"),
        (lambda c: [c("a", LIVE), c("b", LIVE)], ["--score", "0.5"], "--score goes with one pipeline"),
    ],
)
def test_wrong_words_for_several_cameras_are_answered_with_what_was_expected(camera, make, words, text):
    done = edge("run", *make(camera), *words)
    assert done.returncode == 2
    assert text in done.stderr.decode()


def test_images_on_standard_input_reach_the_worker(artifact, tmp_path):
    data = b"".join(cv2.imencode(".png", color_frame(c))[1].tobytes() for c in ("blue", "green", "red"))
    done = edge("run", "--model", artifact, "--source", "-", "--out", tmp_path / "o.jsonl", data=data)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["classes"][0]["label"] for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert found == ["blue", "green", "red"]


def test_raw_frames_on_standard_input_and_what_is_no_frame(artifact):
    raw = "stdin:64x48?pixels=bgr24"
    data = color_frame("red").tobytes() * 4 + bytes(10)
    done = edge("run", "--model", artifact, "--source", raw, "--json", data=data)
    report = json.loads(done.stdout)
    assert report["frames"] == {"in": 5, "processed": 4, "dropped": {"broken": 1}}
    assert report["broken"] == ["frame 4"]
    done = edge("run", "--model", artifact, "--source", "-", "--json", data=b"what is this?\n")
    assert done.returncode == 6
    assert "standard input gives no images" in json.loads(done.stdout)["error"]["message"]


def test_sigterm_while_standard_input_says_nothing_ends_with_0(artifact, tmp_path):
    out = tmp_path / "o.jsonl"
    process = subprocess.Popen(
        [*EDGE, "run", "--model", str(artifact), "--source", "-", "--json", "--out", str(out)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdin.write(cv2.imencode(".png", color_frame("red"))[1].tobytes() * 3)
    process.stdin.flush()
    until_lines(out, 3)
    process.terminate()
    assert process.wait(30) == 0
    assert json.loads(process.stdout.read())["frames"]["processed"] == 3
    process.stdin.close()
    process.stdout.close()
    process.stderr.close()


def test_doctor_says_which_decoders_work_here_and_why_others_do_not():
    done = edge("doctor", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = {d["name"]: d for d in report["ffmpeg"]["decoders"]}
    assert set(rows) == {"vaapi", "nvdec", "v4l2m2m", "software"}
    assert all(row["ok"] or row["why"] for row in rows.values())
    assert rows["software"]["ok"] == (report["ffmpeg"]["path"] is not None)
    assert isinstance(report["cameras"], list)
    assert isinstance(report["picamera2"], bool)
