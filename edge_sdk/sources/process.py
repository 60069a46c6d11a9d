"""Child processes that cannot outlive this one, and reads from them that end; standard library only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import select
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from edge_sdk.errors import SourceError
from edge_sdk.sources.uri import redact

_F_SETPIPE_SZ = 1031
_PIPE_BYTES = 1 << 20
_POLL_S = 0.25
_LINES = 20


class _Spawner:
    """Starts processes from one thread that never ends: the kernel ties a child's life to the thread that made it."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = 0

    def start(self, words: Sequence[str], options: dict[str, Any]) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._thread is None or self._pid != os.getpid():
                self._pid = os.getpid()
                self._jobs = queue.SimpleQueue()
                self._thread = threading.Thread(target=self._work, args=(self._jobs,), name="spawner", daemon=True)
                self._thread.start()
            answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
            self._jobs.put((words, options, answer))
        process = answer.get()
        if isinstance(process, BaseException):
            raise process
        started: subprocess.Popen[bytes] = process
        return started

    @staticmethod
    def _work(jobs: queue.SimpleQueue[Any]) -> None:
        while True:
            words, options, answer = jobs.get()
            try:
                answer.put(subprocess.Popen(words, **options))
            except BaseException as error:
                answer.put(error)


_SPAWNER = _Spawner()


def spawn(words: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process of its own session that is killed when this one ends, however that ends (Linux).

    Raises:
        SourceError: it cannot be started.
    """
    setpriv = shutil.which("setpriv")
    tied = [setpriv, "--pdeathsig", "KILL", "--", *words] if setpriv else list(words)
    try:
        return _SPAWNER.start(tied, {"bufsize": 0, "start_new_session": True, **options})
    except OSError as error:
        raise SourceError(
            f"`{words[0]}` cannot be started: {error.strerror or error}", hint="is memory short?"
        ) from None


class Child:
    """A process whose output is read by one thread; any thread may `kill` it, which ends a read that waits.

    Its stderr is drained along with stdout and the last lines are kept, credentials removed.

    Args:
        words: the command.
        name: what messages call it.
        stdin: written to it at once, then closed; None gives it nothing.
        talk: leave its stdin open for `write`.
    """

    def __init__(
        self, words: Sequence[str], *, name: str, stdin: bytes | None = None, talk: bool = False, **options: Any
    ) -> None:
        self.name = name
        self.killed = False
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._rest = b""
        self._ended = False
        source = subprocess.DEVNULL if stdin is None else subprocess.PIPE
        self.process = spawn(words, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._out, self._err = self.process.stdout.fileno(), self.process.stderr.fileno()
        os.set_blocking(self._out, False)
        os.set_blocking(self._err, False)
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._out, _F_SETPIPE_SZ, _PIPE_BYTES)
        self._poll = select.poll()
        self._poll.register(self._out, select.POLLIN)
        self._poll.register(self._err, select.POLLIN)
        self._watches_err = True
        if stdin is not None:
            self.write(stdin)
            if not talk:
                self._close_stdin()

    @property
    def said(self) -> tuple[str, ...]:
        """The last lines of its stderr."""
        return tuple(self._lines)

    def write(self, data: bytes) -> None:
        """Send `data` to its stdin; a process that has ended is found out by reading."""
        if self.process.stdin is not None:
            rest = memoryview(data)
            with contextlib.suppress(OSError, ValueError):
                while rest:
                    rest = rest[self.process.stdin.write(rest) :]

    def _close_stdin(self) -> None:
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def read_into(self, view: memoryview, timeout_s: float) -> int:
        """Fill `view`; return how much of it the child gave before its end (less than its length only then).

        Raises:
            TimeoutError: nothing came for `timeout_s`.
        """
        done, deadline = 0, time.monotonic() + timeout_s
        while done < len(view) and not self._ended:
            events = self._poll.poll(_POLL_S * 1000)
            ready = False
            for fd, _ in events:
                if fd == self._err:
                    self._drain()
                else:
                    ready = True
            if ready:
                try:
                    count = os.readv(self._out, [view[done:]])
                except BlockingIOError:
                    continue
                if count == 0:
                    break
                done += count
                deadline = time.monotonic() + timeout_s
            elif self.killed:
                break
            elif not events and time.monotonic() > deadline:
                raise TimeoutError
        return done

    def read_line(self, timeout_s: float, limit: int = 512) -> bytes:
        """Return a line without its end, byte by byte, so that nothing after it is taken; empty at the end.

        Raises:
            TimeoutError: nothing came for `timeout_s`.
            ValueError: the line is longer than `limit`.
        """
        line, byte = bytearray(), bytearray(1)
        view = memoryview(byte)
        while self.read_into(view, timeout_s):
            if byte == b"\n":
                return bytes(line)
            line += byte
            if len(line) > limit:
                raise ValueError(f"a line of more than {limit} bytes")
        return b""

    def kill(self) -> None:
        """End it at once; allowed from every thread."""
        self.killed = True
        with contextlib.suppress(OSError):
            self.process.kill()

    def terminate(self) -> None:
        """Ask it to end; allowed from every thread."""
        with contextlib.suppress(OSError):
            self.process.terminate()

    def close(self, wait_s: float = 5.0) -> int | None:
        """Kill it if it still runs, reap it and return its exit code; None when the kernel holds on to it."""
        if self._ended:
            return self.process.returncode
        self._ended = True
        if self.process.poll() is None:
            self.kill()
        try:
            self.process.wait(wait_s)
        except subprocess.TimeoutExpired:
            threading.Thread(target=self.process.wait, name="reaper", daemon=True).start()
        self._drain()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        return self.process.returncode

    def ending(self, wait_s: float = 2.0) -> int | None:
        """Return the exit code of a process that has closed its output; kill it when it does not end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(wait_s)
        return self.close()

    def _drain(self) -> None:
        try:
            while data := os.read(self._err, 65536):
                *lines, self._rest = (self._rest + data).split(b"\n")
                self._rest = self._rest[-2000:]
                self._keep(lines)
        except BlockingIOError:
            return
        except OSError:
            pass
        self._keep([self._rest])
        self._rest = b""
        if self._watches_err:
            self._watches_err = False
            self._poll.unregister(self._err)

    def _keep(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            text = redact(line.decode(errors="replace").strip())[:300]
            if text:
                self._lines.append(text)
