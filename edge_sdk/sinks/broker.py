"""The MQTT broker of a sink: its address, and one way to connect to it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edge_sdk.errors import SyncError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """Where a broker is and who asks; `path` is what the address names on it, `uri` its form without credentials."""

    uri: str
    host: str
    port: int
    tls: bool
    path: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, address: str, uri: str, *, what: str, example: str) -> Broker:
        """Read `mqtt://[user:pass@]host[:port]/path` or `mqtts://…`; messages have `uri`, `what` and `example`.

        Raises:
            UsageError: it has another form.
        """
        try:
            parts = urlsplit(address)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
            parts = urlsplit("")
        path = unquote(parts.path[1:])
        if parts.scheme not in ("mqtt", "mqtts") or not host or not path:
            raise UsageError(f"`{uri}` must name a host and {what}", hint=example)
        return cls(
            uri=uri,
            host=host,
            port=port or (8883 if parts.scheme == "mqtts" else 1883),
            tls=parts.scheme == "mqtts",
            path=path,
            user=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
        )

    def connect(
        self,
        name: str,
        *,
        timeout_s: float,
        prepare: Callable[[paho.Client], None] = lambda _: None,
        on_connect: Callable[[paho.Client], None] = lambda _: None,
    ) -> paho.Client:
        """Return a connected client whose thread runs; a connection that is lost is made again.

        Args:
            name: start of the client id.
            timeout_s: how long the broker may take to accept.
            prepare: sets what must be set before connecting, such as a last will.
            on_connect: called after each connection, from the client's thread.

        Raises:
            SyncError: the broker cannot be reached or refuses.
        """
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"{name}-{uuid.uuid4().hex[:12]}")
        if self.user is not None:
            client.username_pw_set(self.user, self.password)
        if self.tls:
            client.tls_set()
        client.reconnect_delay_set(1, 30)
        prepare(client)
        answered = threading.Event()
        refused: list[str] = []

        def connected(_client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
            refused[:] = [str(reason)] if reason.is_failure else []
            if not reason.is_failure:
                on_connect(client)
            answered.set()

        client.on_connect = connected
        try:
            client.connect(self.host, self.port, keepalive=30)
        except OSError as error:
            raise SyncError(
                f"broker of `{self.uri}` cannot be reached: {(error.strerror or str(error)).lower()}",
                hint="check host and port",
            ) from None
        client.loop_start()
        if not answered.wait(timeout_s) or refused:
            why = refused[0] if refused else "no answer"
            client.disconnect()
            client.loop_stop()
            raise SyncError(f"broker of `{self.uri}` refused: {why}", hint="check user, password and port")
        return client
