"""The demo's model: a small convolutional network in torch, trained on one core in seconds, exported to ONNX."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cloud_sync.demo import scenes
from cloud_sync.demo.scenes import Light

INPUT_WIDTH, INPUT_HEIGHT = 64, 48


@dataclass(frozen=True, slots=True)
class Trained:
    """A network in evaluation mode, and its accuracy on held-out digits in [0, 1] with the answers it rests on."""

    network: Any
    accuracy: float
    correct: tuple[bool, ...]


def network() -> Any:
    """Return the untrained network: (n, 3, 48, 64) float32 pixels 0 to 255, RGB, to (n, 10) logits."""
    from torch import nn

    def block(inside: int, outside: int) -> list[Any]:
        return [nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]

    return nn.Sequential(
        *block(3, 16),
        *block(16, 32),
        *block(32, 64),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def arrays(split: scenes.Split, n: int, seed: int, *lights: Light) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return n frames as the network sees them, (n, 3, 48, 64) float32 in [0, 1], and their digits."""
    images, labels = [], []
    for frame, digit in scenes.samples(split, n, seed, *lights):
        small = cv2.resize(frame, (INPUT_WIDTH, INPUT_HEIGHT), interpolation=cv2.INTER_LINEAR)
        images.append(small[..., ::-1].transpose(2, 0, 1))
        labels.append(digit)
    return np.stack(images).astype(np.float32) / np.float32(255), np.array(labels)


def train(
    *lights: Light,
    n: int = 3600,
    epochs: int = 7,
    seed: int = 0,
    start: Any = None,
    on_epoch: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train on n frames of the training digits in `lights`, judge on 600 frames of the test digits in the same light.

    `start` is a network to go on from; equal arguments give equal weights on one machine.
    """
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model = start if start is not None else network()
    x, y = (torch.from_numpy(a) for a in arrays("train", n, seed, *lights))
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-2)
    steps = epochs * math.ceil(n / 100)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=8e-3, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        for chosen in torch.randperm(n).split(100):
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x[chosen]), y[chosen], label_smoothing=0.02)
            loss.backward()
            optimiser.step()
            schedule.step()
        if on_epoch is not None:
            on_epoch(epoch + 1, epochs)
    correct = judge(model, *lights, seed=seed + 1)
    return Trained(model.eval(), sum(correct) / len(correct), correct)


def judge(model: Any, *lights: Light, n: int = 600, seed: int = 1) -> tuple[bool, ...]:
    """Return for each of n frames of the test digits whether `model` names the digit."""
    import torch

    x, y = arrays("test", n, seed, *lights)
    with torch.inference_mode():
        answers = model.eval()(torch.from_numpy(x)).argmax(1).numpy()
    return tuple(bool(v) for v in answers == y)


def export(model: Any, path: Path) -> Path:
    """Write `model` as one ONNX file with input `images` (1, 3, 48, 64) float32 pixels / 255 and output `logits`."""
    import torch

    torch.onnx.export(
        model.eval(),
        (torch.zeros(1, 3, INPUT_HEIGHT, INPUT_WIDTH),),
        path,
        dynamo=True,
        opset_version=18,
        external_data=False,
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    return path
