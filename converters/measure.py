"""Engine latency of several builds, interleaved, so that what else the machine does hits all of them alike."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from converters.evaluate import open_model
from converters.images import read
from edge_sdk.errors import ConversionError, EdgeError
from edge_sdk.model import Model

MIN_ROUNDS, MAX_ROUNDS = 15, 200
TURNS = 4


def measure(builds: Sequence[Mapping[str, Any]], image: str, seconds: float) -> dict[str, Any]:
    """Return CPU milliseconds of one inference, p50 and p95, for each build (manifest, model, labels), by its `key`.

    Rounds alternate over the builds until `seconds` have passed, 15 to 200 of them. The preprocessed frame is the same
    in every round; preprocessing and decoding are not counted.
    """
    frame = _frame(image)
    opened, errors = [], {}
    for build in builds:
        try:
            model = open_model(build["manifest"], build["model"], build["labels"])
            feeds = _warm(model, frame)
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


def threads(
    *,
    manifest: Mapping[str, Any],
    model: str,
    labels: Sequence[str],
    image: str,
    settings: Sequence[Mapping[str, int]],
    seconds: float,
) -> list[dict[str, Any]]:
    """Return for each setting (threads of a session, sessions) the wall latency of one session alone and the frames
    per second of all sessions together.

    The settings take turns, `seconds` each in all; the best turn counts, since what else the machine does only takes
    away.
    """
    frame = _frame(image)
    with ExitStack() as stack:
        opened = []
        for setting in settings:
            with_threads = _with_threads(manifest, int(setting["threads"]))
            models = [
                stack.enter_context(open_model(with_threads, model, labels)) for _ in range(int(setting["sessions"]))
            ]
            opened.append([(m, _warm(m, frame)) for m in models])
        turns = [[_turn(sessions, seconds / TURNS) for sessions in opened] for _ in range(TURNS)]
    rows = []
    for index, setting in enumerate(settings):
        p50, p95 = min(turn[index][0] for turn in turns)
        fps = max(turn[index][1] for turn in turns)
        rows.append(dict(setting) | {"latency_ms": {"p50": round(p50, 3), "p95": round(p95, 3)}, "fps": round(fps, 2)})
    return rows


def _turn(sessions: Sequence[tuple[Model, dict[str, Any]]], seconds: float) -> tuple[tuple[float, float], float]:
    """Return ((p50, p95) milliseconds of one session alone, frames per second of all together)."""
    alone = _walls(*sessions[0], seconds / 2)
    with ThreadPoolExecutor(max_workers=len(sessions)) as pool:
        start = time.perf_counter()
        counts = list(pool.map(lambda pair: len(_walls(pair[0], pair[1], seconds / 2)), sessions))
        took = time.perf_counter() - start
    p50, p95 = (float(np.quantile(alone, q)) * 1e3 for q in (0.5, 0.95))
    return (p50, p95), sum(counts) / max(took, 1e-9)


def footprint(manifest: Mapping[str, Any], model: str, labels: Sequence[str], image: str) -> dict[str, float]:
    """Return the peak resident memory of this process in MiB before and after it loaded and ran the build.

    Meant for a fresh process: the peak of a used one is of all that it did.
    """
    start = _peak_mb()
    with open_model(manifest, model, labels) as opened:
        frame = _frame(image)
        for _ in range(3):
            opened(frame)
    return {"start_mb": start, "peak_mb": _peak_mb()}


def _frame(image: str) -> Any:
    frame = read(image)
    if frame is None:
        raise ConversionError(f"cannot read the image {image}", hint="remove it or copy it again")
    return frame


def _warm(model: Model, frame: Any) -> dict[str, Any]:
    feeds = {k: np.array(v) for k, v in model.prepare(frame)[0].items()}
    for _ in range(3):
        model.infer(feeds)
    return feeds


def _with_threads(manifest: Mapping[str, Any], count: int) -> dict[str, Any]:
    runtime = dict(manifest["runtime"])
    runtime["options"] = dict(runtime.get("options") or {}) | {"threads": count}
    return dict(manifest) | {"runtime": runtime}


def _walls(model: Model, feeds: dict[str, Any], seconds: float) -> list[float]:
    """Return wall seconds of inferences, three at least, until `seconds` have passed."""
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        model.infer(feeds)
        samples.append(time.perf_counter() - start)
    return samples


def _peak_mb() -> float:
    """Return the peak resident memory of this process in MiB.

    Linux counts the process that started this one in `ru_maxrss`, so its own figure in /proc is read there.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) / 2**10
    except (OSError, StopIteration, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return float(peak) / (2**20 if sys.platform == "darwin" else 2**10)
