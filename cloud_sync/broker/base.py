"""What every broker is to the service: an address, an account, and the files that say who may connect."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from urllib.parse import urlsplit

from cloud_sync.broker.access import SERVICE_USER, render_acl, render_passwords
from cloud_sync.credentials import hash_credential, new_secret
from cloud_sync.files import atomic_write
from cloud_sync.settings import Settings
from cloud_sync.store.base import Database
from edge_sdk.errors import SyncError

DEFAULT_PORT = 1883


class Broker:
    """Where the devices and the service meet; `username` and `password` are the service's own."""

    kind = "broker"
    notice: str | None = None

    def __init__(self, settings: Settings, db: Database) -> None:
        self.settings = settings
        self.host, self.port = settings.host, 0
        self.username, self.password = SERVICE_USER, new_secret()
        self.tls = False
        self.protocol_5 = True
        self._db = db
        self._service_hash = hash_credential(self.password)
        self._sync = asyncio.Lock()
        self.directory = settings.data / "broker"
        self.passwords, self.acl = self.directory / "passwd", self.directory / "acl"

    @property
    def url(self) -> str:
        return f"mqtt{'s' * self.tls}://{self.connect_host}:{self.port}"

    @property
    def connect_host(self) -> str:
        """Where the service itself reaches the broker."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)

    async def start(self) -> None:
        await asyncio.to_thread(self._write_access)

    async def stop(self) -> None: ...

    async def sync_credentials(self) -> None:
        """Make the broker accept exactly the devices that the database says are enrolled."""
        async with self._sync:
            if await asyncio.to_thread(self._write_access):
                await self._reload()

    async def _reload(self) -> None: ...

    def _write_access(self) -> bool:
        """Write both files and return whether one of them changed."""
        rows = self._db.query(
            "SELECT id, tenant, credential_hash FROM devices WHERE credential_hash IS NOT NULL AND retired_at IS NULL"
        )
        passwords = render_passwords({r["id"]: r["credential_hash"] for r in rows}, self._service_hash)
        acl = render_acl({self.settings.tenant, *(r["tenant"] for r in rows)})
        self.directory.mkdir(mode=0o700, exist_ok=True)
        return any([replace(self.passwords, passwords), replace(self.acl, acl)])


class ExternalBroker(Broker):
    """A broker that somebody else runs: its URL holds the service's user and password, or `[mqtt]` does.

    The service cannot tell it who may connect; it keeps `broker/passwd` and `broker/acl` of its data directory up to
    date, in mosquitto's format, for whoever does.
    """

    kind = "external"

    def __init__(self, settings: Settings, db: Database) -> None:
        super().__init__(settings, db)
        parts = urlsplit(settings.broker)
        if not parts.hostname:
            raise SyncError(f"broker `{settings.broker}` names no host", hint="write it as mqtt://HOST:PORT")
        self.tls = parts.scheme == "mqtts"
        self.host, self.port = parts.hostname, parts.port or (8883 if self.tls else DEFAULT_PORT)
        self.username = settings.mqtt.username or parts.username or SERVICE_USER
        self.password = settings.mqtt.password or parts.password or ""
        self._service_hash = hash_credential(self.password)
        self.notice = f"the broker is not ours: give it {self.passwords} and {self.acl} when devices are added"


def replace(path: Path, text: str) -> bool:
    """Write a small private file atomically and return whether its content changed."""
    with contextlib.suppress(OSError):
        if path.read_text() == text:
            return False
    atomic_write(path, text.encode(), mode=0o600)
    return True
