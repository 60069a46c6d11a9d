"""Frames of every form become the tensor that the manifest's input describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_sdk.errors import ArtifactError, UsageError
from edge_sdk.schemas.manifest import InputSpec, Resize
from edge_sdk.tasks.preprocess import Preprocessor, prepare, to_bgr8


def spec(**changes: Any) -> InputSpec:
    color, layout = changes.get("color", "bgr"), changes.get("layout", "NHWC")
    channels = 1 if color == "gray" else 3
    shape = (1, 40, 64, channels) if layout == "NHWC" else (1, channels, 40, 64)
    return InputSpec(**{"name": "x", "shape": shape, "dtype": "float32", "layout": layout, "color": color} | changes)


@pytest.fixture(scope="module")
def frame() -> Any:
    return np.random.default_rng(0).integers(0, 256, (90, 160, 3)).astype(np.uint8)


def picture(frame: Any, resize: Resize) -> Any:
    """The resized BGR picture, straight from the definition."""
    height, width = 40, 64
    if resize.mode == "stretch":
        return cv2.resize(frame, (width, height))
    if resize.mode == "crop":
        side = round(height / max(width / frame.shape[1], height / frame.shape[0])), 0
        crop_w = round(width / (height / frame.shape[0]))
        x = (frame.shape[1] - crop_w) // 2
        assert side[0] == frame.shape[0]
        return cv2.resize(frame[:, x : x + crop_w], (width, height))
    canvas = np.full((height, width, 3), resize.pad, np.uint8)
    y = 2 if resize.align == "center" else 0
    canvas[y : y + 36] = cv2.resize(frame, (64, 36))
    return canvas


RESIZES = [
    Resize(),
    Resize(mode="letterbox", pad=7),
    Resize(mode="letterbox", align="topleft"),
    Resize(mode="crop"),
]


@pytest.mark.parametrize("resize", RESIZES, ids=lambda r: f"{r.mode}-{r.align}")
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("color", ["bgr", "rgb", "gray"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "float32", "float16"])
@pytest.mark.parametrize("normalised", [False, True])
def test_the_tensor_is_what_the_manifest_says(
    frame: Any, resize: Resize, layout: str, color: str, dtype: str, normalised: bool
) -> None:
    channels = 1 if color == "gray" else 3
    mean, std = ((10.0, 20.0, 30.0)[:channels], (2.0, 3.0, 4.0)[:channels]) if normalised else ((0.0,), (1.0,))
    integer = dtype in ("uint8", "int8")
    scale, zero = (0.5, 3) if normalised and integer else (None, None)
    made = Preprocessor(
        spec(dtype=dtype, layout=layout, color=color, resize=resize, mean=mean, std=std, scale=scale, zero=zero)
    )
    expected = picture(frame, resize)
    expected = {"bgr": expected, "rgb": expected[:, :, ::-1]}.get(
        color, cv2.cvtColor(expected, cv2.COLOR_BGR2GRAY)[:, :, None]
    )
    values = (expected.astype(np.float64) - mean) / std
    if integer:
        values = values / scale + zero if scale else values - (128 if dtype == "int8" else 0)
        values = np.clip(np.floor(values + 0.5), np.iinfo(dtype).min, np.iinfo(dtype).max)
    values = values[None] if layout == "NHWC" else values.transpose(2, 0, 1)[None]
    for _ in range(2):
        tensor, _ = made(frame)
        assert tensor.dtype.name == dtype
        np.testing.assert_allclose(tensor.astype(np.float64), values, atol=0.05 if dtype == "float16" else 1e-5)


@pytest.mark.parametrize("resize", RESIZES, ids=lambda r: f"{r.mode}-{r.align}")
def test_a_point_of_the_input_goes_back_to_where_it_was_in_the_frame(frame: Any, resize: Resize) -> None:
    marked = np.zeros_like(frame)
    marked[40:50, 70:90] = 255
    tensor, geometry = prepare(marked, spec(resize=resize))
    rows, columns = np.nonzero(tensor[0, :, :, 0] > 127)
    box = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)
    np.testing.assert_allclose(geometry.boxes_to_frame(box)[0], [70, 40, 90, 50], atol=1.6)


def test_frames_of_changing_size_do_not_leave_traces_of_each_other(frame: Any) -> None:
    made = Preprocessor(spec(resize=Resize(mode="letterbox", pad=9), dtype="uint8", color="rgb"))
    tall = np.full((200, 50, 3), 255, np.uint8)
    made(frame)
    made(tall)
    again, _ = made(frame)
    fresh, _ = prepare(frame, made.spec)
    np.testing.assert_array_equal(again, fresh)


def test_a_buffer_of_the_caller_is_filled(frame: Any) -> None:
    buffer = np.empty((1, 40, 64, 3), np.uint8)
    tensor, _ = prepare(frame, spec(dtype="uint8"), out=buffer)
    assert tensor is buffer
    with pytest.raises(UsageError, match=r"buffer is uint8 \(1, 2\)"):
        prepare(frame, spec(dtype="uint8"), out=np.empty((1, 2), np.uint8))


def test_gray_bgra_and_16_bit_frames_give_the_picture_they_show(frame: Any) -> None:
    gray = frame[:, :, 0]
    same = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)
    np.testing.assert_array_equal(to_bgr8(gray), same)
    np.testing.assert_array_equal(to_bgr8(gray[:, :, None]), same)
    np.testing.assert_array_equal(to_bgr8(np.dstack((frame, gray))), frame)
    np.testing.assert_array_equal(to_bgr8(frame.astype(np.uint16) * 257), frame)
    np.testing.assert_array_equal(to_bgr8(gray.astype(np.uint16) * 257), same)
    np.testing.assert_array_equal(to_bgr8(gray.astype(np.uint16)[:, :, None] * 257), same)
    assert to_bgr8(frame) is frame


def test_a_frame_that_is_a_view_is_read_right(frame: Any) -> None:
    turned = frame[:, ::-1]
    expected, _ = prepare(np.ascontiguousarray(turned), spec())
    tensor, _ = prepare(turned, spec())
    np.testing.assert_array_equal(tensor, expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("a/path.jpg", "a frame is str"),
        (None, "a frame is NoneType"),
        (np.zeros((1, 3, 8, 8), np.uint8), "an array of shape"),
        (np.zeros((8, 8, 2), np.uint8), "has shape"),
        (np.zeros((0, 8, 3), np.uint8), "has shape"),
        (np.zeros((8, 8, 3), np.float32), "dtype float32, expected uint8 or uint16"),
        (np.zeros((40_000, 1, 3), np.uint8), "above 32767"),
    ],
)
def test_what_is_no_frame_is_named(wrong: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prepare(wrong, spec())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (2, 40, 64, 3)}, "batch size 2"),
        ({"dtype": "int64"}, "dtype int64"),
        ({"shape": (1, 100_000, 64, 3)}, "the limit is 8192"),
    ],
)
def test_an_input_that_no_frame_fits_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        Preprocessor(spec(**changes))


def test_extreme_frames_keep_one_pixel() -> None:
    for shape in ((1, 1, 3), (1, 5000, 3), (5000, 1, 3)):
        for resize in RESIZES:
            tensor, geometry = prepare(np.full(shape, 200, np.uint8), spec(resize=resize, dtype="uint8"))
            assert (tensor == 200).any()
            assert np.isfinite(geometry.boxes_to_frame(np.array([[0, 0, 64, 40]], np.float32))).all()


@pytest.mark.parametrize("name", ["16bit.pgm", "rgba_alpha.png", "truncated_jpeg.jpg", "invalid-exif.jpg"])
def test_the_odd_images_of_the_test_material_go_through(name: str, testdata: Path) -> None:
    image = cv2.imread(str(testdata / "bad" / name), cv2.IMREAD_UNCHANGED)
    assert image is not None
    tensor, _ = prepare(image, spec())
    assert np.isfinite(tensor).all()
    assert tensor.std() > 0
