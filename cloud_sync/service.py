"""The running service: store, broker, ingest, application and the control loop, started and stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from cloud_sync import controller, devices
from cloud_sync.app import create_app
from cloud_sync.base import Services
from cloud_sync.broker.base import Broker
from cloud_sync.broker.choose import make_broker
from cloud_sync.broker.link import MqttLink
from cloud_sync.credentials import Keys
from cloud_sync.ingest.writer import AckKey, Ingest
from cloud_sync.metrics import Metrics
from cloud_sync.settings import Settings
from cloud_sync.store import open_store
from cloud_sync.store.lock import DataLock
from edge_sdk.errors import EXIT_INTERRUPTED, EXIT_OK, SyncError

logger = logging.getLogger(__name__)
_LOOP_RETRY_S = 5.0


class Service:
    """Everything behind one data directory."""

    def __init__(self, settings: Settings) -> None:
        """Take the data directory and open what is in it.

        Raises:
            SyncError: another service uses the directory, or the store or broker cannot be used.
        """
        self.settings = settings
        self._lock = DataLock(settings.data)
        try:
            self.keys = Keys.open(settings.data)
            self.db = open_store(settings.store, settings.data)
            self.metrics = Metrics()
            self.broker: Broker = make_broker(settings, self.db, on_restart=self.metrics.broker_restarts.inc)
            self._socket = _listen(settings.host, settings.port)
        except BaseException:
            self._lock.release()
            raise
        self.ingest: Ingest | None = None
        self.link: MqttLink | None = None
        self.services: Services | None = None
        self._server: _Server | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.settings.host, self.settings.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def start(self) -> None:
        """Start every part; when it returns, devices and operators are served.

        Raises:
            SyncError: a part does not come up; what was started is stopped again.
        """
        try:
            await self.broker.start()
            self.ingest = Ingest(self.db, self.metrics, self.settings.ingest, self._ack)
            self.link = MqttLink(
                self.broker,
                on_message=self.ingest.receive,
                on_connect=self._on_connect,
                on_state=lambda up: self.metrics.connected.set(int(up)),
            )
            self.services = Services(
                settings=self.settings,
                db=self.db,
                link=self.link,
                keys=self.keys,
                metrics=self.metrics,
                broker=self.broker,
            )
            await asyncio.to_thread(_assemble, self.services)
            self.ingest.start()
            await self.link.start()
            await self._start_http(self.services)
            self._tasks.append(asyncio.create_task(_for_ever(controller.run, self.services)))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop in the order in which nothing is lost: requests, control, messages, broker, store, lock."""
        if self._server is not None:
            self._server.should_exit = True
        control, self._tasks = self._tasks[1:], self._tasks[:1]
        for task in control:
            task.cancel()
        await asyncio.gather(*control, *self._tasks, return_exceptions=True)
        if self.link is not None:
            await self.link.stop()
        if self.ingest is not None:
            await self.ingest.stop()
        await self.broker.stop()
        self._socket.close()
        self.db.close()
        self._lock.release()

    async def wait(self) -> None:
        """Return when the HTTP server ends, which it does when it is told to stop."""
        await self._tasks[0]

    async def _start_http(self, services: Services) -> None:
        config = uvicorn.Config(
            create_app(services),
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=3,
            timeout_keep_alive=30,
        )
        self._server = _Server(config)
        self._tasks.append(asyncio.create_task(self._server.serve(sockets=[self._socket])))
        while not self._server.started:
            if self._tasks[0].done():
                raise SyncError(f"the HTTP server did not start on {self.url}", hint="`-v` shows its log")
            await asyncio.sleep(0.005)

    async def _on_connect(self) -> None:
        """Bring the broker in line with the database after each (re)connection."""
        assert self.link is not None
        await asyncio.to_thread(devices.mark_all_offline, self.db)
        rows = await asyncio.to_thread(
            self.db.query, "SELECT id, tenant, desired_json FROM devices WHERE desired_json IS NOT NULL"
        )
        for row in rows:
            self.link.publish(row["tenant"], row["id"], "desired", row["desired_json"].encode(), retain=True)

    def _ack(self, key: AckKey, ranges: list[tuple[int, int]]) -> None:
        from edge_sdk.schemas import codec

        tenant, device, stream = key
        if self.link is not None:
            self.link.publish(tenant, device, "ack", codec.encode_ack(stream, ranges))


async def serve(settings: Settings, on_ready: Callable[[Service], None]) -> int:
    """Run the service until SIGTERM (exit 0) or SIGINT (exit 130); `on_ready` is called when it serves."""
    service = Service(settings)
    loop = asyncio.get_running_loop()
    interrupted = False

    def on_signal(number: int) -> None:
        nonlocal interrupted
        interrupted = number == signal.SIGINT
        if stopping.is_set():
            logger.warning("stopping already")
        stopping.set()

    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    start = asyncio.create_task(service.start())
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait([start, stop], return_when=asyncio.FIRST_COMPLETED)
    if not start.done():
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
        return EXIT_INTERRUPTED if interrupted else EXIT_OK
    start.result()
    on_ready(service)
    http = asyncio.create_task(service.wait())
    await asyncio.wait([http, stop], return_when=asyncio.FIRST_COMPLETED)
    failed = http.done() and not stopping.is_set()
    await service.stop()
    stop.cancel()
    if failed:
        raise SyncError("the HTTP server ended by itself", hint="`-v` shows its log")
    return EXIT_INTERRUPTED if interrupted else EXIT_OK


def _assemble(services: Services) -> None:
    """Give the services what publishes and steers; each part reads its own files and tables."""
    from cloud_sync.releases.catalog import Catalog
    from cloud_sync.releases.repository import TrustRepository

    settings = services.settings
    services.signer = TrustRepository(settings.data, settings.trust)
    services.signer.ensure(time.time())
    services.catalog = Catalog(settings.data, services.db, services.signer, settings.tenant)
    controller.attach(services)


async def _for_ever(run: Callable[[Services], Any], services: Services) -> None:
    while True:
        try:
            await run(services)
        except Exception:
            logger.exception("the control loop failed, it is started again")
        await asyncio.sleep(_LOOP_RETRY_S)


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: the service stops its parts in order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(256)
        sock.setblocking(False)
    except OSError as error:
        raise SyncError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="another program has the port: `--port N` chooses another, 0 any free one",
        ) from None
    os.set_inheritable(sock.fileno(), False)
    return sock
