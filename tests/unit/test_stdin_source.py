"""Frames from standard input: images one after the other, and raw frames."""

from __future__ import annotations

import os
import subprocess
import threading

import cv2
import numpy as np
import pytest

from edge_sdk.errors import SourceError, UsageError
from edge_sdk.sources import create, kind_of
from edge_sdk.sources.base import BrokenFrame, read
from edge_sdk.sources.encoded import Images
from edge_sdk.testing import color_frame

COLORS = ("blue", "green", "red")


def fed(data: bytes, uri: str = "-", *, step: int = 1 << 16):
    """A source whose descriptor gets `data` in pieces of `step` bytes from another thread, then its end."""
    reading, writing = os.pipe()

    def feed() -> None:
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            try:
                for at in range(0, len(data), step):
                    pipe.write(data[at : at + step])
            except BrokenPipeError:
                pass

    threading.Thread(target=feed, daemon=True).start()
    source = create(uri, {"fd": reading})
    source.open()
    return source


def answers(source) -> list:
    found = []
    while source.grab():
        try:
            found.append(source.retrieve())
        except BrokenFrame as error:
            found.append(error)
    source.close()
    return found


def encoded(suffix: str, color: str) -> bytes:
    return cv2.imencode(suffix, color_frame(color))[1].tobytes()


@pytest.mark.parametrize("step", [1, 7, 1 << 16], ids=["byte by byte", "in short reads", "in long reads"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".ppm"])
def test_images_one_after_the_other_are_frames(suffix, step):
    data = b"".join(encoded(suffix, c) for c in COLORS)
    found = answers(fed(data if step > 1 else data[:20_000], step=step))
    good = [f for f in found if not isinstance(f, BrokenFrame)]
    assert len(good) == 3 or step == 1
    assert [f.index for f in good] == list(range(len(good)))
    assert all(f.image[24, 32].argmax() == i for i, f in enumerate(good))
    assert all(f.t_s == pytest.approx(i / 25) for i, f in enumerate(good))


def test_what_a_multipart_stream_puts_between_its_images_is_passed_over():
    head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: 999\r\n\r\n"
    data = b"".join(head + encoded(".jpg", c) + b"\r\n" for c in COLORS) + b"--frame--\r\n"
    assert len(answers(fed(data))) == 3


def test_a_thumbnail_inside_a_jpeg_does_not_end_it():
    jpeg = encoded(".jpg", "red")
    inside = b"Exif\0\0" + encoded(".jpg", "blue")
    data = jpeg[:2] + b"\xff\xe1" + (len(inside) + 2).to_bytes(2, "big") + inside + jpeg[2:]
    (frame, after) = answers(fed(data + encoded(".jpg", "green")))
    assert frame.image[24, 32].argmax() == 2
    assert after.image[24, 32].argmax() == 1


def test_gray_and_sixteen_bit_pictures_become_bgr_bytes():
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (8, 1))
    data = cv2.imencode(".pgm", ramp)[1].tobytes() + cv2.imencode(".png", ramp)[1].tobytes()
    for frame in answers(fed(data)):
        assert frame.image.shape == (8, 64, 3)
        assert frame.image.dtype == np.uint8
        assert int(frame.image.max()) == 255


def test_an_image_that_the_stream_ends_in_is_broken_by_its_number():
    data = encoded(".png", "red") + encoded(".png", "blue")[:-20]
    frame, broken = answers(fed(data))
    assert frame.index == 0
    assert "PNG image 1 is cut short: the stream ends after" in broken.message
    assert broken.name == "image 1"


def test_a_damaged_image_is_broken_and_the_next_one_is_a_frame():
    damaged = bytearray(encoded(".png", "red"))
    damaged[45:60] = bytes(15)
    broken, frame = answers(fed(bytes(damaged) + encoded(".png", "blue")))
    assert "cannot be decoded" in broken.message
    assert (frame.index, int(frame.image[24, 32].argmax())) == (1, 0)


@pytest.mark.parametrize("junk", [b"hello, I am no image\n", bytes(200_000), b"\x00\x00\x00\x18ftypmp42" * 10_000])
def test_what_is_no_stream_of_images_is_an_error_that_shows_its_begin(junk):
    source = fed(junk)
    with pytest.raises(SourceError, match="standard input gives no images: b'") as caught:
        source.grab()
    assert "stdin:640x480?pixels=bgr24" in caught.value.hint
    source.close()


def test_an_image_without_an_end_is_refused_before_it_fills_the_memory():
    pieces = iter([b"\x89PNG\r\n\x1a\n" + (0x7FFFFFFF).to_bytes(4, "big") + b"IDAT"])
    images = Images(lambda _: next(pieces, bytes(65536)), "it")
    with pytest.raises(SourceError, match="PNG image 0 has more than 67108864 bytes"):
        images.next()


def test_nothing_at_all_is_an_error():
    with pytest.raises(SourceError, match="standard input ended without one frame"):
        fed(b"").grab()


@pytest.mark.parametrize("step", [100, 1 << 20])
@pytest.mark.parametrize(
    ("pixels", "to"),
    [
        ("bgr24", lambda i: i),
        ("rgb24", lambda i: i[:, :, ::-1]),
        ("bgra", lambda i: cv2.cvtColor(i, cv2.COLOR_BGR2BGRA)),
        ("yuv420p", lambda i: cv2.cvtColor(i, cv2.COLOR_BGR2YUV_I420)),
    ],
)
def test_raw_frames_have_the_declared_size_and_pixels(pixels, to, step):
    data = b"".join(to(color_frame(c)).tobytes() for c in COLORS)
    found = answers(fed(data, f"stdin:64x48?pixels={pixels}&fps=10", step=step))
    assert [f.image.shape for f in found] == [(48, 64, 3)] * 3
    assert [int(f.image[24, 32].argmax()) for f in found] == [0, 1, 2]
    assert [f.t_s for f in found] == pytest.approx([0.0, 0.1, 0.2])


def test_raw_gray_of_sixteen_bits_keeps_the_upper_eight():
    data = np.full((48, 64), 0xABCD, "<u2").tobytes()
    (frame,) = answers(fed(data, "stdin:64x48?pixels=gray16le"))
    assert (frame.image == 0xAB).all()


def test_a_raw_frame_that_the_stream_ends_in_is_broken_and_says_how_long_it_is():
    frame, broken = answers(fed(bytes(64 * 48 * 3 + 1000), "stdin:64x48?pixels=bgr24"))
    assert frame.index == 0
    assert broken.message == "standard input ends inside frame 1: 1000 of 9216 bytes"
    assert broken.hint == "are the frames 64x48 bgr24?"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("stdin:64x48", "expected the option `pixels` for raw frames, found nothing"),
        ("stdin:64x48?pixels=bgr42", "found 'bgr42'"),
        ("stdin:?pixels=bgr24", "raw frames need their size"),
        ("stdin:wide?pixels=bgr24", "expected - or stdin:WIDTHxHEIGHT"),
        ("stdin:63x48?pixels=nv12", "frames of nv12 have an even width and height"),
        ("stdin:99999x99999?pixels=bgr24", "a frame has 1 to 100000000 pixels"),
        ("stdin:64x48?pixel=bgr24", "unknown option `pixel` of standard input"),
    ],
)
def test_a_wrong_form_is_a_usage_error(uri, words):
    with pytest.raises(UsageError) as caught:
        create(uri)
    assert words in caught.value.message


def test_a_misspelt_pixel_format_gets_the_nearest_one():
    with pytest.raises(UsageError) as caught:
        create("stdin:64x48?pixels=nv21")
    assert "did you mean `nv12`?" in caught.value.hint


def test_a_dash_is_standard_input():
    assert kind_of("-") == "stdin"


def test_a_closed_descriptor_is_an_error():
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    with pytest.raises(SourceError, match="standard input is closed"):
        create("-", {"fd": reading}).open()


def test_a_terminal_is_refused_with_what_to_do():
    master, slave = os.openpty()
    with pytest.raises(SourceError, match="standard input is a terminal") as caught:
        create("-", {"fd": slave}).open()
    assert "pipe frames" in caught.value.hint
    os.close(master)
    os.close(slave)


def test_a_read_that_waits_ends_when_it_is_interrupted():
    reading, writing = os.pipe()
    source = create("-", {"fd": reading})
    source.open()
    waiting = threading.Thread(target=source.grab)
    waiting.start()
    source.interrupt()
    waiting.join(60)
    assert not waiting.is_alive()
    source.close()
    os.close(reading)
    os.close(writing)


def test_a_writer_that_is_faster_than_the_reader_is_held_back():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    source = create("stdin:64x48?pixels=bgr24", {"fd": reading})
    source.open()
    frame, taken = color_frame("red").tobytes(), 0
    for _ in range(3):
        while True:
            try:
                taken += os.write(writing, frame)
            except BlockingIOError:
                break
        assert read(source) is not None
    # No more than the pipe and the one frame that is read is ever taken from the writer.
    assert taken <= (1 << 20) + 3 * len(frame)
    source.close()
    os.close(reading)
    os.close(writing)


def test_ffmpeg_pipes_its_frames_in():
    words = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "color=red:s=64x48:d=1:r=5", "-f", "mjpeg", "-"]
    try:
        process = subprocess.Popen(words, stdout=subprocess.PIPE)
    except OSError:
        pytest.skip("no ffmpeg command")
    with process:
        source = create("-", {"fd": process.stdout.fileno()})
        source.open()
        assert [int(f.image[24, 32].argmax()) for f in answers(source)] == [2] * 5
