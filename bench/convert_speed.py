"""The chosen build against the best that each tool makes directly and that passes the same guard.

For every float model: ONNX Runtime fp32 and int8 as its documentation quantizes, OpenVINO fp32 and NNCF int8, LiteRT
fp32 and int8 by ai-edge-quantizer, each from the file the tool reads, with the same calibration and golden images. CPU
time from a decoded frame to the outputs, so that preprocessing counts whether it is folded in or not; one thread each,
in an order drawn for each round, since a build is slower after another's memory and instructions than after its own,
and after a first run that is not counted; the bound is of a bootstrap over the rounds. The source runs in ONNX Runtime
with its defaults, engine alone. A tool that cannot build the model, or whose build the guard refuses, is in `refused`
with the reason, and the ratio is to the best of the others.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.convert_cases import CASES, check_complete, words
from bench.convert_tools import TOOLS
from bench.run import RESULTS, machine, table

PROFILE = "x86-64-avx512-vnni"
MODELS = tuple(m for m in CASES if m.endswith((".onnx", "float.tflite", "_f.tflite", ".h5")))
ROUNDS = (40, 300)
TIMING_S = 40.0
"""Rounds stop at the second number, or when they have taken this much CPU time and are at least the first."""
AIM = 1.05
TARGET = RESULTS / "convert_speed.json"
CALIBRATION = 64
SOURCE_ROUNDS = 20


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.run convert_speed")
    parser.add_argument("--model", action="append", choices=MODELS, help="only this one; may be repeated")
    parser.add_argument("--profile", default=PROFILE, help=f"of this machine (default: {PROFILE})")
    args = parser.parse_args(arguments)
    check_complete()
    rows: list[dict[str, Any]] = json.loads(TARGET.read_text())["rows"] if args.model and TARGET.is_file() else []
    for model in args.model or MODELS:
        with tempfile.TemporaryDirectory(prefix="edge-bench-") as folder:
            row = _row(model, args.profile, Path(folder))
        sys.stderr.write(f"{row}\n")
        rows = sorted([r for r in rows if r["model"] != model] + [row], key=lambda r: MODELS.index(r["model"]))
        TARGET.write_text(json.dumps(_result(rows, args.profile), indent=1) + "\n")
    print(f"convert_speed\n{table(_result(rows, args.profile))}")


def _result(rows: list[dict[str, Any]], profile: str) -> dict[str, Any]:
    bounds = [row["upper 95 %"] for row in rows]
    within = sum(bound <= AIM for bound in bounds)
    return {
        "about": f"CPU ms from a frame to the outputs for {profile}, rounds in drawn order; "
        f"the upper bound of chosen / best is at most {AIM} for {within} of {len(rows)} models, {max(bounds):.2f} at "
        "worst",
        "command": "python -m bench.run convert_speed",
        "machine": machine(),
        "rows": rows,
    }


def _row(model: str, profile: str, folder: Path) -> dict[str, Any]:
    """Convert, make the tools' builds, judge all alike, time those that pass."""
    from converters.convert import convert
    from converters.recipe import from_flags
    from converters.verbs.convert import add_arguments, flags_of

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = [*words(model), "--profile", profile, "--out", str(folder / "out"), "--no-cache"]
    recipe = from_flags(flags_of(parser.parse_args(given)), None)
    (made,) = convert(recipe, say=lambda _: None, clock=time.monotonic).done
    chosen = made.chosen.candidate
    found = _direct(recipe, folder)
    opened = _open(found, made.path)
    samples = _time(opened)
    best = min((k for k in samples if k not in ("chosen", "source")), key=lambda k: float(np.median(samples[k])))
    ratio, upper = _bound(samples["chosen"], samples[best])
    return {
        "model": model,
        "chosen": " ".join(filter(None, (chosen.runtime, chosen.precision, chosen.variant))),
        "CPU ms": round(float(np.median(samples["chosen"])), 3),
        "best of the tools": best,
        "its CPU ms": round(float(np.median(samples[best])), 3),
        "chosen / best": round(ratio, 3),
        "upper 95 %": round(upper, 3),
        "default ORT / chosen": _gain(samples),
        "rounds": len(samples["chosen"]),
        "refused": ", ".join(f"{k} ({v})" for k, v in found["refused"].items()),
    }


def _gain(samples: Mapping[str, Any]) -> float | None:
    if "source" not in samples:
        return None
    return round(float(np.median(samples["source"]) / np.median(samples["chosen"])), 2)


def _direct(recipe: Any, folder: Path) -> dict[str, Any]:
    """Return `passed` (name -> manifest, file), `refused` (name -> why) and the source, by the search's own guard."""
    from converters import plan
    from converters.cache import Cache
    from converters.candidates import Candidate
    from converters.data import gather
    from converters.frontends.base import Source
    from converters.jobs import describe
    from converters.metrics import task
    from converters.search import Builds, Job, Outcome, Search
    from converters.workers import Workshop
    from edge_sdk.errors import EdgeError

    work = folder / "direct"
    work.mkdir()
    worker = Workshop("bench", job_limit_s=900, memory_mb=12000)
    try:
        source = Source.from_json(worker.call("inspect", path=str(recipe.model), work=str(work), options={}))
        data = gather(recipe, worker, lambda _: None)
        golden = data.golden
        decided = plan.decide(recipe, source, labelled_for=golden.task, names=golden.names)
        judge = None
        if golden.task == decided.task:
            judge = task.labelled(decided.task, golden, data.sizes, decided.classes, decided.labels)
        images = tuple(str(s.image) for s in (data.calibration.samples if data.calibration else ()))[:CALIBRATION]
        job = Job(
            recipe=recipe, plan=decided, source=source, calibration=images,
            golden=tuple(str(s.image) for s in golden.samples), judge=judge, work=work,
        )  # fmt: skip
        search = Search(job, Builds(job, Cache(None, limit_mb=1, say=lambda _: None)), {"any": worker},
                        say=lambda _: None, clock=time.monotonic)  # fmt: skip
        search.measure_source(worker)
        passed: dict[str, Any] = {}
        refused: dict[str, str] = {}
        for name, (runtime, form, make) in TOOLS.items():
            if form not in source.forms:
                continue
            place = work / name.replace(" ", "-")
            place.mkdir()
            try:
                file = make(Path(source.forms[form]), place, decided.input, images)
                outputs = describe(runtime, file, {"threads": 1})
                manifest = job.manifest(runtime, search.job.source_manifest()["input"], _ordered(outputs, source))
                candidate = Candidate(runtime=runtime, backend="bench", form=form, precision=name)
                built = Outcome(candidate=candidate, status="passed", files=(file,), manifest=manifest)
                done = search.verify(worker, built)
            except EdgeError as error:
                refused[name] = error.message[:80]
                continue
            except Exception as error:
                refused[name] = f"{type(error).__name__}: {str(error)[:60]}"
                continue
            if done.status == "passed":
                passed[name] = (manifest, file)
            else:
                refused[name] = str(done.reason_kind.value if done.reason_kind else done.reason)
        labels = list(decided.labels)
        original = Path(source.forms["onnx"]) if "onnx" in source.forms else None
        keep = folder / "source.onnx"
        if original is not None:
            shutil.copy(original, keep)
        return {"passed": passed, "refused": refused, "labels": labels, "image": job.golden[0],
                "source": keep if original is not None else None}  # fmt: skip
    finally:
        worker.close()


def _ordered(outputs: list[dict[str, Any]], source: Any) -> list[dict[str, Any]]:
    """Return a build's outputs in the source's order, by name where the tool kept the names, else by shape."""
    by_name = {o["name"]: o for o in outputs}
    if all(o.name in by_name for o in source.outputs):
        return [by_name[o.name] for o in source.outputs]
    shapes = [tuple(o.shape) for o in source.outputs]
    if len(set(shapes)) == len(shapes):
        by_shape = {tuple(o["shape"]): o for o in outputs}
        if all(s in by_shape for s in shapes):
            return [by_shape[s] for s in shapes]
    return outputs


def _open(found: Mapping[str, Any], artifact: Path) -> dict[str, Callable[[], Any]]:
    """Return name -> from the same frame to the outputs: folded or not, all preprocess and infer."""
    import onnxruntime as ort

    from converters.evaluate import open_model
    from converters.images import read
    from edge_sdk.artifact import Artifact

    frame = read(found["image"])
    runs: dict[str, Callable[[], Any]] = {}
    packed = Artifact.open(artifact)
    models = {"chosen": packed.load(options=dict(packed.manifest.runtime.options) | {"threads": 1})}
    for name, (manifest, file) in found["passed"].items():
        models[name] = open_model(manifest, str(file), found["labels"])
    for name, model in models.items():
        runs[name] = lambda m=model: m.infer(m.prepare(frame)[0])
    if found["source"] is not None:
        session = ort.InferenceSession(str(found["source"]), providers=["CPUExecutionProvider"])
        image = session.get_inputs()[0]
        feed = {image.name: np.random.default_rng(0).random(image.shape).astype(np.float32)}
        runs["source"] = lambda: session.run(None, feed)
    return runs


def _time(runs: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Return CPU ms of each round; the source by itself, since its threads spin on when it has answered."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    alike = [name for name in runs if name != "source"]
    rng = np.random.default_rng(0)
    start = time.process_time()
    for number in range(ROUNDS[1]):
        if number >= ROUNDS[0] and time.process_time() - start > TIMING_S:
            break
        for index in rng.permutation(len(alike)):
            runs[alike[index]]()
            samples[alike[index]].append(_cpu_ms(runs[alike[index]]))
    if "source" in runs:
        for _ in range(SOURCE_ROUNDS):
            samples["source"].append(_cpu_ms(runs["source"]))
    return {name: np.asarray(values) for name, values in samples.items()}


def _cpu_ms(run: Callable[[], Any]) -> float:
    start = time.process_time_ns()
    for _ in range(3):
        run()
    return (time.process_time_ns() - start) / 3e6


def _bound(chosen: Any, best: Any) -> tuple[float, float]:
    """Return the ratio of the medians and the upper end of its 95 % bootstrap interval, rounds drawn in pairs."""
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(chosen), (2000, len(chosen)))
    ratios = np.median(chosen[draws], axis=1) / np.median(best[draws], axis=1)
    return float(np.median(chosen) / np.median(best)), float(np.quantile(ratios, 0.975))
