"""The image test on real photographs: quiet on clean ones, alarmed by what happens to lenses and lights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from cloud_sync.drift.stats import BINS, Baseline, Moments, fit_baseline, hotelling
from edge_sdk.telemetry.features import IMAGE_NAMES, image_features

Image = NDArray[np.uint8]
WINDOW = 50


def moments(rows: NDArray[np.float64]) -> Moments:
    mean = rows.mean(axis=0)
    away = rows - mean
    hist = np.stack([np.histogram(rows[:, j], BINS, (0, 1))[0] for j in range(rows.shape[1])]).astype(float)
    return Moments(names=IMAGE_NAMES, n=len(rows), mean=mean, scatter=away.T @ away, hist=hist, missing=0)


@pytest.fixture(scope="module")
def photos(testdata: Path) -> list[Image]:
    files = sorted((testdata / "datasets" / "imagenet_eval380").glob("*.jpg"))
    if len(files) < 350:
        pytest.skip("imagenet_eval380 is not there")
    return [cv2.resize(cv2.imread(str(f)), (128, 128), interpolation=cv2.INTER_AREA) for f in files]


def features(images: list[Image]) -> NDArray[np.float64]:
    return np.stack([image_features(i) for i in images]).astype(float)


@pytest.fixture(scope="module")
def clean(photos: list[Image]) -> NDArray[np.float64]:
    return features(photos)


def baseline_of(rows: NDArray[np.float64]) -> Baseline:
    made = fit_baseline([moments(rows[i : i + WINDOW]) for i in range(0, len(rows), WINDOW)], resamples=100, seed=1)
    assert made is not None
    return made


def test_clean_photos_that_were_not_in_the_baseline_are_rarely_flagged(clean: NDArray[np.float64]) -> None:
    flagged = tested = 0
    for split in range(20):
        order = np.random.default_rng(split).permutation(len(clean))[:350]
        baseline = baseline_of(clean[order[:300]])
        test = hotelling(baseline, moments(clean[order[300:]]), min_n=WINDOW)
        assert test is not None
        flagged += test.p < 0.05
        tested += 1
    assert flagged <= 4, f"{flagged} of {tested}"


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("dark", lambda image: (image * 0.5).astype(np.uint8)),
        ("blurred", lambda image: cv2.GaussianBlur(image, (0, 0), 2.0)),
        ("noisy", lambda image: np.clip(image + np.random.default_rng(1).normal(0, 25, image.shape), 0, 255)),
        ("foggy", lambda image: (image * 0.5 + 110).astype(np.uint8)),
    ],
)
def test_a_changed_lens_or_light_is_found(
    photos: list[Image], clean: NDArray[np.float64], what: str, change: Callable[[Image], Image]
) -> None:
    order = np.random.default_rng(3).permutation(len(clean))[:350]
    baseline = baseline_of(clean[order[:300]])
    changed = features([np.ascontiguousarray(change(photos[i]).astype(np.uint8)) for i in order[300:]])
    test = hotelling(baseline, moments(changed), min_n=WINDOW)
    assert test is not None
    assert test.p < 0.005, what
