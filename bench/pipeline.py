"""CPU of whole pipelines on a real video, against the engine and the decoder alone and against other loops.

`python -m bench.run pipeline` writes bench/results/pipeline.json, a row a figure with what is aimed at beside it. All
cases of a model and an engine take turns. Every pipeline and loop is compared with the decoder plus engines on as many
threads as it has.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from bench import pipeline_loops as loops
from bench.pipeline_loops import TESTDATA, VIDEO, cores, model_artifact
from bench.run import RESULTS, machine, table

__all__ = ["TESTDATA", "main", "model_artifact"]
FRAMES = {"FastestDet": 200, "YOLOX-nano": 160}
ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_AIM = {"FastestDet": 0.90, "YOLOX-nano": 0.95}
_ABOVE, _NAIVE, _OVERHEAD_MS, _AROUND_MS = 0.02, 0.40, 0.3, 0.6
_NO_OP_FRAMES = 2000
_DEMO, _LIGHT = "the loop of the model's own demo", "a loop with our decode, engine defaults"
Times = Mapping[str, Sequence[float]]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.run pipeline", description=__doc__)
    parser.add_argument("--turns", type=int, default=5, help="measured runs of each case (default: 5)")
    parser.add_argument("--model", choices=FRAMES, help="only this one, and write nothing")
    parser.add_argument("--engine", choices=ENGINES, help="only this one, and write nothing")
    args = parser.parse_args(words)
    if not VIDEO.is_file():
        raise SystemExit(f"no test material at {TESTDATA}: set EDGE_TESTDATA")
    rows = []
    for engine in [args.engine] if args.engine else ENGINES:
        for name in [args.model] if args.model else FRAMES:
            sys.stderr.write(f"{name}, {ENGINES[engine]}\n")
            rows += _figures(name, ENGINES[engine], _take_turns(_cases(name, engine), args.turns))
    times = _take_turns({"overhead": partial(loops.overhead, _NO_OP_FRAMES)}, args.turns)
    what = "pipeline of a model that does nothing less a loop, ms a frame"
    rows.append(_row("none", "none", what, times["overhead"], _at_most(_OVERHEAD_MS)))
    about = (
        f"CPU on {VIDEO.name} (768 x 432), fp32, {cores()} cores; a ratio is (engine + decode) / all, 1.0 is the bound;"
        f" medians and quartiles of {args.turns} alternating rounds"
    )
    result = {"about": about, "machine": machine(), "rows": rows}
    if not args.model and not args.engine:
        (RESULTS / "pipeline.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"pipeline\n{table(result)}")
    return 0


def _cases(name: str, engine: str) -> dict[str, Callable[[], float]]:
    """Return what takes turns for one model and engine, each giving CPU ms a frame."""
    artifact, n = model_artifact(name, engine), FRAMES[name]
    out: dict[str, Callable[[], float]] = {
        "bound, 1": partial(loops.bound, artifact, n, 1),
        f"bound, {cores()}": partial(loops.bound, artifact, n, cores()),
        "edge-sdk": partial(loops.edge, artifact, n),
        "edge-sdk, one frame thread": partial(loops.edge, artifact, n, 1),
        "loop: serial": partial(loops.serial, artifact, n),
        "loop: capture thread": partial(loops.capture_thread, artifact, n),
        "loop: a reading thread a core": partial(loops.pull_workers, artifact, n),
        "around": partial(loops.around_engine, artifact, 2 * n),
    }
    if engine == "openvino":
        asynchronous = model_artifact(name, engine, requests=cores())
        out[f"edge-sdk, requests = {cores()}"] = partial(loops.edge, asynchronous, n)
    else:
        out[_DEMO] = partial(loops.demo, name, n)
        out[_LIGHT] = partial(loops.light, artifact, name, n)
    return out


def _take_turns(cases: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run every case once, then once a round in turn."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for i in range(rounds + 1):
        for name, case in cases.items():
            value = case()
            if i:
                times[name].append(value)
    return times


def _figures(name: str, engine: str, times: Times) -> list[dict[str, Any]]:
    """Return the rows of one model and engine."""

    def ratios(case: str) -> list[float]:
        one = case in ("edge-sdk, one frame thread", "loop: serial")
        return [b / v for b, v in zip(times[f"bound, {1 if one else cores()}"], times[case], strict=True)]

    row = partial(_row, name, engine)
    hand_written = {case: ratios(case) for case in times if case.startswith("loop: ")}
    best = max(statistics.median(values) for values in hand_written.values())
    aim = min(_AIM[name], best + _ABOVE)
    wanted = f">= {_AIM[name]:g}, or {_ABOVE:g} above the best loop"
    rows = [row("engine + decode, ms a frame", times[f"bound, {cores()}"])]
    for case in times:
        if case == "edge-sdk":
            rows.append(row(f"ratio: {case}", ratios(case), (wanted, lambda v: v >= aim)))
        elif case.startswith("edge-sdk"):
            rows.append(row(f"ratio: {case}", ratios(case)))
    rows += [row(f"ratio: hand-written {case}", values) for case, values in hand_written.items()]
    for case, aim_of_case in ((_DEMO, _at_most(_NAIVE)), (_LIGHT, None)):
        if case in times:
            ours = [a / b for a, b in zip(times["edge-sdk"], times[case], strict=True)]
            rows.append(row(f"edge-sdk / {case}", ours, aim_of_case))
    what = "preprocessing + postprocessing, ms a frame"
    return [*rows, row(what, times["around"], _at_most(_AROUND_MS))]


def _at_most(limit: float) -> tuple[str, Callable[[float], bool]]:
    return f"<= {limit:g}", lambda value: value <= limit


def _row(
    model: str,
    engine: str,
    figure: str,
    values: Sequence[float],
    aim: tuple[str, Callable[[float], bool]] | None = None,
) -> dict[str, Any]:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else list(values) * 3
    return {
        "model": model,
        "engine": engine,
        "figure": figure,
        "value": round(middle, 3),
        "quartiles": f"{low:.3g} to {high:.3g}",
        "aim": aim[0] if aim else None,
        "met": None if aim is None else "yes" if aim[1](round(middle, 3)) else "no",
    }


if __name__ == "__main__":
    sys.exit(main())
