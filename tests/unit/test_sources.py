"""Frames out of files, folders, patterns and addresses."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_sdk.errors import SourceError, UsageError
from edge_sdk.sources import create, kind_of, redact
from edge_sdk.sources.base import BrokenFrame, Source, read
from edge_sdk.sources.headers import image_size, is_cut_jpeg
from edge_sdk.sources.images import load_image
from edge_sdk.sources.pixels import to_bgr8


def frames_of(source: Source) -> list:
    source.open()
    try:
        found = []
        while (frame := read(source)) is not None:
            found.append(frame)
        return found
    finally:
        source.close()


def write_video(path: Path, n: int = 5, size: tuple[int, int] = (64, 48)) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 10.0, size)
    for i in range(n):
        writer.write(np.full((size[1], size[0], 3), 40 * i, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("0", "camera"),
        ("camera:1", "camera"),
        ("/dev/video2", "camera"),
        ("rtsp://u:p@cam/1", "stream"),
        ("https://cam/live.m3u8", "stream"),
        ("synthetic:64x48", "synthetic"),
        ("clip.mp4", "video"),
        ("file:///clips/a.mkv", "video"),
        ("photo.JPG", "images"),
    ],
)
def test_the_form_of_an_address_names_its_source(uri, kind):
    assert kind_of(uri) == kind


def test_a_file_with_a_colon_in_its_name_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rtsp:1.mp4").write_bytes(b"x")
    assert kind_of("rtsp:1.mp4") == "video"


def test_an_unknown_scheme_gets_the_nearest_one():
    with pytest.raises(UsageError, match="unknown source `syntetic`") as caught:
        create("syntetic:64x48")
    assert "synthetic" in caught.value.hint


@pytest.mark.parametrize(
    "uri",
    [
        "rtsp://admin:s3cret@10.0.0.1/live",
        "rtsp://admin:p@ss/s3cret@10.0.0.1/live",
        "http://cam/video?user=admin&pwd=s3cret&x=1",
        "http://cam/video?access_token=s3cret",
    ],
)
def test_credentials_never_appear_in_an_address_that_is_shown(uri):
    assert "s3cret" not in redact(f"cannot open {uri} now")


def test_an_error_of_a_stream_names_it_without_its_credentials(free_port):
    source = create(f"rtsp://admin:s3cret@127.0.0.1:{free_port}/live", {"open_timeout_s": 2})
    with pytest.raises(SourceError) as caught:
        source.open()
    text = f"{caught.value.message} {caught.value.hint}"
    assert f"rtsp://***@127.0.0.1:{free_port}/live" in text
    assert "connection refused" in text
    assert "s3cret" not in text


def test_a_video_gives_every_frame_with_rising_times(tmp_path):
    found = frames_of(create(str(write_video(tmp_path / "a.mp4", 5))))
    assert [f.index for f in found] == [0, 1, 2, 3, 4]
    assert [f.t_s for f in found] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4], abs=0.02)
    assert found[0].image.shape == (48, 64, 3)


def test_a_rotated_video_comes_upright(testdata):
    flat, turned = (frames_of(create(str(testdata / "videos" / name)))[0].image for name in ("rot0.mov", "rot90.mov"))
    assert flat.shape == (320, 568, 3)
    assert turned.shape == (568, 320, 3)


def test_a_missing_video_gets_the_nearest_name(tmp_path):
    write_video(tmp_path / "bottles.mp4", 1)
    with pytest.raises(SourceError, match="no such file") as caught:
        create(str(tmp_path / "botles.mp4")).open()
    assert "bottles.mp4" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"no video at all" * 100, "no video that can be read"),
    ],
)
def test_what_is_no_video_is_refused_by_name(tmp_path, content, words):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(SourceError, match=words):
        create(str(tmp_path / "a.mp4")).open()


def test_a_video_with_fewer_frames_than_it_says_is_warned_of(testdata):
    source = create(str(testdata / "bad" / "corrupted.mp4"), {"threads": 2})
    found = frames_of(source)
    assert found
    if len(found) < 45:
        assert "says it has 50 frames" in source.warnings()[0]


def test_a_folder_is_read_in_the_order_people_count(tmp_path):
    for name in ("img10.png", "img2.png", "img1.png", "notes.txt"):
        if name.endswith(".txt"):
            (tmp_path / name).write_text("no image")
        else:
            cv2.imwrite(str(tmp_path / name), np.zeros((4, 4, 3), np.uint8))
    assert [Path(f.source).name for f in frames_of(create(str(tmp_path)))] == ["img1.png", "img2.png", "img10.png"]


def test_a_folder_without_images_says_what_it_looked_for(tmp_path):
    (tmp_path / "cats").mkdir()
    with pytest.raises(SourceError, match="no images in folder") as caught:
        create(str(tmp_path)).open()
    assert "sub-folders" in caught.value.hint


def test_a_jpeg_is_turned_upright_by_its_orientation(tmp_path):
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, :10] = 255
    jpeg = cv2.imencode(".jpg", image)[1].tobytes()
    exif = (
        b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
    )
    (tmp_path / "a.jpg").write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])
    upright = load_image(tmp_path / "a.jpg")
    assert upright.shape == (40, 20, 3)
    assert upright[:10].mean() > 200
    assert upright[20:].mean() < 50


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm"])
def test_sixteen_bit_and_gray_images_become_bgr_bytes_over_the_whole_range(tmp_path, suffix):
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (8, 1))
    cv2.imwrite(str(tmp_path / f"a{suffix}"), ramp)
    image = load_image(tmp_path / f"a{suffix}")
    assert image.dtype == np.uint8
    assert image.shape == (8, 64, 3)
    assert (int(image.min()), int(image.max())) == (0, 255)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((2, 2), 7, np.uint8), 7),
        (np.full((2, 2, 1), 0x1234, np.uint16), 0x12),
        (np.full((2, 2, 4), 9, np.uint8), 9),
        (np.full((2, 2, 3), 1.0, np.float32), 255),
    ],
)
def test_every_camera_format_becomes_bgr_bytes(array, expected):
    image = to_bgr8(array)
    assert image.shape == (2, 2, 3)
    assert (image == expected).all()


def test_a_frame_that_is_no_image_is_refused():
    with pytest.raises(SourceError, match="expected height, width"):
        to_bgr8(np.zeros((2, 2, 7), np.uint8))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tiff", ".webp", ".ppm"])
def test_the_size_is_read_from_every_header_without_decoding(suffix):
    data = cv2.imencode(suffix, np.zeros((30, 50, 3), np.uint8))[1].tobytes()
    assert image_size(data)[1:] == (50, 30)


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path):
    png = bytearray(cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes())
    png[16:24] = struct.pack(">II", 100_000, 100_000)
    (tmp_path / "bomb.png").write_bytes(png)
    with pytest.raises(BrokenFrame, match="100000 x 100000 pixels, the limit is 100000000"):
        load_image(tmp_path / "bomb.png")


def test_a_jpeg_that_ends_early_is_broken_and_not_half_grey(tmp_path):
    jpeg = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))[1].tobytes()
    assert not is_cut_jpeg(jpeg)
    (tmp_path / "a.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    with pytest.raises(BrokenFrame, match="is cut short"):
        load_image(tmp_path / "a.jpg")


def test_every_broken_image_is_named_and_no_good_one_is_refused(testdata):
    source = create(str(testdata / "bad"))
    source.open()
    good, broken = [], {}
    while source.grab():
        try:
            good.append(Path(source.retrieve().source).name)
        except BrokenFrame as error:
            broken[error.name] = error.message
    assert all(name in message for name, message in broken.items())
    assert set(broken) == {
        "badrle.bmp",
        "badwidth.bmp",
        "broken.png",
        "broken_data_stream.png",
        "crash.tif",
        "decompression_bomb.gif",
        "shortfile.bmp",
        "truncated_jpeg.jpg",
        "zero_width.gif",
    }
    assert {"16bit.pgm", "exif_orientation.jpg", "invalid-exif.jpg", "rgba_alpha.png"} <= set(good)


def test_a_camera_that_is_not_there_says_which_are():
    with pytest.raises(SourceError, match="camera 99 does not exist") as caught:
        create("99").open()
    assert "camera" in caught.value.hint


def test_the_pattern_of_a_seed_is_the_same_every_time():
    first, second, other = (
        [f.image for f in frames_of(create(f"synthetic:64x48?n=3&seed={seed}"))] for seed in (1, 1, 2)
    )
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert (first[0] != first[2]).any()
    assert (first[0] != other[0]).any()


@pytest.mark.parametrize("uri", ["synthetic:1x1", "synthetic:64x48?fps=-1", "synthetic:64x48?nn=3", "synthetic:wide"])
def test_a_wrong_pattern_is_a_usage_error(uri):
    with pytest.raises(UsageError):
        create(uri)


def test_a_looped_file_goes_on_with_rising_index_and_time(tmp_path):
    source = create(str(write_video(tmp_path / "a.mp4", 3)), {"loop": True, "pace": 500})
    source.open()
    found = [read(source) for _ in range(8)]
    source.close()
    assert source.live
    assert [f.index for f in found] == list(range(8))
    assert all(a.t_s < b.t_s for a, b in itertools.pairwise(found))
    assert found[0].image.mean() == pytest.approx(found[3].image.mean(), abs=2)


def test_an_unknown_option_gets_the_nearest_one():
    with pytest.raises(UsageError, match="unknown option `widht`") as caught:
        create("camera:0", {"widht": 640})
    assert "width" in caught.value.hint


def test_an_option_out_of_its_range_is_named_with_the_source_that_it_is_of():
    with pytest.raises(UsageError, match="option `width` of a camera must be 1 to 100000, found 0"):
        create("camera:0", {"width": 0})
    with pytest.raises(UsageError, match="option `live` of the synthetic source must be true or false, found 'maybe'"):
        create("synthetic:64x48?live=maybe", {})
