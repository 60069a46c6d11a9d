"""Features say what changed about the picture and the answer, each within [0, 1]."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_sdk.sources.base import Image
from edge_sdk.tasks.results import Classes, Detections, Embedding, Geometry, Keypoints, Mask, Values
from edge_sdk.tasks.summary import label_counts
from edge_sdk.telemetry.features import (
    IMAGE_NAMES,
    embedding_features,
    image_features,
    output_features,
    top_score,
)


@pytest.fixture(scope="module")
def scene() -> Image:
    rng = np.random.default_rng(7)
    image = np.full((480, 640, 3), (110, 120, 130), np.uint8)
    for _ in range(60):
        x, y = rng.integers(0, 600), rng.integers(0, 440)
        color = tuple(int(v) for v in rng.integers(30, 225, 3))
        cv2.rectangle(image, (int(x), int(y)), (int(x + 40), int(y + 40)), color, -1)
    return image


def measured(image: Image) -> dict[str, float]:
    return dict(zip(IMAGE_NAMES, image_features(image).tolist(), strict=True))


def scaled(image: Image, factor: float) -> Image:
    return np.clip(image.astype(np.float32) * factor, 0, 255).astype(np.uint8)


def test_a_darker_picture_is_darker_and_has_less_contrast(scene: Image) -> None:
    before, after = measured(scene), measured(scaled(scene, 0.4))
    assert after["brightness"] == pytest.approx(before["brightness"] * 0.4, abs=0.01)
    assert after["contrast"] < before["contrast"] * 0.5
    assert measured(scaled(scene, 0.05))["dark"] > 0.95
    assert measured(scaled(scene, 4.0))["bright"] > 0.5


def test_a_soft_lens_lowers_sharpness_detail_and_edges(scene: Image) -> None:
    before, after = measured(scene), measured(cv2.GaussianBlur(scene, (0, 0), 3).astype(np.uint8))
    for name in ("sharpness", "detail", "edges"):
        assert after[name] < before[name]
    assert after["brightness"] == pytest.approx(before["brightness"], abs=0.01)


def test_noise_follows_the_standard_deviation_that_was_added(scene: Image) -> None:
    flat = np.full_like(scene, 128)
    rng = np.random.default_rng(1)
    for sigma in (2.0, 8.0, 20.0):
        gray = np.clip(rng.normal(128, sigma, flat.shape[:2]), 0, 255).astype(np.uint8)
        value = measured(np.repeat(gray[:, :, None], 3, axis=2))["noise"]
        assert value == pytest.approx(sigma / (sigma + 8), abs=0.03)


def test_a_tint_moves_the_channel_shares_and_saturation(scene: Image) -> None:
    gray = np.repeat(cv2.cvtColor(scene, cv2.COLOR_BGR2GRAY)[:, :, None], 3, axis=2)
    neutral = measured(gray)
    assert neutral["red_share"] == pytest.approx(1 / 3, abs=1e-6)
    assert neutral["saturation"] == 0
    warm = measured((gray * np.array([0.6, 0.8, 1.0])).astype(np.uint8))
    assert warm["red_share"] > 0.4
    assert warm["blue_share"] < 0.3
    assert warm["saturation"] > 0.3


@pytest.mark.parametrize("fill", [0, 255, "noise"])
@pytest.mark.parametrize("shape", [(8, 8), (9, 2000), (1080, 1920), (300, 17)])
def test_every_image_feature_stays_within_its_range(shape: tuple[int, int], fill: int | str) -> None:
    rng = np.random.default_rng(3)
    image = (
        rng.integers(0, 256, (*shape, 3), dtype=np.uint8) if fill == "noise" else np.full((*shape, 3), fill, np.uint8)
    )
    values = image_features(image)
    assert values.shape == (12,)
    assert np.isfinite(values).all()
    assert values.min() >= 0
    assert values.max() <= 1


@pytest.mark.parametrize("wrong", [np.zeros((8, 8), np.uint8), np.zeros((7, 8, 3), np.uint8), np.zeros((9, 9, 3))])
def test_what_is_not_a_frame_is_refused(wrong: NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="expected a BGR uint8 frame"):
        image_features(wrong)  # type: ignore[arg-type]


def test_a_sure_and_an_unsure_classification_differ_in_all_output_features() -> None:
    names, sure = output_features(Classes(np.array([0.97, 0.02, 0.01], np.float32)), (10, 10, 3)) or ((), None)
    assert names == ("top", "margin", "entropy")
    assert sure == pytest.approx([0.97, 0.95, 0.1], abs=0.05)
    _, unsure = output_features(Classes(np.array([0.34, 0.33, 0.33], np.float32)), (10, 10, 3)) or ((), None)
    assert unsure == pytest.approx([0.34, 0.01, 1.0], abs=0.01)


def test_detections_are_counted_sized_and_scored() -> None:
    found = Detections(
        np.array([[0, 0, 50, 50], [0, 0, 100, 100]], np.float32),
        np.array([0.9, 0.5], np.float32),
        np.array([0, 1], np.int32),
        ("car", "bus"),
    )
    _, values = output_features(found, (100, 100, 3)) or ((), None)
    assert values == pytest.approx([0.2, 0.9, 0.7, 0.625**0.5, 1 / 3], abs=1e-6)
    assert label_counts(found) == {"car": 1, "bus": 1}
    assert top_score(found) == pytest.approx(0.9)
    _, nothing = output_features(Detections.empty(), (100, 100, 3)) or ((), None)
    assert nothing == pytest.approx([0] * 5)
    assert top_score(Detections.empty()) is None


def test_an_embedding_is_projected_alike_on_every_device() -> None:
    rng = np.random.default_rng(5)
    values = []
    for _ in range(300):
        names, one = embedding_features(Embedding(rng.standard_normal(128).astype(np.float32))) or ((), np.zeros(0))
        assert len(names) == len(one) == 8
        values.append(one)
    assert np.mean(values) == pytest.approx(0.5, abs=0.05)
    assert np.std(values) == pytest.approx(12**-0.5, abs=0.05)
    assert embedding_features(Embedding(np.zeros(4, np.float32))) is None
    assert embedding_features(Detections.empty()) is None


def test_masks_keypoints_and_values_have_their_own_output_features() -> None:
    geometry = Geometry(8, 8, 8, 8, 1.0, 1.0)
    ids = np.zeros((8, 8), np.uint8)
    ids[:4] = 3
    assert output_features(Mask(ids, geometry), (8, 8, 3)) == (("top", "entropy"), pytest.approx([0.5, 1 / 3]))
    points = Keypoints(np.zeros((2, 2), np.float32), np.array([0.9, 0.5], np.float32))
    assert output_features(points, (8, 8, 3)) == (("top", "mean"), pytest.approx([0.9, 0.7]))
    assert top_score(points) == pytest.approx(0.9)
    assert output_features(Values(np.array([3.0], np.float32)), (8, 8, 3)) is None
