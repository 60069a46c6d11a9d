"""Build, verify and time the candidates; pick the fastest that the guard lets pass."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from converters.backends.base import BuildRequest
from converters.candidates import Allowed, Candidate
from converters.frontends.base import FORMS, Source
from converters.metrics import scores, task
from converters.plan import Plan
from converters.recipe import Recipe
from converters.workers import Workshop
from device_profiles.machine import Machine
from device_profiles.probe import runs_here
from device_profiles.profile import INT8_DOT_FLAGS, Profile
from edge_sdk.errors import EdgeError, GuardrailError
from edge_sdk.parsing import write_dataclass
from edge_sdk.schemas.manifest import SCHEMA

logger = logging.getLogger(__name__)
VARIANTS = ((0, 0), (3, 0), (5, 1))
"""How many weighted layers stay float at the input and at the outputs, tried in this order until one passes."""
INT8_DOT_GAIN = 1.3
"""How much faster int8 networks are with an 8-bit dot product than without: an estimate, from int8 / fp32 of 0.84 to
1.09 with AVX512-VNNI and 1.13 to 1.25 with AVX2 alone (YOLOX-nano, ONNX Runtime and OpenVINO)."""
LATENCY_S = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a candidate. `status`: passed, chosen, refused (by a guard), failed (to build or run), skipped."""

    candidate: Candidate
    status: str
    reason: str | None = None
    files: tuple[Path, ...] = ()
    manifest: dict[str, Any] = field(default_factory=dict)
    size_bytes: int | None = None
    steps: tuple[str, ...] = ()
    metric: dict[str, Any] | None = None
    latency_ms: dict[str, Any] | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        row = {
            "runtime": self.candidate.runtime,
            "precision": self.candidate.precision,
            "variant": self.candidate.variant,
            "status": self.status,
            "reason": self.reason,
            "metric": self.metric,
            "latency_ms": self.latency_ms,
            "size_bytes": self.size_bytes,
            "steps": list(self.steps),
        }
        return {k: v for k, v in row.items() if v is not None or k == "reason"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything the search reads."""

    recipe: Recipe
    plan: Plan
    source: Source
    calibration: tuple[str, ...]
    golden: tuple[str, ...]
    judge: task.Judge | None
    work: Path


class Search:
    """One run over all candidates of all profiles; a lane (thread and worker process) for each runtime.

    Args:
        lanes: runtime -> its worker; the source is measured in the first one.
        say: called with a line for people when a step ends.
        clock: monotonic seconds.
        deadline: when no new candidate is begun any more.
    """

    def __init__(
        self,
        job: Job,
        lanes: Mapping[str, Workshop],
        say: Callable[[str], None],
        clock: Callable[[], float],
        deadline: float | None,
    ) -> None:
        self.job = job
        self.lanes = dict(lanes)
        self.say = say
        self.clock = clock
        self.deadline = deadline
        self.judge = job.judge
        self.source: task.Measured | None = None
        self.source_channels: Mapping[str, Any] = {"low": [], "high": []}

    def measure_source(self, worker: Workshop) -> task.Measured:
        """Run the source as it is, in the runtime of its reference form, over the golden set."""
        job = self.job
        out = job.work / "source.npz"
        reply = worker.call(
            "predict",
            manifest=self.source_manifest(),
            model=job.source.forms[job.source.reference],
            labels=list(job.plan.labels),
            images=list(job.golden),
            out=str(out),
        )
        arrays = _load(out)
        if self.judge is None:
            self.judge = task.agreement(job.plan.task, arrays, len(job.golden), job.plan.classes)
        self.source_channels = reply["channels"]
        dead = scores.collapse(self.source_channels, self.source_channels, job.plan.labels)
        if dead is not None:
            raise GuardrailError(
                f"the source model itself has collapsed: {dead}",
                hint="it was quantized badly or trained wrongly: convert the float model, or check --mean and --std",
            )
        self.source = self.judge.measure(arrays)
        return self.source

    def run(self, lanes: Mapping[str, Sequence[Candidate]]) -> dict[str, Outcome]:
        """Return the outcome of each candidate, and of the variants tried after an int8 build was refused, by key."""
        with ThreadPoolExecutor(max_workers=max(1, len(lanes))) as pool:
            futures = [pool.submit(self._lane, self.lanes[name], list(rows)) for name, rows in lanes.items()]
            try:
                found = [outcome for future in futures for outcome in future.result()]
            except BaseException:
                for worker in self.lanes.values():
                    worker.close()
                raise
        return {o.candidate.key: o for o in found}

    def _lane(self, worker: Workshop, queue: list[Candidate]) -> list[Outcome]:
        done: list[Outcome] = []
        while queue:
            candidate = queue.pop(0)
            outcome = self._try(worker, candidate)
            done.append(outcome)
            self.say(_line(outcome))
            after = VARIANTS.index((candidate.float_first, candidate.float_last)) + 1
            if outcome.status == "refused" and candidate.precision == "int8" and after < len(VARIANTS):
                first, last = VARIANTS[after]
                queue.insert(0, replace(candidate, float_first=first, float_last=last))
        return done

    def _try(self, worker: Workshop, candidate: Candidate) -> Outcome:
        if self.deadline is not None and self.clock() >= self.deadline:
            return Outcome(candidate=candidate, status="skipped", reason="the time of --budget-s was spent")
        start = self.clock()
        try:
            built = self._build(worker, candidate)
            return replace(self.verify(worker, built), seconds=round(self.clock() - start, 2))
        except EdgeError as error:
            status = "refused" if error.exit_code == 5 else "failed"
            return Outcome(candidate=candidate, status=status, reason=error.message)

    def _build(self, worker: Workshop, candidate: Candidate) -> Outcome:
        job = self.job
        request = BuildRequest(
            model=Path(job.source.forms[candidate.form]),
            out=job.work / candidate.key,
            precision=candidate.precision,
            input=job.plan.input,
            form=candidate.form,
            outputs=tuple(o.name for o in job.source.outputs),
            method=candidate.method,
            float_layers=candidate.float_layers,
            scheme=candidate.scheme,
            images=job.calibration if candidate.precision == "int8" else (),
            float_first=candidate.float_first,
            float_last=candidate.float_last,
        )
        reply = worker.call("build", backend=candidate.backend, request=request.to_json(), options={"threads": 1})
        return Outcome(
            candidate=candidate,
            status="passed",
            files=tuple(Path(f) for f in reply["files"]),
            manifest=self._manifest(candidate.runtime, reply["input"], reply["outputs"], reply["decoder_params"]),
            size_bytes=int(reply["bytes"]),
            steps=tuple(reply["steps"]),
        )

    def verify(self, worker: Workshop, built: Outcome) -> Outcome:
        """Run a build over the golden set in its runtime and put it before the guard; after `measure_source`."""
        job = self.job
        assert self.judge is not None
        assert self.source is not None
        out = job.work / f"{built.candidate.key}.npz"
        reply = worker.call(
            "predict",
            manifest=built.manifest,
            model=str(built.files[0]),
            labels=list(job.plan.labels),
            images=list(job.golden),
            out=str(out),
        )
        measured = self.judge.measure(_load(out))
        drop = self.source.value - measured.value
        low, high = task.interval(self.source, measured)
        metric = {
            "name": measured.name,
            "source": round(self.source.value, 6),
            "value": round(measured.value, 6),
            "drop": round(drop, 6),
            "n": measured.n,
            "drop_interval": [round(low, 6), round(high, 6)],
        } | {k: round(v, 6) for k, v in measured.more.items()}
        reason = self._guard(measured, drop, (low, high), reply["channels"])
        return replace(built, metric=metric, status="refused" if reason else "passed", reason=reason)

    def _guard(
        self, measured: task.Measured, drop: float, interval: tuple[float, float], channels: Mapping[str, Any]
    ) -> str | None:
        recipe = self.job.recipe
        assert self.source is not None
        dead = scores.collapse(self.source_channels, channels, self.job.plan.labels)
        if dead is not None:
            return f"collapsed: {dead}"
        if drop > recipe.max_drop + 1e-9:
            return (
                f"{measured.name} fell by {drop:.4f} ({self.source.value:.4f} -> {measured.value:.4f}, 95 % interval "
                f"{interval[0]:.4f} to {interval[1]:.4f}), the limit is {recipe.max_drop:g}"
            )
        if recipe.min_metric is not None and measured.value < recipe.min_metric:
            return f"{measured.name} is {measured.value:.4f}, --min-metric asks for {recipe.min_metric:g}"
        return None

    def time(self, worker: Workshop, outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
        """Return the outcomes with CPU latency, all that passed and the source measured in alternation."""
        passed = {k: o for k, o in outcomes.items() if o.status == "passed"}
        builds = [
            {"key": k, "manifest": o.manifest, "model": str(o.files[0]), "labels": list(self.job.plan.labels)}
            for k, o in passed.items()
        ]
        if not builds:
            return dict(outcomes)
        reply = worker.call("measure", builds=builds, image=self.job.golden[0], seconds=LATENCY_S)
        out = dict(outcomes)
        for key, outcome in passed.items():
            if key in reply["errors"]:
                out[key] = replace(outcome, status="failed", reason=str(reply["errors"][key]))
            else:
                out[key] = replace(outcome, latency_ms=dict(reply["latency_ms"][key]))
        return out

    def source_manifest(self) -> dict[str, Any]:
        """Return the manifest of the source itself, as the runtime of its reference form runs it."""
        source = self.job.source
        runtime = FORMS[source.reference]
        assert runtime is not None
        return self._manifest(
            runtime, write_dataclass(self.job.plan.input), [write_dataclass(o) for o in source.outputs]
        )

    def _manifest(
        self,
        runtime: str,
        spec: Mapping[str, Any],
        outputs: Sequence[Mapping[str, Any]],
        decoder_params: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        job = self.job
        return {
            "schema": SCHEMA,
            "name": job.plan.name,
            "version": job.recipe.version,
            "profile": "none",
            "task": job.plan.task,
            "source_sha256": job.source.sha256,
            "parent": None,
            "payload_digest": "",
            "files": {},
            "input": dict(spec),
            "outputs": [dict(o) for o in outputs],
            "decoder": {"name": job.plan.decoder, "params": dict(decoder_params or job.plan.decoder_params)},
            "runtime": {"name": runtime, "options": {"threads": 1}},
        }


def for_profile(
    profile: Profile, allowed: Sequence[Allowed], outcomes: Mapping[str, Outcome], machine: Machine
) -> tuple[Outcome, ...]:
    """Return the profile's candidates with figures as they hold for it, its limits applied and the fastest chosen."""
    rows: list[Outcome] = []
    for entry in allowed:
        if entry.reason is not None:
            rows.append(Outcome(candidate=entry.candidate, status="skipped", reason=entry.reason))
            continue
        for first, last in VARIANTS if entry.candidate.precision == "int8" else VARIANTS[:1]:
            key = replace(entry.candidate, float_first=first, float_last=last).key
            if key in outcomes:
                rows.append(_limited(_figures(outcomes[key], profile, machine), profile))
    best = min((o for o in rows if o.status == "passed"), key=_speed, default=None)
    if best is None:
        return tuple(rows)
    return tuple(replace(o, status="chosen") if o is best else _why_not(o, best) for o in rows)


def _speed(outcome: Outcome) -> tuple[float, bool, int]:
    assert outcome.latency_ms is not None
    return float(outcome.latency_ms["p50"]), outcome.candidate.precision != "fp32", outcome.size_bytes or 0


def _figures(outcome: Outcome, profile: Profile, machine: Machine) -> Outcome:
    if outcome.latency_ms is None:
        return outcome
    latency = dict(outcome.latency_ms)
    if runs_here(profile, machine):
        return replace(outcome, latency_ms=latency | {"kind": "measured"})
    factor = 1.0
    if outcome.candidate.precision == "int8":
        here = bool(INT8_DOT_FLAGS & set(machine.isa))
        factor = INT8_DOT_GAIN ** (here - profile.has_int8_dot)
    scaled = {k: round(latency[k] * factor, 3) for k in ("p50", "p95")}
    note = {"kind": "estimate", "measured_on": machine.label(), "measured_p50": latency["p50"], "factor": factor}
    return replace(outcome, latency_ms=latency | scaled | note)


def _limited(outcome: Outcome, profile: Profile) -> Outcome:
    if outcome.status != "passed":
        return outcome
    limits = profile.limits
    size_mb = (outcome.size_bytes or 0) / 2**20
    if limits.artifact_mb is not None and size_mb > limits.artifact_mb:
        reason = f"{size_mb:.1f} MiB, the profile `{profile.name}` allows {limits.artifact_mb:g}"
        return replace(outcome, status="refused", reason=reason)
    latency = outcome.latency_ms
    measured = latency is not None and latency["kind"] == "measured"
    if limits.latency_ms is not None and latency is not None and measured and latency["p50"] > limits.latency_ms:
        reason = f"{latency['p50']:.1f} ms, the profile `{profile.name}` allows {limits.latency_ms:g}"
        return replace(outcome, status="refused", reason=reason)
    return outcome


def _why_not(outcome: Outcome, best: Outcome) -> Outcome:
    if outcome.status != "passed" or outcome.latency_ms is None or best.latency_ms is None:
        return outcome
    ratio = outcome.latency_ms["p50"] / max(best.latency_ms["p50"], 1e-9)
    name = f"{best.candidate.runtime} {best.candidate.precision}"
    reason = f"{ratio:.2f} times the latency of {name}" if ratio >= 1.005 else f"as fast as {name}, which is simpler"
    return replace(outcome, reason=reason)


def _line(outcome: Outcome) -> str:
    c = outcome.candidate
    metric = f", {outcome.metric['name']} {outcome.metric['value']:.4f}" if outcome.metric else ""
    reason = f": {outcome.reason}" if outcome.reason else ""
    bits = "7-bit weights" if c.precision == "int8" and c.scheme.reduce_range else None
    notes = ", ".join(filter(None, (c.variant, bits)))
    variant = f" ({notes})" if notes else ""
    return f"  {c.runtime} {c.precision}{variant} {outcome.status}{metric}{reason} ({outcome.seconds:.1f} s)"


def _load(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as data:
        return {key: data[key] for key in data.files}


def monotonic() -> float:
    return time.monotonic()
