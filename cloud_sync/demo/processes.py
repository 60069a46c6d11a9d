"""The commands and services that the demo starts: each dies with it, however it dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from cloud_sync.errors import from_json
from edge_sdk.errors import WorkerError

_STOP_S = 15.0
_TETHER = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold signals that interrupt until the block is done: what starts in it is then known to those who end it.

    For the main thread; a process that starts in the block gets the signals as ever.
    """
    held: list[int] = []
    before: dict[int, Any] = {}

    def hold(number: int, _frame: FrameType | None) -> None:
        held.append(number)

    try:
        for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before[which] = signal.signal(which, hold)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


class Child:
    """A command that runs on; its output goes to a log file."""

    def __init__(self, name: str, command: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                tethered(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def first_line(self) -> str:
        """Return the first line that it prints on stdout.

        Raises:
            WorkerError: it ended without one.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self.check()
        return line

    def check(self) -> None:
        """Refuse to go on when the command has ended.

        Raises:
            WorkerError: it has; the message has the end of its log.
        """
        code = self._process.poll()
        if code is not None:
            raise WorkerError(f"`{self.name}` ended with {code}: {tail(self.log)}", hint=f"its log is {self.log}")

    def ask_to_end(self) -> None:
        """Ask it to end and do not wait."""
        if self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> int:
        """Ask it to end, and kill its process group when it does not; returns its exit code."""
        self.ask_to_end()
        if self._process.returncode is None:
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        return self._process.returncode


class Command:
    """A command that runs now and prints one JSON object on stdout at its end; its stderr goes to a log file."""

    def __init__(self, command: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None) -> None:
        self._command = list(command)
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._answer = tempfile.TemporaryFile()  # noqa: SIM115  (closed in result)
        with log.open("ab") as file:
            file.write(f"$ {' '.join(command)}\n".encode())
            file.flush()
            self._process = subprocess.Popen(
                tethered(command),
                stdin=subprocess.DEVNULL,
                stdout=self._answer,
                stderr=file,
                env={**os.environ, **(env or {})},
            )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def result(self) -> dict[str, Any]:
        """Wait for the end and return the object.

        Raises:
            EdgeError: the error that the object describes.
            WorkerError: it printed something else.
        """
        code = self._process.wait()
        self._answer.seek(0)
        with self._answer:
            text = self._answer.read()
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if isinstance(answer, dict) and isinstance(answer.get("error"), dict) and "exit" in answer["error"]:
            raise from_json(answer["error"])
        if not isinstance(answer, dict) or code != 0:
            what = " ".join(self._command[1:5])
            raise WorkerError(f"`{what}` ended with {code}: {tail(self._log)}", hint=f"its log is {self._log}")
        return answer

    def stop(self) -> None:
        """End it when it still runs."""
        if self.running:
            self._process.terminate()
            self._process.wait()


def answer(command: Sequence[str], log: Path) -> dict[str, Any]:
    """Run a command and return its object; an interrupt ends it.

    Raises:
        EdgeError: as `Command.result`.
    """
    running: Command | None = None
    try:
        with uninterrupted():
            running = Command(command, log)
        return running.result()
    finally:
        if running is not None:
            running.stop()


def edge(*words: str | Path) -> list[str]:
    """Return the command `edge WORDS --json`."""
    return [sys.executable, "-m", "edge_sdk", *map(str, words), "--json"]


def tethered(command: Sequence[str]) -> list[str]:
    """Return a command that runs `command` so that the kernel ends it when this process dies, where the kernel can.

    The kernel watches the thread that starts it, so children are started from the main thread.
    """
    if not sys.platform.startswith("linux"):
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _TETHER, str(os.getpid()), *command]


def tail(log: Path, lines: int = 3) -> str:
    """Return the last lines of a log that say something."""
    try:
        found = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        found = []
    return " / ".join(found[-lines:]) or "it said nothing"
