"""/api/v1/drift: verdicts and their evidence."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from cloud_sync.api.auth import Operator
from cloud_sync.base import Services


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix="/api/v1/drift", tags=["drift"])

    @routes.get("")
    def verdicts(_: Operator, device: str | None = None) -> dict[str, Any]:
        """The newest verdict of each device and kind, and each pipeline's state; device `*` is pooled."""
        devices = [d for d in services.drift.devices() if device is None or d["device"] == device]
        return {"verdicts": services.drift.verdicts(device), "devices": devices}

    @routes.get("/report", response_class=HTMLResponse)
    def report(_: Operator, device: str | None = None) -> HTMLResponse:
        """A self-contained HTML report with plots."""
        import time

        from cloud_sync.drift.report import render

        page = render(services.drift, device=device, now=time.time())
        return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})

    @routes.get("/{device}")
    def series(device: str, _: Operator, limit: int = 500) -> dict[str, Any]:
        """A device's verdicts over time, oldest first, with histograms."""
        return {"device": device, "verdicts": services.drift.series(device, max(1, min(limit, 5000)))}

    return routes
