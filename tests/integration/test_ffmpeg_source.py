"""Videos and HTTP streams through an ffmpeg process, and decoders in processes of their own."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.errors import BackendError, SourceError, UsageError
from edge_sdk.pipeline import Pipeline
from edge_sdk.sources import create, decoding
from edge_sdk.sources.base import read
from edge_sdk.sources.ffmpeg_words import address_script
from edge_sdk.testing import build_artifact

pytestmark = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the ffmpeg command")
ABSENT = [d.name for d in decoding.decoders() if not d.ok and d.name != "software"]


def frames_of(uri: str, options=None) -> list:
    source = create(uri, options)
    source.open()
    try:
        return list(iter(lambda: read(source), None))
    finally:
        source.close()


def video(path: Path, *words: str, size: str = "64x48", n: int = 5) -> Path:
    make = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", f"testsrc=s={size}:r=10", "-frames:v", str(n), *words]
    subprocess.run([*make, str(path)], check=True)
    return path


@pytest.mark.parametrize("options", [{"decode": "software"}, {"isolate": True}], ids=["ffmpeg", "isolated"])
@pytest.mark.parametrize("name", ["rot0.mov", "rot90.mov", "bgs_video.avi", "pancake.mkv"])
def test_a_real_video_gives_the_frames_that_opencv_gives(testdata, name, options):
    path = str(testdata / "videos" / name)
    count = 20
    plain, other = create(path), create(path, options)
    plain.open()
    other.open()
    try:
        for _ in range(count):
            a, b = read(plain), read(other)
            if a is None or b is None:
                assert a is None
                assert b is None
                break
            assert a.image.shape == b.image.shape
            assert a.index == b.index
            assert np.abs(a.image.astype(int) - b.image).mean() < 3
    finally:
        plain.close()
        other.close()


def test_frames_of_an_odd_size_lose_their_last_row_and_column(tmp_path):
    path = video(tmp_path / "a.mkv", "-c:v", "ffv1", size="65x49")
    found = frames_of(str(path), {"decode": "software"})
    assert [f.image.shape for f in found] == [(48, 64, 3)] * 5
    assert [f.t_s for f in found] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_a_stream_that_changes_its_size_keeps_that_of_its_first_frame(tmp_path):
    small = video(tmp_path / "a.ts", "-c:v", "mpeg2video", size="64x48")
    large = video(tmp_path / "b.ts", "-c:v", "mpeg2video", size="128x96")
    both = tmp_path / "c.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    found = frames_of(str(both), {"decode": "software"})
    assert len(found) > 5
    assert {f.image.shape for f in found} == {(48, 64, 3)}


@pytest.mark.parametrize("pixels", ["gray16le", "yuv420p10le", "rgb48le", "yuvj420p"])
def test_every_depth_becomes_bgr_bytes(tmp_path, pixels):
    path = video(tmp_path / "a.mkv", "-pix_fmt", pixels, "-c:v", "mjpeg" if pixels == "yuvj420p" else "ffv1")
    for options in ({"decode": "software"}, {}):
        found = frames_of(str(path), options)
        assert {(f.image.shape, f.image.dtype.name) for f in found} == {((48, 64, 3), "uint8")}
        assert max(int(f.image.max()) for f in found) > 200


@pytest.mark.parametrize("decode", ABSENT or [pytest.param("", marks=pytest.mark.skip(reason="all of them work here"))])
def test_hardware_that_is_not_here_gives_way_to_software_and_the_report_says_why(tmp_path, decode, caplog):
    path = video(tmp_path / "a.mp4", "-pix_fmt", "yuv420p")
    model = build_artifact(tmp_path / "m.edge").path
    report = Pipeline(str(path), params={"decode": decode}).classify(model).run()
    assert report.processed == 5
    assert report.warnings == tuple(w for w in report.warnings if f"{decode} is not available here: " in w)
    assert len(report.warnings) == 1
    assert f"{decode} is not available here" in caplog.text


@pytest.mark.skipif(len(ABSENT) < 3, reason="a hardware decoder works here")
def test_auto_without_hardware_is_the_usual_decoder_in_this_process(tmp_path):
    path = video(tmp_path / "a.mp4", "-pix_fmt", "yuv420p")
    assert type(create(str(path), {"decode": "auto"})).__name__ == "VideoFile"
    assert len(frames_of(f"{path}#decode=auto&codec=hevc")) == 5


def test_options_stand_behind_a_hash_and_those_that_are_given_win(tmp_path):
    path = video(tmp_path / "a.mp4", "-pix_fmt", "yuv420p")
    assert type(create(f"{path}#decode=software")).__name__ == "Ffmpeg"
    with pytest.raises(UsageError, match="`decode` cannot be 'vapi'") as caught:
        create(f"{path}#decode=software", {"decode": "vapi"})
    assert "vaapi" in caught.value.hint
    odd = tmp_path / "a#b=c.mp4"
    shutil.copy(path, odd)
    assert len(frames_of(str(odd))) == 5


def test_what_ffmpeg_cannot_decode_is_an_error_in_its_words(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video at all" * 100)
    source = create(str(tmp_path / "a.mp4"), {"decode": "software"})
    with pytest.raises(SourceError, match=r"a.mp4` cannot be opened: .*Invalid data found"):
        source.open()
    source.close()


def test_all_broken_videos_give_an_answer_or_a_clear_error(testdata):
    for path in sorted((testdata / "bad").glob("*.m[op][v4]")):
        for options in ({"decode": "software"}, {"isolate": True}):
            found, said = [], ""
            try:
                found = frames_of(str(path), options)
            except SourceError as error:
                said = error.message
            assert found or path.name in said
            assert all(a.t_s <= b.t_s for a, b in itertools.pairwise(found))


def test_decode_goes_with_videos_and_streams_alone(tmp_path):
    with pytest.raises(UsageError, match="`decode` does not go with `synthetic:64x48`"):
        create("synthetic:64x48", {"decode": "auto"})
    with pytest.raises(UsageError, match="`isolate` does not go with `synthetic:64x48`"):
        create("synthetic:64x48", {"isolate": True})
    with pytest.raises(UsageError, match="`codec` must be a name such as h264"):
        create(str(tmp_path / "a.mp4"), {"decode": "software", "codec": "-x"})
    with pytest.raises(UsageError, match="`transport` must be tcp or udp"):
        create("rtsp://cam/1", {"decode": "software", "transport": "ip"})


def test_a_missing_ffmpeg_is_named_with_how_to_get_it(tmp_path, monkeypatch):
    path = video(tmp_path / "a.mp4", "-pix_fmt", "yuv420p")
    monkeypatch.setenv("PATH", str(tmp_path))
    decoding.ffmpeg.cache_clear()
    decoding.decoders.cache_clear()
    try:
        with pytest.raises(BackendError, match="`decode` needs the ffmpeg command") as caught:
            create(str(path), {"decode": "software"}).open()
        assert "apt-get install ffmpeg" in caught.value.hint
    finally:
        decoding.ffmpeg.cache_clear()
        decoding.decoders.cache_clear()


def test_an_address_with_a_line_break_is_refused_and_a_quote_is_quoted():
    with pytest.raises(UsageError, match="is no valid address"):
        address_script("http://u:s3cret@cam/\nfile /etc/passwd", "tcp")
    assert address_script("http://cam/it's", "tcp").splitlines()[1] == b"file 'http://cam/it'\\''s'"


def test_a_decoder_that_crashes_is_an_error_with_the_name_of_the_signal(testdata):
    source = create(str(testdata / "videos" / "pancake.mkv"), {"isolate": True})
    source.open()
    assert read(source) is not None
    os.kill(source._child.process.pid, signal.SIGSEGV)
    with pytest.raises(SourceError, match=r"the decoder of `.*pancake.mkv` died: killed by SIGSEGV"):
        list(iter(lambda: read(source), None))
    source.close()


def test_a_decoder_that_stands_still_is_killed_when_it_is_interrupted(testdata):
    source = create(str(testdata / "videos" / "pancake.mkv"), {"isolate": True})
    source.open()
    pid = source._child.process.pid
    os.kill(pid, signal.SIGSTOP)
    said: list[str] = []

    def wait() -> None:
        try:
            source.grab()
        except SourceError as error:
            said.append(error.message)

    waiting = threading.Thread(target=wait)
    waiting.start()
    source.interrupt()
    waiting.join(20)
    assert said == [f"`{testdata / 'videos' / 'pancake.mkv'}` was closed"]
    source.close()
    assert not Path(f"/proc/{pid}").exists()


def test_an_ffmpeg_that_stands_still_is_killed_after_its_time(tmp_path):
    # Raw frames of 6 MB: no pipe holds one, so that ffmpeg is always in the middle of one.
    path = video(tmp_path / "a.mkv", "-c:v", "ffv1", size="1920x1080", n=3)
    source = create(str(path), {"decode": "software", "read_timeout_s": 0.5})
    source.open()
    pid = source._child.process.pid
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(SourceError, match=r"gave no frame for 0.5 s"):
        list(iter(lambda: read(source), None))
    source.close()
    assert not Path(f"/proc/{pid}").exists()


@pytest.fixture
def web(testdata):
    """An HTTP server with the real videos, for those who have the password."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = testdata / "videos" / Path(self.path).name
            if self.headers.get("Authorization") != "Basic YWRtaW46czNjcmV0":
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                self.end_headers()
                return
            data = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            try:
                self.wfile.write(data)
            except OSError:
                return

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://admin:s3cret@127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("options", [{}, {"decode": "software"}], ids=["opencv", "ffmpeg"])
def test_a_video_over_http_is_read_to_its_end_with_its_password(web, options):
    found = frames_of(f"{web}/bgs_video.avi", options)
    assert len(found) > 50
    assert "s3cret" not in found[0].source
    with pytest.raises(SourceError) as caught:
        create(f"{web.replace('s3cret', 'wr0ng')}/bgs_video.avi", options).open()
    assert "wr0ng" not in f"{caught.value.message}{caught.value.hint}"


@pytest.fixture
def live(tmp_path, testdata):
    """The address of a live H.264 stream: 50 frames of a real video, every tenth a keyframe, and the file of it."""
    path = tmp_path / "live.ts"
    words = ["ffmpeg", "-v", "error", "-i", str(testdata / "videos" / "bgs_video.avi"), "-frames:v", "50"]
    coding = ["-c:v", "libx264", "-bf", "2", "-g", "10", "-sc_threshold", "0", "-pix_fmt", "yuv420p"]
    subprocess.run([*words, *coding, str(path)], check=True)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/live", path
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("options", [{}, {"decode": "auto"}], ids=["alone", "with-auto"])
def test_keyframes_of_a_live_stream_are_the_only_ones_that_are_decoded(live, options):
    address, path = live
    every = [f.image.astype(int) for f in frames_of(str(path))]
    assert len(every) == 50
    source = create(address, {"keyframes": True, **options})
    source.open()
    nearest, said = [], ""
    try:
        while source.grab():
            image = source.retrieve().image
            nearest.append(min(range(50), key=lambda i: np.abs(every[i] - image).mean()))
    except SourceError as error:
        said = error.message
    source.close()
    assert f"`{address}` stopped giving frames: " in said
    assert "wrong path or credentials" not in said
    # Those at the begin go into finding out what the stream is.
    assert nearest
    assert nearest == list(range(nearest[0], 50, 10))
    assert nearest[0] % 10 == 0
    assert source.fps is None


def test_keyframes_are_refused_where_every_frame_is_due(tmp_path):
    for uri in ("a.mp4", "camera:0"):
        with pytest.raises(UsageError, match=f"`keyframes` does not go with `{uri}`") as caught:
            create(uri, {"keyframes": True})
        assert caught.value.hint == "live network streams have it"
    with pytest.raises(UsageError, match="`keyframes` does not go with `http://cam/a.mp4`") as caught:
        create("http://cam/a.mp4", {"keyframes": True})
    assert caught.value.hint == "of a file every frame is taken"
    with pytest.raises(UsageError, match="`keyframes` does not go with `decode` = 'vaapi'") as caught:
        create("rtsp://cam/1", {"keyframes": True, "decode": "vaapi"})
    assert caught.value.hint == "leave `decode` out"
    with pytest.raises(UsageError, match="`keyframes`"):
        create("rtsp://cam/1", {"keyframes": "some"})


def test_keyframes_switched_off_leave_the_usual_decoder():
    assert type(create("rtsp://cam/1", {"keyframes": False})).__name__ == "Stream"
    assert type(create("rtsp://cam/1#keyframes=0")).__name__ == "Stream"
    assert type(create("rtsp://cam/1#keyframes=1")).__name__ == "Ffmpeg"
