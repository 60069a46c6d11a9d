"""A broker of our own, in a supervised child process: mosquitto, or the embedded one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pwd
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

from cloud_sync.broker.base import DEFAULT_PORT, Broker, replace
from cloud_sync.settings import Settings
from cloud_sync.store.base import Database
from edge_sdk.errors import SyncError
from edge_sdk.schemas.codec import MAX_MESSAGE_BYTES

logger = logging.getLogger(__name__)
_GUARD = Path(__file__).with_name("guard.py")
_START_TIMEOUT_S = 30.0
_RELOAD_TIMEOUT_S = 5.0
_RELOADED = "Reloading config."


class ProcessBroker(Broker):
    """A broker in a supervised child: restarted on the same port when it dies, dead when the service dies."""

    def __init__(self, settings: Settings, db: Database, on_restart: Callable[[], None]) -> None:
        super().__init__(settings, db)
        self.restarts = 0
        self.pid: int | None = None
        self._on_restart = on_restart
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._reloaded = asyncio.Event()
        self._tail: deque[str] = deque(maxlen=8)
        self._pid_file = self.directory / "pid"

    def command(self) -> list[str]:
        """Write the configuration and return the command that runs the broker on it."""
        raise NotImplementedError

    async def start(self) -> None:
        """Start the child and return when it accepts connections.

        Raises:
            SyncError: it did not come up.
        """
        await super().start()
        _kill_stale(self._pid_file, self.directory)
        self.port = await asyncio.to_thread(self._choose_port)
        await self._spawn()
        self._tasks.append(asyncio.create_task(self._supervise()))

    async def stop(self) -> None:
        self._stopping = True
        process = self._process
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 5)
            except TimeoutError:
                process.kill()
                await process.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._pid_file.unlink(missing_ok=True)

    async def _spawn(self) -> None:
        argv = [sys.executable, "-I", str(_GUARD), str(os.getpid()), *self.command()]
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        self._process, self.pid = process, process.pid
        self._pid_file.write_text(f"{process.pid}\n")
        reader = asyncio.create_task(self._read_log(process))
        self._tasks = [t for t in self._tasks if not t.done()] + [reader]
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _START_TIMEOUT_S
        while process.returncode is None and loop.time() < deadline:
            if await _accepts(self.connect_host, self.port):
                return
            await asyncio.sleep(0.02)
        await asyncio.wait([reader], timeout=1)
        if process.returncode is None:
            process.kill()
        reason = " / ".join(self._tail) or "no reason given"
        raise SyncError(
            f"the {self.kind} broker did not start on {self.host}:{self.port}: {reason}",
            hint="is the port taken? `[mqtt] port` in serve.toml chooses another",
        )

    async def _supervise(self) -> None:
        delay = self.settings.mqtt.restart_delay_s
        loop = asyncio.get_running_loop()
        while True:
            assert self._process is not None
            started = loop.time()
            code = await self._process.wait()
            if self._stopped():
                return
            self.restarts += 1
            self._on_restart()
            logger.warning("the %s broker ended with %s, starting it again on port %d", self.kind, code, self.port)
            delay = self.settings.mqtt.restart_delay_s if loop.time() - started > 10 else min(delay * 2, 5.0)
            await asyncio.sleep(delay)
            try:
                await asyncio.to_thread(self._write_access)
                await self._spawn()
            except SyncError as error:
                logger.error("%s", error.message)

    def _stopped(self) -> bool:
        return self._stopping

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while line := await process.stderr.readline():
            text = line.decode(errors="replace").strip()
            if _RELOADED in text:
                self._reloaded.set()
            elif text:
                self._tail.append(text)
                logger.debug("%s: %s", self.kind, text)

    async def _reload(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return  # the next start reads the files
        self._reloaded.clear()
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGHUP)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._reloaded.wait(), _RELOAD_TIMEOUT_S)

    def _choose_port(self) -> int:
        """Return the configured port, else the one used before, else 1883, else any; write it down."""
        kept = self.directory / "port"
        wanted = self.settings.mqtt.port
        if not wanted:
            before = kept.read_text().strip() if kept.exists() else ""
            tries = [int(before)] if before.isdecimal() else []
            tries += [DEFAULT_PORT] if self.settings.port else []
            wanted = next((p for p in tries if _is_free(self.host, p)), 0) or _free_port(self.host)
            if before.isdecimal() and wanted != int(before):
                logger.warning(
                    "broker port %s is taken: using %d, devices that know the old one must enrol again", before, wanted
                )
        replace(kept, f"{wanted}\n")
        return wanted


class MosquittoBroker(ProcessBroker):
    kind = "mosquitto"

    def __init__(self, settings: Settings, db: Database, on_restart: Callable[[], None], *, executable: str) -> None:
        super().__init__(settings, db, on_restart)
        self._executable = executable

    def command(self) -> list[str]:
        config = self.directory / "mosquitto.conf"
        lines = [
            "per_listener_settings false",
            "allow_anonymous false",
            f"listener {self.port} {self.host}",
            # A client's id is its user name: nobody can take over another device's session.
            "use_username_as_clientid true",
            f"password_file {self.passwords}",
            f"acl_file {self.acl}",
            "persistence true",
            f"persistence_location {self.directory}/",
            "autosave_interval 60",
            "max_inflight_messages 1000",
            "max_queued_messages 100000",
            f"message_size_limit {2 * MAX_MESSAGE_BYTES}",
            "set_tcp_nodelay true",
            "log_dest stderr",
            "log_type error",
            "log_type warning",
            "log_type information",
            "connection_messages false",
            f"user {pwd.getpwuid(os.geteuid()).pw_name}",
        ]
        replace(config, "\n".join(lines) + "\n")
        return [self._executable, "-c", str(config)]


class EmbeddedBroker(ProcessBroker):
    kind = "embedded"

    def __init__(self, settings: Settings, db: Database, on_restart: Callable[[], None]) -> None:
        super().__init__(settings, db, on_restart)
        self.protocol_5 = False
        self.notice = (
            "the embedded broker (amqtt) serves about 300 messages a second and forgets its queues when it ends "
            "(devices send again): install mosquitto for a real fleet"
        )

    def command(self) -> list[str]:
        config = self.directory / "embedded.json"
        settings = {"host": self.host, "port": self.port, "passwords": str(self.passwords), "acl": str(self.acl)}
        replace(config, json.dumps(settings))
        return [sys.executable, "-m", "cloud_sync.broker.embedded", str(config)]


def _kill_stale(pid_file: Path, directory: Path) -> None:
    """End a broker that an earlier service left behind on this data directory."""
    try:
        pid = int(pid_file.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except (OSError, ValueError):
        return
    if str(directory) in command:
        logger.warning("ending the broker that an earlier service left behind (pid %d)", pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _is_free(host: str, port: int) -> bool:
    try:
        _bind(host, port).close()
    except OSError:
        return False
    return True


def _free_port(host: str) -> int:
    with _bind(host, 0) as sock:
        return int(sock.getsockname()[1])


def _bind(host: str, port: int) -> socket.socket:
    family, kind, proto, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


async def _accepts(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 1)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
