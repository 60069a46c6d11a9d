"""/api/v1/devices: the fleet."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from cloud_sync import devices
from cloud_sync.api.auth import Operator
from cloud_sync.base import Services


class AddRequest(BaseModel):
    """`renew` lets an enrolled device enrol again."""

    device: str
    profile: str
    renew: bool = False
    ttl_s: float | None = Field(default=None, gt=0, le=365 * 86400)


class Page(BaseModel):
    """Which events to show."""

    stream: str | None = None
    after: str | None = None
    kind: str | None = None
    limit: int = Field(default=100, ge=1, le=1000)


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["devices"])
    db, settings = services.db, services.settings
    silent = settings.devices.silent_after_s

    @routes.get("/devices")
    def list_devices(who: Operator, profile: str | None = None, retired: bool = False) -> dict[str, Any]:
        """The fleet, by name."""
        now = time.time()
        rows = devices.list_devices(db, who.tenant, now=now, silent_after_s=silent, profile=profile, retired=retired)
        return {"devices": rows}

    @routes.post("/devices")
    def add(body: AddRequest, who: Operator) -> dict[str, Any]:
        """Make a device and the claim token with which it enrols; the token is shown this once."""
        now, ttl_s = time.time(), body.ttl_s or settings.devices.claim_ttl_s
        token = devices.add_device(
            db, who.tenant, body.device, body.profile, now=now, ttl_s=ttl_s, actor=who.actor, renew=body.renew
        )
        return {"device": body.device, "profile": body.profile, "token": token, "expires": now + ttl_s}

    @routes.get("/devices/{device}")
    def show(device: str, who: Operator) -> dict[str, Any]:
        """One device, with its last transitions and alarms."""
        found = devices.get_device(db, who.tenant, device, now=time.time(), silent_after_s=silent)
        transitions = db.query(
            "SELECT t, rev, release, rollout, sha256, from_phase, to_phase, error FROM transitions"
            " WHERE device = ? ORDER BY id DESC LIMIT 50",
            (device,),
        )
        alarms = db.query("SELECT t, kind, message FROM alarms WHERE device = ? ORDER BY id DESC LIMIT 50", (device,))
        return found | {"transitions": transitions, "alarms": alarms}

    @routes.delete("/devices/{device}")
    async def retire(device: str, who: Operator) -> dict[str, Any]:
        """Take a device out of the fleet; its history stays."""
        await asyncio.to_thread(devices.retire_device, db, who.tenant, device, now=time.time(), actor=who.actor)
        await services.link.forget(who.tenant, device)
        await services.broker.sync_credentials()
        return {"device": device, "retired": True}

    @routes.get("/devices/{device}/events")
    def events(device: str, who: Operator, page: Annotated[Page, Query()]) -> dict[str, Any]:
        """Decoded telemetry events in order; `next` is the `after` of the following page, null at the end."""
        devices.get_device(db, who.tenant, device, now=time.time(), silent_after_s=silent)
        found, following = devices.events(
            db, device, stream=page.stream, after=page.after, limit=page.limit, kind=page.kind
        )
        return {"device": device, "events": found, "next": following}

    return routes
