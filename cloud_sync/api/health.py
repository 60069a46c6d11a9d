"""/healthz, /readyz and /metrics."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from cloud_sync.base import Services
from cloud_sync.devices import STATUSES, device_status
from edge_sdk import __version__
from edge_sdk.errors import EdgeError


def router(services: Services) -> APIRouter:
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """The process answers."""
        return {"ok": True, "version": __version__}

    @routes.get("/readyz")
    def readyz() -> Response:
        """The broker session is up and the database takes writes; 503 with the reasons when not."""
        checks = {"broker": services.link.connected, "store": _writable(services)}
        ok = all(checks.values())
        return JSONResponse({"ok": ok, **checks}, status_code=200 if ok else 503)

    @routes.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """Prometheus text format."""
        _fleet(services, time.time())
        return Response(services.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return routes


def _writable(services: Services) -> bool:
    try:
        services.db.execute("UPDATE devices SET online = online WHERE id = ?", ("",))
    except EdgeError:
        return False
    return True


def _fleet(services: Services, now: float) -> None:
    rows = services.db.query(
        "SELECT credential_hash IS NOT NULL AS enrolled, online, last_seen, retired_at, outbox_rows, outbox_dropped"
        " FROM devices WHERE retired_at IS NULL"
    )
    count = dict.fromkeys(STATUSES, 0)
    for row in rows:
        count[device_status(row, now, services.settings.devices.silent_after_s)] += 1
    for status, n in count.items():
        services.metrics.devices.labels(status).set(n)
    services.metrics.outbox_rows.set(sum(r["outbox_rows"] or 0 for r in rows))
    services.metrics.outbox_dropped.set(sum(r["outbox_dropped"] or 0 for r in rows))
