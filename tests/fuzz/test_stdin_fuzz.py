"""Whatever bytes come on standard input, a source ends, and says nothing but its own errors."""

from __future__ import annotations

import io

import cv2
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.errors import SourceError
from edge_sdk.sources.base import BrokenFrame
from edge_sdk.sources.encoded import Images
from edge_sdk.sources.images import decode_image
from edge_sdk.testing import color_frame

PIECES = [cv2.imencode(s, color_frame("red", width=16, height=12))[1].tobytes() for s in (".jpg", ".png", ".ppm")]


def drain(data: bytes) -> int:
    stream = io.BytesIO(data)
    images = Images(lambda n: stream.read(min(n, 512)), "it")
    good = 0
    for _ in range(len(data) + 2):
        try:
            image = images.next()
            if image is None:
                return good
            decode_image(image, "it")
            good += 1
        except BrokenFrame:
            continue
        except SourceError:
            return good
    raise AssertionError("it does not end")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=40), st.just(b"\xff\xd8\xff"), st.just(b"P6\n9 9")))
)
def test_any_mix_of_images_and_other_bytes_ends(pieces):
    drain(b"".join(pieces))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PIECES), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8))
def test_damaged_images_are_frames_or_errors_and_whole_ones_follow(piece, damage):
    broken = bytearray(piece)
    for at, value in damage:
        broken[at % len(broken)] = value
    drain(bytes(broken) + PIECES[1] * 3)


def test_whole_images_are_all_found():
    assert drain(b"".join(PIECES) * 5) == 15
