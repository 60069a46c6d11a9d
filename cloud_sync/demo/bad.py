"""A release that is wrong in a way that no self-test in daylight can see.

Its author wanted to correct for exposure: the logits are scaled by the square root of how far the brightest spot lies
above a white level. In daylight that works. In dim light it is the root of a negative number, and every answer is NaN.
"""

from __future__ import annotations

from typing import Any

WHITE_LEVEL = 0.76
GAIN = 2.5


def exposure_corrected(network: Any) -> Any:
    """Return `network` with its logits scaled by `GAIN * sqrt(brightest - WHITE_LEVEL)`, pixels in [0, 1]."""
    from torch import Tensor, amax, nn, sqrt

    class ExposureCorrected(nn.Module):  # type: ignore[misc]  # torch has no types here
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Tensor) -> Tensor:
            brightest = amax(images, dim=(1, 2, 3)).unsqueeze(1)
            answer: Tensor = self.network(images) * sqrt(brightest - WHITE_LEVEL) * GAIN
            return answer

    return ExposureCorrected()
