"""The embedded broker in this process, to bring about what two processes do only now and then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("amqtt", reason="needs edge-sdk[cloud]")
paho = pytest.importorskip("paho.mqtt.client", reason="needs edge-sdk[agent]")

from cloud_sync.broker.access import SERVICE_USER, AccessRules, render_acl  # noqa: E402
from cloud_sync.broker.embedded import GuardedBroker  # noqa: E402
from cloud_sync.credentials import hash_credential  # noqa: E402

ACK, UP = "edge/v1/default/cam/ack", "edge/v1/default/cam/t"


def rules(credential: str) -> AccessRules:
    lines = [f"{SERVICE_USER}:{hash_credential('s')}", f"cam:{hash_credential(credential)}"]
    return AccessRules.parse("\n".join(lines), render_acl(["default"]))


class Peer:
    """A client that keeps what it gets."""

    def __init__(self, port: int, user: str, credential: str, wanted: str) -> None:
        self.subscribed, self.got = False, []
        self.mqtt = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=user, clean_session=False)
        self.mqtt.username_pw_set(user, credential)
        self.mqtt.on_connect = lambda c, *_: c.subscribe(wanted, 1)
        self.mqtt.on_subscribe = lambda *_: setattr(self, "subscribed", True)
        self.mqtt.on_message = lambda *a: self.got.append((a[2].topic, a[2].payload))
        self.mqtt.connect("127.0.0.1", port, keepalive=10)
        self.mqtt.loop_start()


async def until(what: Callable[[], Any], why: str) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline, f"waited in vain for {why}"
        await asyncio.sleep(0.01)


async def scene(disturb: Callable[[Any], None]) -> None:
    config = {"listeners": {"default": {"type": "tcp", "bind": "127.0.0.1:0", "max_connections": 0}}, "plugins": {}}
    broker, peers = GuardedBroker(config, rules("old")), []
    await broker.start()
    try:
        port = broker._servers["default"].instance.sockets[0].getsockname()[1]
        service = Peer(port, SERVICE_USER, "s", "edge/v1/+/+/t")
        gone = Peer(port, "cam", "old", ACK)
        peers += [service, gone]
        await until(lambda: service.subscribed and gone.subscribed, "the first connections")
        disturb(broker._sessions["cam"][1])
        broker.rules = rules("new")
        await broker.drop_strangers()
        back = Peer(port, "cam", "new", ACK)
        peers.append(back)
        await until(lambda: back.subscribed, "the new connection")
        back.mqtt.publish(UP, b"batch", qos=1)
        await until(lambda: (UP, b"batch") in service.got, "the batch at the service")
        service.mqtt.publish(ACK, b"ack", qos=1)
        await until(lambda: (ACK, b"ack") in back.got, "the acknowledgement at the device")
    finally:
        for peer in peers:
            peer.mqtt.disconnect()
            peer.mqtt.loop_stop()
        await broker.shutdown()


def test_a_packet_that_arrives_as_a_revoked_connection_is_ended_does_not_silence_the_next_connection():
    def disturb(handler: Any) -> None:
        stop = handler.stop

        async def stop_while_a_packet_arrives() -> None:
            handler.stop = stop
            stream = handler.reader._reader
            if not stream._eof:
                stream.feed_data(b"\x40\x02\x00\x09")  # PUBACK 9
                await asyncio.sleep(0)
            await stop()

        handler.stop = stop_while_a_packet_arrives

    asyncio.run(scene(disturb))


def test_a_connection_that_never_ends_does_not_silence_the_next_connection():
    def disturb(handler: Any) -> None:
        stop = handler.stop

        async def stop_too_late() -> None:
            handler.stop = stop
            await asyncio.sleep(6)
            await stop()

        handler.stop = stop_too_late

    asyncio.run(scene(disturb))
