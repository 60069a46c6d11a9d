"""From a frame of any size to the model's input tensor, as the manifest's `input` says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ArtifactError, UsageError
from edge_sdk.schemas.manifest import InputSpec
from edge_sdk.tasks.base import Geometry

MAX_SIDE = 32_767
MAX_INPUT_SIDE = 8192


class Preprocessor:
    """Makes input tensors for one `InputSpec`.

    The frame is resized as uint8 first; colour, mean, std, dtype and layout come after, on the small picture. The
    tensor is a buffer of this object and stays valid until the next call, so each thread needs its own. An int8 input
    without scale, mean and std gets the pixels minus 128.
    """

    def __init__(self, spec: InputSpec, out: NDArray[Any] | None = None) -> None:
        if spec.shape[0] != 1:
            raise ArtifactError(f"input `{spec.name}` has batch size {spec.shape[0]}, frames go in one by one")
        if spec.dtype in ("bool", "int64"):
            raise ArtifactError(f"input `{spec.name}` has dtype {spec.dtype}, an image input cannot have it")
        if max(spec.height, spec.width) > MAX_INPUT_SIDE:
            raise ArtifactError(
                f"input `{spec.name}` is {spec.width}x{spec.height}, the limit is {MAX_INPUT_SIDE} pixels a side"
            )
        if out is not None and (out.shape != spec.shape or out.dtype != np.dtype(spec.dtype)):
            raise UsageError(
                f"buffer is {out.dtype} {out.shape}, input `{spec.name}` is {spec.dtype} {spec.shape}",
                hint="allocate it with the manifest's shape and dtype",
            )
        self.spec = spec
        height, width = spec.height, spec.width
        self._table = self._make_table()
        self._plane_tables = (
            [] if self._table is None else [np.ascontiguousarray(self._table[:, :, c]) for c in range(spec.channels)]
        )
        self.tensor: NDArray[Any] = out if out is not None else np.empty(spec.shape, spec.dtype)
        direct = spec.dtype == "uint8" and spec.layout == "NHWC" and self._table is None and spec.channels == 3
        self._canvas: NDArray[np.uint8] = self.tensor[0] if direct else np.empty((height, width, 3), np.uint8)
        self._planes = [np.empty((height, width), np.uint8) for _ in range(3)] if spec.layout == "NCHW" else []
        self._direct = direct
        self._filled: tuple[int, int, int, int] | None = None

    def __call__(self, frame: NDArray[Any]) -> tuple[NDArray[Any], Geometry]:
        """Return the tensor and where it lies in the frame.

        Args:
            frame: BGR (h, w, 3), BGRA (h, w, 4; alpha is dropped) or gray (h, w) or (h, w, 1); uint8, or uint16 whose
                full range becomes 0 to 255.

        Raises:
            UsageError: the frame has another form.
        """
        image = to_bgr8(frame)
        geometry = self._resize(image)
        if self.spec.layout == "NCHW":
            self._fill_planes()
        else:
            self._fill_pixels()
        return self.tensor, geometry

    def _resize(self, image: NDArray[np.uint8]) -> Geometry:
        spec = self.spec
        width, height = spec.width, spec.height
        frame_h, frame_w = image.shape[:2]
        if spec.resize.mode == "stretch":
            _scale(image, self._canvas)
            return Geometry(frame_w, frame_h, width, height, width / frame_w, height / frame_h)
        if spec.resize.mode == "crop":
            scale = max(width / frame_w, height / frame_h)
            crop_w, crop_h = min(frame_w, max(1, round(width / scale))), min(frame_h, max(1, round(height / scale)))
            x, y = (frame_w - crop_w) // 2, (frame_h - crop_h) // 2
            _scale(image[y : y + crop_h, x : x + crop_w], self._canvas)
            scale_x, scale_y = width / crop_w, height / crop_h
            return Geometry(frame_w, frame_h, width, height, scale_x, scale_y, -x * scale_x, -y * scale_y)
        scale = min(width / frame_w, height / frame_h)
        new_w, new_h = min(width, max(1, round(frame_w * scale))), min(height, max(1, round(frame_h * scale)))
        centred = spec.resize.align == "center"
        x, y = ((width - new_w) // 2, (height - new_h) // 2) if centred else (0, 0)
        place = (x, y, new_w, new_h)
        if place != self._filled:
            self._canvas.fill(spec.resize.pad)
            self._filled = place
        _scale(image, self._canvas[y : y + new_h, x : x + new_w])
        return Geometry(frame_w, frame_h, width, height, new_w / frame_w, new_h / frame_h, x, y)

    def _fill_pixels(self) -> None:
        image: NDArray[Any] = self._canvas
        if self.spec.color == "gray":
            image = cv2.cvtColor(self._canvas, cv2.COLOR_BGR2GRAY)[:, :, None]
        elif self.spec.color == "rgb":
            cv2.cvtColor(self._canvas, cv2.COLOR_BGR2RGB, dst=self._canvas)
        if self._direct:
            return
        self._look_up(image, self._table, self.tensor[0])

    def _fill_planes(self) -> None:
        color = self.spec.color
        if color == "gray":
            planes: Sequence[NDArray[Any]] = (cv2.cvtColor(self._canvas, cv2.COLOR_BGR2GRAY),)
        else:
            planes = cv2.split(self._canvas, self._planes)
            planes = planes[::-1] if color == "rgb" else planes
        for channel, plane in enumerate(planes):
            table = None if self._table is None else self._plane_tables[channel]
            self._look_up(plane, table, self.tensor[0, channel])

    def _look_up(self, pixels: NDArray[Any], table: NDArray[Any] | None, out: NDArray[Any]) -> None:
        if table is None:
            np.copyto(out, pixels)
        elif out.dtype == np.float16:
            np.copyto(out, cv2.LUT(pixels, table).reshape(out.shape), casting="same_kind")
        else:
            cv2.LUT(pixels, table, dst=out)

    def _make_table(self) -> NDArray[Any] | None:
        """Return the model's value for each pixel value, (1, 256, channels); None when they are the same."""
        spec = self.spec
        kind = np.dtype(spec.dtype)
        plain = not any(spec.mean) and all(s == 1 for s in spec.std)
        if plain and (kind.kind == "f" or (spec.scale is None and kind != np.int8)):
            return None
        mean, std = (np.broadcast_to(np.asarray(v, np.float64), (spec.channels,)) for v in (spec.mean, spec.std))
        values = (np.arange(256, dtype=np.float64)[None, :, None] - mean) / std
        if kind.kind == "f":
            return values.astype(np.float32)
        if spec.scale is not None:
            values = values / spec.scale + (spec.zero or 0)
        elif plain:
            values -= 128
        info = np.iinfo(kind)
        return np.clip(np.floor(values + 0.5 + 1e-6), info.min, info.max).astype(kind)


def prepare(frame: NDArray[Any], spec: InputSpec, out: NDArray[Any] | None = None) -> tuple[NDArray[Any], Geometry]:
    """Return the input tensor of one frame and its geometry; `out` is filled when it is given.

    Raises:
        UsageError: the frame or the buffer has a wrong form.
    """
    return Preprocessor(spec, out)(frame)


def to_bgr8(frame: NDArray[Any]) -> NDArray[np.uint8]:
    """Return any accepted frame as BGR uint8 (h, w, 3); the frame itself when it already is.

    Raises:
        UsageError: it is no image of 1, 3 or 4 channels, no uint8 or uint16, empty or longer than 32767 pixels a side.
    """
    shape = getattr(frame, "shape", None)
    if not isinstance(frame, np.ndarray) or shape is None or frame.ndim not in (2, 3):
        found = f"an array of shape {shape}" if shape is not None else type(frame).__name__
        raise UsageError(f"a frame is {found}, expected (h, w, 3) BGR", hint="pass one image, not a batch or a path")
    channels = frame.shape[2] if frame.ndim == 3 else 1
    if channels not in (1, 3, 4) or 0 in frame.shape:
        raise UsageError(f"a frame has shape {frame.shape}, expected (h, w, 3) BGR", hint="gray and BGRA serve too")
    if max(frame.shape[:2]) > MAX_SIDE:
        raise UsageError(f"a frame of {frame.shape[1]}x{frame.shape[0]} is above {MAX_SIDE} pixels a side")
    if frame.dtype == np.uint16:
        frame = np.asarray(cv2.convertScaleAbs(frame, alpha=1 / 257))
    if frame.dtype != np.uint8:
        raise UsageError(
            f"a frame has dtype {frame.dtype}, expected uint8 or uint16", hint="scale floats to 0 to 255 first"
        )
    if channels == 3:
        return frame
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGRA2BGR if channels == 4 else cv2.COLOR_GRAY2BGR), np.uint8)


def _scale(image: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    if image.shape == out.shape:
        np.copyto(out, image)
    else:
        cv2.resize(image, (out.shape[1], out.shape[0]), dst=out, interpolation=cv2.INTER_LINEAR)
