"""What is looked at beside the search itself: the labels, the source, the user's reference, the calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters import convergence, reference
from converters.candidates import INTEGER
from converters.metrics import sanity
from converters.metrics.measured import Measured
from converters.metrics.notes import notes
from converters.metrics.task import Judge
from converters.search import Builds, Job, Outcome
from converters.workers import Workshop
from edge_sdk.errors import EdgeError, GuardrailError
from edge_sdk.parsing import write_dataclass

Say = Callable[[str], None]
LONG_S = 60.0
"""A build that took longer is not made twice."""
FEW_CALIBRATION = 64
"""Where no form of the source shows its activations, fewer images than this are called few."""


def source(judge: Judge, measured: Measured, job: Job, say: Say) -> None:
    """Say what is odd about the golden labels, and refuse a source that fails them.

    Raises:
        GuardrailError: the source is no better than chance on the golden set, or finds the classes and not the boxes;
            the message names the likely reason. `--min-metric` at or below its metric lets it pass.
    """
    for line in notes(judge):
        say(f"  {line}")
    assert judge.source is not None
    odd = sanity.check(judge, measured, judge.source, skip=int(job.plan.decoder_params.get("skip", 0)))
    if odd is None:
        return
    asked = job.recipe.min_metric
    if asked is not None and 0 < asked <= measured.value:
        say(f"  {odd.message}; --min-metric {asked:g} lets it pass")
        return
    raise GuardrailError(odd.message, hint=odd.hint)


def beside_reference(job: Job, worker: Workshop, say: Say) -> dict[str, Any]:
    """Run the recipe's reference beside the source and return `{"reference": …}` for the evidence; empty without one.

    Raises:
        GuardrailError: both disagree.
    """
    function = job.recipe.reference
    if function is None:
        return {}
    runner = Workshop("reference", job_limit_s=job.recipe.job_limit_s, memory_mb=job.recipe.memory_mb)
    try:
        found = reference.check(
            function,
            worker=worker,
            runner=runner,
            manifest=job.source_manifest(),
            model=Path(job.source.forms[job.source.reference]),
            labels=job.plan.labels,
            images=job.golden,
            task=job.plan.task,
            classes=job.plan.classes,
            work=job.work,
            say=say,
        )
    finally:
        runner.close()
    return {"reference": found}


def builds_beside(
    chosen: Iterable[Outcome], job: Job, workers: Mapping[str, Workshop], say: Say
) -> list[dict[str, Any]]:
    """Return how far each chosen build agrees with the reference's results, after `beside_reference`."""
    rows = []
    for outcome in _own(chosen):
        c = outcome.candidate
        try:
            found = workers[c.runtime].call(
                "beside",
                manifest=outcome.manifest,
                model=str(outcome.files[0]),
                labels=list(job.plan.labels),
                images=reference.spread(job.golden),
                reference=str(job.work / reference.RESULTS),
            )
        except EdgeError as error:
            say(f"  {c.runtime} {c.precision} was not run beside the reference: {error.message}")
            continue
        rows.append({"runtime": c.runtime, "precision": c.precision} | found)
        if found["agreement"] < reference.POOR:
            say(f"  {c.runtime} {c.precision} agrees with `{job.recipe.reference}` on {found['agreement']:.2f} only")
    return rows


def ranges(job: Job, worker: Workshop, say: Say) -> dict[str, Any]:
    """Compare the ranges of half the calibration images with those of all; return `{"ranges": …}` for the evidence."""
    n, most = len(job.calibration), convergence.MOST
    form = next((f for f in ("onnx", "tflite") if f in job.source.forms), None)
    if n == 0:
        return {}
    found = None
    if form is not None:
        try:
            reply = worker.call(
                "ranges",
                form=form,
                model=job.source.forms[form],
                spec=write_dataclass(job.plan.input),
                images=[job.calibration[int(i * max(1.0, n / most))] for i in range(min(n, most))],
            )
            if reply["names"]:
                low, high = np.array(reply["low"]), np.array(reply["high"])
                found = convergence.judge(reply["names"], low, high, have=n)
        except EdgeError as error:
            say(f"  the calibration's ranges cannot be checked: {error.message}")
    if found is None:
        if n < FEW_CALIBRATION:
            say(f"  {n} calibration images are few: add {FEW_CALIBRATION - n} for sure ranges")
        return {}
    if found.line is not None:
        say(f"  {found.line}")
    return {"ranges": found.to_json()}


def half(
    chosen: Iterable[Outcome], builds: Builds, judge: Judge, workers: Mapping[str, Workshop], say: Say
) -> dict[str, Any]:
    """Build the chosen integer builds again from half the calibration images, and compare their metric.

    Returns:
        `{"metric": [{runtime, precision, n, half, metric, of_half}]}` for the evidence; empty where none was chosen.
    """
    job = builds.job
    some = job.calibration[::2]
    rows = []
    for outcome in _own(chosen):
        c = outcome.candidate
        if c.precision not in INTEGER:
            continue
        if outcome.seconds > LONG_S:
            say(f"  {c.runtime} {c.precision} is not made again from half the calibration images: it took long")
            continue
        worker = workers[c.runtime]
        try:
            built = builds.build(worker, c, images=some)
            found = builds.predict(worker, built.manifest, built.files[0], job.golden, f"{c.key}-half")
        except EdgeError as error:
            say(f"  {c.runtime} {c.precision} from half the calibration images: {error.message}")
            continue
        value, before = float((outcome.metric or {})["value"]), judge.measure(found.arrays).value
        rows.append(
            {
                "runtime": c.runtime,
                "precision": c.precision,
                "n": len(job.calibration),
                "half": len(some),
                "metric": round(value, 6),
                "of_half": round(before, 6),
            }
        )
        if abs(value - before) > job.recipe.max_drop:
            say(
                f"  {c.runtime} {c.precision} still depends on how many images calibrate: {before:.4f} with "
                f"{len(some)}, {value:.4f} with {len(job.calibration)}: add about {len(job.calibration)}"
            )
    return {"metric": rows} if rows else {}


def _own(chosen: Iterable[Outcome]) -> list[Outcome]:
    """Return each outcome once, without those that only a vendor's compiler or another environment makes or runs."""
    found = {o.candidate.key: o for o in chosen if not o.candidate.compiler and not o.candidate.environment}
    return list(found.values())
