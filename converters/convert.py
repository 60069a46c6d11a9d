"""MODEL -> one artifact for each profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from converters import (
    backends,
    base,
    candidates,
    checks,
    environments,
    frontends,
    plan,
    workplace,
)
from converters.cache import Cache, default_root
from converters.data import Data, check_scale, gather
from converters.environments import bridge
from converters.environments.make import ensure
from converters.environments.workshop import ForeignWorkshop
from converters.errors import disk_full, no_space
from converters.figures import Figures
from converters.frontends.base import Source, sniff
from converters.metrics import task
from converters.metrics.task import Measured
from converters.packing import Papers
from converters.recipe import Recipe, parse_size
from converters.remote import RemoteWorkshop
from converters.results import Conversion, Unbuilt, nothing_to_try, together
from converters.search import Builds, Job, Search, choose, order, timing, worth
from converters.workers import Workshop
from device_profiles import profile as profiles
from device_profiles.machine import Machine, this_machine, usable_cores
from device_profiles.probe import describe
from device_profiles.profile import Profile
from edge_sdk import runtimes
from edge_sdk.errors import ArtifactError, UsageError
from edge_sdk.remote import parse_host

Say = Callable[[str], None]


def convert(recipe: Recipe, *, say: Say, clock: Callable[[], float]) -> Conversion:
    """Search, verify and pack one artifact for each of the recipe's profiles that a build may be used for.

    Raises:
        UsageError: the recipe does not decide everything, or leaves nothing to build for any profile.
        CalibrationError: a data set cannot be used.
        GuardrailError: no allowed candidate of any profile passed.
        ConversionError, BackendError: the model cannot be read or converted, or a disk is full.
    """
    start = clock()
    wanted = _profiles(recipe)
    _check_model(recipe)
    workplace.check_out(recipe.out)
    machine = this_machine()
    try:
        with ExitStack() as stack:
            stack.enter_context(workplace.ended_by_sigterm())
            work = stack.enter_context(workplace.folder())
            workers = {
                name: Workshop(name, job_limit_s=recipe.job_limit_s, memory_mb=recipe.memory_mb)
                for name in dict.fromkeys(["main", *(r.name for p in wanted for r in p.runtimes)])
            }
            for worker in workers.values():
                stack.callback(worker.close)
            for name, foreign in _environments(recipe, wanted, say).items():
                workers[name] = foreign
                stack.callback(foreign.close)
            device = _device(recipe, stack, say)
            run = _Run(
                recipe=recipe,
                profiles=wanted,
                machine=machine if device is None else device.machine,
                device=device,
                work=work,
                workers=workers,
                say=say,
                clock=clock,
                start=start,
            )
            source = _inspect(recipe, work)
            for line in source.because:
                say(f"  {line}")
            source = bridge.extend(source, recipe, wanted, bridge.Place(work=work, worker=workers["main"], say=say))
            return run.all(source, gather(recipe, workers["main"], say))
    except OSError as error:
        full = disk_full(error)
        if full is None:
            raise
        raise no_space(full) from None


def _environments(recipe: Recipe, wanted: Sequence[Profile], say: Say) -> dict[str, Workshop]:
    """Return workers in the environments of runtimes that cannot live here, of those that are there or asked for."""
    found: dict[str, Workshop] = {}
    allowed = [r for p in wanted for r in p.runtimes if r.name in (recipe.runtime or (r.name,))]
    for name in filter(None, dict.fromkeys(candidates.environment_of(r) for r in allowed)):
        environment = environments.TABLE[name]
        python = environments.find(environment)
        if python is None and recipe.make_environments:
            python = ensure(environment, say=say)
        if python is not None:
            found[name] = ForeignWorkshop(
                environment, python, job_limit_s=recipe.job_limit_s, memory_mb=recipe.memory_mb
            )
    return found


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
    device: RemoteWorkshop | None = None

    @property
    def timer(self) -> Workshop:
        """Return the worker that times builds: the device's, or this machine's."""
        return self.device or self.workers["main"]

    @property
    def _foreign(self) -> Mapping[str, Workshop]:
        """Return the workers of environments that time their own builds: none where the device does."""
        return {k: w for k, w in self.workers.items() if k in environments.TABLE} if self.device is None else {}

    def all(self, source: Source, data: Data) -> Conversion:
        recipe, golden = self.recipe, data.golden
        decided = plan.decide(recipe, source, labelled_for=golden.task, names=golden.names, points=golden.points)
        golden = golden.for_task(decided.task)
        data = replace(data, golden=golden)
        check_scale(data, decided.input.width, decided.input.height, self.say)
        calibrated = data.calibration is not None
        allowed = {
            p.name: candidates.of_profile(p, recipe, source, self.machine, calibrated=calibrated) for p in self.profiles
        }
        barred = tuple(self._barred(p, allowed[p.name]) for p in self.profiles if _empty(allowed[p.name]))
        if len(barred) == len(self.profiles):
            raise together(barred, of=len(self.profiles))
        for unbuilt in barred:
            self.say(f"  {unbuilt.error.message.splitlines()[0]}: the others go on")
        names = {u.profile for u in barred}
        rest = replace(self, profiles=tuple(p for p in self.profiles if p.name not in names))
        return rest._search(data, self._job(source, data, decided), allowed, barred)

    def _barred(self, profile: Profile, rows: tuple[candidates.Allowed, ...]) -> Unbuilt:
        skipped = choose.rows_of(profile, rows, {}, self.machine)
        return Unbuilt(profile=profile.name, error=nothing_to_try(profile.name, rows), rows=skipped)

    def _search(
        self,
        data: Data,
        job: Job,
        of_all: Mapping[str, tuple[candidates.Allowed, ...]],
        barred: tuple[Unbuilt, ...],
    ) -> Conversion:
        """Search for this run's profiles; `barred` are the others, of which the report tells too."""
        recipe = self.recipe
        allowed = {p.name: of_all[p.name] for p in self.profiles}
        there = None if self.device is None else describe(self.machine)
        remote = None if self.device is None else self.device.remote
        builds = Builds(job, self._cache(), this_machine().isa, there, remote)
        found = Search(
            job,
            builds,
            self.workers,
            say=self.say,
            clock=self.clock,
            deadline=None if recipe.budget_s is None else self.start + recipe.budget_s,
            rank=lambda c, fp32: order.expected(c, allowed, {p.name: p for p in self.profiles}, fp32),
            hopeless=lambda refused, passed: worth.hopeless(
                refused, passed, allowed, self.profiles, self.machine, asked=recipe.precision
            ),
            slots=max(1, usable_cores()),
            device=self.device,
        )
        measured = _measured(found, self.workers["main"])
        self.say(f"  source: {measured.name} {measured.value:.4f} on {measured.n} images")
        assert found.judge is not None
        beside = checks.beside_reference(job, self.workers["main"], self.say)
        checks.source(found.judge, measured, job, self.say)
        sure = checks.ranges(job, self.workers["main"], self.say) if _quantizes(allowed) else {}
        wanted = candidates.unique(allowed)
        outcomes = found.run(wanted if job.base is None else base.layers_of(job.base, wanted))
        outcomes, latency = timing.time_all(job, self.timer, outcomes, self._foreign)
        figures = Figures(
            recipe=recipe,
            profiles=self.profiles,
            job=job,
            machine=self.machine,
            timer=self.timer,
            device=self.device,
        )
        outcomes = figures.memory(outcomes)
        about = {
            "metric": {"name": measured.name, "value": round(measured.value, 6), "n": measured.n},
            "latency_ms": latency,
        }
        finished = {p.name: figures.finish(p, allowed[p.name], outcomes) for p in self.profiles}
        papers = Papers(
            recipe=recipe,
            profiles=self.profiles,
            job=job,
            data=data,
            machine=self.machine,
            workers=self.workers,
            device=self.device,
            say=self.say,
        )
        chosen = [o for rows in finished.values() for o in rows if o.status == "chosen"]
        if beside:
            beside["reference"]["builds"] = checks.builds_beside(chosen, job, self.workers, self.say)
        if not found.spent():
            sure |= checks.half(chosen, builds, found.judge, self.workers, self.say)
        run = {"golden_looks": found.golden_looks, "of_source": about, **beside}
        run |= {"convergence": sure} if sure else {}
        run["seconds"] = round(self.clock() - self.start, 1)
        found_all = papers.pack(finished, run)
        found_all = replace(found_all, unbuilt=(*barred, *found_all.unbuilt))
        papers.report(finished | {u.profile: u.rows for u in barred}, about, found_all.done)
        if not found_all.done:
            raise together(found_all.unbuilt, of=len(finished) + len(barred))
        return found_all

    def _job(self, source: Source, data: Data, decided: plan.Plan) -> Job:
        recipe, golden = self.recipe, data.golden
        judge = None
        if golden.task is not None and (golden.serves(decided.task) or recipe.golden is not None):
            judge = task.labelled(decided.task, golden, data.sizes, decided.classes, decided.labels)
        else:
            self.say("  no labels: builds are judged by their agreement with the source")
        return Job(
            recipe=recipe,
            plan=decided,
            source=source,
            calibration=tuple(str(s.image) for s in data.calibration.samples) if data.calibration else (),
            golden=tuple(str(s.image) for s in golden.samples),
            judge=judge,
            work=self.work,
            hashes={str(path): sha256 for path, sha256 in data.hashes.items()},
            base=None if recipe.base is None else base.open_base(recipe.base, decided, self.profiles, self.work),
        )

    def _cache(self) -> Cache:
        root = (self.recipe.cache or default_root()) if self.recipe.use_cache else None
        return Cache(root, limit_mb=self.recipe.cache_mb, say=self.say)


def _measured(found: Search, worker: Workshop) -> Measured:
    """Return the source's metric.

    Raises:
        UsageError: its outputs are not what the decoder reads.
    """
    try:
        return found.measure_source(worker)
    except ArtifactError as error:
        raise UsageError(
            f"the model does not answer as was said: {error.message}",
            hint="compare --decoder and --task, or decoder_params in a recipe, with the model's outputs",
        ) from None


def _empty(rows: Sequence[candidates.Allowed]) -> bool:
    """Return whether no candidate of a profile may be tried."""
    return all(r.reason is not None for r in rows)


def _quantizes(allowed: Mapping[str, Sequence[candidates.Allowed]]) -> bool:
    """Return whether a candidate that calibrates will be tried."""
    tried = (a.candidate.precision for rows in allowed.values() for a in rows if a.reason is None)
    return any(precision in candidates.INTEGER for precision in tried)


def _device(recipe: Recipe, stack: ExitStack, say: Say) -> RemoteWorkshop | None:
    """Return the worker on the device of `--on`, or None where nothing but this machine measures."""
    if recipe.on is None:
        return None
    device = RemoteWorkshop(parse_host(recipe.on), job_limit_s=recipe.job_limit_s, memory_mb=recipe.memory_mb)
    stack.callback(device.close)
    say(f"  builds are verified and timed on {device.name}: {device.machine.label()}")
    return device


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
