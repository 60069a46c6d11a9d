"""The steps of an update that take time: each runs in the agent's job thread and returns or raises."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sdk.agent.config import Identity, Paths
from edge_sdk.agent.download import DownloadPolicy, download
from edge_sdk.agent.fs import Fs
from edge_sdk.agent.http import basic_auth
from edge_sdk.agent.reconcile import Job
from edge_sdk.agent.runner import Runner
from edge_sdk.agent.slots import Slots
from edge_sdk.agent.state import AgentState, TrustFloor
from edge_sdk.errors import ArtifactError, TrustError, WorkerError
from edge_sdk.schemas.ids import check_id
from edge_sdk.schemas.state import Desired

if TYPE_CHECKING:
    from edge_sdk.agent.trust import SignedTarget

logger = logging.getLogger(__name__)
TEST_TIMEOUT_S = 180.0


class WrongProfileError(TrustError):
    """The release is for another kind of device; trying again cannot help."""


class Jobs:
    """What each `Job` does on this device."""

    def __init__(self, fs: Fs, paths: Paths, *, identity: Identity, root: bytes, slots: Slots, runner: Runner) -> None:
        self._fs = fs
        self._paths = paths
        self._identity = identity
        self._root = root
        self._slots = slots
        self._runner = runner
        self._target: SignedTarget | None = None

    def run(self, job: Job, state: AgentState, now: float, should_stop: Callable[[], bool]) -> TrustFloor | None:
        """Do one job; a lookup returns the new trust floor.

        Raises:
            EdgeError: it failed; the message says why.
        """
        desired = state.desired
        if job is Job.ROLL_BACK:
            self._roll_back(state.active)
            return None
        if job is Job.SAFE_MODE:
            self._runner.restore(state.factory)
            return None
        assert desired is not None
        if job is Job.LOOKUP:
            return self._lookup(desired, state.trust, now)
        if job is Job.DOWNLOAD:
            self._slots.collect((state.active, state.committed, state.previous, state.factory, desired.sha256))
            self._download(desired, should_stop)
        elif job is Job.INSTALL:
            self._install(desired)
        elif job is Job.TEST:
            self_test(self._slots.artifact(desired.sha256), should_stop)
        elif job is Job.SWAP:
            self._runner.switch(desired.sha256)
        return None

    def _lookup(self, desired: Desired, floor: TrustFloor, now: float) -> TrustFloor:
        from edge_sdk.agent.trust import Trust

        profile = self._identity.profile or check_id(desired.target.partition("/")[0], "profile")
        if desired.target != f"{profile}/{desired.sha256}.edge":
            raise WrongProfileError(
                f"target `{desired.target[:120]}` is not `{profile}/{desired.sha256[:12]}….edge`",
                hint="the release is for another device profile",
            )
        trust = Trust(self._fs, self._paths.tuf, self._identity.server, profile, self._root)
        target, new = trust.lookup(desired.sha256, floor, now)
        if target.size != desired.size:
            raise TrustError(f"{desired.target} is signed with {target.size} bytes, desired says {desired.size}")
        self._target = target
        return new

    def _download(self, desired: Desired, should_stop: Callable[[], bool]) -> None:
        target = self._signed(desired)
        if self._slots.whole(desired.sha256):
            return
        url = f"{self._identity.server.rstrip('/')}/artifacts/{desired.sha256}"
        headers = basic_auth(self._identity.device, self._identity.credential)
        self._slots.collect_staging(desired.sha256)
        download(
            url,
            self._slots.staged(desired.sha256),
            size=target.size,
            sha256=desired.sha256,
            headers=headers,
            policy=DownloadPolicy(),
            should_stop=should_stop,
        )

    def _install(self, desired: Desired) -> None:
        target = self._signed(desired)
        if not self._slots.whole(desired.sha256):
            target.verify(self._slots.staged(desired.sha256))
        target.verify(self._slots.install(desired.sha256))

    def _signed(self, desired: Desired) -> SignedTarget:
        if self._target is None or self._target.sha256 != desired.sha256:
            raise TrustError("the signed target was not looked up", hint="the agent will look it up again")
        return self._target

    def _roll_back(self, digest: str | None) -> None:
        if digest is not None and not self._slots.whole(digest):
            raise ArtifactError(f"slot {digest[:12]} is damaged")
        self._runner.restore(digest)


def self_test(artifact: Path, should_stop: Callable[[], bool], timeout_s: float = TEST_TIMEOUT_S) -> None:
    """Load an artifact and run its golden inputs in a process of its own (`edge verify`).

    Raises:
        ArtifactError: it was refused, or an answer is outside its tolerance.
        WorkerError: the process died, was killed, or took longer than `timeout_s`.
    """
    command = [sys.executable, "-m", "edge_sdk", "verify", str(artifact), "--json"]
    env = _environment()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        env=env,
        start_new_session=True,
    )
    waited_s = 0.0
    while True:
        try:
            raw, _ = process.communicate(timeout=0.1)
            break
        except subprocess.TimeoutExpired:
            waited_s += 0.1
            if should_stop() or waited_s >= timeout_s:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                why = "was interrupted" if should_stop() else f"took longer than {timeout_s:g} s"
                raise WorkerError(f"the self-test {why}") from None
    try:
        report = json.loads(raw)
        checks = [c for c in report.get("checks", ()) if not c.get("ok")]
        ok = report.get("ok") is True and process.returncode == 0
    except (ValueError, AttributeError, TypeError):
        raise WorkerError(f"the self-test died with exit code {process.returncode}") from None
    if not ok:
        error = report.get("error") or {}
        detail = "; ".join(f"{c.get('name')}: {c.get('detail')}" for c in checks) or error.get("message", "no detail")
        raise ArtifactError(f"the self-test failed: {detail}", hint=error.get("hint"))


def _environment() -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    env = dict(os.environ) | {"PYTHONSAFEPATH": "1"}
    if root.name not in ("site-packages", "dist-packages"):
        env["PYTHONPATH"] = os.pathsep.join(p for p in (str(root), env.get("PYTHONPATH")) if p)
    return env
