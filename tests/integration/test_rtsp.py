"""Cameras behind a real RTSP server that asks for a password, freezes, dies and comes back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support import children_of, is_running, until

from edge_sdk.errors import SourceError
from edge_sdk.pipeline import Cameras, Pipeline
from edge_sdk.sources import create
from edge_sdk.sources.base import read
from edge_sdk.testing import build_artifact

WAYS = [{}, {"decode": "software"}, {"isolate": True}]
HOW = ["in this process", "by ffmpeg", "in a process of its own"]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return build_artifact(tmp_path_factory.mktemp("artifacts") / "m.edge").path


def children() -> set[int]:
    return set(children_of(os.getpid()))


@pytest.mark.parametrize("options", WAYS, ids=HOW)
def test_a_camera_is_read_with_its_password_and_shown_without(rtsp, options):
    before = children()
    source = create(rtsp.uri(), options)
    source.open()
    frames = [read(source) for _ in range(3)]
    words = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children() - before]
    source.close()
    assert {f.image.shape for f in frames} == {(240, 320, 3)}
    assert [f.index for f in frames] == [0, 1, 2]
    assert frames[0].source == f"rtsp://***@127.0.0.1:{rtsp.port}/sub"
    assert source.live
    assert not any(b"s3cret" in w for w in words)
    assert children() <= before | {rtsp._process.pid}


@pytest.mark.parametrize("options", WAYS, ids=HOW)
def test_a_wrong_password_is_an_error_without_it(rtsp, options):
    source = create(rtsp.uri(password="wr0ng"), options)
    with pytest.raises(SourceError, match="cannot be opened") as caught:
        source.open()
    source.close()
    text = f"{caught.value.message} {caught.value.hint}"
    assert "401 Unauthorized" in text if options.get("decode") else "credentials" in text
    assert "wr0ng" not in text


@pytest.mark.parametrize("options", WAYS, ids=HOW)
@pytest.mark.parametrize("trouble", ["freezes", "dies"])
def test_a_camera_that_goes_is_noticed_and_followed_when_it_comes_back(rtsp, artifact, options, trouble):
    before = children()
    pipe = Pipeline(rtsp.uri(), params=options, stall_s=0.5).classify(artifact)
    with pipe:
        for seen, _ in enumerate(pipe, 1):
            if seen == 5:
                rtsp.freeze() if trouble == "freezes" else rtsp.off()
                threading.Thread(target=come_back, args=(rtsp, pipe, trouble), daemon=True).start()
            if seen > 5 and pipe.report().reconnects:
                break
    report = pipe.report()
    assert report.reconnects >= 1
    assert report.errors["source"] >= 1
    until(lambda: children() <= before | {rtsp._process.pid}, "the end of every decoder process")


def come_back(camera, pipe: Pipeline, trouble: str) -> None:
    """Mend the camera once the pipeline has noticed that it is gone."""
    while not pipe.stats()["errors"].get("source"):
        time.sleep(0.01)
    camera.thaw() if trouble == "freezes" else camera.on()


def test_a_decoder_that_hangs_here_is_followed_by_one_in_a_process_of_its_own(rtsp, artifact):
    before = children()
    # The frozen read lasts longer than the pipeline waits, so that the second reader cannot be in this process.
    pipe = Pipeline(rtsp.uri(), params={"read_timeout_s": 60}, stall_s=0.4).classify(artifact)
    with pipe:
        for seen, _ in enumerate(pipe, 1):
            if seen == 3:
                rtsp.freeze()
                until(lambda: children() - before - {rtsp._process.pid}, "a decoder process")
                rtsp.thaw()
            if seen > 3 and pipe.report().reconnects:
                break
    assert pipe.report().reconnects >= 1
    until(lambda: children() <= before | {rtsp._process.pid}, "the end of the decoder process")


def test_one_of_two_cameras_dies_and_the_other_goes_on(rtsp, artifact):
    other = Pipeline("synthetic:64x48?fps=50&live=1").classify(artifact)
    cameras = Cameras({"rtsp": Pipeline(rtsp.uri(), stall_s=0.5).classify(artifact), "other": other})
    seen = {"rtsp": 0, "other": 0}
    with cameras:
        for name, _ in cameras:
            seen[name] += 1
            if rtsp._process is not None and min(seen.values()) >= 5:
                rtsp.off()
                seen = dict.fromkeys(seen, 0)
            if rtsp._process is None and seen["other"] >= 50 and cameras["rtsp"].stats()["errors"].get("source"):
                break
        report = cameras.report()
    assert report["cameras"]["rtsp"]["errors"]["source"] >= 1
    assert report["cameras"]["other"]["errors"] == {}
    assert report["models"][0]["shared"]


def test_no_decoder_outlives_the_process_that_started_it(rtsp):
    code = (
        "import sys, time\nfrom edge_sdk.sources import create\n"
        f"s = create({rtsp.uri()!r}, {{'decode': 'software'}})\ns.open()\n"
        "print(s._child.process.pid, flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    decoder = int(process.stdout.readline())
    assert Path(f"/proc/{decoder}/cmdline").exists()
    process.kill()
    process.communicate()
    until(lambda: not is_running(decoder), "the end of ffmpeg")


def udp_sockets() -> int:
    """How many UDP sockets this process has open."""
    mine = set()
    for fd in Path("/proc/self/fd").iterdir():
        try:
            mine.add(str(fd.readlink()))
        except OSError:
            continue
    rows = [line.split() for line in Path("/proc/self/net/udp").read_text().splitlines()[1:]]
    return sum(f"socket:[{row[9]}]" in mine for row in rows)


def test_two_cameras_in_one_process_each_keep_their_transport(rtsp):
    by_udp, by_tcp = create(rtsp.uri(), {"transport": "udp"}), create(rtsp.uri())
    before = udp_sockets()
    try:
        by_udp.open()
        with_udp = udp_sockets()
        by_tcp.open()
        assert before < with_udp == udp_sockets()
        for source in (by_udp, by_tcp):
            assert read(source).image.shape == (240, 320, 3)
        assert "OPENCV_FFMPEG_CAPTURE_OPTIONS" not in os.environ
    finally:
        by_udp.close()
        by_tcp.close()
