"""Is the calibration set large enough, and are its pictures worth anything."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from converters import convergence, images
from converters.data import Data, check_scale
from converters.datasets import DataSet
from converters.samples import Sample
from edge_sdk.errors import CalibrationError


def activations(n: int, spread: float, tensors: int = 40) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Smallest and largest values of n images; the largest vary by `spread` of their mean."""
    rng = np.random.default_rng(0)
    high = np.abs(rng.normal(10, 10 * spread, (n, tensors)))
    return [f"t{i}" for i in range(tensors)], np.zeros((n, tensors)), high


def test_ranges_that_hardly_vary_have_converged_with_few_images():
    found = convergence.judge(*activations(8, 0.01))

    assert (found.add, found.line) == (0, None)
    assert found.tensors == 40


def test_ranges_that_vary_ask_for_the_number_of_images_that_is_needed():
    few = convergence.judge(*activations(16, 0.3))
    enough = convergence.judge(*activations(16 + few.add, 0.3))

    assert few.add > 0
    assert f"16 calibration images are too few: the ranges of half of them differ by {few.shift:.1%}" in few.line
    assert few.line.endswith(f"add about {few.add}")
    assert enough.shift < 1.15 * convergence.TOLERANCE


def test_the_activation_that_shifts_most_is_named():
    names, low, high = activations(16, 0.05)
    high[0, 7] = 500.0

    assert convergence.judge(names, low, high).worst[0][0] == "t7"


@pytest.mark.parametrize(("n", "shift", "add"), [(10, 0.02, 0), (10, 0.04, 30), (100, 0.04, 300), (32, 0.0205, 10)])
def test_the_error_of_a_mean_falls_with_the_root_of_the_images(n, shift, add):
    assert convergence.needed(n, shift) == add


def test_a_model_without_moving_activations_has_nothing_to_converge():
    found = convergence.judge(["a"], np.zeros((4, 1)), np.zeros((4, 1)))

    assert (found.tensors, found.shift, found.add) == (0, 0.0, 0)


def scan(tmp_path: Path, pictures) -> list[dict]:
    for i, picture in enumerate(pictures):
        cv2.imwrite(str(tmp_path / f"{i:02}.png"), picture)
    return images.scan([str(p) for p in sorted(tmp_path.glob("*.png"))])["rows"]


def noise(seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    return cv2.resize(small, (64, 64), interpolation=cv2.INTER_CUBIC)


def test_blank_pictures_and_near_copies_are_found(tmp_path):
    first = noise(1)
    rows = scan(tmp_path, [first, noise(2), np.zeros((64, 64, 3), np.uint8), np.clip(first.astype(int) + 1, 0, 255)])

    assert [Path(n).name for n in images.flat(rows)] == ["02.png"]
    assert [Path(n).name for n in images.copies(rows)] == ["03.png"]


def sizes_of(calibration: tuple[int, int], golden: tuple[int, int]) -> Data:
    sets = {kind: DataSet(root=Path(kind), kind="images", samples=(Sample(image=Path(kind)),)) for kind in ("c", "g")}
    return Data(golden=sets["g"], calibration=sets["c"], sizes={Path("c"): calibration, Path("g"): golden}, hashes={})


def test_calibration_images_much_smaller_than_the_golden_ones_are_refused():
    with pytest.raises(CalibrationError) as caught:
        check_scale(sizes_of((32, 32), (640, 480)), 416, 416, lambda _: None)

    assert "the calibration images are 32x32, the golden ones 640x480, the model's input is 416x416" in str(
        caught.value
    )
    assert "of the size that the device will see" in caught.value.hint


def test_images_that_are_enlarged_are_said_and_large_ones_are_not():
    said: list[str] = []
    check_scale(sizes_of((32, 32), (32, 32)), 224, 224, said.append)
    check_scale(sizes_of((4000, 3000), (256, 256)), 224, 224, said.append)

    assert [line.strip() for line in said] == [
        "the calibration images are enlarged 7.0 times to the model's 224x224: they lack detail",
        "the golden images are enlarged 7.0 times to the model's 224x224: they lack detail",
    ]
