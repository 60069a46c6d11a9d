"""How old a live camera's frames are when they are answered, and how soon its freeze and its return are noticed.

The first part plays a test pattern three times as fast as the model answers, for ten minutes; the second one freezes a
real RTSP server (GStreamer's, run by the system's Python).
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.pipeline import TESTDATA, model_artifact
from bench.run import RESULTS, machine, table

FASTER = 3.0
_STALL_S = 2.0
_TICK_S = 0.05


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.run live", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="length of the first part (default: 600)")
    parser.add_argument("--freezes", type=int, default=5, metavar="N", help="freezes of the second part (default: 5)")
    parser.add_argument("--out", type=Path, default=RESULTS / "live.json")
    args = parser.parse_args(words)
    if not (TESTDATA / "manifest.json").is_file():
        raise SystemExit(f"no test material at {TESTDATA}: set EDGE_TESTDATA")
    artifact = model_artifact("FastestDet")
    age = frame_age(artifact, args.seconds)
    sys.stderr.write(f"frame age: {json.dumps(age)}\n")
    freeze = freezes(artifact, args.freezes)
    sys.stderr.write(f"freeze: {json.dumps(freeze)}\n")
    result = {
        "about": about(age["seconds"]),
        "command": f"python -m bench.run live --seconds {args.seconds:g} --freezes {args.freezes}",
        "machine": machine(),
        "rows": rows(age, freeze),
        "frame_age": age,
        "freeze": freeze,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"live\n{table(result)}")
    return 0


def about(seconds: float) -> str:
    return f"A live camera for {seconds:g} s, {FASTER:g} times faster than the model; a frozen RTSP camera"


def rows(age: Mapping[str, Any], freeze: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return both parts as rows of a table, what is aimed at beside each figure."""
    first, last = age["first_and_last_tenth_p50_ms"]
    found = [
        ("age of an answered frame, p99", age["age_ms"]["p99"], "ms", f"<= {age['limit_ms']:g}"),
        ("the same, p50 of the first tenth", first, "ms", ""),
        ("the same, p50 of the last tenth", last, "ms", "flat"),
        ("trend of the age", age["slope_ms_per_minute"], "ms a minute", "flat"),
        ("inference, p99", age["inference_ms"]["p99"], "ms", ""),
        ("frames a second, of the camera", age["source_fps"], "", ""),
        ("frames a second, answered", age["answered_fps"], "", ""),
    ]
    if "skipped" not in freeze:
        times, notice, back = freeze["times"], freeze["noticed_limit_s"], freeze["returned_limit_s"]
        noticed = f"freeze noticed, slowest of {times} (stall_s = {freeze['stall_s']:g})"
        found.append((noticed, freeze["noticed_s"]["max"], "s", f"<= {notice:g}"))
        found.append(
            (f"first frame after its return, slowest of {times}", freeze["returned_s"]["max"], "s", f"<= {back:g}")
        )
    names = ("figure", "measured", "unit", "aim")
    return [dict(zip(names, row, strict=True)) for row in found]


def frame_age(artifact: Any, seconds: float) -> dict[str, Any]:
    """Run a live pattern of 768x432 for `seconds`; ages and latencies in ms, the trend by robust slope (Theil-Sen)."""
    from edge_sdk.pipeline import Pipeline

    fps = FASTER * 1000.0 / _latency_ms(artifact)
    ages: list[tuple[float, float]] = []
    latencies: list[float] = []
    with Pipeline(f"synthetic:768x432?fps={fps:.2f}&live=1", workers=1).detect(artifact) as pipe:
        begin = time.monotonic()
        for item in pipe:
            now = time.monotonic() - begin
            ages.append((now, item.age_ms))
            latencies.append(item.latency_ms)
            if now > seconds:
                break
    report = pipe.report().to_json()
    warm = [(t, age) for t, age in ages if t > min(5.0, seconds / 5)]
    values = [age for _, age in warm]
    interval_ms = 1000.0 / fps
    latency_p99 = _at(latencies, 0.99)
    limit = interval_ms + 1.5 * latency_p99
    return {
        "seconds": round(ages[-1][0], 1),
        "source_fps": round(fps, 2),
        "answered_fps": report["fps"],
        "dropped": report["frames"]["dropped"],
        "interval_ms": round(interval_ms, 3),
        "inference_ms": {"p50": round(_at(latencies, 0.5), 3), "p99": round(latency_p99, 3)},
        "age_ms": {f"p{round(q * 100)}": round(_at(values, q), 3) for q in (0.5, 0.95, 0.99)},
        "limit_ms": round(limit, 3),
        "ok": _at(values, 0.99) <= limit,
        "slope_ms_per_minute": round(_slope(warm) * 60, 4),
        "first_and_last_tenth_p50_ms": [
            round(_at(values[: max(1, len(values) // 10)], 0.5), 3),
            round(_at(values[-max(1, len(values) // 10) :], 0.5), 3),
        ],
        "rss_mb": report["rss_mb"],
    }


def freezes(artifact: Any, times: int) -> dict[str, Any]:
    """Freeze a real RTSP server `times` times; seconds after the last frame until it is noticed, and after its return
    until the first frame. None of it where there is no such server."""
    from edge_sdk.pipeline import Pipeline

    port = _free_port()
    server = _server(port)
    if server is None:
        return {"skipped": "no GStreamer RTSP server for /usr/bin/python3"}
    noticed, returned = [], []
    try:
        with Pipeline(f"rtsp://127.0.0.1:{port}/main", stall_s=_STALL_S).detect(artifact) as pipe:
            answers = iter(pipe)
            for _ in range(times):
                for _ in range(50):
                    next(answers)
                lost = pipe.stats()["errors"].get("source", 0)
                server.send_signal(signal.SIGSTOP)
                # Frames that were on their way when it froze are no sign of life.
                last = _drained(pipe)
                while pipe.stats()["errors"].get("source", 0) == lost:
                    time.sleep(0.005)
                noticed.append(time.monotonic() - last)
                time.sleep(3.0 + random.random())
                answered = pipe.stats()["frames"]
                server.send_signal(signal.SIGCONT)
                begin = time.monotonic()
                while pipe.stats()["frames"] == answered:
                    time.sleep(0.005)
                returned.append(time.monotonic() - begin)
    finally:
        server.send_signal(signal.SIGCONT)
        server.kill()
        server.wait()
    return {
        "times": times,
        "stall_s": _STALL_S,
        "noticed_s": _spread(noticed),
        "noticed_limit_s": _STALL_S + 0.5,
        "returned_s": _spread(returned),
        "returned_limit_s": 2.0,
        "ok": max(noticed) <= _STALL_S + 0.5 and max(returned) <= 2.0,
    }


def _drained(pipe: Any) -> float:
    """Return when the last frame came, once none has come for a while."""
    count, last = pipe.stats()["frames"], time.monotonic()
    while time.monotonic() - last < 0.5:
        time.sleep(0.005)
        now = pipe.stats()["frames"]
        if now != count:
            count, last = now, time.monotonic()
    return last


def _latency_ms(artifact: Any) -> float:
    """Return the median latency of a frame in a pipeline of one thread, of the best of three runs."""
    from edge_sdk.pipeline import Pipeline

    reports = [Pipeline("synthetic:768x432?n=100", workers=1).detect(artifact).run() for _ in range(3)]
    return min(float(report.latency_ms["p50"] or 1.0) for report in reports)


def _server(port: int) -> subprocess.Popen[bytes] | None:
    script = Path(__file__).resolve().parents[1] / "tests" / "rtsp_server.py"
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(["/usr/bin/python3", str(script), str(port)], stdout=subprocess.PIPE, stderr=log)
        except OSError:
            return None
    assert process.stdout is not None
    if process.stdout.readline() == b"ready\n":
        return process
    process.kill()
    process.wait()
    return None


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _at(values: Sequence[float], q: float) -> float:
    order = sorted(values)
    return order[min(len(order) - 1, int(q * len(order)))]


def _slope(points: Sequence[tuple[float, float]], pairs: int = 20_000) -> float:
    """Return the median slope of random pairs of points (Sen 1968)."""
    rng = random.Random(0)
    slopes = []
    for _ in range(pairs):
        (t1, a1), (t2, a2) = rng.sample(points, 2)
        if t1 != t2:
            slopes.append((a2 - a1) / (t2 - t1))
    return statistics.median(slopes) if slopes else 0.0


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "max": round(max(values), 3)}


if __name__ == "__main__":
    sys.exit(main())
