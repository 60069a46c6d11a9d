"""The commands and services that the demo starts: each dies with it, however it dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
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

    def stop(self) -> int:
        """Ask it to end, and kill its process group when it does not; returns its exit code."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        return self._process.returncode


def edge(*words: str | Path, log: Path, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run `edge WORDS --json` and return its object; its stderr goes to `log`.

    Raises:
        EdgeError: the command's own, when it fails.
    """
    command = [sys.executable, "-m", "edge_sdk", *map(str, words), "--json"]
    answer = run_json(command, log=log, env=env)
    if "error" in answer and isinstance(answer["error"], dict) and "exit" in answer["error"]:
        raise from_json(answer["error"])
    return answer


def run_json(command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run a command that prints one JSON object on stdout and return it; its stderr goes to `log`.

    Raises:
        WorkerError: it printed something else.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        file.write(f"$ {' '.join(command)}\n".encode())
        file.flush()
        done = subprocess.run(
            tethered(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=file,
            check=False,
            env={**os.environ, **(env or {})},
        )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or (done.returncode != 0 and "error" not in answer):
        what = " ".join(command[3:5]) if command[1:3] == ["-m", "edge_sdk"] else command[2]
        raise WorkerError(f"`{what}` ended with {done.returncode}: {tail(log)}", hint=f"its log is {log}")
    return answer


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
