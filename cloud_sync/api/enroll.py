"""POST /api/v1/enroll: a claim token for an identity."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from cloud_sync import devices
from cloud_sync.base import Services


class EnrollRequest(BaseModel):
    """`nonce` is any text of the device's own that it repeats when it has to ask again; `csr` is reserved."""

    token: str = Field(min_length=1, max_length=256)
    nonce: str | None = Field(default=None, min_length=8, max_length=128)
    csr: str | None = Field(default=None, max_length=16384)


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["enrolment"])

    @routes.post("/enroll")
    async def enroll(body: EnrollRequest, request: Request) -> dict[str, Any]:
        """Exchange a claim token for the device's identity; the credential is shown this once."""
        root = await asyncio.to_thread(_tuf_root, services)
        got = await asyncio.to_thread(devices.enroll, services.db, body.token, body.nonce, now=time.time())
        await services.broker.sync_credentials()
        return {
            "tenant": got.tenant,
            "device": got.device,
            "profile": got.profile,
            "broker_url": _broker_url(services, request),
            "credential": got.credential,
            "tuf_root": root,
        }

    return routes


def _tuf_root(services: Services) -> str:
    root: bytes = services.signer.root_bytes()
    return root.decode()


def _broker_url(services: Services, request: Request) -> str:
    """Return the broker as the device can reach it: by the name under which it reached this service."""
    broker = services.broker
    if broker.kind == "external":
        return broker.url
    host = services.settings.public_host or request.url.hostname or broker.connect_host
    return f"mqtt://{f'[{host}]' if ':' in host else host}:{broker.port}"
