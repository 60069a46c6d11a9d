"""The update state machine: what a device does next, whatever happens to it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from edge_sdk.agent.health import Counts, HealthPolicy, Trial, Verdict, judge
from edge_sdk.agent.reconcile import Job, RetryPolicy, boot, commit, done, failed, offer, sent, tick, trial_failed
from edge_sdk.agent.state import AgentState
from edge_sdk.backoff import Backoff
from edge_sdk.schemas.state import Desired, Phase

A, B, C = "a" * 64, "b" * 64, "c" * 64
RETRY = RetryPolicy(attempts=3, backoff=Backoff(first_s=10, max_s=100), slow_s=1000)
ORDER = (Job.LOOKUP, Job.DOWNLOAD, Job.INSTALL, Job.TEST, Job.SWAP)


def wants(rev: int, sha256: str, **more: Any) -> Desired:
    return Desired(rev=rev, release=f"r{rev}", target=f"p/{sha256}.edge", sha256=sha256, size=10, **more)


def running(digest: str = A, **more: Any) -> AgentState:
    return AgentState(rev=1, desired=wants(1, digest), phase=Phase.COMMITTED, active=digest, committed=digest, **more)


def advance(state: AgentState, until: Phase) -> AgentState:
    """Let every job succeed until a phase is entered."""
    for job in ORDER:
        if state.phase is until:
            return state
        state = done(state, job, 50.0).state
    assert state.phase is until
    return state


def phases(state: AgentState) -> list[tuple[str, str]]:
    return [(t.source.value, t.to.value) for t in state.transitions]


def test_an_update_goes_through_every_phase_and_reports_each_once() -> None:
    step = offer(running(), wants(2, B), 10.0)
    assert step.job is Job.LOOKUP
    state = step.state
    jobs = []
    for job in ORDER:
        step = done(state, job, 20.0)
        jobs.append(step.job)
        state = step.state
    assert jobs == [Job.DOWNLOAD, Job.INSTALL, Job.TEST, Job.SWAP, None]
    assert (state.phase, state.active, state.committed) == (Phase.TRIAL, B, A)
    state = commit(state, 30.0).state
    assert (state.active, state.committed, state.previous, state.error) == (B, B, A, None)
    names = ["COMMITTED", "OFFERED", "DOWNLOADING", "VERIFYING", "STAGED", "TESTED", "TRIAL", "COMMITTED"]
    assert phases(state) == list(itertools.pairwise(names))
    assert len({t.seq for t in state.transitions}) == 7
    assert {t.rev for t in state.transitions} == {2}


def test_a_stale_or_repeated_revision_changes_nothing() -> None:
    state = offer(running(), wants(5, B), 10.0).state
    for rev in (5, 4, 0):
        step = offer(state, wants(rev, C), 20.0)
        assert step.state is state
        assert step.job is None


def test_what_runs_already_is_committed_without_a_download() -> None:
    step = offer(running(), wants(7, A), 10.0)
    assert step.job is None
    assert (step.state.phase, step.state.rev) == (Phase.COMMITTED, 7)
    assert phases(step.state) == [("COMMITTED", "OFFERED"), ("OFFERED", "COMMITTED")]


def test_a_newer_revision_replaces_one_that_is_still_being_fetched() -> None:
    state = advance(offer(running(), wants(2, B), 10.0).state, Phase.DOWNLOADING)
    step = offer(state, wants(3, C), 20.0)
    assert (step.job, step.state.phase) == (Job.LOOKUP, Phase.OFFERED)
    assert step.state.desired is not None
    assert step.state.desired.sha256 == C


@pytest.mark.parametrize("job", [Job.LOOKUP, Job.DOWNLOAD, Job.INSTALL])
def test_trouble_before_the_trial_is_tried_again_with_backoff_and_then_failed(job: Job) -> None:
    state = offer(running(), wants(2, B), 0.0).state
    now = 0.0
    for attempt in (1, 2):
        state = advance(state, {Job.LOOKUP: Phase.OFFERED, Job.DOWNLOAD: Phase.DOWNLOADING}.get(job, Phase.VERIFYING))
        state = failed(state, job, "the line is down", True, now, RETRY, 0.0).state
        assert (state.phase, state.attempts, state.error) == (Phase.PAUSED, attempt, "the line is down")
        assert state.retry_at == now + 5 * 2 ** (attempt - 1)
        assert tick(state, state.retry_at - 1).job is None
        now = state.retry_at
        step = tick(state, now)
        assert (step.job, step.state.phase) == (Job.LOOKUP, Phase.OFFERED)
        state = step.state
    state = advance(state, {Job.LOOKUP: Phase.OFFERED, Job.DOWNLOAD: Phase.DOWNLOADING}.get(job, Phase.VERIFYING))
    state = failed(state, job, "the line is down", True, now, RETRY, 0.0).state
    assert (state.phase, state.active) == (Phase.FAILED, A)
    assert tick(state, now + 499).job is None
    assert tick(state, now + 501).job is Job.LOOKUP


def test_a_clock_that_jumps_back_does_not_stop_the_retries() -> None:
    state = offer(running(), wants(2, B), 1e9).state
    state = failed(state, Job.LOOKUP, "no", True, 1e9, RETRY, 0.0).state
    assert tick(state, 0.0).job is Job.LOOKUP


@pytest.mark.parametrize(("job", "retriable"), [(Job.TEST, True), (Job.SWAP, True), (Job.LOOKUP, False)])
def test_what_cannot_get_better_is_failed_at_once_and_the_old_model_goes_on(job: Job, retriable: bool) -> None:
    until = {Job.TEST: Phase.STAGED, Job.SWAP: Phase.TESTED, Job.LOOKUP: Phase.OFFERED}[job]
    state = advance(offer(running(), wants(2, B), 0.0).state, until)
    step = failed(state, job, "refused", retriable, 5.0, RETRY, 0.5)
    assert (step.state.phase, step.state.active, step.job) == (Phase.FAILED, A, None)
    assert tick(step.state, 1e12).job is None
    assert step.state.transitions[-1].error == "refused"


def test_a_failed_trial_rolls_back_and_the_digest_is_never_taken_again() -> None:
    state = advance(offer(running(), wants(2, B), 0.0).state, Phase.TRIAL)
    step = trial_failed(state, "40 % of frames failed", 9.0, blame=True)
    assert (step.job, step.state.phase, step.state.active) == (Job.ROLL_BACK, Phase.ROLLING_BACK, A)
    state = done(step.state, Job.ROLL_BACK, 10.0).state
    assert (state.phase, state.error) == (Phase.ROLLED_BACK, "40 % of frames failed")
    assert state.transitions[-1].error == "40 % of frames failed"
    again = offer(state, wants(3, B), 20.0)
    assert (again.job, again.state.phase) == (None, Phase.FAILED)
    assert "was rolled back on this device: 40 % of frames failed" in (again.state.error or "")
    assert offer(state, wants(4, C), 20.0).job is Job.LOOKUP


def test_a_trial_without_evidence_is_rolled_back_without_blame() -> None:
    state = advance(offer(running(), wants(2, B), 0.0).state, Phase.TRIAL)
    state = done(trial_failed(state, "no frames", 9.0, blame=False).state, Job.ROLL_BACK, 10.0).state
    assert state.blacklist == {}
    assert offer(state, wants(3, B), 20.0).job is Job.LOOKUP


def test_a_newer_revision_in_a_trial_rolls_back_first_and_is_taken_up_then() -> None:
    state = advance(offer(running(), wants(2, B), 0.0).state, Phase.TRIAL)
    step = offer(state, wants(3, C), 5.0)
    assert (step.job, step.state.phase, step.state.rev) == (Job.ROLL_BACK, Phase.ROLLING_BACK, 2)
    newest = offer(step.state, wants(4, A), 6.0)
    assert newest.job is None
    end = done(newest.state, Job.ROLL_BACK, 7.0)
    assert (end.state.phase, end.state.rev, end.state.active, end.state.next) == (Phase.COMMITTED, 4, A, None)
    assert end.state.blacklist == {}


def test_a_newer_revision_of_the_digest_on_trial_lets_the_trial_go_on() -> None:
    state = advance(offer(running(), wants(2, B), 0.0).state, Phase.TRIAL)
    step = offer(state, wants(3, B), 5.0)
    assert (step.job, step.state.phase, step.state.rev) == (None, Phase.TRIAL, 3)


def test_when_rolling_back_fails_the_factory_slot_runs() -> None:
    state = advance(offer(running(factory=C), wants(2, B), 0.0).state, Phase.TRIAL)
    state = trial_failed(state, "bad", 9.0, blame=True).state
    step = failed(state, Job.ROLL_BACK, "slot is damaged", True, 10.0, RETRY, 0.0)
    assert (step.job, step.state.phase, step.state.active) == (Job.SAFE_MODE, Phase.SAFE_MODE, C)
    assert B in step.state.blacklist
    after = offer(step.state, wants(3, A), 20.0)
    assert after.job is Job.LOOKUP


@pytest.mark.parametrize("job", ORDER)
def test_a_start_after_a_kill_before_the_trial_begins_the_update_again(job: Job) -> None:
    state = offer(running(), wants(2, B), 0.0).state
    for passed in ORDER[: ORDER.index(job)]:
        state = done(state, passed, 1.0).state
    step = boot(state, A, 5.0, max_crashes=2)
    assert (step.job, step.state.phase, step.state.active) == (Job.LOOKUP, Phase.OFFERED, A)


def test_a_trial_goes_on_after_one_crash_and_is_over_after_two() -> None:
    state = advance(offer(running(), wants(2, B), 0.0).state, Phase.TRIAL)
    step = boot(state, B, 5.0, max_crashes=2)
    assert (step.job, step.state.phase, step.state.trial_crashes) == (None, Phase.TRIAL, 1)
    step = boot(step.state, B, 6.0, max_crashes=2)
    assert (step.job, step.state.phase, step.state.active) == (Job.ROLL_BACK, Phase.ROLLING_BACK, A)
    assert B in done(step.state, Job.ROLL_BACK, 7.0).state.blacklist


def test_clean_stops_in_a_trial_do_not_count_as_crashes() -> None:
    state = advance(offer(running(), wants(2, B), 0.0).state, Phase.TRIAL)
    for _ in range(5):
        state = boot(replace(state, trial_clean_stop=True), B, 5.0, max_crashes=2).state
        assert (state.phase, state.trial_crashes) == (Phase.TRIAL, 0)


def test_a_start_during_a_rollback_finishes_it() -> None:
    state = advance(offer(running(), wants(2, B), 0.0).state, Phase.TRIAL)
    state = trial_failed(state, "bad", 9.0, blame=True).state
    step = boot(state, A, 10.0, max_crashes=2)
    assert step.job is Job.ROLL_BACK
    assert done(step.state, Job.ROLL_BACK, 11.0).state.phase is Phase.ROLLED_BACK


def test_a_damaged_slot_is_fetched_again_while_another_one_runs() -> None:
    state = replace(running(B), previous=A)
    step = boot(state, A, 5.0, max_crashes=2)
    assert (step.job, step.state.active, step.state.phase) == (Job.LOOKUP, A, Phase.OFFERED)
    assert "slot bbbbbbbbbbbb is damaged, running aaaaaaaaaaaa" in (step.state.error or "")


def test_a_result_that_comes_too_late_is_ignored() -> None:
    state = offer(running(), wants(2, B), 0.0).state
    assert done(state, Job.SWAP, 1.0).state is state
    assert failed(state, Job.TEST, "x", False, 1.0, RETRY, 0.0).state is state
    assert commit(state, 1.0).state is state
    assert trial_failed(state, "x", 1.0, blame=True).state is state


def test_transitions_wait_until_the_broker_has_them_and_their_number_is_bounded() -> None:
    state = running()
    for rev in range(2, 60):
        state = offer(state, wants(rev, A), 1.0).state
    assert len(state.transitions) == 64
    first = state.transitions[0].seq
    assert first not in {t.seq for t in sent(state, first).transitions}


def test_a_long_error_is_cut() -> None:
    state = offer(running(), wants(2, B), 0.0).state
    state = failed(state, Job.LOOKUP, "x" * 10_000, False, 1.0, RETRY, 0.0).state
    assert len(state.error or "") == 400


# -- health ---------------------------------------------------------------------------------------------------------

POLICY = HealthPolicy()


def counts(t_s: float, frames: int, processed: int, **more: Any) -> Counts:
    return Counts(t_s=t_s, frames=frames, processed=processed, **more)


def trial(*series: Counts, baseline_p50_ms: float | None = None) -> Trial:
    one = Trial(0.0, baseline_p50_ms=baseline_p50_ms)
    for item in series:
        one.add(item)
    return one


def verdict(one: Trial, now_s: float, trial_s: float = 60.0) -> tuple[Verdict, str]:
    return judge(one, POLICY, trial_s=trial_s, now_s=now_s)


def test_a_healthy_trial_passes_at_its_end_and_not_before() -> None:
    one = trial(counts(1, 1000, 1000), counts(30, 1100, 1100))
    assert verdict(one, 59)[0] is Verdict.WAIT
    assert verdict(one, 60)[0] is Verdict.GOOD


@pytest.mark.parametrize(
    ("series", "why"),
    [
        ((counts(1, 1000, 1000), counts(5, 1030, 1025, errors=5)), "16.7% of 30 frames failed"),
        ((counts(1, 10, 10), counts(5, 40, 39, errors=1, nonfinite=1)), "3.3% of 30 frames gave NaN"),
        ((counts(1, 10, 10), counts(40, 90, 10)), "none was processed for"),
    ],
)
def test_a_sick_trial_ends_at_once(series: tuple[Counts, ...], why: str) -> None:
    found, reason = verdict(trial(*series), 45.0)
    assert found is Verdict.BAD
    assert why in reason


def test_a_worker_that_keeps_dying_ends_the_trial() -> None:
    one = trial(counts(1, 10, 10))
    one.crashed()
    one.add(counts(4, 5, 5))
    assert verdict(one, 5)[0] is Verdict.WAIT
    assert one.processed == 5
    one.crashed()
    assert verdict(one, 5) == (Verdict.BAD, "the worker died 2 times during the trial")


def test_a_camera_that_gives_nothing_is_not_the_models_fault() -> None:
    one = trial(counts(1, 0, 0), counts(100, 0, 0))
    assert verdict(one, 100)[0] is Verdict.WAIT
    found, why = verdict(one, 301)
    assert found is Verdict.INCONCLUSIVE
    assert "only 0 frames" in why


def test_a_model_that_is_much_slower_than_the_one_before_is_refused() -> None:
    one = trial(counts(1, 0, 0), counts(50, 500, 500, p50_ms=40.0), baseline_p50_ms=10.0)
    assert verdict(one, 61) == (Verdict.BAD, "median latency 40.0 ms, the model before had 10.0 ms")
    quick = trial(counts(1, 0, 0), counts(50, 500, 500, p50_ms=19.0), baseline_p50_ms=0.5)
    assert verdict(quick, 61)[0] is Verdict.GOOD


def test_stats_of_a_worker_become_counts() -> None:
    stats = {
        "frames": 10,
        "processed": 7,
        "errors": {"infer": 1, "source": 50},
        "nonfinite": 2,
        "model_latency_ms": {"p50": 3.5, "p95": None},
    }
    found = Counts.from_stats(stats, 1.0)
    assert (found.frames, found.processed, found.errors, found.nonfinite, found.p50_ms) == (10, 7, 3, 2, 3.5)
    assert Counts.from_stats({}, 1.0) == Counts(t_s=1.0)
