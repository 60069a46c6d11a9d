"""Memory and threads of builds, and each profile's rows with the chosen one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from converters.candidates import Allowed
from converters.recipe import Recipe
from converters.remote import RemoteWorkshop
from converters.search import Job, Outcome, choose, timing
from converters.workers import Workshop
from device_profiles.machine import Machine
from device_profiles.probe import runs_here
from device_profiles.profile import Profile

MEMORY_OF = 6
"""Of how many of the fastest builds the memory is measured when a profile limits it."""
THREADS_OF = 3
"""Of how many of the fastest builds threads are searched when a profile limits the latency; else of the chosen one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Measures what decides between builds that passed, on this machine or on the device."""

    recipe: Recipe
    profiles: Sequence[Profile]
    job: Job
    machine: Machine
    timer: Workshop
    device: RemoteWorkshop | None

    def memory(self, outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
        """Return the outcomes, the fastest with the memory of a process that runs them where a profile limits it."""
        limited = any(p.limits.ram_mb is not None for p in self.profiles)
        passed = sorted((o for o in outcomes.values() if o.status == "passed"), key=choose.speed)
        return dict(outcomes) | {o.candidate.key: self._with_memory(o) for o in passed[: MEMORY_OF if limited else 0]}

    def _with_memory(self, outcome: Outcome) -> Outcome:
        if self.device is not None:
            return timing.with_memory(self.job, outcome, self.device)
        fresh = Workshop("memory", job_limit_s=self.recipe.job_limit_s, memory_mb=self.recipe.memory_mb)
        try:
            return timing.with_memory(self.job, outcome, fresh)
        finally:
            fresh.close()

    def finish(
        self, profile: Profile, allowed: Sequence[Allowed], outcomes: Mapping[str, Outcome]
    ) -> tuple[Outcome, ...]:
        """Return the profile's rows with the chosen one, its threads searched where the profile is this machine's."""
        rows = choose.rows_of(profile, allowed, outcomes, self.machine)
        here = profile.arch != "any" and runs_here(profile, self.machine) and self.machine.cores > 1
        if here and profile.limits.latency_ms is not None:
            passed = sorted((o for o in rows if o.status == "passed"), key=choose.speed)
            rows = self._with_threads(profile, rows, [o.candidate.key for o in passed[:THREADS_OF]])
        chosen = choose.choose(rows, profile)
        # The fastest is not always the chosen one: a simpler build that is as fast wins, and limits refuse.
        while here and (without := [o.candidate.key for o in chosen if o.status == "chosen" and not o.threads]):
            rows = self._with_threads(profile, rows, without)
            if not all(o.threads for o in rows if o.candidate.key in without):
                break
            chosen = choose.choose(rows, profile)
        return tuple(
            choose.figures(self._with_memory(o), profile, self.machine)
            if o.status == "chosen" and o.ram_mb is None
            else o
            for o in chosen
        )

    def _with_threads(self, profile: Profile, rows: Sequence[Outcome], keys: Sequence[str]) -> tuple[Outcome, ...]:
        """Return the rows, those of the keys with their threads searched."""
        cores = min(self.machine.cores, profile.cores or self.machine.cores)

        def search_threads(outcome: Outcome) -> Outcome:
            support = profile.runtime(outcome.candidate.runtime, outcome.candidate.provider)
            options = {} if support is None else support.options
            return timing.with_threads(
                self.job,
                self.timer,
                outcome,
                options,
                cores=cores,
                prefer=self.recipe.prefer,
                limit=profile.limits.latency_ms,
            )

        return tuple(search_threads(o) if o.candidate.key in keys else o for o in rows)
