"""/artifacts: the bytes of artifacts, by digest."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse

from cloud_sync.api.auth import Identity, operator, operator_or_device
from cloud_sync.base import Services

_BUFFER = 1024 * 1024


def router(services: Services) -> APIRouter:
    routes = APIRouter(tags=["artifacts"])

    @routes.post("/artifacts")
    async def upload(request: Request, who: Annotated[Identity, Depends(operator)]) -> dict[str, Any]:
        """Take an artifact file as the request's body, verify it and keep it under its digest."""
        path = services.catalog.incoming()
        try:
            with path.open("wb") as file:
                async for chunk in request.stream():
                    await asyncio.to_thread(file.write, chunk)
            row: dict[str, Any] = await asyncio.to_thread(services.catalog.adopt, path, actor=who.actor)
        finally:
            path.unlink(missing_ok=True)
        return row

    @routes.get("/artifacts/{sha256}", response_class=FileResponse)
    def download(sha256: str, _: Annotated[Identity, Depends(operator_or_device)]) -> FileResponse:
        """An artifact's bytes; `Range` resumes a download."""
        path = services.catalog.blob(sha256)
        headers = {"ETag": f'"{sha256}"', "Cache-Control": "private, max-age=31536000, immutable"}
        return FileResponse(path, media_type="application/octet-stream", headers=headers)

    @routes.get("/api/v1/artifacts")
    def artifacts(_: Annotated[Identity, Depends(operator)]) -> dict[str, Any]:
        """Every artifact of the catalog, newest first."""
        return {"artifacts": services.catalog.artifacts()}

    @routes.get("/api/v1/artifacts/{sha256}/lineage")
    def lineage(sha256: str, _: Annotated[Identity, Depends(operator)]) -> dict[str, Any]:
        """An artifact, its parent, that one's parent, …"""
        services.catalog.blob(sha256)
        return {"lineage": services.catalog.lineage(sha256)}

    return routes
