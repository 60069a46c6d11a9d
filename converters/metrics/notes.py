"""What a person should know about a golden set before trusting a figure made on it."""

from __future__ import annotations

import numpy as np

from converters.metrics.measured import MIN_SUPPORT
from converters.metrics.task import Judge


def notes(judge: Judge) -> list[str]:
    """Return a line for each thing that is odd about the labels: one class only, classes with too few labels."""
    if not judge.labelled:
        return []
    if judge.task in ("classification", "embedding"):
        assert judge.classes is not None
        counts = np.bincount(judge.classes, minlength=1)
    elif judge.task == "detection":
        ids = np.concatenate([t.class_id[~t.ignore] for t in judge.truths])
        counts = np.bincount(ids, minlength=1)
    else:
        return []
    used = np.flatnonzero(counts)
    lines = []
    if len(used) == 1 and judge.class_count > 1:
        lines.append(
            f"the golden set has one class only (`{_name(judge, int(used[0]))}`): a build that always answers it passes"
        )
    few = [int(c) for c in used if counts[c] < MIN_SUPPORT]
    if few:
        named = ", ".join(f"`{_name(judge, c)}` {counts[c]}" for c in few[:3]) + (", …" if len(few) > 3 else "")
        lines.append(
            f"{len(few)} of {len(used)} classes have fewer than {MIN_SUPPORT} labels ({named}): they count in the "
            "mean, but no build is refused for one of them alone"
        )
    return lines


def _name(judge: Judge, class_id: int) -> str:
    return judge.names[class_id] if class_id < len(judge.names) else str(class_id)
