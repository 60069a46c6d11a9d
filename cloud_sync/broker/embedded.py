"""The embedded broker: amqtt in a process of its own, with the same password and ACL files as mosquitto.

amqtt 0.12 alone checks a client after it has attached it to an existing session, takes last wills on any topic and
sends retained messages of other clients' filters after a reconnect; `GuardedBroker` closes those. It ends a connection
by cancelling its reader, and on Python 3.11 a packet that arrives in that turn of the loop swallows the cancellation
(`asyncio.wait_for`): amqtt then waits for ever, and marks the next connection of that device as disconnected, which
gets no message. `GuardedBroker` therefore closes the socket too. It speaks MQTT 3.1.1, keeps sessions and retained
messages in memory only, and manages about 300 messages a second.
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

from cloud_sync.broker.access import AccessRules

logger = logging.getLogger("cloud_sync.broker.embedded")
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
        ended = await self._end_connection(old, old_handler)
        if session.clean_session or not ended:  # one that does not end keeps its session object to itself
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
    async def _end_connection(session: Session, handler: BrokerProtocolHandler) -> bool:
        """End a connection that its device has replaced, with its last will; return whether it has ended."""
        if session.transitions.state == "connected":
            await _close_now(handler)
        for _ in range(500):
            if session.transitions.state != "connected":
                return True
            await asyncio.sleep(0.01)
        return False

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
                await _close_now(handler)


async def _close_now(handler: BrokerProtocolHandler) -> None:
    """Tell the loop of a connection that it has ended, and close its socket so that its reader and writer end too."""
    await handler.handle_connection_closed()
    if handler.writer is not None:
        handler.writer._writer.transport.abort()  # the adapter's own `close` waits for a client that does not read


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
