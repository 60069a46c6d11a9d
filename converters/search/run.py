"""Build and verify the candidates, in order of expected gain, and rescue int8 that the guard refused."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from converters.candidates import Candidate, as_it_came
from converters.errors import DiskFullError
from converters.metrics import scores, task
from converters.reasons import Reason
from converters.search import guard, rescue, timing
from converters.search.builds import Builds
from converters.search.job import Job
from converters.search.outcome import Outcome
from converters.search.queue import Queue, Task
from converters.workers import Workshop
from edge_sdk.errors import BackendError, EdgeError, GuardrailError

logger = logging.getLogger(__name__)
Rank = Callable[[Candidate, Mapping[str, float]], float]
Hopeless = Callable[[Outcome, Sequence[Outcome]], "str | None"]
_BASELINE_S = 1.0
_RESCUED = (Reason.DROP, Reason.COLLAPSED, Reason.MIN_METRIC, Reason.GUARD)


class Search:
    """One run over all candidates of all profiles; a worker process for each runtime.

    Args:
        workers: runtime -> its worker.
        say: called with a line for people when a step ends.
        clock: monotonic seconds.
        deadline: when no new candidate is begun any more.
        rank: expected latency of a candidate, given what fp32 takes in each runtime; the smallest is tried first.
        hopeless: why no rescue of a refused build can win, given it and what passed, with their latency; None where
            one may.
        slots: how many candidates are worked on at a time.
        device: worker on the device, which answers and is timed instead of this machine.
    """

    def __init__(
        self,
        job: Job,
        builds: Builds,
        workers: Mapping[str, Workshop],
        *,
        say: Callable[[str], None],
        clock: Callable[[], float],
        deadline: float | None = None,
        rank: Rank = lambda _candidate, _baselines: 1.0,
        hopeless: Hopeless = lambda _refused, _passed: None,
        slots: int = 2,
        device: Workshop | None = None,
    ) -> None:
        self.job = job
        self.builds = builds
        self.workers = dict(workers)
        self.say = say
        self.clock = clock
        self.deadline = deadline
        self.rank = rank
        self.hopeless = hopeless
        self.slots = slots
        self.device = device
        self.judge = job.judge
        self.source: guard.Seen | None = None
        self._raw: Path | None = None
        self.baselines: dict[str, float] = {}
        self.golden_looks = 0
        self._lock = threading.Lock()
        self._ended = False
        self._found: dict[str, Outcome] = {}
        self._rescue = rescue.Rescue(self)

    def measure_source(self, worker: Workshop) -> task.Measured:
        """Run the source as it is, in the runtime of its reference form, over the golden set.

        Raises:
            GuardrailError: its own class scores have collapsed.
        """
        job = self.job
        model = Path(job.source.forms[job.source.reference])
        found = self.builds.predict(worker, job.source_manifest(), model, job.golden, "source", keep=True)
        if self.judge is None:
            labels = job.plan.labels
            self.judge = task.agreement(job.plan.task, found.arrays, len(job.golden), job.plan.classes, labels)
        self.judge = task.with_source(self.judge, found.arrays)
        channels = found.reply["channels"]
        dead = scores.collapse(channels, channels, job.plan.labels)
        if dead is not None:
            raise GuardrailError(
                f"the source model itself has collapsed: {dead}",
                hint="it was quantized badly or trained wrongly: convert the float model, or check --mean and --std",
            )
        self._raw = found.outputs
        self.source = guard.Seen(measured=self.judge.measure(found.arrays), channels=channels)
        return self.source.measured

    def run(self, candidates: Sequence[Candidate]) -> dict[str, Outcome]:
        """Return the outcome of each candidate, and of the rescues of refused int8 builds, by key.

        fp32 comes first in every runtime: what it takes there is the base of the order of the rest. So does a source
        of integers that is kept as it came, which no other build may match.
        """
        first = [c for c in candidates if c.precision == "fp32" or self._kept(c)]
        rest = [c for c in candidates if c not in first]
        self._drain([Task(candidate=c) for c in first])
        if rest:
            self._measure_baselines()
        self._drain([Task(candidate=c) for c in rest])
        return dict(self._found)

    def attempt(self, worker: Workshop, candidate: Candidate) -> Outcome:
        """Return what became of one candidate: built, verified, judged; errors of its own are its reason."""
        if self.spent():
            return Outcome(
                candidate=candidate,
                status="skipped",
                reason="the time of --budget-s was spent",
                reason_kind=Reason.BUDGET,
            )
        start = self.clock()
        try:
            outcome = self.verify(worker, self.builds.build(worker, candidate))
        except DiskFullError:
            raise
        except EdgeError as error:
            outcome = failed(candidate, error)
        return replace(outcome, seconds=round(self.clock() - start, 2))

    def verify(self, worker: Workshop, built: Outcome) -> Outcome:
        """Run a build over the golden set in its runtime and put it before the guard; after `measure_source`."""
        assert self.judge is not None
        assert self.source is not None
        job, model = self.job, built.files[0]
        runner = self.runner(worker, built)
        found = self.builds.predict(runner, built.manifest, model, job.golden, built.candidate.key, against=self._raw)
        with self._lock:
            self.golden_looks += 1
        seen = guard.Seen(
            measured=self.judge.measure(found.arrays),
            channels=found.reply["channels"],
            outputs=found.reply.get("outputs") or (),
        )
        refused = guard.verdict(job, self.source, seen)
        done = replace(
            built,
            metric=guard.metric_row(self.source.measured, seen.measured),
            deltas=guard.deltas(self.source, seen),
            cached=built.cached and found.cached,
        )
        if refused is None:
            return done
        return replace(done, status="refused", reason_kind=refused[0], reason=refused[1])

    def runner(self, worker: Workshop, built: Outcome) -> Workshop:
        """Return the worker that runs a build: the device's, that of its environment, or `worker`."""
        return self.device or self.workers.get(built.candidate.environment, worker)

    def spent(self) -> bool:
        """Return whether the time of the budget is over."""
        return self.deadline is not None and self.clock() >= self.deadline

    def record(self, outcome: Outcome) -> None:
        """Keep an outcome and say it; after an interruption, what it cut short is neither."""
        with self._lock:
            if self._ended:
                return
            self._found[outcome.candidate.key] = outcome
        self.say(outcome.line())

    def found(self) -> list[Outcome]:
        """Return the outcomes so far."""
        with self._lock:
            return list(self._found.values())

    def _drain(self, tasks: Sequence[Task]) -> None:
        """Work on the tasks, and on those that follow from them, until none is left."""
        if not tasks:
            return
        queue = Queue(self._rank_of)
        queue.add(*tasks)
        runtimes = {t.candidate.runtime for t in tasks}
        with ThreadPoolExecutor(max_workers=max(1, min(self.slots, len(runtimes)))) as pool:
            futures = [pool.submit(self._work, queue) for _ in range(min(self.slots, len(runtimes)))]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self._ended = True
                queue.stop()
                for worker in self.workers.values():
                    worker.close()
                raise

    def _work(self, queue: Queue) -> None:
        try:
            while (task := queue.take()) is not None:
                queue.add(*self._one(task))
                queue.done(task)
        except BaseException:
            queue.stop()
            raise

    def _one(self, task: Task) -> list[Task]:
        worker = self.workers[task.candidate.runtime]
        if task.refused is not None:
            for outcome in self._rescue.tries(worker, task.refused):
                self.record(outcome)
            return []
        outcome = self.attempt(worker, task.candidate)
        if outcome.status in ("refused", "failed") and self.builds.request(task.candidate).base is not None:
            fresh = replace(task.candidate.plain, fresh=True)
            self.record(replace(outcome, reason=f"{outcome.reason} (with the scales of --base: tried again without)"))
            return [Task(candidate=fresh)]
        self.record(outcome)
        again = outcome.status == "refused" and outcome.reason_kind in _RESCUED and task.candidate.precision == "int8"
        return [Task(candidate=task.candidate, refused=outcome)] if again and not self._kept(task.candidate) else []

    def _kept(self, candidate: Candidate) -> bool:
        return as_it_came(self.job.source, candidate.form)

    def _rank_of(self, task: Task) -> float:
        return self.rank(task.candidate, self.baselines) * (1.0 if task.refused is None else rescue.LATER)

    def _measure_baselines(self) -> None:
        """Time the fp32 build of each runtime for a moment, for the order of the rest."""
        passed = {
            o.candidate.runtime: o for o in self.found() if o.status == "passed" and o.candidate.precision == "fp32"
        }
        worker = self.device or next(iter(self.workers.values()))
        builds = {o.candidate.key: o for o in passed.values()}
        reply = timing.measure(
            self.job, worker, builds, seconds=_BASELINE_S, others={} if self.device is not None else self.workers
        )
        for outcome in passed.values():
            latency = reply["latency_ms"].get(outcome.candidate.key)
            if latency is not None:
                self.baselines[outcome.candidate.runtime] = float(latency["p50"])
        if len(self.baselines) > 1:
            shown = ", ".join(f"{name} {ms:.2f} ms" for name, ms in sorted(self.baselines.items(), key=lambda i: i[1]))
            self.say(f"  fp32 in each runtime: {shown}")


def failed(candidate: Candidate, error: EdgeError) -> Outcome:
    """Return the outcome of a candidate whose build or check raised."""
    status, kind = ("refused", Reason.NONFINITE) if error.exit_code == 5 else ("failed", Reason.FAILED)
    if isinstance(error, BackendError):
        kind = Reason.UNSUPPORTED
    return Outcome(candidate=candidate, status=status, reason=error.message, reason_kind=kind)
