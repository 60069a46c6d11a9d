"""The state machine of a staged rollout: pure functions of what the store knows, the guards and the time."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cloud_sync.policies import RolloutPolicy
from cloud_sync.rollout.guardrails import GuardResult
from edge_sdk.schemas.state import Phase

ALIVE_TIMES = 10
NONE_RUNS = "no device of the stage runs the release"


class State(str, enum.Enum):
    """Where a rollout is."""

    DRAFT = "DRAFT"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    READY = "READY"
    RUNNING = "RUNNING"
    HELD = "HELD"
    PAUSED = "PAUSED"
    BAKING = "BAKING"
    COMPLETE = "COMPLETE"
    ROLLING_BACK = "ROLLING_BACK"
    ROLLED_BACK = "ROLLED_BACK"
    CANCELLED = "CANCELLED"


FINAL = (State.COMPLETE, State.ROLLED_BACK, State.CANCELLED)
WAITING = (State.DRAFT, State.AWAITING_APPROVAL, State.READY)
WATCHED = (State.RUNNING, State.BAKING, State.HELD, State.PAUSED)

QUEUED, NOTIFIED, SILENT, SUPERSEDED, INCOMPATIBLE = "QUEUED", "NOTIFIED", "SILENT", "SUPERSEDED", "INCOMPATIBLE"
COMMITTED, FAILED, ROLLED_BACK = Phase.COMMITTED.value, Phase.FAILED.value, Phase.ROLLED_BACK.value
BAD = (FAILED, ROLLED_BACK, Phase.SAFE_MODE.value)
SETTLED = (COMMITTED, *BAD, SILENT, SUPERSEDED, INCOMPATIBLE)
UNTOLD = (QUEUED, INCOMPATIBLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the service knows of one device in a rollout; times in seconds since the epoch.

    `rev` is the desired revision that told it to change, `undo_rev` the one that told it to go back, `took` whether the
    new artifact was ever switched on there, `waived` whether an operator accepted its silence.
    """

    device: str
    profile: str
    stage: int
    sha256: str | None
    state: str = QUEUED
    previous_sha256: str | None = None
    rev: int | None = None
    undo_rev: int | None = None
    took: bool = False
    waived: bool = False
    changed_at: float = 0.0
    committed_at: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a device last said, and the phases it went to (in order) for the revision that the rollout gave it."""

    rev: int | None = None
    digest: str | None = None
    phase: str | None = None
    error: str | None = None
    online: bool = False
    last_seen: float | None = None
    desired_rev: int = 0
    retired: bool = False
    phases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The state and stage to go to and why; the same as before when there is nothing to do."""

    state: State
    stage: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A rollout as `decide` needs it; `stage_at` is when its stage began, `reason` why it is where it is."""

    state: State
    stage: int
    stages: int
    stage_at: float
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What came from the devices with the new artifact: `windows` of each, and the errors expected in all of them."""

    windows: Mapping[str, int] = field(default_factory=dict)
    expected_errors: float = 0.0


def mirror(record: Record, seen: Seen, *, now: float, policy: RolloutPolicy, listening_since: float = 0.0) -> Record:
    """Return a device's record after what it said and the time that went by.

    Silence is counted from `listening_since` at the earliest: before, the service could not have heard anything.
    """
    if record.state in UNTOLD or record.state == SUPERSEDED:
        return record
    if seen.retired or seen.desired_rev > (record.undo_rev or record.rev or 0):
        return _moved(record, SUPERSEDED, now, error=None)
    took = record.took or seen.digest == record.sha256 or bool({"TRIAL", "COMMITTED"} & set(seen.phases))
    record = replace(record, took=took)
    state = _undo_state(record, seen) if record.undo_rev is not None else _forward_state(record, seen)
    if state != record.state:
        return _moved(record, state, now, error=seen.error if state in BAD else None)
    since = max(record.changed_at, listening_since)
    if _is_silent(record, seen, now, since=since, after_s=policy.silent_after_s):
        return _moved(record, SILENT, now, error=f"not heard from for {policy.silent_after_s:g} s")
    return record


def count_failed(records: Sequence[Record], *, now: float, policy: RolloutPolicy) -> int:
    """Return how many devices could not take the release, or fell silent after taking it."""
    return sum(
        (r.state in BAD and (r.state != FAILED or now - r.changed_at >= policy.failed_after_s))
        or (r.state == SILENT and r.took and not r.waived)
        for r in records
    )


def count_silent(records: Sequence[Record]) -> int:
    return sum(r.state == SILENT and not r.waived for r in records)


def told(records: Sequence[Record]) -> list[Record]:
    """Return the records of devices that were told to change and still follow this rollout."""
    return [r for r in records if r.state not in UNTOLD and r.state != SUPERSEDED]


def to_notify(progress: Progress, records: Sequence[Record], *, now: float, policy: RolloutPolicy) -> list[Record]:
    """Return the devices whose turn it is and that were not told yet."""
    last = progress.stage
    if progress.state is State.BAKING:
        last = progress.stages if now - progress.stage_at >= policy.bake_s else progress.stages - 1
    elif progress.state is not State.RUNNING:
        return []
    return [r for r in records if r.state == QUEUED and r.stage <= last]


def decide(
    progress: Progress,
    records: Sequence[Record],
    guards: Sequence[GuardResult],
    evidence: Evidence,
    *,
    now: float,
    policy: RolloutPolicy,
) -> Decision:
    """Return where the rollout goes next."""
    stay = Decision(state=progress.state, stage=progress.stage, reason=progress.reason)
    if progress.state is State.READY:
        return Decision(state=State.RUNNING, stage=0, reason="stage 1 began")
    if progress.state is State.ROLLING_BACK:
        return _undone(progress, records, stay)
    if progress.state not in WATCHED:
        return stay
    for guard in guards:
        if guard.tripped and guard.action == "rollback":
            return Decision(
                state=State.ROLLING_BACK, stage=progress.stage, reason=f"guard {guard.name}: {guard.detail}"
            )
    held = next((f"guard {g.name}: {g.detail}" for g in guards if g.tripped), None)
    if progress.state is State.PAUSED:
        return stay
    active = State.BAKING if progress.stage >= progress.stages else State.RUNNING
    if held is None and progress.state is State.RUNNING:
        held = _inconclusive(progress, records, evidence, now=now, policy=policy)
    if held is not None:
        return Decision(state=State.HELD, stage=progress.stage, reason=held)
    if progress.state is State.HELD:
        if progress.reason.startswith("guard"):
            return Decision(state=active, stage=progress.stage, reason="the guard is clear again")
        missing = _inconclusive(progress, records, evidence, now=now, policy=policy)
        if missing is None and active is State.RUNNING:
            return Decision(state=active, stage=progress.stage, reason="the evidence is complete")
        return stay
    if active is State.BAKING:
        waiting = [r for r in records if r.state not in SETTLED]
        if now - progress.stage_at >= policy.bake_s and not waiting:
            return Decision(state=State.COMPLETE, stage=progress.stage, reason=_summary(records))
        return stay
    if waits_for(progress, records, evidence, now=now, policy=policy):
        return stay
    if progress.stage + 1 < progress.stages:
        stage = progress.stage + 1
        return Decision(state=State.RUNNING, stage=stage, reason=f"stage {stage + 1} began")
    return Decision(state=State.BAKING, stage=progress.stages, reason="the last stage passed")


def waits_for(
    progress: Progress,
    records: Sequence[Record],
    evidence: Evidence,
    *,
    now: float,
    policy: RolloutPolicy,
) -> str | None:
    """Return what a running stage still waits for, or None when it may be passed."""
    members = [r for r in records if r.stage <= progress.stage]
    moving = [r for r in members if r.state not in SETTLED or (r.state == FAILED and _is_fresh(r, now, policy))]
    if moving:
        return f"{len(moving)} of {len(members)} devices to settle"
    committed = [r for r in members if r.state == COMMITTED]
    since = max([progress.stage_at, *(r.committed_at or r.changed_at for r in committed)])
    if now - since < policy.soak_s:
        return f"soak: {policy.soak_s - (now - since):.0f} s to go"
    few = [r for r in committed if evidence.windows.get(r.device, 0) < policy.min_windows]
    if few:
        return f"{len(few)} devices to send {policy.min_windows} windows with the new release"
    total = sum(evidence.windows.get(r.device, 0) for r in committed)
    if committed and total < policy.min_stage_windows:
        return f"{policy.min_stage_windows - total} more windows with the new release"
    if evidence.expected_errors < policy.min_expected_errors:
        return f"{policy.min_expected_errors - evidence.expected_errors:.1f} more expected errors of evidence"
    return None


def states(records: Sequence[Record]) -> dict[str, int]:
    """Return how many devices are in each state."""
    return dict(sorted(Counter(r.state for r in records).items()))


def _forward_state(record: Record, seen: Seen) -> str:
    if seen.rev == record.rev:
        if seen.phase in (None, Phase.IDLE.value, COMMITTED):
            if seen.digest == record.sha256:
                return COMMITTED
            went = [p for p in seen.phases if p in BAD]
            return went[-1] if went else record.state
        return str(seen.phase)
    last = seen.phases[-1] if seen.phases else None
    if last in (None, Phase.IDLE.value, COMMITTED):  # success counts only once the device reports the digest
        return record.state
    return str(last)


def _undo_state(record: Record, seen: Seen) -> str:
    if record.previous_sha256 is None:
        return record.state
    if seen.rev is not None and seen.rev >= (record.undo_rev or 0) and seen.digest == record.previous_sha256:
        return ROLLED_BACK
    return record.state if record.state in (SILENT, ROLLED_BACK) else Phase.ROLLING_BACK.value


def _is_silent(record: Record, seen: Seen, now: float, *, since: float, after_s: float) -> bool:
    quiet_s = now - max(since, seen.last_seen or 0.0)
    if record.state == COMMITTED:
        return not seen.online and quiet_s > after_s
    if record.state in SETTLED:
        return False
    if record.state == NOTIFIED:
        return now - since > after_s
    return quiet_s > after_s or now - since > ALIVE_TIMES * after_s


def _is_fresh(record: Record, now: float, policy: RolloutPolicy) -> bool:
    return now - record.changed_at < policy.failed_after_s


def _moved(record: Record, state: str, now: float, *, error: str | None) -> Record:
    return replace(
        record,
        state=state,
        changed_at=now,
        committed_at=now if state == COMMITTED else record.committed_at,
        error=error,
    )


def _undone(progress: Progress, records: Sequence[Record], stay: Decision) -> Decision:
    following = [r for r in records if r.state not in UNTOLD and r.state != SUPERSEDED]
    if any(r.undo_rev is None for r in following):
        return stay
    waiting = [r for r in following if r.previous_sha256 is not None and _is_awaited(r)]
    if waiting:
        return stay
    lost = [r for r in following if r.previous_sha256 is None and r.took]
    reason = progress.reason + (f"; {len(lost)} devices had nothing to go back to" if lost else "")
    return Decision(state=State.ROLLED_BACK, stage=progress.stage, reason=reason)


def _is_awaited(record: Record) -> bool:
    """Whether a rollback waits for the device: until it reports the old digest, unless it is silent and never took."""
    return record.state != ROLLED_BACK and not (record.state == SILENT and (record.waived or not record.took))


def _inconclusive(
    progress: Progress,
    records: Sequence[Record],
    evidence: Evidence,
    *,
    now: float,
    policy: RolloutPolicy,
) -> str | None:
    members = [r for r in records if r.stage <= progress.stage]
    at_an_end = all(r.state in SETTLED and not (r.state == FAILED and _is_fresh(r, now, policy)) for r in members)
    if members and at_an_end and not any(r.state == COMMITTED for r in members):
        if any(r.state not in (SUPERSEDED, INCOMPATIBLE) and not r.waived for r in members):
            return NONE_RUNS
        return None
    missing = waits_for(progress, records, evidence, now=now, policy=policy)
    since = max([progress.stage_at, *(r.changed_at for r in members)])
    if missing and now - since > policy.soak_s + policy.evidence_timeout_s:
        return f"too few are reporting: {missing}"
    return None


def _summary(records: Sequence[Record]) -> str:
    return "ended with " + ", ".join(f"{n} {state}" for state, n in states(records).items())
