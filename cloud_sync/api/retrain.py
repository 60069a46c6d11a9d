"""/api/v1/retrain: retraining runs."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from cloud_sync.api.auth import Operator
from cloud_sync.base import Services


class RunRequest(BaseModel):
    """`model` may be left out while there is only one."""

    model: str | None = None
    reason: str = Field(default="by hand", max_length=200)


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix="/api/v1/retrain", tags=["retraining"])

    @routes.get("")
    def runs(_: Operator) -> dict[str, Any]:
        """Every run, newest first."""
        return {"runs": services.retrain.list()}

    @routes.post("")
    def run(body: RunRequest, who: Operator) -> dict[str, Any]:
        """Queue a run; the cool-down does not apply."""
        row: dict[str, Any] = services.retrain.request(body.model, reason=body.reason, actor=who.actor)
        return row

    @routes.get("/{run}")
    def show(run: str, _: Operator) -> dict[str, Any]:
        """One run with its gate."""
        row: dict[str, Any] = services.retrain.get(run)
        return row

    return routes
