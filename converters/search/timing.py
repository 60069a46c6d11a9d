"""Latency, threads and memory of builds, measured on this machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from converters.reasons import Reason
from converters.search.job import Job
from converters.search.outcome import Outcome
from converters.workers import Workshop
from edge_sdk.errors import EdgeError

logger = logging.getLogger(__name__)
LATENCY_S = 6.0
THREADS_S = 1.6
"""Wall time of one setting of threads and sessions."""
MOST_CORES = 8
SOURCE = "source"


def measure(
    job: Job,
    worker: Workshop,
    outcomes: Mapping[str, Outcome],
    *,
    seconds: float,
    source: bool = False,
    others: Mapping[str, Workshop] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the reply of `converters.measure.measure` for builds by key, and with `source` for the source as it is.

    Builds of an environment that `others` has a worker for are timed there, after those that alternate here.
    """
    apart = {k: o for k, o in outcomes.items() if o.candidate.environment in others}
    reply = _alternate(job, worker, {k: o for k, o in outcomes.items() if k not in apart}, seconds, source=source)
    for name in sorted({o.candidate.environment for o in apart.values()}):
        mine = {k: o for k, o in apart.items() if o.candidate.environment == name}
        more = _alternate(job, others[name], mine, seconds, source=False)
        reply = {part: reply[part] | more[part] for part in reply}
    return reply


def _alternate(
    job: Job, worker: Workshop, outcomes: Mapping[str, Outcome], seconds: float, *, source: bool
) -> dict[str, Any]:
    labels = list(job.plan.labels)
    builds = [
        {"key": k, "manifest": o.manifest, "model": str(o.files[0]), "labels": labels} for k, o in outcomes.items()
    ]
    if source:
        model = str(Path(job.source.forms[job.source.reference]))
        builds.append({"key": SOURCE, "manifest": job.source_manifest(), "model": model, "labels": labels})
    if not builds:
        return {"latency_ms": {}, "errors": {}}
    return dict(worker.call("measure", builds=builds, image=job.golden[0], seconds=seconds))


def time_all(
    job: Job, worker: Workshop, outcomes: Mapping[str, Outcome], others: Mapping[str, Workshop]
) -> tuple[dict[str, Outcome], dict[str, Any] | None]:
    """Return (the outcomes with CPU latency, the source's): all that passed and the source measured in alternation."""
    passed = {k: o for k, o in outcomes.items() if o.status == "passed"}
    if not passed:
        return dict(outcomes), None
    reply = measure(job, worker, passed, seconds=LATENCY_S, source=True, others=others)
    out = dict(outcomes)
    for key, outcome in passed.items():
        if key in reply["errors"]:
            out[key] = replace(outcome, status="failed", reason_kind=Reason.FAILED, reason=str(reply["errors"][key]))
        else:
            out[key] = replace(outcome, latency_ms=dict(reply["latency_ms"][key]))
    return out, reply["latency_ms"].get(SOURCE)


def with_memory(job: Job, outcome: Outcome, fresh: Workshop) -> Outcome:
    """Return the outcome with the peak resident memory of a fresh process that loads and runs the build.

    Without it where such a process cannot run it: a runtime of another environment, or a process that died.
    """
    try:
        reply = fresh.call(
            "footprint",
            manifest=outcome.manifest,
            model=str(outcome.files[0]),
            labels=list(job.plan.labels),
            image=job.golden[0],
        )
    except EdgeError as error:
        logger.info("no memory of %s: %s", outcome.candidate.key, error.message)
        return outcome
    finally:
        fresh.stop()
    return replace(
        outcome, ram_mb={"peak": round(float(reply["peak_mb"]), 1), "start": round(float(reply["start_mb"]), 1)}
    )


def with_threads(
    job: Job,
    worker: Workshop,
    outcome: Outcome,
    options: Mapping[str, Any],
    *,
    cores: int,
    prefer: str,
    limit: float | None,
) -> Outcome:
    """Return the outcome with wall latency and throughput of numbers of threads and sessions, and the best options.

    Args:
        options: the profile's, for everything but `threads`.
        prefer: throughput (over all cores) or latency (of one frame).
        limit: milliseconds that p50 must stay below; the settings that do win over those that do not.
    """
    settings = [
        {"threads": n, "sessions": max(1, min(cores, MOST_CORES) // n)} for n in thread_counts(min(cores, MOST_CORES))
    ]
    try:
        rows = worker.call(
            "threads",
            manifest=outcome.manifest | {"runtime": {"name": outcome.candidate.runtime, "options": dict(options)}},
            model=str(outcome.files[0]),
            labels=list(job.plan.labels),
            image=job.golden[0],
            settings=settings,
            seconds=THREADS_S,
        )
    except EdgeError as error:
        logger.warning("threads of %s were not searched: %s", outcome.candidate.key, error.message)
        return outcome
    best = choose_setting(rows, prefer=prefer, limit=limit)
    marked = tuple(dict(row) | {"chosen": row is best} for row in rows)
    return replace(outcome, threads=marked, options={"threads": int(best["threads"])})


def thread_counts(cores: int) -> list[int]:
    """Return 1, 2, 4, … up to the cores, the cores themselves among them."""
    counts = [1]
    while counts[-1] * 2 <= cores:
        counts.append(counts[-1] * 2)
    return sorted({*counts, cores})


def choose_setting(rows: list[Any], *, prefer: str, limit: float | None) -> Any:
    """Return the row that wins; fewer threads win unless more are 10 % better.

    Args:
        rows: threads, sessions, latency_ms p50 of one session alone, fps of all sessions together; threads rising.
    """
    fitting = [r for r in rows if limit is None or r["latency_ms"]["p50"] <= limit] or rows
    best = fitting[0]
    for row in fitting[1:]:
        if prefer == "latency":
            better = row["latency_ms"]["p50"] < 0.9 * best["latency_ms"]["p50"]
        else:
            better = row["fps"] > 1.1 * best["fps"]
        best = row if better else best
    return best
