"""The agent: one small process that keeps a device at its desired state; it imports no array library and no engine."""

from __future__ import annotations

import logging
import os
import queue
import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from edge_sdk.agent import reconcile
from edge_sdk.agent.config import AgentConfig, Paths, load_identity, read_pipeline
from edge_sdk.agent.events import JobEnd, WorkerEvent
from edge_sdk.agent.fs import RealFs
from edge_sdk.agent.health import Counts, Trial, Verdict, judge
from edge_sdk.agent.job_thread import JobThread
from edge_sdk.agent.jobs import Jobs
from edge_sdk.agent.link import Event, Link
from edge_sdk.agent.lock import take_lock
from edge_sdk.agent.reconcile import Job, RetryPolicy, Step
from edge_sdk.agent.runner import Runner
from edge_sdk.agent.slots import Slots, runnable
from edge_sdk.agent.state import AgentState, StateFile
from edge_sdk.agent.uplink import Uplink, reported
from edge_sdk.backoff import Backoff
from edge_sdk.errors import ConfigError, EdgeError, SchemaError
from edge_sdk.schemas import codec, document
from edge_sdk.schemas.state import LAST_WILL, Desired, Phase
from edge_sdk.schemas.state import VERSION as DESIRED_VERSION
from edge_sdk.schemas.telemetry import Alarm
from edge_sdk.telemetry.outbox import Outbox

logger = logging.getLogger(__name__)
TICK_S = 0.25
RESTART_JOB_S = 10.0
_ALARMS = {
    Phase.FAILED: "update_failed",
    Phase.ROLLED_BACK: "update_rolled_back",
    Phase.SAFE_MODE: "safe_mode",
}
_SWITCHING = (Job.SWAP, Job.ROLL_BACK, Job.SAFE_MODE)


class Agent:
    """Everything one device does, driven by one queue of events in one thread.

    Raises (from the constructor):
        UsageError: the device has not enrolled, or another agent runs on the state directory.
        ConfigError: pipeline.toml is wrong or agent.toml names another device.
    """

    def __init__(self, config: AgentConfig, *, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._clock = clock
        self._paths = Paths(config.state_dir)
        identity, root = load_identity(self._paths, config)
        self._identity = identity
        self._lock = take_lock(self._paths.lock)
        fs = RealFs()
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._slots = Slots(fs, self._paths.root)
        self._file = StateFile(fs, self._paths.state)
        telemetry = config.telemetry
        self._outbox = Outbox.open(
            self._paths.outbox, max_rows=telemetry.max_rows, max_bytes=telemetry.max_mb * 1024 * 1024
        )
        self._runner = Runner(
            read_pipeline(config.pipeline),
            self._slots,
            outbox=self._paths.outbox,
            name=config.name,
            on_event=lambda event: self._queue.put(WorkerEvent(event)),
            start_timeout_s=config.slots.start_timeout_s,
        )
        jobs = Jobs(fs, self._paths, identity=identity, root=root, slots=self._slots, runner=self._runner)
        self._jobs = JobThread(lambda job, state, stop: jobs.run(job, state, clock(), stop), self._queue.put)
        self._link = Link(
            identity.broker_url,
            tenant=identity.tenant,
            device=identity.device,
            credential=identity.credential,
            policy=config.link,
            events=self._queue,
        )
        self._retry = RetryPolicy(
            attempts=config.slots.attempts, backoff=Backoff(first_s=config.slots.retry_s, max_s=600.0)
        )
        self._uplink = Uplink(self._link, self._outbox, config.link, report_period_s=config.report_period_s)
        self._state = AgentState()
        self._trial: Trial | None = None
        self._waiting: Desired | None = None
        self._idle_since_s = 0.0
        self._stopping = self._reload_wanted = False

    # -- life ----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Run until SIGTERM or SIGINT and return 0."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signal)
        signal.signal(signal.SIGHUP, self._hang_up)
        self._boot()
        self._link.start()
        last_tick = 0.0
        while not self._stopping:
            try:
                item = self._queue.get(timeout=TICK_S)
            except queue.Empty:
                item = None
            try:
                self._handle(item)
                now = time.monotonic()
                if now - last_tick >= TICK_S:
                    last_tick = now
                    self._tick(now)
            except EdgeError as error:
                logger.error("%s", error.message)
            except OSError as error:
                logger.error("the disk or the system failed: %s", error)
            except Exception:  # one message that this code cannot handle must not end the device's agent
                logger.exception("an event could not be handled")
        self._shut_down()
        return 0

    def _signal(self, *_: object) -> None:
        self._stopping = True
        self._queue.put(None)

    def _hang_up(self, *_: object) -> None:
        self._reload_wanted = True

    def _boot(self) -> None:
        self._slots.prepare()
        trouble: str | None = None
        try:
            saved = self._file.load()
        except SchemaError as error:
            trouble = error.message
            logger.error("starting from the slots alone: %s", trouble)
            saved = None
        runs = runnable(self._slots, saved)
        if saved is None:
            # Numbers of transitions never repeat, also when the file is lost.
            saved = AgentState(active=runs, committed=runs, seq=int(self._clock() * 1000), error=trouble)
        if self._config.slots.factory is not None and saved.factory is None:
            factory = self._slots.adopt(self._config.slots.factory)
            runs = runs or factory
            saved = replace(saved, factory=factory)
            if saved.active is None:
                saved = replace(saved, active=factory, committed=factory)
        self._state = saved
        step = reconcile.boot(saved, runs, self._clock(), max_crashes=self._config.health.max_crashes)
        self._configure(step.state)
        self._reload()
        self._runner.begin(step.state.active if step.job is not Job.ROLL_BACK else None)
        if step.state.phase is Phase.TRIAL:
            self._trial = Trial(time.monotonic())
        self._apply(step)
        if self._state.active is None:
            logger.warning("no release is installed yet: the pipeline waits for one")

    def _shut_down(self) -> None:
        self._jobs.cancel()
        if self._state.phase is Phase.TRIAL:
            self._save(replace(self._state, trial_clean_stop=True))
        self._runner.stop()
        self._jobs.join(10.0)
        self._link.stop(LAST_WILL)
        self._outbox.close()
        os.close(self._lock)

    # -- events --------------------------------------------------------------------------------------------------

    def _handle(self, item: Any) -> None:
        if isinstance(item, Event):
            self._on_link(item)
        elif isinstance(item, WorkerEvent):
            self._on_worker(item.event)
        elif isinstance(item, JobEnd):
            self._on_job(item)

    def _on_link(self, event: Event) -> None:
        if event.name == "connected":
            self._uplink.report_again()
        elif event.name == "ack":
            stream, ranges = codec.decode_ack(event.payload)
            self._outbox.ack(ranges, stream=stream)
        elif event.name == "desired" and event.payload:
            self._on_desired(Desired.from_json(event.payload))
        elif event.name == "cmd":
            self._on_command(event.payload)

    def _on_desired(self, desired: Desired) -> None:
        if desired.v != DESIRED_VERSION:
            raise SchemaError(
                f"desired: version {desired.v}, this agent reads {DESIRED_VERSION}", hint="upgrade edge-sdk"
            )
        if self._jobs.job in _SWITCHING:
            if self._waiting is None or desired.rev > self._waiting.rev:
                self._waiting = desired
            return
        step = reconcile.offer(self._state, desired, self._clock())
        if step.state is not self._state:
            self._configure(step.state)
        self._apply(step)

    def _on_command(self, payload: bytes) -> None:
        command = document.loads_object(payload, where="cmd", max_bytes=4096).get("cmd")
        if command == "report":
            self._uplink.report_again()
        elif command == "restart_worker" and self._jobs.job is None:
            self._runner.begin(self._state.active)
        else:
            logger.warning("command %r is not known or not possible now", command)

    def _on_worker(self, event: dict[str, Any]) -> None:
        kind = event.get("event")
        if kind == "stats" and self._trial is not None and event.get("model") == self._state.active:
            self._trial.add(Counts.from_stats(event, time.monotonic()))
        elif kind == "exit" and not event.get("clean"):
            logger.warning("the worker died: %s", event.get("exit"))
            if self._trial is not None:
                self._trial.crashed()
            self._alarm("worker_died", f"the worker died: {event.get('exit')}")
        elif kind == "error":
            logger.error("the worker failed: %s", (event.get("error") or {}).get("message"))

    def _on_job(self, end: JobEnd) -> None:
        if not self._jobs.accept(end):
            return
        if end.floor is not None:
            self._state = replace(self._state, trust=end.floor)
        if end.error is None:
            step = reconcile.done(self._state, end.job, self._clock())
        else:
            logger.warning("%s failed: %s", end.job.value, end.error)
            step = reconcile.failed(
                self._state, end.job, end.error, end.retriable, self._clock(), self._retry, random.random()
            )
        if step.state.phase is Phase.TRIAL and self._state.phase is not Phase.TRIAL:
            self._trial = Trial(time.monotonic(), baseline_p50_ms=self._latency("p50"))
        self._apply(step)
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._on_desired(waiting)

    # -- time ----------------------------------------------------------------------------------------------------

    def _tick(self, now_s: float) -> None:
        self._apply(reconcile.tick(self._state, self._clock()))
        self._go_on(now_s)
        if self._reload_wanted and self._jobs.job is None and self._trial is None:
            self._reload()
        self._watch_trial(now_s)
        self._watch_outbox()
        self._send(now_s)

    def _go_on(self, now_s: float) -> None:
        """Start the phase's job again when its end could not be saved (a full disk, for instance)."""
        job = reconcile.job_of(self._state.phase)
        if job is None or self._jobs.job is not None:
            self._idle_since_s = now_s
        elif now_s - self._idle_since_s >= RESTART_JOB_S:
            self._start(job)

    def _watch_trial(self, now_s: float) -> None:
        if self._trial is None:
            return
        desired = self._state.desired
        trial_s = self._config.slots.trial_s
        if trial_s is None:
            trial_s = desired.trial_s if desired else 60.0
        verdict, why = judge(self._trial, self._config.health, trial_s=trial_s, now_s=now_s)
        if verdict is Verdict.GOOD:
            logger.info("trial passed: %s", why)
            self._apply(reconcile.commit(self._state, self._clock()))
        elif verdict in (Verdict.BAD, Verdict.INCONCLUSIVE):
            logger.error("trial failed: %s", why)
            self._apply(reconcile.trial_failed(self._state, why, self._clock(), blame=verdict is Verdict.BAD))

    def _watch_outbox(self) -> None:
        note = self._outbox.note
        if note is not None and "was damaged" in note:
            self._alarm("outbox_damaged", note)
            self._outbox.clear_note()
            self._save(replace(self._state, error=note))

    def _send(self, now_s: float) -> None:
        """Send what the broker has not yet acknowledged, and forget the steps that it has."""
        uplink, state = self._uplink, self._state
        uplink.pump(now_s, self._clock())
        taken = uplink.send_steps(state.transitions)
        if taken:
            for seq in taken:
                state = reconcile.sent(state, seq)
            self._save(state)
        news = reported(state, self._identity.profile, self._outbox.note)
        uplink.report(news, now_s)

    # -- state ---------------------------------------------------------------------------------------------------

    def _apply(self, step: Step) -> None:
        before = self._state
        if step.state is not before:
            self._save(step.state)
            if step.state.phase is not before.phase:
                self._entered(step.state)
        if step.job is not None:
            self._start(step.job)

    def _entered(self, state: AgentState) -> None:
        logger.info("%s%s", state.phase.value, f": {state.error}" if state.error else "")
        if state.phase is not Phase.TRIAL:
            self._trial = None
        if state.phase in _ALARMS:
            self._alarm(_ALARMS[state.phase], state.error or state.phase.value)
        if state.phase is Phase.COMMITTED:
            self._slots.collect((state.active, state.committed, state.previous, state.factory))
            self._slots.collect_staging(None)

    def _save(self, state: AgentState) -> None:
        self._file.save(state)
        self._state = state

    def _reload(self) -> None:
        """Read pipeline.toml again, put the params that the cloud wants over it, and run the result."""
        self._reload_wanted = False
        try:
            pipeline = read_pipeline(self._config.pipeline)
            wanted = self._state.config.get("stages")
            if wanted is not None:
                if not isinstance(wanted, Mapping):
                    raise ConfigError("desired config: `stages` is not an object")
                pipeline = pipeline.with_params(wanted, where="desired config.stages")
            changed = self._runner.describe(pipeline)
        except EdgeError as error:
            logger.error("the pipeline stays as it is: %s", error.message)
            self._alarm("pipeline_refused", error.message)
            return
        if changed:
            logger.info("pipeline: changed %s", ", ".join(changed))

    def _configure(self, state: AgentState) -> None:
        """Let the settings of a desired state take effect."""
        self._reload_wanted = True
        try:
            config = self._config.with_telemetry(state.config.get("telemetry"))
        except EdgeError as error:
            logger.error("%s", error.message)
            return
        if self._runner.observe(config.telemetry, state.baseline_p95_ms) and self._runner.digest is not None:
            self._runner.begin(self._runner.digest)

    def _start(self, job: Job) -> None:
        if job is Job.SWAP and (p95 := self._latency("p95")) is not None:
            self._state = replace(self._state, baseline_p95_ms=p95)
        self._jobs.start(job, self._state)

    def _latency(self, quantile: str) -> float | None:
        value = (self._runner.stats.get("model_latency_ms") or {}).get(quantile)
        return float(value) if isinstance(value, (int, float)) else None

    def _alarm(self, name: str, message: str) -> None:
        alarm = Alarm(
            t=self._clock(), name=name, message=message[:500], pipeline=self._config.name, model=self._state.active
        )
        self._outbox.append([alarm.to_event()], urgent=True, now=self._clock())
