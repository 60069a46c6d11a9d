"""What the images of a data set are: readable, how large, and how alike. Runs in a worker process."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

SAME_HASH_BITS = 4
SAME_THUMB_LEVELS = 3.0
FLAT_LEVELS = 1.5
"""A picture whose 16 x 16 thumbnail deviates by fewer gray levels than this shows nothing, as of a covered camera."""


def read(path: Path | str) -> NDArray[np.uint8] | None:
    """Return the upright image as BGR uint8, or None when it cannot be decoded."""
    try:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    return None if image is None or 0 in image.shape else np.asarray(image, np.uint8)


def scan(images: Sequence[str]) -> dict[str, Any]:
    """Return a row for each image: sha256, width, height, 64-bit difference hash and a 16 x 16 gray thumbnail in hex.

    A row of an image that cannot be decoded has `error` only.
    """
    rows: list[dict[str, Any]] = []
    for name in images:
        path = Path(name)
        image = read(path)
        if image is None:
            rows.append({"image": name, "error": "cannot be decoded as an image"})
            continue
        gray = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)
        rows.append(
            {
                "image": name,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "width": int(image.shape[1]),
                "height": int(image.shape[0]),
                "dhash": difference_hash(gray),
                "thumb": cv2.resize(gray, (16, 16), interpolation=cv2.INTER_AREA).tobytes().hex(),
            }
        )
    return {"rows": rows}


def difference_hash(gray: NDArray[np.uint8]) -> str:
    """Return the 64-bit dHash in hex: is each of 8 x 9 cells brighter than its left neighbour (N. Krawetz, 2013)?"""
    small = cv2.resize(gray, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    bits = (small[:, 1:] > small[:, :-1]).ravel()
    return np.packbits(bits).tobytes().hex()


def flat(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the images of a scan that show one brightness all over."""
    return [r["image"] for r in rows if float(_thumb(r).std()) < FLAT_LEVELS]


def copies(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the images of a scan that are the same picture as an earlier one, byte for byte or nearly."""
    found, kept = [], _Pictures(len(rows))
    for row in rows:
        if kept.like(row) is None:
            kept.add(row)
        else:
            found.append(str(row["image"]))
    return found


def shared(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the pairs of images of two scans that are the same picture, byte for byte or nearly."""
    known = _Pictures(len(first))
    for row in first:
        known.add(row)
    likes = ((known.like(row), str(row["image"])) for row in second)
    return [(like, image) for like, image in likes if like is not None]


class _Pictures:
    """Up to `capacity` pictures that are known, by the hash of the file and by how they look."""

    def __init__(self, capacity: int) -> None:
        self._files: dict[str, str] = {}
        self._names: list[str] = []
        self._bits = np.zeros((capacity, 64), np.uint8)
        self._thumbs = np.zeros((capacity, 256), np.int16)

    def add(self, row: Mapping[str, Any]) -> None:
        self._files.setdefault(str(row["sha256"]), str(row["image"]))
        self._bits[len(self._names)] = _bits(row)
        self._thumbs[len(self._names)] = _thumb(row)
        self._names.append(str(row["image"]))

    def like(self, row: Mapping[str, Any]) -> str | None:
        """Return the known picture that this one is, or None."""
        same = self._files.get(str(row["sha256"]))
        if same is not None or not self._names:
            return same
        near = np.flatnonzero((self._bits[: len(self._names)] != _bits(row)).sum(axis=1) <= SAME_HASH_BITS)
        levels = np.abs(self._thumbs[near] - _thumb(row)).mean(axis=1)
        if levels.size == 0 or float(levels.min()) > SAME_THUMB_LEVELS:
            return None
        return self._names[int(near[int(levels.argmin())])]


def _bits(row: Mapping[str, Any]) -> NDArray[np.uint8]:
    return np.unpackbits(np.frombuffer(bytes.fromhex(row["dhash"]), np.uint8))


def _thumb(row: Mapping[str, Any]) -> NDArray[np.int16]:
    return np.frombuffer(bytes.fromhex(row["thumb"]), np.uint8).astype(np.int16)
