"""The update state machine: what a device does next, as a pure function of what it remembers and what happened.

IDLE → OFFERED → DOWNLOADING → VERIFYING → STAGED → TESTED → TRIAL → COMMITTED. Trouble before TRIAL → PAUSED (tried
again) → FAILED, nothing was switched. Trouble in TRIAL → ROLLING_BACK → ROLLED_BACK, the digest is blacklisted; when
that fails → SAFE_MODE with the factory slot. The caller saves the state before it starts the job, and runs one job at a
time.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace

from edge_sdk.agent.state import KEEP_BLACKLIST, KEEP_TRANSITIONS, AgentState
from edge_sdk.backoff import Backoff
from edge_sdk.schemas.state import Desired, Phase, Transition

MAX_ERROR_CHARS = 400


class Job(enum.Enum):
    """What the daemon does for a phase: look up the target in TUF, fetch, install, test, switch, switch back."""

    LOOKUP = "lookup"
    DOWNLOAD = "download"
    INSTALL = "install"
    TEST = "test"
    SWAP = "swap"
    ROLL_BACK = "roll_back"
    SAFE_MODE = "safe_mode"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """`attempts` tries with `backoff` between, then one every `slow_s`."""

    attempts: int = 5
    backoff: Backoff = field(default_factory=lambda: Backoff(first_s=5.0, max_s=600.0))
    slow_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class Step:
    """The state to save and the job to start then."""

    state: AgentState
    job: Job | None = None


_NEXT = {
    Job.LOOKUP: Phase.DOWNLOADING,
    Job.DOWNLOAD: Phase.VERIFYING,
    Job.INSTALL: Phase.STAGED,
    Job.TEST: Phase.TESTED,
}
_JOB = {
    Phase.OFFERED: Job.LOOKUP,
    Phase.DOWNLOADING: Job.DOWNLOAD,
    Phase.VERIFYING: Job.INSTALL,
    Phase.STAGED: Job.TEST,
    Phase.TESTED: Job.SWAP,
    Phase.ROLLING_BACK: Job.ROLL_BACK,
    Phase.SAFE_MODE: Job.SAFE_MODE,
}
_BEFORE_TRIAL = (Phase.OFFERED, Phase.DOWNLOADING, Phase.PAUSED, Phase.VERIFYING, Phase.STAGED, Phase.TESTED)


def job_of(phase: Phase) -> Job | None:
    """Return the job that must run in a phase; None where the device rests."""
    return None if phase is Phase.SAFE_MODE else _JOB.get(phase)


def offer(state: AgentState, desired: Desired, now: float) -> Step:
    """Take up a desired state; one whose `rev` is not above the newest taken up changes nothing."""
    if desired.rev <= (state.next.rev if state.next else state.rev):
        return Step(state)
    if state.phase is Phase.TRIAL and desired.sha256 == state.active:
        return Step(replace(state, rev=desired.rev, desired=desired, config=dict(desired.config)))
    if state.phase is Phase.TRIAL:
        why = f"superseded by revision {desired.rev} during the trial"
        return _roll_back(replace(state, next=desired), why, now, blame=False)
    if state.phase is Phase.ROLLING_BACK:
        return Step(replace(state, next=desired))
    fresh = replace(
        state, rev=desired.rev, desired=desired, config=dict(desired.config), attempts=0, retry_at=None, error=None
    )
    fresh = _go(fresh, Phase.OFFERED, now)
    if desired.sha256 == state.committed == state.active:
        return Step(_go(fresh, Phase.COMMITTED, now))
    if desired.sha256 in state.blacklist:
        why = f"{desired.sha256[:12]} was rolled back on this device: {state.blacklist[desired.sha256]}"
        return Step(_go(fresh, Phase.FAILED, now, why))
    return Step(fresh, Job.LOOKUP)


def done(state: AgentState, job: Job, now: float) -> Step:
    """The job of the present phase ended well."""
    if _JOB.get(state.phase) is not job:
        return Step(state)
    if job in _NEXT:
        state = _go(replace(state, error=None), _NEXT[job], now)
        return Step(state, _JOB[state.phase])
    if job is Job.SWAP:
        assert state.desired is not None
        state = replace(state, active=state.desired.sha256, trial_crashes=0, trial_clean_stop=False)
        return Step(_go(state, Phase.TRIAL, now))
    if job is Job.ROLL_BACK:
        return _rolled_back(state, now)
    return Step(state)


def failed(  # noqa: PLR0917
    state: AgentState, job: Job, error: str, retriable: bool, now: float, policy: RetryPolicy, jitter: float
) -> Step:
    """The job of the present phase failed; `jitter` is a random number in [0, 1)."""
    if _JOB.get(state.phase) is not job:
        return Step(state)
    if job is Job.ROLL_BACK:
        state = _go(_blame(state), Phase.SAFE_MODE, now, f"rolling back failed: {error}")
        return Step(replace(state, active=state.factory, committed=state.factory), Job.SAFE_MODE)
    if job is Job.SAFE_MODE:
        return Step(replace(state, error=_short(f"safe mode failed: {error}")))
    if not retriable or job in (Job.TEST, Job.SWAP):
        return Step(_go(replace(state, retry_at=None), Phase.FAILED, now, error))
    attempts = state.attempts + 1
    if attempts < policy.attempts:
        wait_s = policy.backoff.delay_s(state.attempts, lambda: jitter)
        return Step(_go(replace(state, attempts=attempts, retry_at=now + wait_s), Phase.PAUSED, now, error))
    wait_s = policy.slow_s * (0.5 + jitter)
    return Step(_go(replace(state, attempts=attempts, retry_at=now + wait_s), Phase.FAILED, now, error))


def tick(state: AgentState, now: float) -> Step:
    """Try again when the wait is over; a clock that jumped back by more than a day does not prolong it."""
    waiting = state.phase in (Phase.PAUSED, Phase.FAILED) and state.retry_at is not None
    if not waiting or state.retry_at is None or now < state.retry_at < now + 86400:
        return Step(state)
    return Step(_go(replace(state, retry_at=None), Phase.OFFERED, now), Job.LOOKUP)


def commit(state: AgentState, now: float) -> Step:
    """The trial was good."""
    if state.phase is not Phase.TRIAL:
        return Step(state)
    previous = state.committed if state.committed != state.active else state.previous
    state = replace(state, committed=state.active, previous=previous, attempts=0, retry_at=None, error=None)
    return Step(_go(state, Phase.COMMITTED, now))


def trial_failed(state: AgentState, why: str, now: float, *, blame: bool) -> Step:
    """The trial was bad; without `blame` the digest may be tried again."""
    return _roll_back(state, why, now, blame=blame) if state.phase is Phase.TRIAL else Step(state)


def boot(state: AgentState, runs: str | None, now: float, *, max_crashes: int) -> Step:
    """Go on after a start of the agent; `runs` is the slot that is whole and will be run.

    An update before its trial begins again (a download goes on where it was). A trial goes on, unless the device or the
    agent died in it `max_crashes` times or its slot is damaged.
    """
    if state.phase is Phase.ROLLING_BACK:
        return Step(replace(state, active=state.committed), Job.ROLL_BACK)
    if state.phase is Phase.TRIAL:
        crashes = state.trial_crashes + (0 if state.trial_clean_stop else 1)
        state = replace(state, trial_crashes=crashes, trial_clean_stop=False)
        if runs != state.active:
            return _roll_back(state, "the slot on trial was damaged", now, blame=False)
        if crashes >= max_crashes:
            return _roll_back(state, f"the agent or the device died {crashes} times in the trial", now, blame=True)
        return Step(state)
    if runs != state.active:
        lost = state.active
        state = replace(state, active=runs, committed=runs)
        if lost is not None:
            state = replace(state, error=_short(f"slot {lost[:12]} is damaged, running {(runs or 'nothing')[:12]}"))
            if state.desired is not None and state.desired.sha256 == lost and state.phase is Phase.COMMITTED:
                return Step(_go(state, Phase.OFFERED, now, state.error), Job.LOOKUP)
    if state.phase in _BEFORE_TRIAL:
        return Step(_go(replace(state, retry_at=None), Phase.OFFERED, now), Job.LOOKUP)
    return Step(state)


def sent(state: AgentState, seq: int) -> AgentState:
    """Forget a transition that the broker has taken."""
    return replace(state, transitions=tuple(t for t in state.transitions if t.seq != seq))


def _roll_back(state: AgentState, why: str, now: float, *, blame: bool) -> Step:
    state = _go(replace(state, blame=blame), Phase.ROLLING_BACK, now, why)
    return Step(replace(state, active=state.committed), Job.ROLL_BACK)


def _rolled_back(state: AgentState, now: float) -> Step:
    state = _go(_blame(state), Phase.ROLLED_BACK, now, state.error)
    if state.next is not None:
        following, state = state.next, replace(state, next=None)
        return offer(state, following, now)
    return Step(state)


def _blame(state: AgentState) -> AgentState:
    if not state.blame or state.desired is None or state.desired.sha256 == state.committed:
        return state
    blacklist = dict(state.blacklist)
    blacklist.pop(state.desired.sha256, None)
    blacklist[state.desired.sha256] = state.error or "it failed its trial"
    while len(blacklist) > KEEP_BLACKLIST:
        del blacklist[next(iter(blacklist))]
    return replace(state, blacklist=blacklist)


def _go(state: AgentState, phase: Phase, now: float, error: str | None = None) -> AgentState:
    """Enter a phase and note the transition for the cloud."""
    error = _short(error) if error else None
    steps = state.transitions
    if state.desired is not None and phase is not state.phase:
        step = Transition(
            seq=state.seq,
            t=now,
            rev=state.desired.rev,
            release=state.desired.release,
            sha256=state.desired.sha256,
            rollout=state.desired.rollout,
            source=state.phase,
            to=phase,
            error=error,
        )
        steps = (*steps, step)[-KEEP_TRANSITIONS:]
    kept = error if error else state.error
    return replace(state, phase=phase, seq=state.seq + 1, transitions=steps, error=kept)


def _short(text: str) -> str:
    return text if len(text) <= MAX_ERROR_CHARS else text[: MAX_ERROR_CHARS - 1] + "…"
