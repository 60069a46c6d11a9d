"""Which devices of a rollout get the release in which stage: the same answer for the same salt, in every process."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence


def bucket(salt: str, device: str) -> float:
    """Return a device's place in [0, 1), uniform over devices and independent between salts."""
    return int.from_bytes(hashlib.sha256(f"{salt}|{device}".encode()).digest()[:8], "big") / 2**64


def assign(
    devices: Mapping[str, str], *, salt: str, stages: Sequence[int], first_devices: int, holdback: float
) -> dict[str, int]:
    """Return the stage of each device, given as {device: profile}.

    Every profile is cut by rank of its buckets, so each stage has its share of every profile and the first stage at
    least one device of each. The first stage holds at least `first_devices`, but no more than a fifth of the fleet for
    that reason. The last `holdback` share of each profile is `len(stages)`: it stays behind until the bake is over.
    """
    total = len(devices)
    least = min(first_devices, max(1, total // 5))
    first_share = max(stages[0] / 100.0, least / total) if total else 0.0
    ranked: dict[str, list[str]] = {}
    for device in sorted(devices, key=lambda d: (bucket(salt, d), d)):
        ranked.setdefault(devices[device], []).append(device)
    out: dict[str, int] = {}
    for members in ranked.values():
        size = len(members)
        held = math.floor(holdback * size) if len(stages) > 1 else 0
        edges = [max(1, math.ceil(round(max(p / 100.0, first_share) * size, 9))) for p in stages]
        for rank, device in enumerate(members):
            stage = next(k for k, edge in enumerate(edges) if rank < edge)
            out[device] = len(stages) if rank >= size - held and stage > 0 else stage
    return out
