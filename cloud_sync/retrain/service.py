"""Retraining runs: the trainer as a supervised command, the gate, then a release and its rollout."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import shutil
import signal
import time
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cloud_sync.drift.service import Drift
from cloud_sync.errors import ConflictError, NotFoundError
from cloud_sync.files import atomic_write
from cloud_sync.policies import RetrainPolicy
from cloud_sync.releases.catalog import Catalog
from cloud_sync.retrain import rules, store
from cloud_sync.rollout.service import Rollouts
from cloud_sync.rollout.state_machine import FINAL
from cloud_sync.store.audit import audit
from cloud_sync.store.base import Database
from edge_sdk.errors import ConversionError, EdgeError, GuardrailError, UsageError

logger = logging.getLogger(__name__)
Row = dict[str, Any]
MAX_ATTEMPTS = 3
_LOG_TAIL = 2000
_KILL_GRACE_S = 5.0


class Retrain:
    """The runs of one tenant, one at a time; their files are in DATA/retrain/<run>/."""

    def __init__(
        self,
        data: Path,
        db: Database,
        catalog: Catalog,
        rollouts: Rollouts,
        drift: Drift,
        *,
        tenant: str,
        policy: RetrainPolicy,
    ) -> None:
        self._folder = data / "retrain"
        self._db = db
        self._catalog = catalog
        self._rollouts = rollouts
        self._drift = drift
        self._tenant = tenant
        self._policy = policy

    def list(self) -> tuple[Row, ...]:
        """Return the runs, newest first: run, state, model, reason, gate[metric, candidate, production, decision]."""
        return tuple(store.runs(self._db, self._tenant))

    def get(self, run: str) -> Row:
        """Return one run.

        Raises:
            NotFoundError: there is none.
        """
        row = store.get(self._db, self._tenant, run)
        if row is None:
            raise NotFoundError(f"no retraining run `{run[:80]}`", hint="`edge retrain show` lists them")
        return row

    def request(self, model: str | None, *, reason: str, actor: str, now: float | None = None) -> Row:
        """Queue a run by hand; the cool-down does not apply.

        Raises:
            UsageError: no trainer is configured, or the model is not clear.
            ConflictError: a run of the model is not finished.
        """
        if not self._policy.command:
            raise UsageError("no trainer is configured", hint='set `command = ["python", "train.py"]` in [retrain]')
        known = sorted({r["model"] for r in self._catalog.list_releases()})
        if model is None and len(known) == 1:
            model = known[0]
        if model is None or model not in known:
            raise UsageError(
                f"no release of the model `{model}`" if model else "which model is to be retrained?",
                hint=f"--model {' | '.join(known)}" if known else "`edge publish` a first release",
            )
        for row in store.runs(self._db, self._tenant, model):
            if row["state"] in rules.UNFINISHED:
                raise ConflictError(f"run `{row['run']}` of `{model}` is {row['state']}", hint="wait until it ends")
        return self._queue(model, reason, [], actor, time.time() if now is None else now)

    def consider(self, now: float) -> None:
        """Queue a run for every model whose devices or schedule ask for it; roll out what still waits for that."""
        if not self._policy.command:
            return
        devices = self._drift.devices()
        names = store.models_of(self._db, sorted({d["model"] for d in devices}))
        states: dict[str, dict[str, str]] = {r["model"]: {} for r in self._catalog.list_releases()}
        for row in devices:
            if row["model"] in names:
                states.setdefault(names[row["model"]], {})[row["device"]] = row["state"]
        final = {s.value for s in FINAL}
        busy = {r["model"] for r in self._rollouts.list() if r["state"] not in final}
        for model, found in states.items():
            runs = store.runs(self._db, self._tenant, model)
            asked = None if model in busy else rules.trigger(self._policy, found, runs, now=now)
            if asked:
                self._queue(model, asked[0], asked[1], "service", now)
        for row in store.runs(self._db, self._tenant):
            if row["state"] == rules.RELEASED and row["rollout"] is None and row["error"]:
                self._roll_out(row["run"], row["release"], now)

    def recover(self, now: float) -> None:
        """Take up runs that a stopped service left: a trainer that still lives is ended, and they start again."""
        for row in store.runs(self._db, self._tenant):
            if row["state"] not in (rules.TRAINING, rules.GATING):
                continue
            _end_leftover(self._dir(row["run"]) / "process.json")
            if row["attempts"] >= MAX_ATTEMPTS:
                self._end(row["run"], rules.FAILED, f"the service stopped {MAX_ATTEMPTS} times during the run", now)
            else:
                store.update(self._db, row["run"], state=rules.QUEUED)

    async def work(self) -> bool:
        """Run the oldest queued run to its end; False when there is none."""
        rows = await asyncio.to_thread(store.runs, self._db, self._tenant)
        queued = [r for r in rows if r["state"] == rules.QUEUED]
        if not queued:
            return False
        await self._run(queued[-1])
        return True

    async def _run(self, row: Row) -> None:
        run = row["run"]
        try:
            request = await asyncio.to_thread(self._prepare, row)
            await self._train(run, request)
            await asyncio.to_thread(self._judge, run, row["model"])
        except _Timeout as error:
            self._end(run, rules.TIMED_OUT, str(error), time.time())
        except GuardrailError as error:
            self._end(run, rules.REFUSED, error.message, time.time())
        except EdgeError as error:
            self._end(run, rules.FAILED, error.message, time.time())
        except Exception as error:
            logger.exception("retraining run %s failed", run)
            self._end(run, rules.FAILED, f"internal error: {error!r}", time.time())

    def _prepare(self, row: Row) -> Row:
        folder = self._dir(row["run"])
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        now = time.time()
        store.update(
            self._db,
            row["run"],
            state=rules.TRAINING,
            started_at=now,
            attempts=row["attempts"] + 1,
            dir=str(folder),
        )
        releases = [r for r in self._catalog.list_releases() if r["model"] == row["model"]]
        current = {c["release"] for c in self._catalog.current().values()}
        base = next((r for r in releases if r["release"] in current), releases[0] if releases else None)
        artifacts = {t["profile"]: str(self._catalog.blobs / t["sha256"]) for t in base["targets"]} if base else {}
        return {
            "run": row["run"],
            "reason": row["reason"],
            "model": row["model"],
            "dir": str(folder),
            "devices": row["devices"],
            "release": base["release"] if base else None,
            "version": base["version"] if base else None,
            "artifacts": artifacts,
        }

    async def _train(self, run: str, request: Row) -> None:
        folder = Path(request["dir"])
        command = self._policy.command
        with (folder / "trainer.log").open("wb") as log:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=log,
                    stderr=asyncio.subprocess.STDOUT,
                    cwd=folder,
                    start_new_session=True,
                )
            except OSError as error:
                raise UsageError(
                    f"cannot start the trainer `{command[0]}`: {error.strerror}", hint="[retrain] command in serve.toml"
                ) from None
            atomic_write(folder / "process.json", json.dumps(_identity(process.pid)).encode())
            logger.info("retraining run %s: trainer %s started", run, process.pid)
            try:
                assert process.stdin is not None
                with contextlib.suppress(ConnectionError):  # it may end without reading
                    process.stdin.write(json.dumps(request).encode() + b"\n")
                    await process.stdin.drain()
                process.stdin.close()
                code = await asyncio.wait_for(process.wait(), self._policy.timeout_s)
            except TimeoutError:
                raise _Timeout(f"the trainer did not end in {self._policy.timeout_s:g} s and was stopped") from None
            finally:
                await _stop(process)
        if code != 0:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
            raise ConversionError(f"the trainer {how}{_tail(folder / 'trainer.log')}", hint="see trainer.log")

    def _judge(self, run: str, model: str) -> None:
        folder = self._dir(run)
        now = time.time()
        store.update(self._db, run, state=rules.GATING)
        try:
            metrics = rules.Metrics.from_json((folder / "metrics.json").read_bytes())
        except OSError:
            raise ConversionError("the trainer left no metrics.json", hint="see trainer.log") from None
        files = sorted(folder.glob("*.edge"))
        if not files:
            raise ConversionError("the trainer left no artifact (*.edge)", hint="see trainer.log")
        rows = rules.gate(
            metrics, self._policy, golden_before=self._golden_before(model), seed=zlib.crc32(run.encode())
        )
        store.update(self._db, run, gate_json=json.dumps([dataclasses.asdict(r) for r in rows]))
        refused = [r for r in rows if r.decision == rules.REFUSE]
        if refused:
            raise GuardrailError(f"the gate refused {refused[0].metric}: {refused[0].detail}")
        added = [self._catalog.add_file(f, actor="retrain") for f in files]
        versions = sorted({a["version"] for a in added})
        if len(versions) != 1:
            raise ConversionError(
                f"the trainer's artifacts have versions {', '.join(versions)}", hint="give all the same --version"
            )
        release = self._catalog.create_release(
            model, versions[0], [a["sha256"] for a in added], actor="retrain", now=now
        )
        store.update(self._db, run, release=release["release"])
        atomic_write(folder / "gate.json", json.dumps({"golden": metrics.golden}).encode())
        self._end(run, rules.RELEASED, None, now)
        if self._policy.rollout != "none":
            self._roll_out(run, release["release"], now)

    def _roll_out(self, run: str, release: str, now: float) -> None:
        """Create the run's rollout; while another rollout holds the devices it is tried again at each step."""
        changes = {"approval": self._policy.rollout == "approval"}
        try:
            made = self._rollouts.create(release, changes=changes, run=run, actor="retrain", now=now)
        except EdgeError as error:
            store.update(self._db, run, error=f"no rollout yet: {error.message}")
            return
        store.update(self._db, run, rollout=made["id"], error=None)

    def _golden_before(self, model: str) -> str | None:
        for row in store.runs(self._db, self._tenant, model):
            if row["state"] == rules.RELEASED:
                with contextlib.suppress(OSError, ValueError):
                    golden = json.loads((self._dir(row["run"]) / "gate.json").read_text()).get("golden")
                    return str(golden) if golden else None
        return None

    def _queue(self, model: str, reason: str, devices: Sequence[str], actor: str, now: float) -> Row:
        run = f"t{uuid.uuid4().hex[:12]}"
        row = {
            "id": run,
            "tenant": self._tenant,
            "model": model,
            "state": rules.QUEUED,
            "reason": reason,
            "requested_by": actor,
            "devices_json": json.dumps([*devices]),
            "created_at": now,
        }
        with self._db.transaction() as tx:
            store.add(tx, row)
            audit(tx, now=now, actor=actor, action="retrain.run", subject=run, detail=f"{model}: {reason}")
        return self.get(run)

    def _end(self, run: str, state: str, error: str | None, now: float) -> None:
        store.update(self._db, run, state=state, error=error, ended_at=now)
        logger.info("retraining run %s: %s %s", run, state, error or "")

    def _dir(self, run: str) -> Path:
        return self._folder / run


class _Timeout(Exception):
    """The trainer took too long."""


async def _stop(process: asyncio.subprocess.Process) -> None:
    """End the trainer and everything that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        if process.returncode is not None and number == signal.SIGTERM:
            continue
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _KILL_GRACE_S)


def _identity(pid: int) -> Row:
    """A process as (pid, start time in clock ticks since boot), so that a reused pid is not mistaken for it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return {"pid": pid, "start": fields[19]}
    except (OSError, IndexError):
        return {"pid": pid, "start": None}


def _end_leftover(path: Path) -> None:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return
    if known.get("start") is not None and _identity(known["pid"]) == known:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(known["pid"], signal.SIGKILL)


def _tail(path: Path) -> str:
    with contextlib.suppress(OSError):
        text = path.read_bytes()[-_LOG_TAIL:].decode(errors="replace").strip()
        last = text.splitlines()[-1] if text else ""
        return f": {last[:300]}" if last else ""
    return ""
