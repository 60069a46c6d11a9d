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


def shared(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the pairs of images of two scans that are the same picture, byte for byte or nearly."""
    if not first or not second:
        return []
    by_hash = {row["sha256"]: row["image"] for row in first}
    pairs = [(by_hash[row["sha256"]], row["image"]) for row in second if row["sha256"] in by_hash]
    done = {image for _, image in pairs}
    hashes = np.array([np.frombuffer(bytes.fromhex(r["dhash"]), np.uint8) for r in first])
    thumbs = np.array([np.frombuffer(bytes.fromhex(r["thumb"]), np.uint8) for r in first]).astype(np.int16)
    for row in second:
        if row["image"] in done:
            continue
        bits = np.unpackbits(
            np.asarray(hashes ^ np.frombuffer(bytes.fromhex(row["dhash"]), np.uint8), np.uint8), axis=1
        ).sum(axis=1)
        near = np.flatnonzero(bits <= SAME_HASH_BITS)
        if near.size:
            own = np.frombuffer(bytes.fromhex(row["thumb"]), np.uint8).astype(np.int16)
            levels = np.abs(thumbs[near] - own).mean(axis=1)
            if levels.min() <= SAME_THUMB_LEVELS:
                pairs.append((str(first[int(near[levels.argmin()])]["image"]), str(row["image"])))
    return pairs
