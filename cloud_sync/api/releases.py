"""/api/v1/releases: signed sets of artifacts."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from cloud_sync.api.auth import Operator
from cloud_sync.base import Services


class ReleaseRequest(BaseModel):
    """One artifact per profile, by digest, uploaded before."""

    model: str = Field(min_length=1, max_length=100)
    version: str = Field(min_length=1, max_length=100)
    artifacts: list[str] = Field(max_length=1000)


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["releases"])

    @routes.get("/releases")
    def releases(_: Operator) -> dict[str, Any]:
        """Every release, newest first, and each profile's current one."""
        return {"releases": services.catalog.list_releases(), "current": services.catalog.current()}

    @routes.post("/releases")
    def create(body: ReleaseRequest, who: Operator) -> dict[str, Any]:
        """Sign artifacts as a release of a model version; releases never change."""
        row: dict[str, Any] = services.catalog.create_release(body.model, body.version, body.artifacts, actor=who.actor)
        return row

    @routes.get("/releases/{release}")
    def show(release: str, _: Operator) -> dict[str, Any]:
        """One release."""
        row: dict[str, Any] = services.catalog.release(release)
        return row

    @routes.get("/trust")
    def trust(_: Operator) -> dict[str, Any]:
        """Every TUF role: version, expiry in seconds since the epoch, key ids."""
        import dataclasses
        import time

        return {"roles": [dataclasses.asdict(r) for r in services.signer.status(time.time())]}

    return routes
