"""Camera frames to learn from and to watch: scikit-learn's handwritten digits on cards, before its sample photos.

Every frame is a function of a seed. A digit image belongs to one split only, so that no model is judged on a digit that
it was trained on.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Split = Literal["train", "calibration", "golden", "test", "live"]

WIDTH, HEIGHT = 320, 240
_CARD, _NOISE = 96, 500
LABELS = tuple(str(digit) for digit in range(10))
_SHARES: dict[Split, float] = {"train": 0.55, "calibration": 0.08, "golden": 0.12, "test": 0.12, "live": 0.13}


@dataclass(frozen=True, slots=True, kw_only=True)
class Light:
    """Lighting and lens.

    `gain` scales the light, `cast` blue, green and red, `vignette` is the loss in the corners, `blur_px` the standard
    deviation of the lens blur, `noise` that of the sensor in grey levels.
    """

    gain: float = 1.0
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)
    blur_px: float = 0.0
    vignette: float = 0.0
    noise: float = 3.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Light:
        return cls(**{**data, "cast": tuple(data["cast"])})


DAYLIGHT = Light()
DAY = (DAYLIGHT, Light(gain=0.8, blur_px=0.6), Light(gain=0.9, cast=(0.92, 1.0, 1.06)), Light(gain=1.12, vignette=0.15))
DUSK = Light(gain=0.52, cast=(0.8, 0.97, 1.1), blur_px=1.6, vignette=0.35, noise=5.0)


@functools.cache
def _digits() -> tuple[Image, NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images * (255 / 16)).astype(np.uint8), data.target.astype(np.int64)


@functools.cache
def _photos() -> tuple[Image, ...]:
    from sklearn.datasets import load_sample_image

    return tuple(np.ascontiguousarray(load_sample_image(name)[..., ::-1]) for name in ("china.jpg", "flower.jpg"))


def split_indices(split: Split) -> NDArray[np.int64]:
    """Return the digit images that belong to `split`."""
    order = np.random.default_rng(0).permutation(len(_digits()[1]))
    start = 0.0
    for name, share in _SHARES.items():
        if name == split:
            return order[round(start * len(order)) : round((start + share) * len(order))]
        start += share
    raise KeyError(split)


def scene(digit: int, rng: np.random.Generator) -> Image:
    """Return a (240, 320, 3) BGR frame in even light: digit image number `digit` on a card before a photo."""
    photo = _photos()[int(rng.integers(2))]
    zoom = rng.uniform(0.55, 1.0)
    height, width = int(photo.shape[0] * zoom), int(photo.shape[1] * zoom)
    top, left = int(rng.integers(photo.shape[0] - height + 1)), int(rng.integers(photo.shape[1] - width + 1))
    frame = cv2.resize(photo[top : top + height, left : left + width], (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    paper = rng.uniform(205, 235) * np.array([rng.uniform(0.92, 1.0), 1.0, rng.uniform(0.95, 1.0)])
    ink = np.zeros((_CARD, _CARD, 1), np.float32)
    margin = _CARD // 6
    ink[margin:-margin, margin:-margin, 0] = cv2.resize(
        _digits()[0][digit], (_CARD - 2 * margin,) * 2, interpolation=cv2.INTER_CUBIC
    )
    card = (paper + (rng.uniform(20, 70, 3) - paper) * (ink / 255)).clip(0, 255).astype(np.uint8)
    turn = cv2.getRotationMatrix2D((_CARD / 2, _CARD / 2), rng.uniform(-9, 9), rng.uniform(120, 165) / _CARD)
    turn[0, 2] += (WIDTH - _CARD) / 2 + rng.uniform(-55, 55)
    turn[1, 2] += (HEIGHT - _CARD) / 2 + rng.uniform(-25, 25)
    cv2.warpAffine(card, turn, (WIDTH, HEIGHT), frame, cv2.INTER_LINEAR, cv2.BORDER_TRANSPARENT)
    return np.asarray(frame, np.uint8)


def lit(frame: Image, light: Light, rng: np.random.Generator) -> Image:
    """Return `frame` as a camera sees it in `light`."""
    sharp = cv2.GaussianBlur(frame, (0, 0), light.blur_px) if light.blur_px > 0 else frame
    seen = cv2.multiply(sharp, _falloff(light), dtype=cv2.CV_16S)
    shift = int(rng.integers(_NOISE))
    noise = _noise(light.noise)[shift : shift + frame.shape[0]]
    return np.asarray(cv2.add(seen, noise, dtype=cv2.CV_8U), np.uint8)


@functools.cache
def _falloff(light: Light) -> NDArray[np.float32]:
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    factor = light.gain * (1 - light.vignette * (x**2 + y**2) / 2)
    return np.asarray(factor[..., None] * np.array(light.cast), np.float32)


@functools.cache
def _noise(sigma: float) -> NDArray[np.int16]:
    field = np.random.default_rng(0).normal(0, sigma, (HEIGHT + _NOISE, WIDTH, 1)).round()
    return np.repeat(field, 3, axis=2).astype(np.int16)


def samples(split: Split, n: int, seed: int, *lights: Light) -> Iterator[tuple[Image, int]]:
    """Yield n frames with their digit, the classes in turn, each frame in one of `lights` (default: daylight)."""
    rng = np.random.default_rng([seed, len(split)])
    labels = _digits()[1]
    by_class = [rng.permutation([i for i in split_indices(split) if labels[i] == digit]) for digit in range(10)]
    for index in range(n):
        digit = index % 10
        own = by_class[digit]
        image = scene(int(own[(index // 10) % len(own)]), rng)
        chosen = (lights or (DAYLIGHT,))[int(rng.integers(len(lights) or 1))]
        yield lit(image, chosen, rng), digit


def write_class_folders(folder: Path, split: Split, n: int, seed: int, *lights: Light) -> Path:
    """Write n frames as JPEG into `folder/DIGIT/`, the form of data set that `edge convert` reads, and return it."""
    for index, (image, digit) in enumerate(samples(split, n, seed, *lights)):
        place = folder / LABELS[digit]
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f"{index:04d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return folder
