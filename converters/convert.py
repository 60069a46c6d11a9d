"""MODEL -> one artifact for each profile."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from converters import backends, candidates, frontends, papers, plan, search
from converters.data import Data, gather
from converters.frontends.base import Source, sniff
from converters.metrics import task
from converters.recipe import Recipe, parse_size
from converters.search import Outcome, Search
from converters.workers import Workshop
from device_profiles import profile as profiles
from device_profiles.machine import Machine, this_machine
from device_profiles.probe import describe
from device_profiles.profile import Profile, version_range
from edge_sdk import runtimes
from edge_sdk.errors import ConversionError, GuardrailError, UsageError

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """One artifact with the profile's candidates; `to_json` is what `edge convert --json` prints of it."""

    path: Path
    digest: str
    payload_digest: str
    profile: str
    chosen: Outcome
    size_bytes: int
    rows: tuple[Outcome, ...]

    def to_json(self) -> dict[str, Any]:
        chosen = self.chosen
        return {
            "path": str(self.path),
            "digest": self.digest,
            "payload_digest": self.payload_digest,
            "profile": self.profile,
            "chosen": {
                "runtime": chosen.candidate.runtime,
                "precision": chosen.candidate.precision,
                "variant": chosen.candidate.variant,
                "latency_ms": chosen.latency_ms,
                "size_bytes": self.size_bytes,
                "metric": chosen.metric,
            },
            "candidates": [o.to_json() for o in self.rows],
        }


def convert(recipe: Recipe, *, say: Say, clock: Callable[[], float]) -> tuple[Converted, ...]:
    """Search, verify and pack one artifact for each of the recipe's profiles.

    Raises:
        UsageError: the recipe does not decide everything.
        CalibrationError: a data set cannot be used.
        GuardrailError: no allowed candidate of a profile passed.
        ConversionError, BackendError: the model cannot be read or converted.
    """
    start = clock()
    wanted = _profiles(recipe)
    _check_model(recipe)
    _check_out(recipe.out)
    machine = this_machine()
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-convert-")))
        workers = {
            name: Workshop(name, job_limit_s=recipe.job_limit_s, memory_mb=recipe.memory_mb)
            for name in dict.fromkeys(["onnxruntime", *(r.name for p in wanted for r in p.runtimes)])
        }
        for worker in workers.values():
            stack.callback(worker.close)
        first = workers["onnxruntime"]
        run = _Run(
            recipe=recipe,
            profiles=wanted,
            machine=machine,
            work=work,
            workers=workers,
            say=say,
            clock=clock,
            start=start,
        )
        source = _inspect(recipe, work)
        for line in source.because:
            say(f"  {line}")
        return run.all(source, gather(recipe, first, say))


def _check_model(recipe: Recipe) -> None:
    if recipe.model is None and recipe.factory is None:
        raise UsageError("no model given", hint="edge convert MODEL --profile P")
    kind = sniff(recipe.model) if recipe.model is not None else "torch"
    frontends.check(kind, recipe)


def _inspect(recipe: Recipe, work: Path) -> Source:
    """Read the model in a process of its own, which the user's code and the framework it needs do not outlive."""
    reader = Workshop("model", job_limit_s=recipe.job_limit_s, memory_mb=recipe.memory_mb)
    try:
        return Source.from_json(
            reader.call(
                "inspect",
                path=str(recipe.model or ""),
                work=str(work),
                options={
                    "layout": recipe.layout,
                    "size": parse_size(recipe.size) if recipe.size else None,
                    "color": recipe.color,
                    "factory": recipe.factory,
                    "opset": recipe.opset,
                    "signature": recipe.signature,
                },
            )
        )
    finally:
        reader.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    recipe: Recipe
    profiles: Sequence[Profile]
    machine: Machine
    work: Path
    workers: Mapping[str, Workshop]
    say: Say
    clock: Callable[[], float]
    start: float

    def all(self, source: Source, data: Data) -> tuple[Converted, ...]:
        recipe, golden = self.recipe, data.golden
        decided = plan.decide(recipe, source, labelled_for=golden.task, names=golden.names)
        calibrated = data.calibration is not None
        allowed = {
            p.name: candidates.of_profile(p, recipe, source, self.machine, calibrated=calibrated) for p in self.profiles
        }
        for name, rows in allowed.items():
            if all(r.reason is not None for r in rows):
                raise _nothing_to_try(name, rows)
        judge = None
        if golden.task is not None and not (recipe.golden is None and golden.task != decided.task):
            judge = task.labelled(decided.task, golden, data.sizes, decided.classes, decided.labels)
        else:
            self.say("  no labels: builds are judged by their agreement with the source")
        job = search.Job(
            recipe=recipe,
            plan=decided,
            source=source,
            calibration=tuple(str(s.image) for s in data.calibration.samples) if data.calibration else (),
            golden=tuple(str(s.image) for s in golden.samples),
            judge=judge,
            work=self.work,
        )
        deadline = None if recipe.budget_s is None else self.start + recipe.budget_s
        found = Search(job, self.workers, self.say, self.clock, deadline)
        measured = found.measure_source(self.workers["onnxruntime"])
        self.say(f"  source: {measured.name} {measured.value:.4f} on {measured.n} images")
        if measured.value <= 0 and judge is not None:
            raise ConversionError(
                f"the source itself has {measured.name} 0 on the golden set, so nothing can be compared",
                hint="check --color, --mean, --std, --resize, and that the labels are for this model",
            )
        outcomes = found.run(candidates.unique(allowed))
        outcomes = found.time(self.workers["onnxruntime"], outcomes)
        finished = {p.name: search.for_profile(p, allowed[p.name], outcomes, self.machine) for p in self.profiles}
        for name, results in finished.items():
            _check_any(name, results)
        return tuple(self._pack(p, finished[p.name], source, data, decided) for p in self.profiles)

    def _pack(
        self, profile: Profile, rows: tuple[Outcome, ...], source: Source, data: Data, decided: plan.Plan
    ) -> Converted:
        recipe = self.recipe
        chosen = next(o for o in rows if o.status == "chosen")
        support = profile.runtime(chosen.candidate.runtime)
        assert support is not None
        low, high = version_range(support.versions)
        manifest = dict(chosen.manifest)
        manifest["profile"] = profile.name
        manifest["metric"] = dict(chosen.metric or {})
        manifest["licences"] = dict(recipe.licences)
        manifest["runtime"] = {
            "name": support.name,
            "min": low,
            "max": high,
            "options": {"threads": 1, **support.options}
            | ({} if support.provider == "CPU" else {"provider": support.provider}),
        }
        manifest["conversion"] = {
            "precision": chosen.candidate.precision,
            "variant": chosen.candidate.variant,
            "steps": list(chosen.steps),
            "calibration": data.paper(data.calibration) if chosen.candidate.precision == "int8" else None,
            "golden": data.paper(data.golden),
        }
        evidence = self._evidence(rows, chosen, source, data)
        path = recipe.out / f"{decided.name}-{recipe.version}-{profile.name}.edge"
        packed = self.workers["onnxruntime"].call(
            "pack",
            out=str(path.resolve()),
            manifest=manifest,
            files=[str(f) for f in chosen.files],
            labels=list(decided.labels),
            images=[str(s.image) for s in data.golden.samples],
            evidence=evidence,
            card=papers.card(manifest, evidence),
            bom=papers.bom(manifest, evidence, _sha256(chosen.files[0])),
        )
        return Converted(
            path=path,
            digest=packed["digest"],
            payload_digest=packed["payload_digest"],
            profile=profile.name,
            chosen=chosen,
            size_bytes=packed["size_bytes"],
            rows=rows,
        )

    def _evidence(self, rows: Sequence[Outcome], chosen: Outcome, source: Source, data: Data) -> dict[str, Any]:
        return {
            "chosen": chosen.to_json(),
            "candidates": [o.to_json() for o in rows],
            "source": {
                "format": source.format,
                "sha256": source.sha256,
                "opset": source.opset,
                "recognised": list(source.because),
            },
            "calibration": data.paper(data.calibration),
            "golden": data.paper(data.golden),
            "limits": {"max_drop": self.recipe.max_drop, "min_metric": self.recipe.min_metric},
            "machine": describe(self.machine),
            "tools": _tools(),
            "python": platform.python_version(),
            "threads": 1,
            "seed": 0,
            "converted_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(self.clock() - self.start, 1),
        }


def _profiles(recipe: Recipe) -> list[Profile]:
    if not recipe.profile:
        raise UsageError(
            "no device profile given",
            hint="--profile NAME; `edge profile list` shows them, `edge profile probe` measures this machine",
        )
    found = [profiles.load(name) for name in dict.fromkeys(recipe.profile)]
    names = [p.name for p in found]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise UsageError(f"two profiles are called `{twice}`", hint="give each its own name")
    for name in recipe.runtime:
        runtimes.registry().plugin(name)
    for name in recipe.backend:
        backends.registry().plugin(name)
    return found


def _check_out(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make the folder {out}: {error.strerror}", hint="give another one with --out"
        ) from None
    if not os.access(out, os.W_OK):
        raise UsageError(f"cannot write into {out}", hint="give another one with --out")


def _nothing_to_try(name: str, rows: Sequence[candidates.Allowed]) -> UsageError:
    lines = [f"  {r.candidate.runtime} {r.candidate.precision}: {r.reason}" for r in rows]
    return UsageError(
        "\n".join([f"the profile `{name}` leaves nothing to build", *lines]),
        hint="lift a restriction, or name another profile",
    )


def _check_any(name: str, rows: Sequence[Outcome]) -> None:
    """Raise the error that fits when no candidate of the profile was chosen."""
    if any(o.status == "chosen" for o in rows):
        return
    lines = [
        f"  {o.candidate.runtime} {o.candidate.precision}{f' ({o.candidate.variant})' if o.candidate.variant else ''} "
        f"{o.status}: {o.reason}"
        for o in rows
    ]
    text = "\n".join([f"no build for `{name}` may be used", *lines])
    if any(o.status == "refused" for o in rows):
        raise GuardrailError(text, hint="allow fp32, raise --max-drop, or give more calibration images")
    if any(o.status == "failed" for o in rows):
        raise ConversionError(text, hint="run again with -v for what the tools said")
    raise ConversionError(text, hint="give more time with --budget-s")


def _tools() -> dict[str, str]:
    names = ("edge-sdk", "onnx", "onnxruntime", "openvino", "nncf", "numpy", "opencv-python-headless", "pycocotools")
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()
