"""The embedded broker: amqtt in a process of its own, with the same password and ACL files as mosquitto.

amqtt 0.12 alone checks a client after it has attached it to an existing session, takes last wills on any topic and
sends retained messages of other clients' filters after a reconnect; `GuardedBroker` closes those. It speaks MQTT 3.1.1,
keeps sessions and retained messages in memory only, and manages about 300 messages a second.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from pathlib import Path
from typing import Any

from amqtt.adapters import ReaderAdapter, WriterAdapter
from amqtt.broker import Broker
from amqtt.contexts import Action
from amqtt.errors import MQTTError
from amqtt.mqtt.connack import NOT_AUTHORIZED, ConnackPacket
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.session import Session

from cloud_sync.broker_access import AccessRules

logger = logging.getLogger("cloud_sync.broker_embedded")
_MAX_QUEUED = 1000
RELOADED = "Reloading config."


class GuardedBroker(Broker):  # type: ignore[misc]
    """amqtt's broker behind one gate for every connection."""

    def __init__(self, config: dict[str, Any], rules: AccessRules) -> None:
        super().__init__(config)
        self.rules = rules

    async def _initialize_client_session(
        self, reader: ReaderAdapter, writer: WriterAdapter, remote_address: str, remote_port: int
    ) -> tuple[BrokerProtocolHandler, Session]:
        try:
            handler, session = await BrokerProtocolHandler.init_from_connect(reader, writer, self.plugins_manager)
        except Exception as error:
            await writer.close()
            raise MQTTError(f"{remote_address}:{remote_port} sent no CONNECT: {error}") from None
        if not self._admits(session):
            logger.info("refused %s:%s as %r", remote_address, remote_port, session.username)
            await ConnackPacket.build(0, NOT_AUTHORIZED).to_stream(writer)
            await writer.close()
            raise MQTTError("not authorised")
        # The user name is the client id, so that nobody can take over another device's session.
        session.client_id = session.username
        session.parent = 0
        old, old_handler = self._sessions.get(session.client_id, (None, None))
        if old is None:
            return handler, session
        await self._end_connection(old, old_handler)
        if session.clean_session:
            await self._delete_session(session.client_id)
            return handler, session
        for name in (
            "will_flag",
            "will_message",
            "will_topic",
            "will_qos",
            "will_retain",
            "keep_alive",
            "clean_session",
        ):
            setattr(old, name, getattr(session, name))
        old.username, old.password, old.parent = session.username, session.password, 1
        return handler, old

    def _admits(self, session: Session) -> bool:
        if not self.rules.authenticate(session.username, session.password):
            return False
        return not session.will_flag or self.rules.allows(session.username, session.will_topic or "", "write")

    @staticmethod
    async def _end_connection(session: Session, handler: BrokerProtocolHandler) -> None:
        """End a connection that its device has replaced, with its last will, before the new one begins."""
        if session.transitions.state == "connected":
            await handler.handle_connection_closed()
        for _ in range(500):
            if session.transitions.state != "connected":
                return
            await asyncio.sleep(0.01)

    async def _authenticate(self, session: Session, _: Any) -> bool:
        # The gate has checked before any session was touched; this is the second lock on the same door.
        return self.rules.authenticate(session.username, session.password)

    async def _topic_filtering(self, session: Session, topic: str, action: Action) -> bool:
        user = session.username or ""
        if action == Action.SUBSCRIBE:
            return self.rules.may_subscribe(user, topic)
        return self.rules.allows(user, topic, "write" if action == Action.PUBLISH else "read")

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        subscribers = self._subscriptions.get(subscription[0], [])
        if any(s.client_id == session.client_id for s, _ in subscribers):
            await super()._publish_retained_messages_for_subscription(subscription, session)

    async def _retain_broadcast_message(self, broadcast: Any, qos: int, target_session: Session) -> None:
        while target_session.retained_messages.qsize() >= _MAX_QUEUED:
            target_session.retained_messages.get_nowait()
        await super()._retain_broadcast_message(broadcast, qos, target_session)

    async def drop_strangers(self) -> None:
        """Close the connections whose credential is no longer in the password file."""
        for session, handler in list(self._sessions.values()):
            if session.transitions.state == "connected" and not await self._authenticate(session, None):
                await handler.handle_connection_closed()


async def run(config: dict[str, Any]) -> None:
    """Serve on `config["host"]`:`config["port"]` until SIGTERM; SIGHUP reads the password and ACL files again."""
    passwords, acl = Path(config["passwords"]), Path(config["acl"])
    rules = AccessRules.parse(passwords.read_text(), acl.read_text())
    listener = {"type": "tcp", "bind": f"{config['host']}:{config['port']}", "max_connections": 0}
    broker = GuardedBroker({"listeners": {"default": listener}, "plugins": {}}, rules)
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    strangers: set[asyncio.Task[None]] = set()

    def reload() -> None:
        broker.rules = AccessRules.parse(passwords.read_text(), acl.read_text())
        task = loop.create_task(broker.drop_strangers())
        strangers.add(task)
        task.add_done_callback(strangers.discard)
        sys.stderr.write(RELOADED + "\n")
        sys.stderr.flush()

    loop.add_signal_handler(signal.SIGHUP, reload)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await broker.start()
    await stop.wait()
    await broker.shutdown()


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    asyncio.run(run(json.loads(Path(sys.argv[1]).read_text())))
