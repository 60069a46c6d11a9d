"""Engine latency of several builds, interleaved, so that what else the machine does hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from converters.evaluate import open_model
from converters.images import read
from edge_sdk.errors import ConversionError, EdgeError

MIN_ROUNDS, MAX_ROUNDS = 15, 200


def measure(builds: Sequence[Mapping[str, Any]], image: str, seconds: float) -> dict[str, Any]:
    """Return CPU milliseconds of one inference, p50 and p95, for each build (manifest, model, labels), by its `key`.

    Rounds alternate over the builds until `seconds` have passed, 15 to 200 of them. The preprocessed frame is the same
    in every round; preprocessing and decoding are not counted.
    """
    frame = read(image)
    if frame is None:
        raise ConversionError(f"cannot read the image {image}", hint="remove it or copy it again")
    opened, errors = [], {}
    for build in builds:
        try:
            model = open_model(build["manifest"], build["model"], build["labels"])
            feeds = {k: np.array(v) for k, v in model.prepare(frame)[0].items()}
            for _ in range(3):
                model.infer(feeds)
            opened.append((str(build["key"]), model, feeds))
        except EdgeError as error:
            errors[str(build["key"])] = error.message
    samples: dict[str, list[float]] = {key: [] for key, _, _ in opened}
    end = time.monotonic() + seconds
    rounds = 0
    while opened and (rounds < MIN_ROUNDS or (time.monotonic() < end and rounds < MAX_ROUNDS)):
        for key, model, feeds in opened:
            start = time.process_time_ns()
            model.infer(feeds)
            samples[key].append((time.process_time_ns() - start) / 1e6)
        rounds += 1
    for _, model, _ in opened:
        model.close()
    figures = {
        key: {"p50": round(float(np.median(v)), 3), "p95": round(float(np.quantile(v, 0.95)), 3), "rounds": len(v)}
        for key, v in samples.items()
    }
    return {"latency_ms": figures, "errors": errors}
