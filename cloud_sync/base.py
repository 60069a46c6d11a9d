"""What the parts of the service share: one object, made at start, handed to every router and loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cloud_sync.credentials import Keys
from cloud_sync.metrics import Metrics
from cloud_sync.settings import Settings
from cloud_sync.store.base import Database
from edge_sdk.schemas.state import Desired


class Link(Protocol):
    """The way from the service to its devices."""

    @property
    def connected(self) -> bool: ...

    async def publish_desired(self, tenant: str, device: str, desired: Desired | None) -> None:
        """Publish the retained desired state of a device; None clears it.

        The database is the truth: write `devices.desired_json` first. Without a connection this does nothing, because
        every desired state in the database is published again when the connection is back.
        """
        ...

    async def forget(self, tenant: str, device: str) -> None:
        """Clear what the broker retains of a device that left the fleet."""
        ...

    async def publish_ack(self, tenant: str, device: str, stream: str, ranges: Sequence[tuple[int, int]]) -> None:
        """Tell a device that inclusive sequence ranges of a stream are committed."""
        ...


class DeviceBroker(Protocol):
    """The part of the broker that enrolment needs: who may connect."""

    kind: str
    port: int

    @property
    def url(self) -> str: ...

    @property
    def connect_host(self) -> str:
        """Where this machine reaches it."""
        ...

    async def sync_credentials(self) -> None:
        """Make the broker accept exactly the devices that the database says are enrolled; returns when it does."""
        ...


@dataclass(kw_only=True)
class Services:
    """`catalog`, `signer`, `rollouts`, `drift` and `retrain` are set by their own modules when the service starts."""

    settings: Settings
    db: Database
    link: Link
    keys: Keys
    metrics: Metrics
    broker: DeviceBroker
    catalog: Any = None
    signer: Any = None
    rollouts: Any = None
    drift: Any = None
    retrain: Any = None
