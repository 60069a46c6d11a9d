"""What a result says in short: each label that was found, how often, and its best score."""

from __future__ import annotations

from typing import Any

from edge_sdk.tasks.results import Classes, Detections


def found(result: Any) -> dict[str, tuple[int, float]]:
    """Return count and best score by label: of every box, or of the top class; empty for other results."""
    if isinstance(result, Classes):
        return {result.label(result.class_id): (1, result.score)} if result.probs.size else {}
    out: dict[str, tuple[int, float]] = {}
    if isinstance(result, Detections):
        for class_id, score in zip(result.class_id.tolist(), result.score.tolist(), strict=True):
            label = result.label(class_id)
            count, best = out.get(label, (0, 0.0))
            out[label] = (count + 1, max(best, score))
    return out


def label_counts(result: Any) -> dict[str, int]:
    """Return how often each label occurs."""
    return {label: count for label, (count, _) in found(result).items()}
