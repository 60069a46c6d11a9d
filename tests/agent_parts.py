"""A device for the tests of the agent: its files, its process, its state and its outbox."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from edge_sdk.agent.config import Identity, Paths, save_identity
from edge_sdk.agent.fs import RealFs
from edge_sdk.agent.state import AgentState, StateFile
from edge_sdk.artifact import Artifact

PIPELINE = """
[source]
uri = "synthetic:64x48?fps=60&live=1"
[[stage]]
name = "sort"
model = "slot"
"""
AGENT = """
state_dir = "state"
pipeline = "pipeline.toml"
[telemetry]
sample_period_s = 0.05
window_n = 3
"""
SECRET = "credential-of-the-device"


class Device:
    """A folder with an agent's files, enrolled at a cloud that is not there."""

    def __init__(self, root: Path, port: int) -> None:
        self.root = root
        self.paths = Paths(root / "state")
        self.paths.root.mkdir(parents=True)
        (root / "pipeline.toml").write_text(PIPELINE)
        (root / "agent.toml").write_text(AGENT)
        identity = Identity(
            server=f"http://127.0.0.1:{port}", tenant="acme", device="cam-1",
            broker_url=f"mqtt://127.0.0.1:{port}", credential=SECRET, profile="generic-cpu",
        )  # fmt: skip
        save_identity(self.paths, identity, b"{}")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        argv = [sys.executable, "-m", "edge_sdk", "agent", "--config", str(self.root / "agent.toml"), "-v"]
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)

    def log(self) -> str:
        return (self.root / "log").read_text() if (self.root / "log").exists() else ""

    def state(self) -> dict[str, Any]:
        try:
            body: dict[str, Any] = json.loads(self.paths.state.read_text())["body"]
        except (OSError, ValueError, KeyError):
            return {}
        return body

    def save(self, state: AgentState) -> None:
        StateFile(RealFs(), self.paths.state).save(state)

    def install(self, artifact: Artifact) -> str:
        folder = self.paths.root / "slots" / artifact.sha256
        folder.mkdir(parents=True)
        (folder / "artifact.edge").write_bytes(artifact.path.read_bytes())
        return artifact.sha256

    def events(self, kind: str) -> list[dict[str, Any]]:
        if not self.paths.outbox.exists():
            return []
        db = sqlite3.connect(self.paths.outbox, timeout=10)
        try:
            rows = [json.loads(row[0]) for row in db.execute("SELECT json FROM events ORDER BY seq")]
        except sqlite3.DatabaseError:  # it is being made, or put aside
            return []
        finally:
            db.close()
        return [r for r in rows if r["kind"] == kind]

    def windows(self) -> list[dict[str, Any]]:
        return self.events("window")

    def alarms(self) -> list[str]:
        return [e["name"] for e in self.events("alarm")]


def edge(*argv: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "edge_sdk", *argv], capture_output=True, text=True, timeout=timeout)
