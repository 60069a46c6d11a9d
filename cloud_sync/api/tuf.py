"""/tuf/*: signed metadata, open to everybody; what protects it are its signatures."""

from __future__ import annotations

import re

from fastapi import APIRouter
from fastapi.responses import FileResponse

from cloud_sync.base import Services
from cloud_sync.errors import NotFoundError

_NAME = re.compile(r"(timestamp|[1-9][0-9]{0,9}\.[a-z0-9][a-z0-9_-]{0,62})\.json")


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix="/tuf", tags=["trust"])

    @routes.get("/{name}", response_class=FileResponse)
    def metadata(name: str) -> FileResponse:
        """One metadata file: `timestamp.json` or `VERSION.ROLE.json`; the timestamp must never be cached."""
        path = services.signer.tuf / name
        if not _NAME.fullmatch(name) or not path.is_file():
            raise NotFoundError(f"no metadata {name[:80]!r}", hint="versions that nobody refers to are removed")
        cache = "no-store" if name == "timestamp.json" else "public, max-age=86400, immutable"
        return FileResponse(path, media_type="application/json", headers={"Cache-Control": cache})

    return routes
