"""The demo's world: camera, service and devices, all of them the product's own processes, and how its steps wait."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from cloud_sync.client import Client
from cloud_sync.demo import config
from cloud_sync.demo.camera import Cameras
from cloud_sync.demo.display import Display
from cloud_sync.demo.processes import Child, Command, edge, uninterrupted
from edge_sdk.errors import GuardrailError, SyncError

_POLL_S = 0.25


class Line:
    """Everything that the steps share; leaving the context ends every process."""

    def __init__(self, root: Path, display: Display, *, broker: str, port: int) -> None:
        self.root = root
        self.broker = broker
        self.port = port
        self.logs = root / "logs"
        self.cameras = Cameras(fps=config.CAMERA_FPS)
        self.profiles: dict[str, str] = {}
        self.devices: dict[str, str] = {}
        self.artifacts: dict[str, list[Path]] = {}
        self.digests: dict[str, set[str]] = {}
        self.releases: dict[str, str] = {}
        self.rollouts: dict[str, str] = {}
        self.url = ""
        self._display = display
        self._env: dict[str, str] = {}
        self._children: list[Child] = []
        self._commands: list[Command] = []

    def __enter__(self) -> Line:
        self.cameras.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for command in self._commands:
            command.stop()
        for child in self._children[1:]:
            child.ask_to_end()
        for child in reversed(self._children):
            child.stop()
        self.cameras.close()

    def start_service(self, words: Sequence[str | Path]) -> dict[str, Any]:
        """Start `edge serve`, wait until it serves and talk to it from now on; returns what it says of itself."""
        with uninterrupted():
            child = Child("edge serve", edge("serve", *words), self.logs / "serve.log")
            self._children.append(child)
        about: dict[str, Any] = json.loads(child.first_line())
        self.url = about["url"]
        token = Path(about["token_file"]).read_text().strip()
        self._env = {"EDGE_SERVER": self.url, "EDGE_TOKEN": token}
        self.client = Client(self.url, token)
        return about

    def start_agent(self, device: str, agent_toml: Path) -> None:
        command = edge("agent", "--config", agent_toml)
        with uninterrupted():
            self._children.append(Child(f"edge agent ({device})", command, self.logs / f"{device}.log"))

    def edge(self, *words: str | Path) -> dict[str, Any]:
        """Run an `edge` command against the service and return its object."""
        return self.run([edge(*words)], "")[0]

    def run(self, commands: Sequence[Sequence[str]], doing: str) -> list[dict[str, Any]]:
        """Run commands side by side and return their objects; the first that fails ends the rest."""
        with uninterrupted():
            running = [Command(c, self.logs / "commands.log", env=self._env) for c in commands]
            self._commands += running
        while any(c.running for c in running):
            self._display.now(doing)
            time.sleep(0.05)
        answers = [c.result() for c in running]
        self._commands = []
        return answers

    def until(self, probe: Callable[[], tuple[bool, str]], *, within_s: float, what: str) -> str:
        """Ask again and again until `probe` says that it is done, and return its last words.

        Raises:
            SyncError: that did not happen in time.
            WorkerError: a process of ours ended meanwhile.
        """
        deadline = time.monotonic() + within_s
        while True:
            self.check()
            done, text = probe()
            self._display.now(text)
            if done:
                return text
            if time.monotonic() > deadline:
                raise SyncError(f"{what}: not within {within_s:.0f} s ({text})", hint=f"the logs are in {self.logs}")
            time.sleep(_POLL_S)

    def check(self) -> None:
        """Refuse to go on when a process of ours has ended."""
        for child in self._children:
            child.check()

    def fleet(self) -> list[dict[str, Any]]:
        """Return the service's view of the devices."""
        found: list[dict[str, Any]] = self.client.get("/api/v1/devices")["devices"]
        return found

    def windows(self, device: str) -> list[dict[str, Any]]:
        """Return a device's last telemetry windows."""
        events: list[dict[str, Any]] = []
        after: str | None = None
        while True:
            params = {"kind": "window", "after": after, "limit": "1000"}
            page = self.client.get(f"/api/v1/devices/{device}/events", params)
            events += page["events"]
            after = page["next"]
            if after is None:
                return events


def claim(true: bool, message: str, *, hint: str | None = None) -> None:
    """Assert what a step claims.

    Raises:
        GuardrailError: it is not so.
    """
    if not true:
        raise GuardrailError(message, hint=hint or "`edge demo --keep DIR` keeps logs and data for a look")
