"""Make what docs/guides/convert.md converts: a small network as PyTorch weights, Keras and TFLite files, and photos.

python examples/make_models.py colors

The network names the brightest colour of a picture. Its weights are set by hand, so nothing is trained.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

COLORS = ("blue", "green", "red")
NETS = '''"""The network of colors.pth, as one would find it in a training repository."""

from torch import nn


def build():
    """Build the network without its weights."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3), nn.Softmax(1),
    )
'''


def weights() -> list[np.ndarray]:
    """Return kernels (out, in, 3, 3) and (out, in, 3, 3) and the matrix (3, 6): planes of red, green and blue first."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 0.02, (6, 3, 3, 3)), rng.normal(0, 0.02, (6, 6, 3, 3))
    first[:3, :, 1, 1] += np.eye(3)[::-1]
    second[np.arange(6), np.arange(6), 1, 1] += 1
    last = np.zeros((3, 6))
    last[:, :3] = np.eye(3) * 9
    return [a.astype(np.float32) for a in (first, second, last)]


def torch_weights(folder: Path) -> None:
    """Write nets.py and colors.pth."""
    import torch

    (folder / "nets.py").write_text(NETS)
    sys.path.insert(0, str(folder))
    import nets  # type: ignore[import-not-found]

    network = nets.build()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for layer, value in zip((network[0], network[2], network[6]), weights(), strict=True):
            layer.weight.copy_(torch.from_numpy(value))
    torch.save(network.state_dict(), folder / "colors.pth")


def keras_and_tflite(folder: Path) -> None:
    """Write colors.keras and colors.tflite."""
    import keras
    import tensorflow as tf

    layers = keras.layers
    network = keras.Sequential(
        [
            keras.Input((64, 64, 3), batch_size=1),
            layers.Conv2D(6, 3, padding="same", activation="relu"),
            layers.Conv2D(6, 3, strides=2, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    first, second, last = weights()
    kernels = (first.transpose(2, 3, 1, 0), second.transpose(2, 3, 1, 0), last.T)
    weighted = [layer for layer in network.layers if layer.weights]
    for layer, kernel in zip(weighted, kernels, strict=True):
        layer.set_weights([kernel, np.zeros(kernel.shape[-1], np.float32)])
    network.save(folder / "colors.keras")
    (folder / "colors.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(network).convert())


def photos(folder: Path, count: int, seed: int) -> None:
    """Write pictures of noise in which one colour is the brightest, in a folder for each class."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        color = index % 3
        small = rng.integers(0, 100, (6, 6, 3), np.uint8)
        picture = cv2.resize(small, (80, 80), interpolation=cv2.INTER_CUBIC).astype(int)
        picture[:, :, color] += rng.integers(40, 150)
        (folder / COLORS[color]).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / COLORS[color] / f"{index}.png"), np.clip(picture, 0, 255).astype(np.uint8))


def main() -> int:
    """Write everything into the folder that is named."""
    if len(sys.argv) != 2:
        print("usage: python examples/make_models.py FOLDER", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch_weights(folder)
    keras_and_tflite(folder)
    photos(folder / "photos" / "calibration", 60, seed=1)
    photos(folder / "photos" / "golden", 60, seed=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
