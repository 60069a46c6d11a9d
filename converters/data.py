"""From folders to a calibration set and a golden set that share no image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters import datasets, images
from converters.datasets import DataSet
from converters.recipe import Recipe
from converters.workers import Workshop
from edge_sdk.errors import CalibrationError, UsageError

MIN_IMAGES = 8
ENLARGED = 2.0
"""From this factor on, images that are smaller than the model's input are said to lack detail."""
OTHER_SIZE = 4.0
"""Calibration images may be enlarged this many times more or less than the golden ones."""
FEW_GOLDEN = 100
MAX_CALIBRATION = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The golden set, the calibration set (None: int8 is not possible), sizes and hashes of the images."""

    golden: DataSet
    calibration: DataSet | None
    sizes: Mapping[Path, tuple[int, int]]
    hashes: Mapping[Path, str]

    def paper(self, data: DataSet | None) -> dict[str, Any] | None:
        """Return what evidence says of a set: layout, number of images, hash over the images in order."""
        if data is None:
            return None
        digest = hashlib.sha256("\n".join(self.hashes[s.image] for s in data.samples).encode()).hexdigest()
        return {"kind": data.kind, "n": len(data), "sha256": digest}


def gather(recipe: Recipe, worker: Workshop, say: Callable[[str], None]) -> Data:
    """Load, scan and separate the recipe's sets.

    Raises:
        UsageError: neither set is given.
        CalibrationError: a set is empty or too small, cannot be read, or shares images with the other.
    """
    if recipe.calibration is None and recipe.golden is None:
        raise UsageError(
            "no images to verify the builds on",
            hint="--golden DIR (labelled, for accuracy) and --calibration DIR (any images like the device's, for int8)",
        )
    calibration = datasets.load(recipe.calibration) if recipe.calibration else None
    golden = datasets.load(recipe.golden) if recipe.golden else None
    same = golden is not None and calibration is not None and golden.root.resolve() == calibration.root.resolve()
    if calibration is not None and (golden is None or same):
        whole = calibration
        calibration, golden = datasets.split_in_half(whole)
        say(
            f"  {whole.root} serves as both sets: {len(calibration)} images calibrate, {len(golden)} others judge "
            "(halves by the hash of the file name)"
        )
    assert golden is not None
    rows = _scan(worker, [s.image for s in (*golden.samples, *(calibration.samples if calibration else ()))])
    golden = _readable(golden, rows, "golden", say)
    _check_size(golden, "golden")
    if calibration is not None:
        calibration = _readable(calibration, rows, "calibration", say)
        calibration = calibration.unlabelled()
        _check_size(calibration, "calibration")
        if not same:
            _check_apart(calibration, golden, rows)
        calibration = _thin(calibration, say)
        _check_pictures(calibration, rows, "calibration", say)
    _check_pictures(golden, rows, "golden", say)
    if len(golden) < FEW_GOLDEN:
        say(f"  {len(golden)} golden images are few: one image is {1 / len(golden):.3f} of the metric")
    return Data(
        golden=golden,
        calibration=calibration,
        sizes={p: (int(r["width"]), int(r["height"])) for p, r in rows.items() if "error" not in r},
        hashes={p: str(r["sha256"]) for p, r in rows.items() if "error" not in r},
    )


def _scan(worker: Workshop, paths: list[Path]) -> dict[Path, dict[str, Any]]:
    unique = list(dict.fromkeys(paths))
    reply = worker.call("scan", images=[str(p) for p in unique])
    return dict(zip(unique, reply["rows"], strict=True))


def _readable(data: DataSet, rows: Mapping[Path, Mapping[str, Any]], what: str, say: Callable[[str], None]) -> DataSet:
    broken = [s.image for s in data.samples if "error" in rows[s.image]]
    if not broken:
        return data
    named = ", ".join(p.name for p in broken[:3]) + (" …" if len(broken) > 3 else "")
    if len(broken) == len(data):
        raise CalibrationError(
            f"none of the {len(data)} images of {data.root} can be read: {named}", hint="check the files"
        )
    say(f"  {len(broken)} of the {len(data)} {what} images cannot be read and are left out: {named}")
    return data.keep(s.image for s in data.samples if s.image not in set(broken))


def _check_size(data: DataSet, what: str) -> None:
    if len(data) < MIN_IMAGES:
        raise CalibrationError(
            f"the {what} set {data.root} has {len(data)} image(s), it needs at least {MIN_IMAGES}",
            hint=f"add {MIN_IMAGES - len(data)} or more; {FEW_GOLDEN} make a figure that can be trusted",
        )


def _check_pictures(
    data: DataSet, rows: Mapping[Path, Mapping[str, Any]], what: str, say: Callable[[str], None]
) -> None:
    """Refuse a set that shows nothing or one picture over and over, and say when some of it does.

    Raises:
        CalibrationError: fewer than 8 different pictures are left.
    """
    own = [rows[s.image] for s in data.samples]
    blank = images.flat(own)
    again = images.copies([r for r in own if r["image"] not in set(blank)])
    left = len(own) - len(blank) - len(again)
    for found, words in (
        (blank, "show one brightness all over, as a covered camera"),
        (again, "are the same picture as another one"),
    ):
        if found:
            named = ", ".join(Path(name).name for name in found[:3]) + (" …" if len(found) > 3 else "")
            line = f"{len(found)} of the {len(own)} {what} images {words}: {named}"
            if left < MIN_IMAGES:
                raise CalibrationError(
                    f"{line}; {left} different pictures are left, the {what} set needs at least {MIN_IMAGES}",
                    hint="give different pictures, spread over places and times of day",
                )
            say(f"  {line}")


def check_scale(data: Data, width: int, height: int, say: Callable[[str], None]) -> None:
    """Compare the sizes of the images with those of the model's input.

    Raises:
        CalibrationError: calibration images are enlarged four times more, or less, than the golden ones: they do not
            show what is judged.
    """
    factors = {
        what: float(
            np.median([max(width / data.sizes[s.image][0], height / data.sizes[s.image][1]) for s in found.samples])
        )
        for what, found in (("calibration", data.calibration), ("golden", data.golden))
        if found is not None
    }
    for what, factor in factors.items():
        if factor > ENLARGED:
            say(
                f"  the {what} images are enlarged {factor:.1f} times to the model's {width}x{height}: they lack detail"
            )
    calibration = factors.get("calibration")
    if calibration is None or 1 / OTHER_SIZE <= calibration / factors["golden"] <= OTHER_SIZE:
        return
    size = data.sizes[data.calibration.samples[0].image] if data.calibration else (0, 0)
    other = data.sizes[data.golden.samples[0].image]
    if min(calibration, factors["golden"]) <= 1 and max(calibration, factors["golden"]) <= ENLARGED:
        return
    raise CalibrationError(
        f"the calibration images are {size[0]}x{size[1]}, the golden ones {other[0]}x{other[1]}, the model's input is "
        f"{width}x{height}: ranges of enlarged pictures are not those of sharp ones",
        hint="calibrate on images of the size that the device will see",
    )


def _check_apart(calibration: DataSet, golden: DataSet, rows: Mapping[Path, Mapping[str, Any]]) -> None:
    pairs = images.shared([rows[s.image] for s in calibration.samples], [rows[s.image] for s in golden.samples])
    if pairs:
        first, second = pairs[0]
        raise CalibrationError(
            f"{len(pairs)} image(s) stand in both the calibration and the golden set, such as {Path(first).name} and "
            f"{Path(second).name}",
            hint="judge on images that did not calibrate; one folder given for both is split in half",
        )


def _thin(data: DataSet, say: Callable[[str], None]) -> DataSet:
    if len(data) <= MAX_CALIBRATION:
        return data
    step = len(data) / MAX_CALIBRATION
    kept = [data.samples[int(i * step)].image for i in range(MAX_CALIBRATION)]
    say(f"  {MAX_CALIBRATION} of the {len(data)} calibration images are used, evenly spread")
    return data.keep(kept)
