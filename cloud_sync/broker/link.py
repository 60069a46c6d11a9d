"""The service's MQTT session: it reconnects for ever, acknowledges only what is committed and never queues blindly."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from gmqtt import Client
from gmqtt.mqtt.constants import MQTTv50, MQTTv311

from cloud_sync.broker.base import Broker
from edge_sdk.errors import SyncError
from edge_sdk.schemas import codec
from edge_sdk.schemas.ids import TOPIC_ROOT, UP, topic
from edge_sdk.schemas.state import Desired

logger = logging.getLogger(__name__)
CLIENT_ID = "service.ingest"
_FOR_EVER = 0xFFFFFFFF
_CONNECT_TIMEOUT_S = 10.0
_MAX_DELAY_S = 5.0
_NOT_TAKEN = 0x80
_NEVER = -2  # gmqtt compares its count of failures, 0 at first, with `<=`
logging.getLogger("gmqtt").addHandler(logging.NullHandler())  # what matters of its complaints is logged here

OnMessage = Callable[[str, bytes, bool], Awaitable[None]]
OnConnect = Callable[[], Awaitable[None]]


class MqttLink:
    """A Link over MQTT QoS 1.

    Each connection is a new client object on the same persistent session, so that no message identifier of an old
    connection is ever used on a new one. A message is acknowledged to the broker when `on_message` returns; when it
    raises it is not, and the broker sends it again.
    """

    def __init__(
        self, broker: Broker, *, on_message: OnMessage, on_connect: OnConnect, on_state: Callable[[bool], None]
    ) -> None:
        self._broker = broker
        self._on_message = on_message
        self._on_connect = on_connect
        self._on_state = on_state
        self._client: Any = None
        self._task: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._first = asyncio.Event()

    @property
    def connected(self) -> bool:
        return self._client is not None

    async def start(self, timeout_s: float = _CONNECT_TIMEOUT_S) -> None:
        """Connect, and keep connected until `stop`.

        Raises:
            SyncError: the first connection does not come up in time.
        """
        self._task = asyncio.create_task(self._keep_connected())
        try:
            await asyncio.wait_for(self._first.wait(), timeout_s)
        except TimeoutError:
            await self.stop()
            raise SyncError(
                f"cannot open a session at the broker {self._broker.url}",
                hint="is it running, and does it know the service's user and password?",
            ) from None

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def publish_desired(self, tenant: str, device: str, desired: Desired | None) -> None:
        self.publish(tenant, device, "desired", b"" if desired is None else desired.to_json(), retain=True)

    async def forget(self, tenant: str, device: str) -> None:
        for leaf in ("desired", "state"):
            self.publish(tenant, device, leaf, b"", retain=True)

    async def publish_ack(self, tenant: str, device: str, stream: str, ranges: Sequence[tuple[int, int]]) -> None:
        self.publish(tenant, device, "ack", codec.encode_ack(stream, ranges))

    def publish(self, tenant: str, device: str, leaf: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish to one device; without a connection nothing happens (see Link)."""
        if self._client is None:
            return
        try:
            self._client.publish(topic(tenant, device, leaf), payload, qos=1, retain=retain)
        except Exception:
            logger.warning("publishing %s to %s failed", leaf, device, exc_info=True)

    async def _keep_connected(self) -> None:
        delay = 0.1
        while True:
            self._lost.clear()
            client = self._new_client()
            try:
                await asyncio.wait_for(self._connect(client), _CONNECT_TIMEOUT_S)
                self._set(client)
                await self._on_connect()
                for leaf in UP:
                    client.subscribe(f"{TOPIC_ROOT}/+/+/{leaf}", qos=1)
                self._first.set()
                delay = 0.1
                await self._lost.wait()
                logger.warning("the session at %s is lost", self._broker.url)
            except (OSError, TimeoutError) as error:
                logger.warning("cannot connect to %s: %s", self._broker.url, error or "no answer")
            except asyncio.CancelledError:
                await _close(client)
                raise
            except Exception as error:
                logger.warning("the session at %s failed: %s", self._broker.url, error)
            finally:
                self._set(None)
            await _close(client)
            await asyncio.sleep(delay)
            delay = min(delay * 2, _MAX_DELAY_S)

    async def _connect(self, client: Any) -> None:
        version = MQTTv50 if self._broker.protocol_5 else MQTTv311
        await client.connect(
            self._broker.connect_host, self._broker.port, ssl=self._broker.tls, keepalive=30, version=version
        )

    def _new_client(self) -> Any:
        extra = {"session_expiry_interval": _FOR_EVER} if self._broker.protocol_5 else {}
        client = Client(CLIENT_ID, clean_session=False, optimistic_acknowledgement=False, **extra)
        client.set_config({"reconnect_retries": _NEVER})
        client.set_auth_credentials(self._broker.username, self._broker.password)

        async def on_message(_: Any, name: str, payload: bytes, __: int, properties: dict[str, Any]) -> int:
            try:
                await self._on_message(name, payload, bool(properties.get("retain")))
            except asyncio.CancelledError:  # the service stops, and with it this closed connection
                return _NOT_TAKEN
            return 0

        def on_disconnect(gone: Any, *_: Any) -> None:
            if gone is self._client or self._client is None:
                self._lost.set()

        client.on_message = on_message
        client.on_disconnect = on_disconnect
        return client

    def _set(self, client: Any) -> None:
        self._client = client
        self._on_state(client is not None)


async def _close(client: Any) -> None:
    with contextlib.suppress(Exception):
        await asyncio.wait_for(client.disconnect(), 2)
