"""The parent's side of the worker processes: time limit, memory limit, errors brought back."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from converters.errors import DiskFullError
from edge_sdk import errors
from edge_sdk.errors import ConversionError, EdgeError

logger = logging.getLogger(__name__)
_TICK_S = 0.2


class Workshop:
    """One worker process, started when it is first needed and again after it died.

    Args:
        job_limit_s: wall time one job may take.
        memory_mb: resident memory the process may have.
    """

    environment_key = ""
    """What tells its packages from those of this process; empty where they are the same."""

    def __init__(self, name: str, *, job_limit_s: float, memory_mb: int) -> None:
        self.name = name
        self.job_limit_s = job_limit_s
        self.memory_mb = memory_mb
        self._process: subprocess.Popen[str] | None = None
        self._log: Any = None
        self._closed = False
        self._lock = threading.RLock()

    def call(self, job: str, **args: Any) -> Any:
        """Run one job (a key of `converters.worker.JOBS`) and return what it returns.

        Raises:
            EdgeError: the error the job raised.
            ConversionError: it took too long or too much memory, or the process died.
        """
        process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"job": job, "args": args}) + "\n")
            process.stdin.flush()
            reply = self._wait(process, job)
        except (BrokenPipeError, ValueError):
            raise self._died(process, job) from None
        except BaseException:
            self.stop()
            raise
        if reply["ok"]:
            return reply["value"]
        logger.debug("%s worker: %s", self.name, self._tail())
        raise _rebuild(reply)

    def close(self) -> None:
        """Stop for good: a later `call`, from whatever thread, starts no process."""
        with self._lock:
            self._closed = True
            self.stop()

    def stop(self) -> None:
        """Kill the process and wait for it; the next `call` starts another."""
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                _kill_group(process)
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    try:
                        stream.close()
                    except BrokenPipeError:
                        pass
        if self._log is not None:
            self._log.close()
            self._log = None

    def _start(self) -> subprocess.Popen[str]:
        with self._lock:
            if self._closed:
                raise ConversionError("the conversion was ended", hint="start it again")
            return self._running()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.stop()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        self._process = subprocess.Popen(
            self._command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=self._environment(),
            start_new_session=True,
        )
        return self._process

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "converters.worker"]

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "PYTHONHASHSEED": "0",
            "PYTHONSAFEPATH": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parent.parent), *_python_path()]),
            "OPENVINO_TELEMETRY_DISABLE": "1",
            "ORT_DISABLE_TELEMETRY": "1",
            "NNCF_CI": "1",
            "TQDM_DISABLE": "1",
        }

    def _wait(self, process: subprocess.Popen[str], job: str) -> dict[str, Any]:
        assert process.stdout is not None
        end = time.monotonic() + self.job_limit_s
        while True:
            if time.monotonic() >= end:
                self.stop()
                raise ConversionError(
                    f"the {job} step of {self.name} took longer than {self.job_limit_s:.0f} s and was stopped",
                    hint="give it more with `job_limit_s` in the recipe, or use fewer images",
                )
            used = _resident_mb(process.pid)
            if used > self.memory_mb:
                self.stop()
                raise ConversionError(
                    f"the {job} step of {self.name} used {used:.0f} MiB, the limit is {self.memory_mb}",
                    hint="give it more with `memory_mb` in the recipe, or use fewer images",
                )
            ready, _, _ = select.select([process.stdout], [], [], _TICK_S)
            if ready:
                line = process.stdout.readline()
                if not line:
                    raise self._died(process, job)
                return dict(json.loads(line))

    def _died(self, process: subprocess.Popen[str], job: str) -> ConversionError:
        try:
            code = process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit {code}"
        logger.info("%s worker: %s", self.name, self._tail())
        self.stop()
        return ConversionError(
            f"the worker process died in the {job} step of {self.name} ({how})",
            hint="its native code crashed on this input; -v shows what it said last",
        )

    def _tail(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 4000))
        return str(self._log.read().decode(errors="replace"))


def _kill_group(process: subprocess.Popen[str]) -> None:
    """Kill the process and what it started: it leads a session of its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.send_signal(signal.SIGKILL)


def _rebuild(reply: dict[str, Any]) -> EdgeError:
    if reply["class"] == DiskFullError.__name__:
        return DiskFullError(str(reply["message"]), hint=reply.get("hint"))
    cls = getattr(errors, str(reply["class"]), ConversionError)
    if not (isinstance(cls, type) and issubclass(cls, EdgeError)):
        cls = ConversionError
    return cls(str(reply["message"]), hint=reply.get("hint"))


def _python_path() -> list[str]:
    value = os.environ.get("PYTHONPATH", "")
    return [value] if value else []


def _resident_mb(pid: int) -> float:
    """Return the resident memory of a process in MiB; 0 where /proc is absent."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
